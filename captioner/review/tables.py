"""Texts in tables: `metadata.jsonl` of an image folder, and the other `.jsonl` that `generate` writes."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import BadOutput, CaptionerError, printable
from captioner.files.atomic import replacing
from captioner.files.names import seen_from, spellings
from captioner.pairs.layouts import IMAGE_COLUMNS, TEXT_COLUMNS
from captioner.review.operations import LONGEST_TEXT
from captioner.review.outputs import CHANGED, Candidate, Moved, Problem, State, Wanted, state_of
from captioner.review.row import Row
from captioner.sinks.checks import explained
from captioner.sinks.imagefolder import METADATA
from captioner.sinks.journal import Run
from captioner.sinks.row import as_text, to_json

LARGEST_TABLE = 2_000_000_000
EMBEDDING = 384
"""Numbers of the packaged MiniLM's: another embedder's are not made here."""

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass
class Line:
    """A line of a table: where it stands, and the picture it is about, if it is one of ours."""

    start: int
    length: int
    row: Row | None = None
    text: str = ""


class Table:
    """`metadata.jsonl` of an image folder, or the `.jsonl` that `generate` writes. Other lines stay as they are."""

    at_once: float = math.inf  # each piece rewrites the whole file

    def __init__(self, path: Path, root: Path, rows: Mapping[str, Row], embed: Embed) -> None:
        self.path = path
        self.root = root
        self.rows = rows
        self.embed = embed
        self.title = path.relative_to(root).as_posix()
        self.is_metadata = path.name == METADATA
        self.state: State | None = None
        self.lines: list[Line] = []
        self.columns: list[str] = []
        self.foreign: set[Row] = set()
        """Pictures whose texts it holds in some other form: a list of several."""
        self.base = path.parent
        """Where names of pictures begin."""
        self.lock = threading.RLock()
        """One thread writes, others look: where each line stands is true of one file alone."""

    @property
    def count(self) -> int:
        """Pictures of ours that it tells of."""
        return sum(line.row is not None for line in self.lines)

    def covers(self, row: Row) -> bool:
        """Whether a picture belongs to this image folder, whether it has a line yet or not."""
        return self.is_metadata and self.path.parent in row.path.parents

    def look(self, rows: Iterable[Row] = ()) -> None:
        """All lines are read again if the file has changed."""
        with self.lock:
            state = state_of(self.path)
            if state is None or state != self.state:
                self.state = None  # until all is read
                self._read(state)
                self.state = state

    def _read(self, state: State | None) -> None:
        for line in self.lines:
            if line.row is not None:
                line.row.places.pop(self, None)
        self.lines, self.columns, self.foreign = [], [], set()
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
        row = self._picture(fields, bases)
        if row is None:
            return line
        if not isinstance(text, str | None) or len(text or "") > LONGEST_TEXT:
            self.foreign.add(row)
            return line
        line.row, line.text = row, as_text(text or "").strip()  # half a surrogate pair no page could send back
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
        with self.lock:
            line = next((line for line in reversed(self.lines) if line.row is row), None)
            if line is None or state_of(self.path) != self.state:
                return []
            with open(self.path, "rb") as stream:
                stream.seek(line.start)
                return candidates_in(_fields(stream.read(line.length)))

    def check(self, row: Row) -> None:
        """As of any output."""
        if row in self.foreign:
            raise BadOutput(f"{self.title} holds no single text of {row.name}: change it there.")
        if os.path.exists(f"{self.path}.part"):
            raise BadOutput(f"{self.title} belongs to a run that is not finished: finish it (resume), then edit.")
        if not os.access(self.path.parent, os.W_OK):
            raise BadOutput(f"The folder of {self.title} cannot be written to.")

    def write(self, wanted: Mapping[Row, Wanted]) -> dict[Row, Problem]:
        vectors = self._vectors([want.after for want in wanted.values() if want.after is not None])
        with self.lock:
            return self._write(wanted, vectors)

    def _write(self, wanted: Mapping[Row, Wanted], vectors: Mapping[str, list[float]]) -> dict[Row, Problem]:
        if state_of(self.path) != self.state:
            raise Moved
        holds = {line.row: line.text for line in self.lines if line.row in wanted}
        theirs = Problem(CHANGED.format(printable(self.title)), is_theirs=True)
        problems = {
            row: theirs
            for row, (before, after) in wanted.items()
            if holds.get(row) not in (before, after)  # None: no line yet, or none any more
        }
        todo = {row: want for row, want in wanted.items() if row not in problems and holds.get(row) != want.after}
        if todo:
            try:
                with explained(self.path, "Make room, or see to its permissions."):
                    self._rewrite(todo, vectors)
            except (BadOutput, ValueError) as error:
                problems |= dict.fromkeys(todo, Problem(printable(str(error))))
        return problems

    def _rewrite(self, todo: Mapping[Row, Wanted], vectors: Mapping[str, list[float]]) -> None:
        """The whole file with other texts in some of its lines; the others are copied byte by byte."""
        if self.path.is_symlink() and not Path(os.path.realpath(self.path)).is_relative_to(self.root):
            raise BadOutput(f"{self.title} is a link that leads out of the folder: remove it.")
        lines: list[Line] = []
        with replacing(Path(os.path.realpath(self.path))) as new, open(self.path, "rb") as old, open(new, "wb") as out:
            status = os.fstat(old.fileno())
            if (status.st_mtime_ns, status.st_size, status.st_ino) != self.state:
                raise Moved
            for line in self.lines:
                content, text = old.read(line.length), line.text
                want = todo.get(line.row) if line.row is not None else None
                if want is not None and text == want.before:
                    if want.after is None:
                        continue
                    content, text = self._with_text(_fields(content), want.after, vectors), want.after
                lines.append(self._put(out, content, line.row, text))
            present = {line.row for line in lines}
            for row, want in todo.items():
                if row not in present and want.after is not None:
                    content = self._with_text(self._new(row, want.after), want.after, vectors)
                    lines.append(self._put(out, content, row, want.after))
        self.lines, self.state = lines, state_of(self.path)

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

    def _new(self, row: Row, text: str) -> dict[str, Any]:
        """A line for a picture that has none: the columns of the others, so that a run can go on from them."""
        said = row.said if row.said.get("text") == text else {}
        fields: dict[str, Any] = dict.fromkeys(self.columns or ["file_name" if self.is_metadata else "file", "text"])
        name = as_text(seen_from(self.base, row.path)).replace(os.sep, "/")
        names = [column for column in ("file_name", *IMAGE_COLUMNS) if column in fields]
        empty: dict[str, Any] = {"candidates": []} if "candidates" in fields else {}
        told = {column: said[column] for column in fields if column in said}
        return fields | empty | told | dict.fromkeys(names, name)

    def _vectors(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """The embeddings of new texts, where the table has some: one of the old text would be wrong."""
        with self.lock:
            if "embedding" not in self.columns or not texts:
                return {}
            if state_of(self.path) != self.state:
                raise Moved
            first = next(line for line in self.lines if line.row is not None)
            with open(self.path, "rb") as stream:
                stream.seek(first.start)
                example = _fields(stream.read(first.length)).get("embedding")
        if not isinstance(example, list) or len(example) != EMBEDDING:
            return {}
        vectors = [[float(str(number)) for number in vector] for vector in self.embed(texts)]
        return dict(zip(texts, vectors, strict=True))


def candidates_in(fields: Mapping[str, Any]) -> list[Candidate]:
    """The candidates of a line that somebody else may have written."""
    listed = fields.get("candidates")
    if not isinstance(listed, list):
        return []
    texts = [one for one in listed if isinstance(one, dict) and isinstance(one.get("text"), str)]
    return [Candidate(one["text"], one["score"] if isinstance(one.get("score"), float) else None) for one in texts]


def located(file: str, base: Path, root: Path, rows: Mapping[str, Row]) -> Row | None:
    """The picture that a file's name, seen from `base`, stands for, if it is one of these."""
    path = os.path.normpath(os.path.join(base, file))
    inside = f"{root}{os.sep}".replace(os.sep * 2, os.sep)
    if not path.startswith(inside):  # it may have been named through a link, or by the letter of a network's drive
        path = os.path.join(_resolved(os.path.dirname(path)), os.path.basename(path))
    name = path[len(inside) :] if path.startswith(inside) else ""
    forms = spellings(as_text(name).replace(os.sep, "/"))
    return next((rows[form] for form in forms if form in rows), None)


@lru_cache(1000)  # a table's pictures lie in few folders
def _resolved(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # no name that a system could have
        return folder


def _fields(content: bytes) -> dict[str, Any]:
    """A line's fields; none of what is no JSON object."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
