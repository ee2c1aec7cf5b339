"""Brings edited texts into their files: a thread that takes what waits in pieces as large as each output likes.

What waits is safe already, in the journal. What cannot be written (a full disk) stays waiting, with its reason, and is
tried again with the next edit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from captioner.errors import BadOutput, printable
from captioner.review.journal import Journal
from captioner.review.outputs import Moved, Output, Problem, Wanted
from captioner.review.row import Row

logger = logging.getLogger(__name__)

Problems = dict[Row, Problem]
Theirs = Callable[[list[tuple[Row, str]]], None]
"""Told of the rows where another program's text stays, and why; called with the lock held."""


class Writer:
    """Shares the lock of whoever puts texts; everything here but the writing itself happens with it held."""

    def __init__(self, lock: threading.RLock, journal: Journal, theirs: Theirs) -> None:
        self.changed = threading.Condition(lock)
        self.journal = journal
        self.theirs = theirs
        self.waiting: dict[Row, dict[Output, Wanted]] = {}
        """What is in the journal and not yet in the files."""
        self.stuck: dict[Row, str] = {}
        """Of these, what could not be written, and why."""
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="review", daemon=True)

    def start(self) -> None:
        """From now on what waits is written."""
        self.thread.start()

    def close(self) -> None:
        """What waits is written first."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    def put(self, row: Row, outputs: Iterable[Output], text: str | None) -> None:
        """A text for these outputs of a picture; None: they shall hold nothing of it."""
        with self.changed:
            waiting = self.waiting.setdefault(row, {})
            for output in outputs:
                before = waiting[output].before if output in waiting else row.places.get(output)
                waiting[output] = Wanted(before, text)
            self.retry()  # what is stuck, with this one

    def held(self, row: Row) -> dict[Output, str | None]:
        """What the outputs hold of a picture once all is written."""
        return row.places | {output: want.after for output, want in self.waiting.get(row, {}).items()}

    def flush(self, seconds: float | None = None) -> int:
        """Wait until all is written; how much is not by then."""
        with self.changed:
            self.changed.wait_for(lambda: not self._ready(), seconds)
            return len(self.waiting)

    def retry(self) -> None:
        """Try again what could not be written."""
        with self.changed:
            for row in self.stuck:
                row.problem = None
            self.stuck.clear()
            self.changed.notify_all()

    def note(self, actions: int) -> None:
        """So many actions of the journal are in the files. Without this line the next start compares them once more."""
        try:
            self.journal.written(actions)
        except BadOutput as error:
            logger.warning("%s", error)

    def _ready(self) -> list[Row]:
        return [row for row in self.waiting if row not in self.stuck]

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self._ready())
                batch: dict[Output, dict[Row, Wanted]] = {}
                for row in self._ready():
                    for output, want in self.waiting[row].items():
                        wanted = batch.setdefault(output, {})
                        if len(wanted) < output.at_once:
                            wanted[row] = want
                actions = self.journal.actions
                if not batch:
                    return
            problems = {output: _written(output, wanted) for output, wanted in batch.items()}
            with self.changed:
                self._settle(batch, problems)
                if None in problems.values():
                    self.theirs([])  # looks again; what waits is written in the next round
                if not self.waiting:
                    self.note(actions)
                self.changed.notify_all()

    def _settle(self, batch: dict[Output, dict[Row, Wanted]], problems: dict[Output, Problems | None]) -> None:
        """What is in the files now does not wait any more."""
        theirs = []
        for output, wanted in batch.items():
            if (of_output := problems[output]) is None:
                continue
            for row, want in wanted.items():
                waiting = self.waiting.get(row, {})
                problem = of_output.get(row)
                if problem is None:
                    _holds(row, output, want.after)
                    newer = waiting.pop(output, want).after
                    if newer != want.after:
                        waiting[output] = Wanted(want.after, newer)
                elif problem.is_theirs:
                    waiting.pop(output, None)
                    theirs.append((row, problem.reason))
                else:
                    row.problem = self.stuck[row] = problem.reason
                if not waiting:
                    self.waiting.pop(row, None)
        if theirs:
            self.theirs(theirs)


def _holds(row: Row, output: Output, text: str | None) -> None:
    if text is None:
        row.places.pop(output, None)
    else:
        row.places[output] = text


def _written(output: Output, wanted: dict[Row, Wanted]) -> Problems | None:
    """Whatever goes wrong in a thread is said, not lost with it. None: the output has to be looked at first."""
    try:
        return output.write(wanted)
    except Moved:
        return None
    except Exception as error:
        logger.exception("%s could not be written", output.title)
        reason = printable(f"{output.title} could not be written ({type(error).__name__}: {error}).")
        return dict.fromkeys(wanted, Problem(reason))
