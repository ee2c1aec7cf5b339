"""`python -m training`: which recipes there are."""

from __future__ import annotations

import shutil
import textwrap
from importlib import import_module

from captioner.run import lastresort

RECIPES = ("blip", "ofa", "clip_prefix", "resnet_lstm", "direct")
OTHERS = {
    "data": "Prepare a data set, or draw pictures for prompts.",
    "mini": "The stages that made the bundled model, one by one.",
}


def main() -> None:
    """List them."""
    print("Training: one command for each kind of model, each with --help.\n")
    for name in RECIPES:
        purpose, _, _ = (import_module(f"training.{name}").__doc__ or "").partition("\n")
        _show(name, purpose)
    print()
    for name, purpose in OTHERS.items():
        _show(name, purpose)


def _show(name: str, purpose: str) -> None:
    command = f"  python -m training.{name:<12}  "
    width = max(80, shutil.get_terminal_size().columns)
    print(textwrap.fill(purpose, width, initial_indent=command, subsequent_indent=" " * len(command)))


if __name__ == "__main__":
    lastresort.run("python -m training", main)
