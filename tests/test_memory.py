from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from captioner import memory

ROOT = Path(__file__).parents[1]

is_glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def wants_large_pages(address: int) -> bool:
    """Is this address in memory that large pages are asked for? Whether the system has any left is another matter."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            first, last = (int(end, 16) for end in name.split("-"))
            inside = first <= address < last
        elif inside and name == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"{address:#x} is not in this process's memory")


def knows_large_pages() -> bool:
    """Does the system take the wish for them?"""
    with mmap.mmap(-1, memory.LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return False
        return wants_large_pages(ctypes.addressof(ctypes.c_char.from_buffer(block)))


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


@pytest.mark.skipif(not (is_glibc and knows_large_pages()), reason="the system knows no large pages")
def test_large_pages_are_asked_for() -> None:
    with memory.on_large_pages(memory.WORTHWHILE):
        block = b"x" * (memory.WORTHWHILE * 3 // 4)
    # What comes before the first whole large page stays on small ones.
    assert all(wants_large_pages(id(block) + at) for at in range(memory.LARGE_PAGE, len(block), memory.LARGE_PAGE))


@pytest.mark.skipif(not is_glibc, reason="other systems do not say")
def test_a_small_model_gets_no_large_pages() -> None:
    """In a process of its own: in this one its memory may be what a larger model has left."""
    code = """
from captioner import memory
from tests.test_memory import wants_large_pages
with memory.on_large_pages(memory.WORTHWHILE - 1):
    block = b"x" * (memory.WORTHWHILE // 2)
print(wants_large_pages(id(block) + len(block) // 2))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
