"""What a run keeps while it works: the journal of finished rows, and the list of pictures that failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from captioner.errors import BadOutput
from captioner.files.lock import lock
from captioner.sinks.checks import RESUME, explained
from captioner.sinks.row import Row, as_text, to_json


class Journal:
    """Finished rows as JSON lines, safe against a kill at any moment: a half-written last line is cut off."""

    def __init__(self, path: Path, *, resume: bool, overwrite: bool = False) -> None:
        self.path = path
        self.done: set[str] = set()
        self.columns: list[str] | None = None
        if file_size(path) and not (resume or overwrite):
            raise BadOutput(
                f"{path} is left from an unfinished run: add --resume to go on from there, or remove it to start anew."
            )
        with explained(path):
            self.stream = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        lock(self.stream, str(path))
        self.stream.truncate(0 if overwrite else self._whole())

    def _whole(self) -> int:
        """The length of all whole rows, which are noted as done."""
        whole = 0
        for row, length in self._rows():
            self._note(row)
            whole += length
        return whole

    def _note(self, row: Row) -> None:
        file = row.get("file", row.get("text"))  # embeddings of texts are about no file
        if file is None:
            raise BadOutput(f"{self.path} was not written by this command: choose another --out.")
        self.columns = self.columns or list(row)
        if row.keys() != set(self.columns):
            raise BadOutput(f"{self.path} was begun with other columns: resume with the options it was begun with.")
        self.done.add(as_text(file))

    def _rows(self) -> Iterator[tuple[Row, int]]:
        with open(self.path, "rb") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:  # a power failure may leave anything
                    return
                if not line.endswith(b"\n"):  # cut off by a kill
                    return
                yield row, len(line)

    def __iter__(self) -> Iterator[Row]:
        return (row for row, _ in self._rows())

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows, all in one write."""
        rows = list(rows)
        with explained(self.path, RESUME):
            write_rows(self.stream, rows)
        for row in rows:
            self._note(row)

    def close(self, *, remove: bool) -> None:
        """Let go of the file; an empty one is of no use to anybody."""
        self.stream.close()
        if self.path.exists() and (remove or not file_size(self.path)):
            self.path.unlink()


def write_rows(stream: FileIO, rows: Iterable[Row]) -> None:
    lines = memoryview("".join(to_json(row) + "\n" for row in rows).encode("utf-8"))
    while lines:  # a disk that fills up takes a part, then complains
        lines = lines[stream.write(lines) :]


class Errors:
    """errors.jsonl: what could not be read, and why. It speaks of the last run; resuming tries those again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: FileIO | None = None
        path.unlink(missing_ok=True)

    def append(self, file: str, reason: str) -> None:
        with explained(self.path, RESUME):
            self.stream = self.stream or open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
            write_rows(self.stream, [{"file": file, "error": reason}])

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
