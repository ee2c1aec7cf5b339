"""A row: one result, ready for JSON; and what every sink does with rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from captioner.images import Source, is_url
from captioner.terms import merged

Row = dict[str, Any]
"""One result, ready for JSON. `file` says which picture it is about."""

OnExisting = Literal["skip", "overwrite", "append", "prepend", "error"]


def with_existing(before: str, text: str, on_existing: OnExisting) -> str:
    """A new text and the one that is there as one, or the new one alone."""
    if on_existing == "append":
        return merged(before, text)
    return merged(text, before) if on_existing == "prepend" else text


class Result(NamedTuple):
    """A row and the picture it is about (with its bytes, if it came from an address)."""

    source: Source
    row: Row


class Sink(Protocol):
    """Takes results, and what could not be read. Leaving it by an exception keeps what is needed to resume."""

    resumable: bool

    def __enter__(self) -> Sink: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def wants(self, source: Source) -> bool:
        """False: this picture is already done. A `BadOutput` says why its result could not be kept."""

    def write(self, results: Sequence[Result]) -> None:
        """Keep these; when it returns they are safe."""

    def fail(self, file: str, reason: str) -> None:
        """Keep the reason why there is no result."""

    def existing(self) -> Iterator[Row]:
        """The rows that are already there, where a run goes on."""

    def summary(self, done: int, skipped: int, failed: int) -> str:
        """What has become of a run, in one line."""


def file_of(source: Source) -> str:
    """What a row calls its picture: the path as the user gave it, the address, or "-"."""
    if source.id is not None:
        return source.id
    return source.name if source.path is None else os.fspath(source.path)


def picture_key(file: str, folder: str) -> str:
    """What a row's picture is known by, whether it was named relatively (to `folder`) or absolutely; on Windows in
    whatever case."""
    if file == "-" or is_url(file):
        return as_text(file)
    return as_text(os.path.normcase(os.path.abspath(os.path.join(folder, file))))


def as_text(file: str) -> str:
    """A file name as valid UTF-8: bytes that are no text become escapes."""
    return file.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(row: Row) -> str:
    """One line. Lone surrogates (bytes of a file name that are no UTF-8) become JSON's own escapes for them."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a picture's own parameters may hold "CFG scale: nan", for which JSON has no word
        line = json.dumps(without_nan(row), ensure_ascii=False)
    return as_text(line)


def without_nan(value: Any) -> Any:
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finite(row: Row) -> bool:
    """Whether all of a model's numbers are numbers."""
    scores = [row.get("score"), *(candidate["score"] for candidate in row.get("candidates", ()))]
    scores += [term["similarity"] for term in row.get("terms", ())]
    return all(number is None or math.isfinite(number) for number in (*scores, *row.get("embedding", ())))


Item = TypeVar("Item")


def groups(rows: Iterable[Item], size: int) -> Iterator[list[Item]]:
    waiting = iter(rows)
    while group := list(islice(waiting, size)):
        yield group
