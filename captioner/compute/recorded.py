"""Kernels that are recorded once and launched together: on an NVIDIA GPU, most of a small step is launching them.

All threads that ask a GPU share its one queue, so that what one gives back another may have at once. A queue for each
was measured to bring nothing: they wait for each other's Python, not for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock, RLock
from typing import Generic, TypeVar

import torch
from torch import Tensor

Kept = TypeVar("Kept")

_ONE_AT_A_TIME = Lock()


def pays_to_record(x: Tensor) -> bool:
    """Is this computed where kernels can be recorded? Only without gradients: what is recorded is written in place."""
    return x.device.type == "cuda" and torch.is_inference_mode_enabled()


def recorded(function: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function that reads and writes tensors at fixed places, as a recording of its kernels.

    It is called once before it is recorded, so that the libraries get ready. Its result stays at one place too, and
    lasts until the next call. Elsewhere than on an NVIDIA GPU it is returned as it is.
    """
    if device.type != "cuda":
        return function
    with _ONE_AT_A_TIME, torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
            result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Lending(Generic[Kept]):
    """Recordings that wait for whoever needs one like them, each lent to one at a time, so that threads stay apart."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting: list[Kept] = []
        self._changing = RLock()  # what is thrown away gives back, which may happen anywhere

    def __reduce__(self) -> tuple:
        """A copy, or one in another process, begins with none."""
        return Lending, (self.most,)

    def take(self, fits: Callable[[Kept], bool], make: Callable[[], Kept]) -> Kept:
        """One that fits, or a new one."""
        with self._changing:
            for kept in list(self.waiting):
                if fits(kept) and kept in self.waiting:  # one that was given back meanwhile may have pushed it out
                    self.waiting.remove(kept)
                    return kept
        try:
            return make()
        except torch.cuda.OutOfMemoryError:
            with self._changing:
                self.waiting.clear()  # a smaller batch that is tried next finds what they held
            raise

    def give_back(self, kept: Kept) -> None:
        """It waits, if there is room."""
        with self._changing:
            self.waiting.insert(0, kept)
            del self.waiting[self.most :]


class RecordedFunction:
    """A function of one tensor that is recorded for every size it is asked of, and may be asked in several threads."""

    def __init__(self, function: Callable[[Tensor], Tensor], most: int) -> None:
        """most: recordings that are kept. Each holds the memory that a call takes."""
        self.function = function
        self.lending: Lending[_Call] = Lending(most)

    def __call__(self, given: Tensor) -> Tensor:
        call = self.lending.take(lambda kept: kept.fits(given), lambda: _Call(self.function, given))
        try:
            call.given.copy_(given)
            return call.replay().clone()
        finally:
            self.lending.give_back(call)


class _Call:
    """A recorded call with a tensor of one size."""

    def __init__(self, function: Callable[[Tensor], Tensor], given: Tensor) -> None:
        self.given = given.clone()
        self.replay = recorded(partial(function, self.given), given.device)

    def fits(self, given: Tensor) -> bool:
        return (given.shape, given.dtype, given.device) == (self.given.shape, self.given.dtype, self.given.device)
