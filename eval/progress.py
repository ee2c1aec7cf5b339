"""How far a long loop is, on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from captioner.errors import printable

Step = TypeVar("Step")


def track(steps: Iterable[Step], total: int | None, what: str) -> Iterable[Step]:
    """The same steps; what has to be said meanwhile goes through `say`."""
    every = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(steps, printable(what), total, unit="batch", mininterval=every, file=sys.stderr, dynamic_ncols=True)


def say(line: str) -> None:
    """A line on standard error, above the bar if there is one; nothing in it can steer the terminal."""
    tqdm.write(printable(line), file=sys.stderr)
