"""How many bytes the pictures that are read ahead may take together.

Each picture draws a ticket in the order in which it is wanted, and is admitted in that order: the one that everybody
waits for is never kept out by those that come after it. One that is larger than the whole budget goes in alone.

Whoever waits is woken once, when it has been let in: sixteen readers that all looked at every change whether it was
their turn took Python from the thread that asks a model.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from threading import Event, Lock


class Budget:
    """Bytes shared by threads, handed out in the order of the tickets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.drawn = 0
        self.next = 0
        """The number of the ticket that is admitted next."""
        self.passed: set[int] = set()
        """Tickets that are through, but come after `next`."""
        self.waiting: dict[int, tuple[Ticket, int, Event]] = {}
        """By number: the ticket, the bytes that it asks for, and what wakes its thread."""
        self.closed = False
        self.changing = Lock()

    def ticket(self) -> Ticket:
        """A place in the queue. Every ticket must be settled in the end, or those after it wait for ever."""
        self.drawn += 1
        return Ticket(self, self.drawn - 1)

    def close(self) -> None:
        """Nobody wants the rest: those who wait are sent away with `CancelledError`."""
        with self.changing:
            self.closed = True
            for _, _, woken in self.waiting.values():
                woken.set()

    def let_in(self, number: int) -> bool:
        """The ticket of this number, if it waits and may go in now. Called with `changing`, as is the next."""
        if number not in self.waiting or not self.waiting[number][0].may_take(self.waiting[number][1]):
            return False
        ticket, size, woken = self.waiting.pop(number)
        ticket.take(size)
        woken.set()
        return True

    def go_on(self) -> None:
        """All those who may go in now, in their order."""
        while True:
            while self.next in self.passed:
                self.passed.remove(self.next)
                self.next += 1
            if not self.let_in(self.next):
                return


class Ticket:
    """One picture's share of a budget."""

    def __init__(self, budget: Budget, number: int) -> None:
        self.budget = budget
        self.number = number
        self.bytes = 0

    def admit(self, size: int) -> None:
        """Wait until it is this picture's turn and there is room for so many bytes more."""
        budget, woken = self.budget, Event()
        with budget.changing:
            if budget.closed:
                raise CancelledError
            budget.waiting[self.number] = (self, size, woken)
            budget.let_in(self.number)
            budget.go_on()
        woken.wait()
        if budget.waiting.pop(self.number, None) is not None:  # not let in
            raise CancelledError

    def settle(self, size: int) -> None:
        """From now on the picture takes so many bytes: fewer than while it was decoded, or none."""
        with self.budget.changing:
            self.take(size - self.bytes)
            self.budget.let_in(self.number)  # given up from outside, it is in
            self.budget.go_on()

    def may_take(self, size: int) -> bool:
        """Is it this picture's turn, and is there room?"""
        budget = self.budget
        if self.number < budget.next or self.number in budget.passed:
            return True  # it is in already, and would wait for itself
        return budget.next == self.number and (budget.held == 0 or budget.held + size <= budget.limit)

    def take(self, size: int) -> None:
        """So many bytes more, and it is through."""
        self.bytes += size
        self.budget.held += size
        if self.number >= self.budget.next:
            self.budget.passed.add(self.number)
