"""The settings of the data commands, and the command line made from them. Light: `--help` imports nothing else."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.recipe import Prose, add_options, check_bounds, option, settings


@dataclass(frozen=True)
class Preparation:
    """Clean, filter and de-duplicate pairs (or prompts alone), and split them for training and validation.

    python -m training.data prepare --data pictures/ --data diffusiondb:~/ddb@0.5 --out prepared/
    python -m training.data prepare --data prompts.txt.gz --out prepared-prompts/

    Writes train-*.parquet and validation-*.parquet with the pictures inside (prompts alone: train.txt and
    validation.txt), summary.json with the counts of every stage, and summary.png.
    """

    data: list[str] = option(
        [],
        "a folder, parquet, kaggle:DIR, coco:DIR, coco:FILE:PART (Karpathy's), diffusiondb:DIR, hub:NAME or "
        ".txt(.gz); several add up",
        required=True,
    )
    out: str = option("", "the folder to write; must be new or empty", required=True)
    overwrite: bool = option(False, "replace what an earlier run has written to --out")
    text_column: str = option("", "the caption's column, if it has an unusual name")
    image_column: str = option("", "the picture's column, if it has an unusual name")
    drop_trending: bool = option(False, "also drop where pictures were liked: 'trending on artstation'")
    english_only: bool = option(False, "drop prompts that are not English (they are counted in any case)")
    min_words: int = option(2, "drop shorter prompts", least=0)
    max_words: int = option(100, "drop longer prompts", least=1)
    max_nsfw: float = option(1.0, "drop what DiffusionDB scores above this; 1 drops only what it has blurred", least=0)
    min_side: int = option(64, "drop pictures whose shorter side has fewer pixels", least=0)
    threshold: float = option(0.85, "of prompts with a higher cosine, keep the first; 1: only equal ones go", least=-1)
    apart: float = option(0.75, "no training prompt is nearer than this to one of validation", least=-1)
    validation: float = option(0.1, "share held back for validation", least=0, most=1)
    shard_mb: int = option(500, "size of one parquet file; 0: a file for every pair", least=0)
    precision: str = option(
        "auto", "of the embedder; auto: bf16 where the CPU computes in it", choices=["auto", "bf16", "fp32"]
    )
    seed: int = option(0, "of the split and of the order", least=0)


@dataclass(frozen=True)
class Synthesis:
    """Draw pictures for prompts with a Stable Diffusion pipeline (needs `pip install "captioner[synth]"`).

    python -m training.data synthesize --prompts prompts.txt --count 1000 --out drawn/

    Writes an image folder with metadata.jsonl, ready for --data. The same command goes on where it was stopped.
    """

    prompts: str = option("", "a file with one prompt a line, .txt or .txt.gz", required=True)
    out: str = option("", "the folder to write, or to go on with", required=True)
    count: int = option(100, "pictures to draw", least=1)
    recombine: bool = option(False, "new prompts: the subject of one, terms of others as often as they occur")
    model: str = option("stabilityai/stable-diffusion-2", "a folder or a Hub id of a text-to-image pipeline")
    steps: int = option(50, "denoising steps", least=1)
    size: int = option(768, "pixels drawn", least=8)
    save_size: int = option(512, "pixels kept", least=1)
    guidance: float = option(7.5, "how closely the prompt is followed", least=0)
    batch_size: int = option(1, "pictures at once; a picture does not depend on it", least=1)
    precision: str = option("auto", "auto: fp16 on a GPU, fp32 on the CPU", choices=["auto", "fp32", "bf16", "fp16"])
    device: str = option("auto", "auto, cpu or cuda")
    seed: int = option(0, "prompt number N is drawn with seed + N", least=0)


def parse(commands: dict[str, type], argv: Sequence[str] | None, description: str) -> tuple[str, Any]:
    """The command line → (the command's name, its settings)."""
    parser = argparse.ArgumentParser(prog="python -m training.data", description=description)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in commands.items():
        purpose = inspect.getdoc(kind) or ""
        verb = verbs.add_parser(name, help=purpose.partition("\n")[0], description=purpose, formatter_class=Prose)
        add_options(verb, kind)
    arguments = parser.parse_args(argv)
    chosen: Any = settings(commands[arguments.command], arguments)
    check_bounds(chosen)
    return arguments.command, chosen
