"""Read pictures ahead of whoever uses them: in threads, in order, within a budget of bytes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from captioner.images.budget import Budget, Ticket

Item = TypeVar("Item")
Read = TypeVar("Read")

READERS = min(16, max(4, os.cpu_count() or 1))
"""Threads that open pictures: on a GPU a model reads hundreds a second, a core opens dozens."""
READ_AHEAD = 8 * READERS
"""Pictures read ahead, at most …"""
HELD_BYTES = 600_000_000
"""… and only as far as they take no more than this together, all copies made while decoding counted."""


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item, Callable[[int], None]], Read],
    bytes_of: Callable[[Read], int],
) -> Generator[Read, None, None]:
    """What `read(item, admit)` gives for each item, in their order.

    `read` runs in threads and calls `admit` with the bytes that an item is about to take, which may make it wait.
    `bytes_of` tells what the result takes until it is handed out.
    """
    pool = ThreadPoolExecutor(READERS, "reader")
    budget = Budget(HELD_BYTES)
    waiting: deque[tuple[Future[Read], Ticket]] = deque()

    def work(item: Item, ticket: Ticket) -> Read:
        size = 0
        try:
            result = read(item, ticket.admit)
            size = bytes_of(result)
            return result
        finally:
            ticket.settle(size)

    def first() -> Read:
        future, ticket = waiting.popleft()
        result = future.result()
        ticket.settle(0)  # from here on it is the user's
        return result

    try:
        for item in items:
            ticket = budget.ticket()
            waiting.append((pool.submit(work, item, ticket), ticket))
            if len(waiting) > READ_AHEAD:
                yield first()
        while waiting:
            yield first()
    finally:
        budget.close()
        pool.shutdown(wait=False, cancel_futures=True)
