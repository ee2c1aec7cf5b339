"""How many bytes the pictures that are read ahead may take together.

Each picture draws a ticket in the order in which it is wanted, and is admitted in that order: the one that everybody
waits for is never kept out by those that come after it. One that is larger than the whole budget goes in alone.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError


class Budget:
    """Bytes shared by threads, handed out in the order of the tickets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.changed = threading.Condition()
        self.drawn = 0
        self.next = 0
        """The number of the ticket that is admitted next."""
        self.passed: set[int] = set()
        """Tickets that are through, but come after `next`."""
        self.closed = False

    def ticket(self) -> Ticket:
        """A place in the queue. Every ticket must be settled in the end, or those after it wait for ever."""
        self.drawn += 1
        return Ticket(self, self.drawn - 1)

    def close(self) -> None:
        """Nobody wants the rest: those who wait are sent away with `CancelledError`."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Ticket:
    """One picture's share of a budget."""

    def __init__(self, budget: Budget, number: int) -> None:
        self.budget = budget
        self.number = number
        self.bytes = 0

    def admit(self, size: int) -> None:
        """Wait until it is this picture's turn and there is room for so many bytes more."""
        budget = self.budget
        with budget.changed:
            budget.changed.wait_for(lambda: budget.closed or self._may_take(size))
            if budget.closed:
                raise CancelledError
            self._hold(self.bytes + size)
            self._pass()

    def settle(self, size: int) -> None:
        """From now on the picture takes so many bytes: fewer than while it was decoded, or none."""
        with self.budget.changed:
            self._hold(size)
            self._pass()

    def _may_take(self, size: int) -> bool:
        budget = self.budget
        if self.number < budget.next or self.number in budget.passed:
            return True  # it is in already, and would wait for itself
        return budget.next == self.number and (budget.held == 0 or budget.held + size <= budget.limit)

    def _hold(self, size: int) -> None:
        self.budget.held += size - self.bytes
        self.bytes = size
        self.budget.changed.notify_all()

    def _pass(self) -> None:
        budget = self.budget
        if self.number >= budget.next:
            budget.passed.add(self.number)
        while budget.next in budget.passed:
            budget.passed.remove(budget.next)
            budget.next += 1
        budget.changed.notify_all()
