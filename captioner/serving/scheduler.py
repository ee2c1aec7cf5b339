"""A bounded queue before the models: pictures are opened in threads, and equal questions are joined into batches.

Whoever has waited longest is asked next, together with all that may be asked in the same batch. What nobody waits for
any more is dropped before it costs anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from captioner.errors import BadInput, CaptionerError
from captioner.images.ahead import HELD_BYTES, READERS
from captioner.images.budget import Budget, Ticket

if TYPE_CHECKING:
    from captioner.serving.kinds import Kind

AHEAD = 48
"""Units that are opened before the models ask for them: more would hold memory and gain nothing."""
PATIENCE = 0.01
"""Seconds that a batch that is not full waits for a picture which is being opened."""


class Busy(CaptionerError):
    """So many wait already that no more are taken."""

    def __init__(self, wait: float) -> None:
        super().__init__("The server has as much to do as it takes. Ask again in a little while.")
        self.wait = wait
        """Seconds after which it is worth to ask again."""


class Late(CaptionerError):
    """The time for a request is over."""

    def __init__(self) -> None:
        super().__init__("The answer was not ready in time. Ask for less at once, or raise the server's timeout.")


class Closed(CaptionerError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("The server is stopping and takes no new work.")


@dataclass(frozen=True)
class Opened:
    """What a reader made of a picture, and how many bytes that holds."""

    value: Any
    bytes: int = 0


@dataclass(eq=False)
class Unit:
    """One question: of one picture, or of one text."""

    asked: Any
    kind: Kind
    """Units of equal kinds may be in one batch."""
    open: Callable[[Callable[[int], object]], Opened]
    """Reads the picture, in a reader's thread; it calls what it is given with the bytes that this takes."""
    deadline: float
    """On the monotonic clock."""
    future: Future = field(default_factory=Future)
    opened: Opened | None = None
    since: float = field(default_factory=time.monotonic)
    ticket: Ticket | None = None

    @property
    def late(self) -> bool:
        """Whether nobody waits for it any more."""
        return time.monotonic() > self.deadline

    def succeed(self, answer: Any) -> None:
        """Hand out the answer, if anybody still waits."""
        with suppress(InvalidStateError):
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Hand out the reason why there is none."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Scheduler:
    """Units that wait, in the order in which they came."""

    def __init__(self, limit: int, readers: int = READERS, held_bytes: int = HELD_BYTES) -> None:
        self.limit = limit
        self.closed = False
        self.abandoned = False
        self.changed = threading.Condition()
        self.waiting: dict[Unit, None] = {}
        self.ahead = 0
        """Of those, how many are opened or being opened."""
        self.budget = Budget(held_bytes)
        self.readers = ThreadPoolExecutor(readers, "request-reader")
        self.pace = 0.1
        """Seconds that a unit took of late."""

    def put(self, units: Sequence[Unit]) -> None:
        """Take all of these, or none: `Busy` says when to come again."""
        if len(units) > max(1, self.limit):
            raise BadInput(f"{len(units)} are more than the {self.limit} that may wait here: ask for fewer at once.")
        with self.changed:
            if self.closed:
                raise Closed
            if len(self.waiting) + len(units) > self.limit:
                raise Busy(min(60.0, max(1.0, len(self.waiting) * self.pace)))
            for unit in units:
                self.waiting[unit] = None
                unit.future.add_done_callback(partial(self._forget, unit))
            self._open_more()

    def take(self, size_of: Callable[[Kind], int]) -> list[Unit]:
        """The next batch, of at most `size_of(its kind)`; nothing when the scheduler was closed and all is done."""
        with self.changed:
            while True:
                self._send_away_late()
                first = next((unit for unit in self.waiting if unit.opened is not None), None)
                if first is None:
                    if self.closed and not self.waiting:
                        return []
                    self.changed.wait(1.0)
                    continue
                batch = self._batch(first, size_of(first.kind))
                for unit in batch:
                    self._leave(unit)
                if batch := [unit for unit in batch if unit.future.set_running_or_notify_cancel()]:
                    return batch

    def _batch(self, first: Unit, size: int) -> list[Unit]:
        """The units that are asked with the first one; a little patience makes a batch full."""
        until = time.monotonic() + PATIENCE
        while True:
            alike = [unit for unit in self.waiting if unit.kind == first.kind]
            ready = [unit for unit in alike if unit.opened is not None][:size]
            left = until - time.monotonic()
            if len(ready) >= min(size, len(alike)) or left <= 0:
                return ready
            self.changed.wait(left)

    def done(self, units: Sequence[Unit], seconds: float) -> None:
        """Told how long a batch took."""
        self.pace += 0.2 * (seconds / max(1, len(units)) - self.pace)

    def close(self) -> None:
        """Take nothing new; what waits is still answered."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def abandon(self) -> None:
        """Send away all that still waits."""
        self.close()
        self.abandoned = True
        self.budget.close()
        for unit in list(self.waiting):
            unit.fail(Closed())
        self.readers.shutdown(wait=False, cancel_futures=True)

    def _open_more(self) -> None:
        """Let the readers open who has waited longest, as far ahead as is good."""
        for unit in self.waiting:
            if self.ahead >= AHEAD or self.abandoned:
                return
            if unit.ticket is None:
                unit.ticket = self.budget.ticket()
                self.ahead += 1
                self.readers.submit(self._open, unit)

    def _leave(self, unit: Unit) -> None:
        """It waits no more."""
        if unit in self.waiting:
            del self.waiting[unit]
            self.ahead -= unit.ticket is not None
            self._open_more()

    def _open(self, unit: Unit) -> None:
        assert unit.ticket is not None, "a unit is put before it is opened"
        if unit.late:
            unit.fail(Late())
        if unit.future.done():
            return
        try:
            opened = unit.open(unit.ticket.admit)
        except CancelledError:
            unit.fail(Closed())
        except Exception as error:
            unit.fail(error)
        else:
            unit.ticket.settle(0 if unit.future.done() else opened.bytes)
            with self.changed:
                unit.opened = None if unit.future.done() else opened
                self.changed.notify_all()
            return
        finally:
            if unit.future.done():  # somebody gave up while it was being opened
                unit.ticket.settle(0)

    def _send_away_late(self) -> None:
        for unit in [unit for unit in self.waiting if unit.late]:
            unit.fail(Late())
            self._leave(unit)

    def _forget(self, unit: Unit, future: Future) -> None:
        """It is answered, or nobody waits for it any more.

        The unit, its future and this callback hold each other, until Python looks for such circles, which it does not
        hurry to do: what is large is let go of now.
        """
        with self.changed:
            self._leave(unit)
            unit.opened = unit.asked = None
            unit.open = _answered
            self.changed.notify_all()
        if unit.ticket is not None:
            unit.ticket.settle(0)


def _answered(admit: Callable[[int], object]) -> Opened:
    """In the place of what read a picture."""
    raise CancelledError
