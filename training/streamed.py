"""Pairs that are read as they come, for data larger than the disk: nothing is kept but a buffer to mix them in.

A stream begins again when it ends, so that a run of --max-steps is one pass for the Trainer: resumed, it skips what it
had read, and meets the same pairs in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner.errors import BadInput
from captioner.pairs.fingerprint import fingerprint
from training.batches import augmented
from training.data.readable import readable
from training.data.sources import ROW

MIXED = 1000
"""Rows in the buffer that the next one is drawn from, pictures as they lie in their files."""
NAMED = 100_000
"""So many of the last rows can be called by name in a message."""
HELD_BACK = 128
"""Pairs to validate on; one prompt in ONE_IN is set aside for them."""
ONE_IN = 10


class StreamedPairs(torch.utils.data.IterableDataset):
    """What `Pairs` gives, without end and without a length."""

    def __init__(
        self,
        rows: datasets.IterableDataset,
        pixels: Callable[[Sequence[Image.Image]], Tensor],
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.pixels = pixels
        self.augment = augment
        self.seed = seed
        self._names: dict[int, str] = {}
        self.met: set[str] = set()
        """Fingerprints of the prompts so far."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = count()
        for epoch in count():
            mixed = self.rows.shuffle(seed=self.seed + epoch, buffer_size=MIXED)
            for row, index in zip(readable(mixed), number, strict=False):
                self._names[index % NAMED] = f"{row['source']}: {row['id']}"
                self.met.add(fingerprint(row["text"]))
                image = row["image"]
                if self.augment:
                    image = augmented(image, np.random.default_rng((self.seed, index)))
                yield {"pixel_values": self.pixels([image])[0], "text": row["text"], "row": index}
            if not self._names:
                raise BadInput("The stream holds no pair to train on.")

    def begin_epoch(self, epoch: int) -> None:
        """There is one epoch only."""

    def name(self, row: int) -> str:
        """What to call a row in a message."""
        return self._names[row % NAMED]

    def fingerprints(self) -> set[str]:
        """Of the prompts met so far."""
        return self.met

    def __str__(self) -> str:
        return "a stream of pairs" + (f", {len(self.met):,} prompts of which were met" if self.met else "")


def split_stream(rows: datasets.IterableDataset) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    """A stream without every tenth prompt, and the first pairs of those prompts to validate on, whose pictures are not
    in it with other captions either."""
    raw = rows.cast_column("image", datasets.Image(decode=False))
    first = islice(raw, 2 * ONE_IN * HELD_BACK)
    held_back = list(islice((row for row in first if set_aside(row["text"])), HELD_BACK))
    validation = datasets.Dataset.from_list(held_back, features=ROW)
    pictures = {_picture(row) for row in held_back}
    return raw.filter(lambda row: not set_aside(row["text"]) and _picture(row) not in pictures), validation


def _picture(row: dict[str, Any]) -> tuple[str, str]:
    """What tells a picture from others."""
    return row["source"], row["id"]


def set_aside(text: str) -> bool:
    """The same prompts in every run."""
    return int(fingerprint(text), 16) % ONE_IN == 0
