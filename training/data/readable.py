"""Rows whose pictures really open: the unreadable are skipped, counted and listed; more than 5 % are an error.

`ReadableRows(rows)[index]` is for trainers, `readable(rows)` goes once through rows or a stream. Both give RGB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset
from PIL.Image import Image as Picture

from captioner.errors import BadImage, BadInput, printable
from captioner.pairs.readable import content, open_picture

MOST_UNREADABLE = 0.05
ENOUGH_TO_JUDGE = 100  # rows of a stream, whose length nobody knows
log = logging.getLogger(__name__)


class ReadableRows:
    """A `Dataset` of pairs by index, each row with its own `index` in it. A row whose picture cannot be read is
    replaced by the next that can: batches keep their size, and the same index always gives the same row, in every
    worker and after every resume."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows.cast_column("image", Image(decode=False))
        self.unreadable = torch.zeros(len(rows), dtype=torch.bool).share_memory_()  # seen by all worker processes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if not self.unreadable[candidate]:
                row = self.rows[candidate]
                try:
                    return {**row, "image": picture_of(row["image"]), "index": candidate}
                except BadImage as error:
                    report(row, error)
                    self.unreadable[candidate] = True
                    refuse_too_many(int(self.unreadable.sum()), len(self))
        raise IndexError(index)

    @property
    def skipped(self) -> list[str]:
        """The rows met so far whose pictures cannot be read."""
        return [self.name(index) for index in self.unreadable.nonzero().flatten().tolist()]

    def name(self, index: int) -> str:
        """What to call a row in a message."""
        return _name(self.rows[index])


def readable(rows: Dataset | IterableDataset, skipped: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row whose picture opens, with its `index` among all. The others' names are added to `skipped`."""
    skipped = [] if skipped is None else skipped
    before = len(skipped)
    total = len(rows) if isinstance(rows, Dataset) else None
    seen = 0
    for seen, row in enumerate(rows.cast_column("image", Image(decode=False)), 1):
        try:
            picture = picture_of(row["image"])
        except BadImage as error:
            report(row, error)
            skipped.append(_name(row))
            if total or seen >= ENOUGH_TO_JUDGE:
                refuse_too_many(len(skipped) - before, total or seen)
            continue
        yield {**row, "image": picture, "index": seen - 1}
    if seen:
        refuse_too_many(len(skipped) - before, total or seen)


def picture_of(cell: dict[str, Any]) -> Picture:
    """An undecoded cell of an image column → RGB."""
    return open_picture(_stored(cell))


def bytes_of(cell: dict[str, Any]) -> bytes:
    """The file as it is, wherever it lies."""
    return content(_stored(cell))


def _stored(cell: dict[str, Any] | None) -> str | bytes:
    """The picture's path or its file."""
    if cell is None or (stored := cell["path"] if cell["bytes"] is None else cell["bytes"]) is None:
        raise BadImage("The row has no picture.")
    return stored


def _name(row: dict[str, Any]) -> str:
    return (row["image"] or {}).get("path") or f"{row['source']}: {row['id']}"


def report(row: dict[str, Any], error: BadImage) -> None:
    """Log a row that is passed over."""
    log.warning("skipped %s: %s", printable(_name(row)), error)


def refuse_too_many(unreadable: int, total: int) -> None:
    """A few damaged pictures are normal; many are a mistake in the paths or the download."""
    if unreadable > MOST_UNREADABLE * total:
        raise BadInput(
            f"{unreadable} of {total} pictures cannot be read, more than {MOST_UNREADABLE:.0%}: "
            f"the warnings above name them. Check the paths and the download."
        )
