"""python -m training.data prepare|synthesize … (each with --help)"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from captioner.run import lastresort
from training.data.options import Preparation, Synthesis, parse

COMMANDS = {"prepare": Preparation, "synthesize": Synthesis}
"""Command → its settings. The function of the same name lies in the module of the same name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    name, options = parse(COMMANDS, argv, "Data sets to train on: prepare what there is, or draw new pictures.")
    run = getattr(importlib.import_module(f"training.data.{name}"), name)
    run(options)


if __name__ == "__main__":
    lastresort.run("python -m training.data", main)
