"""What the user sees of a long run, on standard error: a bar on a terminal, lines elsewhere, or errors alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from captioner.images import find_images, reads_once


@dataclass
class Tally:
    """How a run went."""

    done: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def seen(self) -> int:
        return self.done + self.failed + self.skipped


class Pace:
    """Pictures per second since the first batch: loading the model says nothing about the rest."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def __call__(self, tally: Tally) -> float:
        now, worked = time.monotonic(), tally.done + tally.failed
        if self.first is None and tally.done:
            self.first = now, worked
        began, before = self.first or (now, worked)
        return (worked - before) / (now - began) if now > began else 0.0


class Progress(Protocol):
    """What the user sees of a run, on standard error."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: object) -> None: ...

    def ready(self) -> None:
        """The model is loaded and has answered."""

    def show(self, tally: Tally) -> None:
        """The run has come this far."""

    def say(self, line: str) -> None:
        """Something went wrong: said at once."""


class Silent:
    """Errors only; and on a terminal, until the model answers, that it is being loaded."""

    def __init__(self, loading: str = "") -> None:
        self.note = f"loading {loading} …" if loading and sys.stderr.isatty() else ""

    def __enter__(self) -> Silent:
        self._print(self.note, end="")
        return self

    def __exit__(self, *_: object) -> None:
        self.ready()

    def ready(self) -> None:
        if self.note:
            self._print(f"\r{' ' * len(self.note)}\r", end="")
            self.note = ""

    def show(self, tally: Tally) -> None:
        pass

    def say(self, line: str) -> None:
        self.ready()
        self._print(line)

    def _print(self, text: str, end: str = "\n") -> None:
        # A run does not end because nobody can be told: standard error may be closed, or on a full disk.
        with suppress(OSError, ValueError):
            print(text, end=end, file=sys.stderr, flush=True)


class Lines(Silent):
    """A line every ten seconds: for logs, and wherever a bar would be noise."""

    EVERY = 10.0

    def __init__(self, total: Total) -> None:
        super().__init__()
        self.total = total
        self.pace = Pace()
        self.last = time.monotonic()

    def show(self, tally: Tally) -> None:
        rate = self.pace(tally)
        if time.monotonic() - self.last < self.EVERY:
            return
        self.last = time.monotonic()
        of = f" of {self.total.count:,}" if self.total.count is not None else ""
        pace = f", {rate:.1f}/s" if rate else ""  # after one batch it is not known yet
        left = f", {duration((self.total.count - tally.seen) / rate)} left" if self.total.count and rate else ""
        self.say(f"captioner: {tally.seen:,}{of} pictures{pace}{left}")


class Bar:
    """A bar with images/s and time left, for people at a terminal."""

    def __init__(self, total: Total, loading: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.total = total
        self.console = Console(stderr=True, highlight=False, emoji=False)
        self.bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=False,  # it would lead results to standard error
            transient=True,
        )
        self.task = self.bar.add_task(f"loading {loading} …" if loading else "", total=None, rate=0.0)
        self.pace = Pace()

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def ready(self) -> None:
        self.bar.update(self.task, description="")

    def show(self, tally: Tally) -> None:
        self.bar.update(self.task, completed=tally.seen, total=self.total.count, rate=self.pace(tally))

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


@dataclass
class Total:
    """How many pictures there are; None until it is known."""

    count: int | None = None

    @classmethod
    def of(cls, inputs: Sequence[str], recursive: bool) -> Total:
        """Of what these name, counted in the background."""
        total = cls()
        threading.Thread(target=total._count, args=(inputs, recursive), daemon=True, name="count").start()
        return total

    def _count(self, inputs: Sequence[str], recursive: bool) -> None:
        named = [text for text in inputs if not reads_once(text)]
        count = sum(1 for _ in find_images(named, recursive=recursive)) + ("-" in inputs)
        if len(named) + inputs.count("-") == len(inputs):  # what a list on a stream names is known in the end alone
            self.count = count


def watch(inputs: Sequence[str], recursive: bool, loading: str = "") -> Progress:
    """A bar on a terminal, lines elsewhere."""
    total = Total.of(inputs, recursive)
    return Bar(total, loading) if sys.stderr.isatty() else Lines(total)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def counting(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on standard error for each step that is reported, with the time left where the total is known."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    progress = RichProgress(*columns, *times, console=Console(stderr=True), disable=quiet)
    tasks: dict[str, TaskID] = {}

    def count(step: str, done: int, total: int | None = None) -> None:
        if not tasks:
            progress.start()  # not before: without a step it would leave an empty line
        if step not in tasks:
            tasks[step] = progress.add_task(escape(step), total=total)
        progress.advance(tasks[step], done)

    try:
        yield count
    finally:
        if tasks:
            progress.stop()
