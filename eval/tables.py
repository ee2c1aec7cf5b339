"""Tables of texts: CSV or JSON lines, ours (`captioner generate --out`) or anybody's.

Our own tables call the picture `file` and what was said of it `text`; elsewhere it is `id` and `prediction`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePath

from captioner.errors import BadInput

ENDINGS = (".csv", ".jsonl")
ALIASES = {"file": "id", "text": "prediction"}

Row = dict[str, str | None]


def is_table(name: str) -> bool:
    """Does this entry of --models bring texts?"""
    return name.lower().endswith(ENDINGS)


def check(table: Path) -> None:
    """Refuse a table that is not there."""
    if not table.is_file():
        raise BadInput(f"{table} is a folder, not a table." if table.is_dir() else f"There is no {table}.")


def read_rows(table: Path, needed: Iterable[str]) -> list[Row]:
    """Every row with our names for the columns; a value that is missing is None."""
    check(table)
    needed = set(needed)
    rows = _json_rows(table, needed) if table.suffix.lower() == ".jsonl" else _csv_rows(table)
    if not rows:
        raise BadInput(f"{table} has no rows.")
    present = {column for row in rows for column in row}
    in_file = ", ".join(sorted(present))
    for ours, name in ALIASES.items():
        if ours in present and name not in present:
            rows = [{name if column == ours else column: value for column, value in row.items()} for row in rows]
            present = present - {ours} | {name}
    if missing := sorted(needed - present):
        noun = "column" if len(missing) == 1 else "columns"
        raise BadInput(f"{table} lacks the {noun} {' and '.join(missing)}; it has {in_file}.")
    return [{column: row.get(column) for column in sorted(present)} for row in rows]


class Lookup:
    """Texts by the id of a picture, which may be a path where the other side has a name."""

    def __init__(self, texts: dict[str, str | None]) -> None:
        self.texts = texts
        tails: dict[str, list[str]] = {}
        for identifier in texts:
            for tail in _tails(identifier):
                tails.setdefault(tail, []).append(identifier)
        self.by_tail = {tail: names[0] for tail, names in tails.items() if len(names) == 1}  # else it is not clear

    def find(self, identifier: str) -> str | None:
        """The table's own id for this picture, by the longest part of both paths that only one row has."""
        if identifier in self.texts:
            return identifier
        return next((self.by_tail[tail] for tail in _tails(identifier) if tail in self.by_tail), None)


def _tails(identifier: str) -> list[str]:
    """`a/b/c.png` → `a/b/c.png`, `b/c.png`, `c.png`, and the name without its ending."""
    parts = PurePath(identifier).parts
    paths = ["/".join(parts[start:]) for start in range(len(parts))]
    stem = PurePath(identifier).stem
    return [*paths, stem] if stem not in paths else paths


def _csv_rows(table: Path) -> list[Row]:
    """By pyarrow: the csv module cuts fields off at a length that is set for the whole process."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        content = table.read_bytes()
        content.decode("utf-8")
        header = csv.open_csv(pa.BufferReader(content), csv.ReadOptions(block_size=_block(content))).schema.names
        read = csv.read_csv(
            pa.BufferReader(content),
            csv.ReadOptions(block_size=_block(content)),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
        )
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise BadInput(f"{table} cannot be read as UTF-8 CSV ({' '.join(str(error).split())}).") from error
    if doubles := {name for name in header if header.count(name) > 1}:
        raise BadInput(f"{table} has two columns called {min(doubles)!r}.")
    return read.to_pylist()


def _block(content: bytes) -> int:
    """All at once: a field may be as long as the file."""
    return max(len(content) + 1, 2**16)


def _json_rows(table: Path, of_text: set[str]) -> list[Row]:
    """of_text: columns that hold texts; a list of them is none, and would be measured as it is written."""

    def is_read(column: str, row: dict) -> bool:
        name = ALIASES.get(column)
        return column in of_text or (name in of_text and name not in row)

    rows: list[Row] = []
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{table} cannot be read as UTF-8 ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{table}, line {number}, is no JSON.") from error
        if not isinstance(row, dict):
            raise BadInput(f"{table}, line {number}, holds no object.")
        if others := sorted(key for key in row if isinstance(row[key], list | dict) and is_read(key, row)):
            raise BadInput(f"{table}, line {number}: {others[0]} is no text: give one a row.")
        rows.append({key: None if value is None or value != value else str(value) for key, value in row.items()})
    return rows
