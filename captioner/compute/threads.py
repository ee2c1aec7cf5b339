"""Threads that compute side by side, each on one core: for work too small to be shared by several."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier

import torch


def side_by_side() -> ThreadPoolExecutor:
    """As many threads as torch computes with here, each of which computes alone."""
    return _pool(torch.get_num_threads())


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "alone", partial(torch.set_num_threads, 1))
    barrier = Barrier(threads)
    list(pool.map(lambda _: barrier.wait(), range(threads)))
    torch.set_num_threads(threads)  # it is also what threads begin with that are started from now on
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # where the threads do not follow
