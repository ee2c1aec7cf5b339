"""Where the texts of a folder's pictures stand: `.txt` beside the picture, `metadata.jsonl`, a `.jsonl` of `generate`.

An output is read once, and again where somebody else has changed it. It is written whole or not at all, and only where
it still holds what we believe it holds: what another program wrote meanwhile is never lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from captioner.errors import BadOutput, CaptionerError, printable
from captioner.files.atomic import replacing, write_all
from captioner.pairs.layouts import IMAGE_COLUMNS, SIDECARS, TEXT_COLUMNS
from captioner.review.operations import LONGEST_TEXT
from captioner.review.row import Row
from captioner.sinks.checks import explained
from captioner.sinks.imagefolder import METADATA
from captioner.sinks.journal import Run
from captioner.sinks.row import as_text, to_json
from captioner.sinks.sidecars import read_sidecar, target_of

LARGEST_TABLE = 2_000_000_000
EMBEDDING = 384
"""Numbers of the packaged MiniLM's: another embedder's are not made here."""

Embed = Callable[[Sequence[str]], np.ndarray]


class Wanted(NamedTuple):
    """What an output should hold of a picture instead of what it holds. None: nothing."""

    before: str | None
    after: str | None


class Output(Protocol):
    """One place where texts stand."""

    title: str

    def look(self, rows: Iterable[Row]) -> None:
        """Bring `row.places` up to date where something has changed since the last look."""

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, str]:
        """Write these; what could not be kept comes back with the reason."""


class Candidate(NamedTuple):
    """One of the texts that a model proposed."""

    text: str
    score: float | None


CHANGED = "{} was changed by another program meanwhile: what it holds now is shown, nothing was overwritten."


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file is written; None of a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


# --- beside the pictures ---------------------------------------------------------------------------------------------


class Sidecars:
    """`photo.txt` (or `.caption`) beside `photo.png`."""

    title = ".txt beside the picture"

    def __init__(self) -> None:
        self.owner: dict[Path, Row] = {}
        self.states: dict[Row, tuple[int, int, int] | None] = {}
        self.raw: dict[str, str] = {}
        """Name → a sidecar's very content, where that is more than the text and a line break: undo brings it back."""

    def forget(self) -> None:
        """Everything is looked at anew."""
        self.owner.clear()
        self.states.clear()

    def file_of(self, row: Row) -> Path:
        """Where a picture's text is, or would be."""
        files = [row.path.with_suffix(ending) for ending in SIDECARS]
        return next((file for file in files[1:] if not os.path.lexists(files[0]) and os.path.lexists(file)), files[0])

    def look(self, rows: Iterable[Row]) -> None:
        for row in rows:
            file = self.file_of(row)
            state = _state(file)
            if row in self.states and state == self.states[row] and (state is None or self in row.places):
                continue
            self.states[row] = state
            row.places.pop(self, None)
            if (owner := self.owner.setdefault(file, row)) is not row:
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
        if (owner := self.owner.setdefault(file, row)) is not row:
            raise BadOutput(f"{row.name} would share its sidecar with {owner.name}: rename one of the two.")
        if not os.access(file.parent, os.W_OK):
            raise BadOutput(f"The folder of {row.name} cannot be written to.")
        if self not in row.places:
            _text_of(target_of(file))

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, str]:
        problems: dict[Row, str] = {}
        contents: dict[Path, bytes] = {}
        files: dict[Row, Path] = {}
        for row, (before, after) in wanted.items():
            file = self.file_of(row)
            try:
                if self.owner.setdefault(file, row) is not row:
                    raise BadOutput(f"{row.name} would share its sidecar with {self.owner[file].name}.")
                target = target_of(file)
                now = _text_of(target)
                if (None if now is None else _stripped(now)) == after:
                    files[row] = file
                elif (None if now is None else _stripped(now)) != before:
                    raise BadOutput(CHANGED.format(file.name))
                elif after is None:
                    with explained(target):
                        target.unlink()
                    files[row] = file
                else:
                    contents[target] = self._content(row, after)
                    files[row] = file
            except BadOutput as error:
                problems[row] = printable(str(error))
        self._write_all(contents, files, problems)
        for row, file in files.items():
            if row not in problems:
                self.states[row] = _state(file)
        return problems

    def _content(self, row: Row, text: str) -> bytes:
        raw = self.raw.get(row.name)
        content = raw if raw is not None and _stripped(raw) == text else f"{text}\n"
        return content.encode("utf-8")

    def _write_all(self, contents: dict[Path, bytes], files: dict[Row, Path], problems: dict[Row, str]) -> None:
        try:
            write_all(contents)
        except OSError:  # one at a time, to tell which
            for row, file in files.items():
                target = target_of(file)
                if target in contents:
                    try:
                        write_all({target: contents[target]})
                    except OSError as error:
                        problems[row] = printable(f"{file.name} cannot be written ({error.strerror}).")


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
    return raw.removeprefix("\ufeff").strip()


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A line of a table: where it stands, and the picture it is about, if it is one of ours."""

    start: int
    length: int
    row: Row | None = None
    text: str = ""


class Table:
    """`metadata.jsonl` of an image folder, or the `.jsonl` that `generate` writes. Other lines stay as they are."""

    def __init__(self, path: Path, root: Path, rows: Mapping[str, Row], embed: Embed) -> None:
        self.path = path
        self.root = root
        self.rows = rows
        self.embed = embed
        self.title = path.relative_to(root).as_posix()
        self.is_metadata = path.name == METADATA
        self.state: tuple[int, int, int] | None = None
        self.lines: list[Line] = []
        self.columns: list[str] = []
        self.base = path.parent
        """Where names of pictures begin."""

    @property
    def count(self) -> int:
        """Pictures of ours that it tells of."""
        return sum(line.row is not None for line in self.lines)

    def covers(self, row: Row) -> bool:
        """Whether a picture belongs to this image folder, whether it has a line yet or not."""
        return self.is_metadata and self.path.parent in row.path.parents

    def look(self, rows: Iterable[Row] = ()) -> None:
        """All lines are read again if the file has changed."""
        if (state := _state(self.path)) == self.state and state is not None:
            return
        self.state = state
        for line in self.lines:
            if line.row is not None:
                line.row.places.pop(self, None)
        self.lines, self.columns = [], []
        if state is None or state[1] > LARGEST_TABLE or not self.path.is_file():
            return
        bases = list(self._bases())
        start = 0
        with open(self.path, "rb") as stream:
            for content in stream:
                self.lines.append(self._line(content, start, bases))
                start += len(content)

    def _line(self, content: bytes, start: int, bases: Sequence[Path]) -> Line:
        line = Line(start, len(content))
        fields = _fields(content)
        text_column = next((column for column in TEXT_COLUMNS if column in fields), None)
        if text_column is None:
            return line
        text = fields[text_column]
        if not isinstance(text, str | None) or len(text or "") > LONGEST_TEXT:
            return line
        row = self._picture(fields, bases)
        if row is None:
            return line
        line.row, line.text = row, (text or "").strip()
        row.places[self] = line.text
        score = fields.get("score")
        if isinstance(score, int | float) and not isinstance(score, bool) and np.isfinite(score):
            row.score = float(score)
        self.columns = self.columns or list(fields)
        return line

    def _bases(self) -> Iterator[Path]:
        """Where names of pictures may begin. Whatever is found must lie in the root."""
        yield self.path.parent
        if self.is_metadata:
            yield self.path.parent / "images"
            return
        try:
            run = Run.read(self.path.with_name(f".{self.path.name}.run.json"))
        except CaptionerError:
            run = None
        if run is not None:
            yield Path(run.folder)
        yield from (self.root, *self.root.parents)

    def _picture(self, fields: dict[str, Any], bases: Sequence[Path]) -> Row | None:
        columns = ("file_name", *IMAGE_COLUMNS) if self.is_metadata else ("file", *IMAGE_COLUMNS)
        file = next((fields[column] for column in columns if isinstance(fields.get(column), str)), "")
        for base in bases:
            if (row := located(file, base, self.root, self.rows)) is not None:
                self.base = base
                return row
        return None

    def candidates(self, row: Row) -> list[Candidate]:
        """What the model proposed for a picture, best first."""
        line = next((line for line in reversed(self.lines) if line.row is row), None)
        if line is None or _state(self.path) != self.state:
            return []
        with open(self.path, "rb") as stream:
            stream.seek(line.start)
            listed = _fields(stream.read(line.length)).get("candidates")
        if not isinstance(listed, list):
            return []
        texts = [one for one in listed if isinstance(one, dict) and isinstance(one.get("text"), str)]
        return [Candidate(one["text"], one["score"] if isinstance(one.get("score"), float) else None) for one in texts]

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, str]:
        if os.path.exists(part := f"{self.path}.part"):
            reason = f"{printable(part)} says that a run is not finished: finish it (resume), then save again."
            return dict.fromkeys(wanted, reason)
        if _state(self.path) != self.state:
            self.look()
        holds = {line.row: line.text for line in self.lines if line.row in wanted}
        reason = CHANGED.format(printable(self.title))
        problems = {
            row: reason
            for row, (before, after) in wanted.items()
            if holds.get(row) not in (before, after)  # None: no line yet, or none any more
        }
        todo = {row: want for row, want in wanted.items() if row not in problems and holds.get(row) != want.after}
        if todo:
            try:
                with explained(self.path, "Make room, or see to its permissions."):
                    self._rewrite(todo)
            except (BadOutput, ValueError) as error:
                problems |= dict.fromkeys(todo, printable(str(error)))
        return problems

    def _rewrite(self, todo: Mapping[Row, Wanted]) -> None:
        """The whole file with other texts in some of its lines; the others are copied byte by byte."""
        vectors = self._vectors([want.after for want in todo.values() if want.after is not None])
        if self.path.is_symlink() and not Path(os.path.realpath(self.path)).is_relative_to(self.root):
            raise BadOutput(f"{self.title} is a link that leads out of the folder: remove it.")
        lines: list[Line] = []
        with open(self.path, "rb") as old, replacing(Path(os.path.realpath(self.path))) as new, open(new, "wb") as out:
            for line in self.lines:
                content = old.read(line.length)
                want = todo.get(line.row) if line.row is not None else None
                if want is not None and line.text == want.before:
                    if want.after is None:
                        continue
                    content = self._with_text(_fields(content), want.after, vectors)
                lines.append(self._put(out, content, line.row, line.text if want is None else want.after or ""))
            present = {line.row for line in lines}
            for row, want in todo.items():
                if row not in present and want.after is not None:
                    content = self._with_text(self._new(row), want.after, vectors)
                    lines.append(self._put(out, content, row, want.after))
        self.lines, self.state = lines, _state(self.path)

    def _put(self, out: Any, content: bytes, row: Row | None, text: str) -> Line:
        content = content if content.endswith(b"\n") else content + b"\n"
        line = Line(out.tell(), len(content), row, text)
        out.write(content)
        return line

    def _with_text(self, fields: dict[str, Any], text: str, vectors: Mapping[str, list[float]]) -> bytes:
        column = next((column for column in TEXT_COLUMNS if column in fields), "text")
        fields[column] = text
        if "embedding" in fields:
            fields["embedding"] = vectors.get(text)
        return f"{to_json(fields)}\n".encode()

    def _new(self, row: Row) -> dict[str, Any]:
        """A line for a picture that has none: the columns of the others, so that a run can go on from them."""
        fields: dict[str, Any] = dict.fromkeys(self.columns or ["file_name" if self.is_metadata else "file", "text"])
        name = as_text(os.path.relpath(row.path, self.base))
        names = [column for column in ("file_name", *IMAGE_COLUMNS) if column in fields]
        return fields | dict.fromkeys(names, name) | ({"candidates": []} if "candidates" in fields else {})

    def _vectors(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """The embeddings of new texts, where the table has some: one of the old text would be wrong."""
        if "embedding" not in self.columns or not texts:
            return {}
        first = next(line for line in self.lines if line.row is not None)
        with open(self.path, "rb") as stream:
            stream.seek(first.start)
            example = _fields(stream.read(first.length)).get("embedding")
        if not isinstance(example, list) or len(example) != EMBEDDING:
            return {}
        vectors = [[float(str(number)) for number in vector] for vector in self.embed(texts)]
        return dict(zip(texts, vectors, strict=True))


def located(file: str, base: Path, root: Path, rows: Mapping[str, Row]) -> Row | None:
    """The picture that a file's name, seen from `base`, stands for, if it is one of these."""
    path = os.path.normpath(os.path.join(base, file))
    inside = path.startswith(f"{root}{os.sep}".replace(os.sep * 2, os.sep))
    return rows.get(as_text(path[len(str(root)) :].lstrip(os.sep)).replace(os.sep, "/")) if inside else None


def _fields(content: bytes) -> dict[str, Any]:
    """A line's fields; none of what is no JSON object."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
