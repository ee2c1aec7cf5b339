from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from captioner import memory

is_glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def on_large_pages() -> int:
    """Bytes of this process that lie on large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))


def has_large_pages() -> bool:
    """Does the system give them to who asks?"""
    size, before = 4 * memory.LARGE_PAGE, on_large_pages()
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.madvise(mmap.MADV_HUGEPAGE)
        block.write(bytes(size))
        return on_large_pages() > before


def test_freed_memory_is_given_back() -> None:
    process = psutil.Process()
    kept = [b"x" * 100_000 for _ in range(2000)]  # below the size that goes back by itself
    last = kept[-1]  # at the end of it, so that the rest cannot go back
    del kept
    before = process.memory_info().rss
    memory.give_back()
    assert before - process.memory_info().rss > 50_000_000 or sys.platform != "linux"
    assert len(last) == 100_000


def heaps(arranged: str) -> int:
    """How many heaps glibc has once four threads have taken memory at the same time."""
    script = f"""
import ctypes, threading
from captioner import memory
{arranged}
library, barrier = ctypes.CDLL(None), threading.Barrier(4)
def take():
    barrier.wait()
    block = bytes(100_000)
    barrier.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return told.count("<heap nr=")


@pytest.mark.skipif(not is_glibc, reason="other C libraries manage memory in their own way")
def test_threads_share_one_heap() -> None:
    assert heaps("memory.share_heap()") == 1
    assert heaps("") > 1


@pytest.mark.skipif(not (is_glibc and has_large_pages()), reason="the system gives no large pages")
def test_memory_is_taken_on_large_pages() -> None:
    before = on_large_pages()
    with memory.on_large_pages(memory.WORTHWHILE):
        block = b"x" * (memory.WORTHWHILE * 3 // 4)
    assert on_large_pages() - before > memory.WORTHWHILE // 2
    assert len(block) == memory.WORTHWHILE * 3 // 4


def test_a_small_model_gets_no_large_pages() -> None:
    before = on_large_pages() if is_glibc else 0
    with memory.on_large_pages(memory.WORTHWHILE - 1):
        block = b"x" * (memory.WORTHWHILE // 2)
    assert (on_large_pages() if is_glibc else 0) == before
    assert len(block) == memory.WORTHWHILE // 2
