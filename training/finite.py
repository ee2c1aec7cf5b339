"""Losses and gradient norms must be numbers. To ask a GPU at once is to wait until it has done all that it was given:
so they are looked at a step later, and always before anything is logged, evaluated or saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Expected:
    """What must be a number."""

    what: str
    """ "loss" or "gradient"."""
    step: int
    rows: Sequence[int]
    """Those that it comes from."""


class Expectations:
    """Values that must be numbers, of this step and of the one before."""

    def __init__(self) -> None:
        self._about: list[Expected] = []
        self._values: list[Tensor] = []
        self._under_way: tuple[list[Expected], Tensor, torch.cuda.Event | None] | None = None

    def add(self, value: Tensor, about: Expected) -> None:
        """Expect that this is a number."""
        self._values.append(value.detach().float())
        self._about.append(about)

    def of_last_step(self) -> tuple[Expected, float] | None:
        """The first of the last step's that is no number. This step's go on their way to the host."""
        broken = self._arrived()
        if self._values:
            values = torch.stack(self._values).to("cpu", non_blocking=True)  # into pinned memory
            event = None
            if self._values[0].is_cuda:
                event = torch.cuda.Event()
                event.record()
            self._under_way = self._about, values, event
            self._about, self._values = [], []
        return broken

    def of_all(self) -> tuple[Expected, float] | None:
        """The first that is no number, of all that were added. It waits for them."""
        return self.of_last_step() or self._arrived()

    def _arrived(self) -> tuple[Expected, float] | None:
        if self._under_way is None:
            return None
        about, values, event = self._under_way
        self._under_way = None
        if event is not None:
            event.synchronize()
        return next((found for found in zip(about, values.tolist(), strict=True) if not math.isfinite(found[1])), None)
