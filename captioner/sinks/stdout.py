"""Standard output: one line a picture."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from captioner.errors import BadOutput, can_print
from captioner.images import Source
from captioner.sinks.row import Result, Row, as_text, to_json


class Stdout:
    """What `show` makes of a row: alone, or `named` with the picture before it on one line."""

    resumable = False

    def __init__(self, show: Callable[[Row], str], *, named: bool = False) -> None:
        if sys.stdout is None or not sys.stdout.writable():
            raise BadOutput("Standard output is closed: name an output.")
        self.show = show
        self.named = named

    def __enter__(self) -> Stdout:
        return self

    def __exit__(self, *_: object) -> None:
        """Every line is out already."""

    def wants(self, source: Source) -> bool:
        return True

    def write(self, results: Sequence[Result]) -> None:
        lines = [self._line(source, row) for source, row in results]
        try:
            print("\n".join(lines), flush=True)
        except BrokenPipeError:
            raise  # `| head` has seen enough
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more as it ends
            raise BadOutput(f"Standard output cannot be written ({error.strerror}).") from error

    def _line(self, source: Source, row: Row) -> str:
        text = as_text(self.show(row))
        if self.show is to_json and not can_print(text):
            text = json.dumps(json.loads(text))  # what the stream would put in place of a character is no JSON
        return f"{source.name}\t{' '.join(text.split())}" if self.named else text

    def fail(self, file: str, reason: str) -> None:
        """Standard error has said it."""

    def existing(self) -> Iterator[Row]:
        return iter(())

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return f"{done:,} done, {failed:,} failed"
