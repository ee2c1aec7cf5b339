"""Standard input, output and error as every command wants them: open, able to hold any text, and of no harm to a run
where nobody listens.

What is told on standard error may be lost: the disk of a log is full, a terminal has gone. What is written to standard
output is a result: where it cannot be, the command says so and its exit status is not 0.
"""

from __future__ import annotations

import io
import os
import select
import sys
import time
from contextlib import suppress
from typing import BinaryIO, cast

from captioner.errors import BadOutput

WAIT = 0.01
"""Seconds before a full stream is tried again."""


class Unheard(io.RawIOBase):
    """A stream to which what cannot be written counts as written."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self.stream = stream

    def write(self, content) -> int:
        try:
            while (written := self.stream.write(content)) is None:  # set not to wait by who shares it, and full
                time.sleep(WAIT)
        except OSError:
            return memoryview(content).nbytes
        return written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


class Closed(io.TextIOBase):
    """Standard output that was closed: what is written there has not been shown."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BadOutput("Standard output is closed.")

    @property
    def buffer(self) -> BinaryIO:
        raise BadOutput("Standard output is closed.")


def prepare() -> None:
    """Set up the three streams. What the user has said of their encoding stays."""
    if os.name != "nt":
        _hold_descriptors()
    # A stream that was closed is None: print(file=None) would write messages among the results.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process
    sys.stdout = sys.stdout or Closed()
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        buffer = sys.stderr.buffer  # with PYTHONUNBUFFERED the stream itself; in a window of Windows no plain file
        unheard = Unheard(buffer.raw if isinstance(buffer, io.BufferedWriter) else cast("io.RawIOBase", buffer))
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(unheard), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
    if sys.stdout is sys.__stdout__ and sys.stdout is not None and isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: what a full disk did not take would be forgotten by who goes on, and the status be 0.
        buffer = io.BufferedWriter(sys.stdout.buffer)
        sys.stdout = io.TextIOWrapper(buffer, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)
    if hasattr(sys.stdout, "reconfigure") and (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        sys.stdout.reconfigure(errors="backslashreplace")  # é in a Latin-2 terminal is no reason to stop


def _hold_descriptors() -> None:
    """Nothing else gets the number of a stream that was closed: what a library prints would go into an output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)


def tell(text: str) -> None:
    """A message on standard output of work that goes on where nobody reads it."""
    with suppress(OSError, BadOutput):  # of a full disk the command tells in the end
        print(text, flush=True)


def settle() -> None:
    """Let go of what was printed and cannot be brought out: Python would try, and fail, as it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # no real file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_unread() -> bool:
    """Whether the reader of standard output has gone. Windows does not tell, nor that a pipe is broken."""
    if os.name == "nt":
        return False
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
