"""python -m training.mini STAGE --data FOLDER --work FOLDER (see examples/train_mini.sh for all stages in order)"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path

from captioner.errors import BadInput
from captioner.run import lastresort

STAGES = {
    "features": "features", "texts": "features", "split": "split", "pairs": "pairs", "head": "head",
    "language": "language", "gist": "gist", "reward": "reward", "choose": "export", "export": "export",
    "measure": "measure",
}  # fmt: skip
"""Each stage is the function of its name in this module; its parameters are options."""
LEFT_BY = {
    "features": "features", "pair-texts": "texts", "prompts": "texts", "validation": "split",
    "validation-embeddings": "split", "head": "head", "head-without-validation": "head", "guesses": "head",
    "blur": "head", "tokenizer": "language", "language": "language", "gist": "gist", "reward": "reward",
}  # fmt: skip
"""Which stage leaves the file or folder of this stem in the work folder."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.mini", description=__doc__)
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help=f"one of {', '.join(STAGES)}")
    parser.add_argument("--data", type=Path, required=True, help="the folder of pairs/, prompts/ and heldout-dev/")
    parser.add_argument("--work", type=Path, required=True, help="the folder where each stage leaves its files")
    parser.add_argument(
        "--most", type=above_0, default=400_000, help="texts: prompts taken of the largest list (default: 400000)"
    )
    parser.add_argument("--backwards", action="store_true", help="features: begin with the last file")
    parser.add_argument("--steps", type=above_0, help="language, reward: optimizer steps, as planned if left out")
    parser.add_argument(
        "--count", type=above_0, default=400, help="choose: at most so many validation prompts (default: 400)"
    )
    parser.add_argument("--out", type=Path, help="export, measure: the checkpoint folder; pairs: the data")
    parser.add_argument("--held-back", action="store_true", help="export: with the head that met no validation prompt")
    parser.add_argument("--seed", type=int, default=7, help="of everything drawn by chance (default: 7)")
    args = parser.parse_args(argv)
    stage = getattr(import_module(f"training.mini.{STAGES[args.stage]}"), args.stage)
    given = {name: getattr(args, name) for name in signature(stage).parameters}
    if "out" in given and args.out is None:
        raise BadInput(f"Stage `{args.stage}` needs a folder: --out FOLDER.")
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        stage(**{name: value for name, value in given.items() if value is not None})
    except FileNotFoundError as error:
        missing = Path(error.filename or "")
        inside = missing.relative_to(args.work).parts if args.work in missing.parents else ("",)
        if not (first := LEFT_BY.get(inside[0].partition(".")[0])):
            raise
        raise BadInput(f"{missing} is missing: run stage `{first}` first.") from error


def above_0(text: str) -> int:
    """A number of an option."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be at least 1")
    return number


if __name__ == "__main__":
    lastresort.run("python -m training.mini", main)
