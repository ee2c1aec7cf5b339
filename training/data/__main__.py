"""python -m training.data prepare|synthesize … (each with --help)"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from captioner.errors import CaptionerError
from training.data.options import Preparation, Synthesis, parse

COMMANDS = {"prepare": Preparation, "synthesize": Synthesis}
"""Command → its settings. The function of the same name lies in the module of the same name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; the user's errors become one line and exit status 2."""
    name, options = parse(COMMANDS, argv, "Data sets to train on: prepare what there is, or draw new pictures.")
    try:
        getattr(importlib.import_module(f"training.data.{name}"), name)(options)
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
