"""The memory of this process, where glibc manages it; elsewhere these functions do nothing."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_PAGE = 2 << 20
WORTHWHILE = 100 << 20
"""Bytes from which on large pages are asked for: a small model's weights stay in the processor's caches."""
RAN_OUT = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    "failed to map segment",  # a library that is loaded
)
# Parameters of mallopt, from glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8


def ran_out(error: BaseException) -> bool:
    """Whether there was no memory for something. torch names only the GPU's case by a class of its own."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in RAN_OUT)


def give_back() -> None:
    """Let the system have what this process has freed.

    glibc keeps it otherwise: 10 to 30 MB after a model is loaded; after pictures and batches of all sizes in several
    threads as much as is used (a server: 870 MB, and 470 after this).
    """
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def share_heap() -> None:
    """Let the threads that start from now on take memory from one heap: each has its own otherwise, and keeps in it
    what it has freed. 100 pictures by mini took 680 MB at most so, and 620 to 650 from one heap."""
    if (glibc := _glibc()) is not None:
        glibc.mallopt(ARENA_MAX, 1)


@contextmanager
def on_large_pages(size: int) -> Iterator[None]:
    """Lay what this thread takes meanwhile, up to so many bytes, on pages of 2 MiB where the system has them.

    A decoder reads all its weights for every token, on pages of 4 KiB mostly waiting for the tables that say where
    these lie. Untouched, the memory costs nothing. In a thread whose heap is its own nothing changes.
    """
    glibc = _glibc() if size >= WORTHWHILE else None
    if glibc is None:
        yield
        return
    # Everything comes from the end of the heap now, which is made longer, marked, and not cut off again.
    glibc.mallopt(TRIM_THRESHOLD, -1)
    glibc.mallopt(MMAP_MAX, 0)
    if start := glibc.malloc(size):
        first, end = -(-start // LARGE_PAGE) * LARGE_PAGE, (start + size) // LARGE_PAGE * LARGE_PAGE
        glibc.madvise(first, end - first, mmap.MADV_HUGEPAGE)  # a kernel that cannot leaves the pages small
        glibc.free(start)
    try:
        yield
    finally:
        # What glibc ends with by itself once large blocks have been freed; it does not after the calls above.
        glibc.mallopt(MMAP_MAX, 65536)
        glibc.mallopt(MMAP_THRESHOLD, 32 << 20)
        glibc.mallopt(TRIM_THRESHOLD, 64 << 20)
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc (Linux has others)."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return None
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library
