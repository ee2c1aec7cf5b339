"""Threads that compute side by side, each on one core: for work too small to be shared well by several."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side() -> ThreadPoolExecutor:
    """As many threads as torch computes with here, each of which computes alone."""
    return _pool(torch.get_num_threads())


def each_alone(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """A function of tensors, of every item, side by side as far as that comes out even on all cores.

    Threads that share one picture wait for each other at every layer: two pictures in bf16 take 0.7 of the time so.
    """
    threads = torch.get_num_threads()
    alone = len(items) // threads * threads
    if threads == 1 or not torch.is_inference_mode_enabled():  # which is a thread's own; else there may be gradients
        alone = 0
    done = list(side_by_side().map(torch.inference_mode()(function), items[:alone])) if alone else []
    return [*done, *map(function, items[alone:])]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "alone", _compute_alone)
    barrier = Barrier(threads)
    list(pool.map(lambda _: barrier.wait(), range(threads)))
    if _openmp() is None:
        torch.set_num_threads(threads)  # what threads begin with that are started from now on
    return pool


def _compute_alone() -> None:
    """Let this thread share its work with no other: by OpenMP and by Intel's library, for this thread only.

    `torch.set_num_threads` is about all that are started later, too, and from then on Intel's library shares even what
    one thread of several does: attention to a few words took four times as long in bf16.
    """
    torch.get_num_threads()  # the first such call of a thread sets its number to that of all
    if (library := _openmp()) is None:
        torch.set_num_threads(1)
        return
    library.omp_set_num_threads(1)
    if hasattr(library, "MKL_Set_Num_Threads_Local"):
        library.MKL_Set_Num_Threads_Local(1)


def _openmp() -> ctypes.CDLL | None:
    """The library whose threads torch computes with, where it can be spoken to."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    except OSError:  # not Linux
        return None
    return library if hasattr(library, "omp_set_num_threads") else None


def _begin_alone() -> None:
    """Threads do not follow into a fork, where OpenMP would wait for its own for ever."""
    _pool.cache_clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_alone)
