"""What pictures were encoded to, by the content of the picture: the least recently used go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Remembered(NamedTuple):
    """One picture, encoded."""

    features: Tensor
    """`[1, …]`, on the device that encoded it."""
    seed: int
    """What a sampled text depends on."""


class Memories:
    """Encoded pictures, of no more than `limit` bytes together. Any thread may ask."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, Remembered] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, counted: bool = True) -> Remembered | None:
        """One that is kept."""
        with self._lock:
            memory = self._kept.get(key)
            if memory is not None:
                self._kept.move_to_end(key)
            if counted:
                self.hits += memory is not None
                self.misses += memory is None
            return memory

    def keep(self, key: Hashable, memory: Remembered) -> None:
        """Keep this one; what nobody has asked for the longest gives way."""
        size = _bytes(memory)
        if size > self.limit:
            return
        with self._lock:
            if (before := self._kept.pop(key, None)) is not None:
                self.bytes -= _bytes(before)
            self._kept[key] = memory
            self.bytes += size
            while self.bytes > self.limit:
                _, oldest = self._kept.popitem(last=False)
                self.bytes -= _bytes(oldest)

    def __len__(self) -> int:
        return len(self._kept)


def _bytes(memory: Remembered) -> int:
    return memory.features.nbytes
