"""Texts beside the pictures: `photo.txt` beside `photo.png`, as `generate --sidecar` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from captioner.errors import BadOutput, printable
from captioner.files.atomic import write_all
from captioner.files.names import Claims, sidecar_of
from captioner.review.operations import LONGEST_TEXT
from captioner.review.outputs import CHANGED, Problem, Wanted, state_of
from captioner.review.row import Row
from captioner.sinks.checks import explained
from captioner.sinks.sidecars import read_sidecar, target_of


class Sidecars:
    """`photo.txt` (or `.caption`) beside `photo.png`."""

    title = ".txt beside the picture"
    at_once: float = 500

    def __init__(self) -> None:
        self.claims: Claims[Row] = Claims()
        self.states: dict[Row, tuple[int, int, int] | None] = {}
        self.raw: dict[str, str] = {}
        """Name → a sidecar's very content, where that is more than the text and a line break: undo brings it back."""

    def forget(self) -> None:
        """Everything is looked at anew."""
        self.claims = Claims()
        self.states.clear()

    def file_of(self, row: Row) -> Path:
        """Where a picture's text is, or would be."""
        return sidecar_of(row.path)

    def look(self, rows: Iterable[Row]) -> None:
        for row in rows:
            file = self.file_of(row)
            state = state_of(file)
            if row in self.states and state == self.states[row] and (state is None or self in row.places):
                continue
            self.states[row] = state
            row.places.pop(self, None)
            if (owner := self.claims.owner(file, row.path, row)) is not row:
                row.problem = f"{row.name} would share its sidecar with {owner.name}: rename one of the two."
            elif state is not None:
                self._read(row, file)

    def _read(self, row: Row, file: Path) -> None:
        try:
            raw = _text_of(target_of(file))
        except BadOutput as error:
            row.problem = printable(str(error))
            return
        if raw is not None:
            row.places[self] = text = _stripped(raw)
            if raw != text + "\n":
                self.raw.setdefault(row.name, raw)

    def check(self, row: Row) -> None:
        """Whether a text can be kept here; a `BadOutput` says why not."""
        file = self.file_of(row)
        if (owner := self.claims.owner(file, row.path, row)) is not row:
            raise BadOutput(f"{row.name} would share its sidecar with {owner.name}: rename one of the two.")
        if not os.access(file.parent, os.W_OK):
            raise BadOutput(f"The folder of {row.name} cannot be written to.")
        if self not in row.places:
            _text_of(target_of(file))

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, Problem]:
        problems: dict[Row, Problem] = {}
        contents: dict[Path, bytes] = {}
        files: dict[Row, Path] = {}
        for row, (before, after) in wanted.items():
            file = self.file_of(row)
            try:
                if (owner := self.claims.owner(file, row.path, row)) is not row:
                    raise BadOutput(f"{row.name} would share its sidecar with {owner.name}.")
                target = target_of(file)
                now = _text_of(target)
                if (None if now is None else _stripped(now)) == after:
                    files[row] = file
                elif (None if now is None else _stripped(now)) != before:
                    problems[row] = Problem(CHANGED.format(printable(file.name)), is_theirs=True)
                elif after is None:
                    with explained(target):
                        target.unlink()
                    files[row] = file
                else:
                    contents[target] = self._content(row, after)
                    files[row] = file
            except BadOutput as error:
                problems[row] = Problem(printable(str(error)))
        self._write_all(contents, files, problems)
        for row, file in files.items():
            if row not in problems:
                self.states[row] = state_of(file)
        return problems

    def _content(self, row: Row, text: str) -> bytes:
        raw = self.raw.get(row.name)
        content = raw if raw is not None and _stripped(raw) == text else f"{text}\n"
        return content.encode("utf-8")

    def _write_all(self, contents: dict[Path, bytes], files: dict[Row, Path], problems: dict[Row, Problem]) -> None:
        try:
            write_all(contents)
        except OSError:  # one at a time, to tell which
            for row, file in files.items():
                target = target_of(file)
                if target in contents:
                    try:
                        write_all({target: contents[target]})
                    except OSError as error:
                        problems[row] = Problem(printable(f"{file.name} cannot be written ({error.strerror})."))


def _text_of(file: Path) -> str | None:
    raw = read_sidecar(file)
    if raw is None:
        return None
    if len(raw) > LONGEST_TEXT:
        raise BadOutput(f"{file.name} has more than {LONGEST_TEXT:,} characters: it is taken for no caption.")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadOutput(f"{file.name} is not UTF-8. Save it as UTF-8.") from error
    return raw


def _stripped(raw: str) -> str:
    """The text: with one kind of line break, as a page has it, which would otherwise seem to have been edited."""
    return raw.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip()
