from __future__ import annotations

import sys

import psutil

from captioner import memory


def test_freed_memory_is_given_back() -> None:
    process = psutil.Process()
    kept = [bytes(100_000) for _ in range(2000)]  # below the size that goes back by itself
    last = kept[-1]  # at the end of it, so that the rest cannot go back
    del kept
    before = process.memory_info().rss
    memory.give_back()
    assert before - process.memory_info().rss > 50_000_000 or sys.platform != "linux"
    assert len(last) == 100_000
