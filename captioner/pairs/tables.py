"""Rows of tables that people make: .csv and .jsonl, checked line by line, and what their cells may hold."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from captioner.errors import BadInput, printable

TABLES = (".csv", ".jsonl")
LONGEST_LINE = 16_000_000


def rows_of(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a .csv, or of a .jsonl, each with the words that name its place."""
    if not table.is_file():  # a pipe would wait for ever
        raise BadInput(f"{table} is not a file.")
    try:
        # Bytes that are no UTF-8 come as lone surrogates, so that the line they stand in can be named.
        with table.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as stream:
            yield from (_csv_rows if table.suffix == ".csv" else _json_rows)(_lines_of(stream, table), table)
    except OSError as error:
        raise BadInput(f"{table} cannot be read ({error.strerror}).") from error


def _lines_of(stream: TextIO, table: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{table}, line {number} is longer than {LONGEST_LINE:,} characters: this is no table.")
        yield line


def _csv_rows(lines: Iterable[str], table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(lines)
    try:
        _check_utf8(reader.fieldnames or (), f"{table}, line 1")
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if any(row.pop(None, ())):  # what stands behind the last column
                raise BadInput(f"{where}: there are more cells than columns. A text with a comma stands in quotes.")
            _check_utf8([cell for cell in row.values() if isinstance(cell, str)], where)
            yield where, row
    except csv.Error as error:
        raise BadInput(f"{table}, line {reader.reader.line_num}: this is no CSV ({error}).") from error


def _json_rows(lines: Iterable[str], table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        _check_utf8((line,), where)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: this is no JSON ({error}).") from error
        if not isinstance(row, dict):
            line = printable(line.strip()[:40])
            raise BadInput(f'{where}: {line} is no JSON object like {{"file_name": "a.png", "text": "a cat"}}.')
        yield where, row


def _check_utf8(texts: Iterable[str], where: str) -> None:
    if not all(map(is_whole, texts)):
        raise BadInput(f"{where}: this is not UTF-8. Save the file as UTF-8.")


def caption_of(cell: Any, where: str) -> str:
    """The caption in a cell; of several, the first; empty where there is none."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise BadInput(f"{where}: the caption is {printable(repr(cell)[:60])}, not a text. Write it in quotes.")
    if not is_whole(cell):
        raise BadInput(f"{where}: the caption holds half a character (a lone surrogate). Write it anew as UTF-8.")
    return cell if cell.strip() else ""


def is_whole(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    return text.isascii() or re.search("[\ud800-\udfff]", text) is None


def file_name(cell: Any) -> str:
    """A name or a number as a name; anything else names no picture."""
    return str(cell) if isinstance(cell, str | int) and not isinstance(cell, bool) else ""
