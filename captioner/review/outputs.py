"""What every output of a folder does: `.txt` beside a picture (sidecars.py), `.jsonl` tables (tables.py).

An output is read once, and again where somebody else has changed it. It is written whole or not at all, and only where
it still holds what we believe it holds: what another program wrote meanwhile is never lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from captioner.review.row import Row


class Wanted(NamedTuple):
    """What an output should hold of a picture instead of what it holds. None: nothing."""

    before: str | None
    after: str | None


class Problem(NamedTuple):
    """Why a text is not in its file."""

    reason: str
    is_theirs: bool = False
    """Another program wrote there meanwhile: what it wrote stays."""


class Moved(Exception):
    """The file was changed since the last look: look again, then write."""


class Output(Protocol):
    """One place where texts stand."""

    title: str
    at_once: float
    """Pictures whose texts are written in one piece; after each piece it can be told how many are left."""

    def look(self, rows: Iterable[Row]) -> None:
        """Bring `row.places` up to date where something has changed since the last look.

        Nothing else touches `places`, but for whoever settles what was written; both hold the review's lock.
        """

    def check(self, row: Row) -> None:
        """Whether a text can be kept here; a `BadOutput` says why not."""

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, Problem]:
        """Write these, in a thread; what could not be kept comes back with the reason. `Moved`: not yet."""


class Candidate(NamedTuple):
    """One of the texts that a model proposed."""

    text: str
    score: float | None


CHANGED = "{} was changed by another program meanwhile: what it holds now is shown, nothing was overwritten."


State = tuple[int, int, int]


def state_of(path: Path) -> State | None:
    """What changes whenever a file is written; None of a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
