"""How many bytes the pictures that are read ahead may take together.

Each picture draws a ticket in the order in which it is wanted, and is admitted in that order: the one that everybody
waits for is never kept out by those that come after it. One that is larger than the whole budget goes in alone.

Whoever waits is woken once, when it has been let in: sixteen readers that all looked at every change whether it was
their turn took Python from the thread that asks a model.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from threading import RLock


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
        self.waiting: dict[int, tuple[Ticket, int, Future[None]]] = {}
        """By number: the ticket, the bytes that it asks for, and what its thread waits for."""
        self.closed = False
        self.changing = RLock()  # what is thrown away settles its ticket, which may happen anywhere

    def ticket(self) -> Ticket:
        """A place in the queue. Every ticket must be settled in the end, or those after it wait for ever."""
        self.drawn += 1
        return Ticket(self, self.drawn - 1)

    def close(self) -> None:
        """Nobody wants the rest: those who wait are sent away with `CancelledError`."""
        with self.changing:
            self.closed = True
            waiting, self.waiting = self.waiting, {}
            for _, _, admitted in waiting.values():
                admitted.cancel()

    def let_in(self, number: int) -> bool:
        """The ticket of this number, if it waits and may go in now. `changing` is held, as for `go_on`."""
        if number not in self.waiting:
            return False
        ticket, size, admitted = self.waiting[number]
        if not ticket.may_take(size):
            return False
        del self.waiting[number]
        ticket.take(size)
        admitted.set_result(None)
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
        budget, admitted = self.budget, Future[None]()
        with budget.changing:
            if budget.closed:
                raise CancelledError
            budget.waiting[self.number] = (self, size, admitted)
            budget.let_in(self.number)
            budget.go_on()
        admitted.result()  # raises CancelledError, if it was sent away

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
