"""One file of rows: .jsonl, .csv, .parquet, or the vectors alone as .npy."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from captioner.errors import BadOutput
from captioner.files import arrays
from captioner.files.atomic import refuse_new, refuse_no_file, replacing
from captioner.files.lock import lock
from captioner.images import Source
from captioner.sinks.checks import RESUME, check_name, check_place, explained
from captioner.sinks.journal import Errors, Journal, Run, Settings, file_size, summary_line, write_rows
from captioner.sinks.row import Result, Row, as_text, groups

if TYPE_CHECKING:
    import pyarrow


class FileSink:
    """A .jsonl, .csv, .parquet or .npy file, and `NAME.errors.jsonl` for what could not be read.

    The journal is `NAME.part`. `.NAME.run.json` keeps the settings of a finished run, for one that resumes it.
    """

    resumable = True
    SAME_AGAIN = "Give the same again, set overwrite instead of resume to start anew, or name another output."
    """What to do where a run that goes on has other settings."""

    def __init__(
        self,
        out: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        settings: Settings | None = None,
        columns: Sequence[str] = (),
        errors: str | None = None,
    ) -> None:
        check_place(out.parent)
        check_name(out, ".errors.jsonl")
        refuse_no_file(out)
        self.is_there = os.path.lexists(out)
        if self.is_there and not (resume or overwrite):
            raise BadOutput(f"{out} is already there: set resume to go on, or set overwrite to replace it.")
        self.out = out
        self.record = out.with_name(f".{out.name}.run.json")
        refuse_no_file(self.record, "move it away")
        self.errors = Errors(out.with_name(errors or f"{out.name}.errors.jsonl"))
        self.columns = columns
        part, run = out.with_name(f"{out.name}.part"), Run.here(settings)
        if resume and out.exists() and not file_size(part):
            self._reopen(part, run)
        self.journal = Journal(
            part, resume=resume, overwrite=overwrite, run=run, remedy=self.SAME_AGAIN, columns=columns
        )
        self.errors.begin()

    def _reopen(self, part: Path, run: Run) -> None:
        """A finished output as the journal of a run that goes on."""
        if (read := READERS.get(self.out.suffix)) is None:
            raise BadOutput(
                f"{self.out} is finished, and its rows have no names to go on from: set overwrite instead of resume to "
                "replace it, or name another output."
            )
        finished = Run.read(self.record) or run
        finished.check(run, str(self.out), self.SAME_AGAIN)
        with explained(self.out), open(self.out, "r+b", buffering=0) as held:
            lock(held, str(self.out))  # or a second run that begins meanwhile would replace the first one's journal
            if file_size(part):
                return
            with replacing(part) as temporary, open(temporary, "wb", buffering=0) as stream:
                write_rows(stream, [{"run": asdict(finished)}])
                rows_begin = stream.tell()
                try:
                    for rows in groups(read(self.out), ROW_GROUP):
                        write_rows(stream, map(self._checked, rows))
                    if stream.tell() == rows_begin:
                        raise ValueError("no rows")
                except (ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
                    raise BadOutput(f"{self.out} was not written by this command: name another output.") from error

    def _checked(self, row: Row) -> Row:
        """A row of a finished output, if it is one."""
        name = "file" if "file" in row else "text"
        if not isinstance(row[name], str):
            raise TypeError(f"{row[name]!r} is no {name}")
        if row.keys() - self._known() or row.keys() <= {name, "file_name"}:
            raise KeyError("other columns")
        if self.columns and row.keys() != set(self.columns):
            raise BadOutput(
                f"{self.out} has the columns {', '.join(row)}, and now they would be {', '.join(self.columns)}. "
                + self.SAME_AGAIN
            )
        return row

    def _known(self) -> frozenset[str]:
        """All columns that its rows may have."""
        return STRUCTURED.union(TEXTS)

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        finished = False
        try:
            if kind is None:
                finished = self._finish()
        finally:
            self.errors.close()
            self.journal.close(remove=finished or self._is_unused())

    def _finish(self) -> bool:
        """The output in one piece. If that fails the journal stays, and the run can be resumed."""
        if not self.journal.count:
            return False  # not one result: an output without rows would only look like one
        self.journal.check_there()
        with explained(self.out, RESUME):
            run = self.journal.run
            with replacing(self.out) as new:
                WRITERS[self.out.suffix](self.journal, new)
                if not self.is_there:
                    refuse_new(self.out, "set resume")
                if run is not None and run.settings and self.out.suffix in READERS:
                    run.save(self.record)
                else:
                    self.record.unlink(missing_ok=True)
        return True

    def _is_unused(self) -> bool:
        """Whether the journal is of no use to a later run."""
        return not self.journal.count

    def wants(self, source: Source) -> bool:
        return not self.journal.has(source)

    def write(self, results: Sequence[Result]) -> None:
        self.journal.append(row for _, row in results)

    def fail(self, file: str, reason: str) -> None:
        self.errors.append(file, reason)

    def existing(self) -> Iterator[Row]:
        return iter(self.journal)

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return summary_line(self.out, done, skipped, failed, self.errors)


# --- file formats: rows in, rows out ---------------------------------------------------------------------------------


def write_jsonl(journal: Journal, path: Path) -> None:
    with open(journal.path, "rb") as rows, open(path, "wb") as stream:
        rows.seek(journal.start)
        shutil.copyfileobj(rows, stream)


def read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)


def write_csv(journal: Journal, path: Path) -> None:
    """Texts as they are, everything else as JSON."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        write_csv_rows(journal.columns, journal, stream)


def write_csv_rows(columns: Sequence[str], rows: Iterable[Row], stream: TextIO) -> None:
    """A heading, then a line for each row."""
    writer = csv.writer(stream)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            json.dumps(row[column], ensure_ascii=False) if column in STRUCTURED else row[column] for column in columns
        )


def read_csv(path: Path) -> Iterator[Row]:
    before = csv.field_size_limit(LONGEST_FIELD)  # of the whole process: an embedding is longer than its default
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                yield {column: _from_csv(column, value) for column, value in row.items()}
    finally:
        csv.field_size_limit(before)


def _from_csv(column: str, value: str) -> Any:
    if column in STRUCTURED:
        return json.loads(value)
    return None if column == "model" and not value else value


STRUCTURED = frozenset({"score", "candidates", "embedding", "terms", "tags"})
TEXTS = ("file", "text", "model", "precision", "source", "raw", "error")
ROW_GROUP = 4096
LONGEST_FIELD = (1 << 31) - 1
"""Of a CSV, which we wrote ourselves: as long as C allows everywhere."""


def schema_of(columns: Sequence[str]) -> pyarrow.Schema:
    """The types of these columns of a row."""
    import pyarrow

    candidate = {"text": pyarrow.string(), "score": pyarrow.float64(), "finished": pyarrow.bool_()}
    term = {"kind": pyarrow.string(), "term": pyarrow.string()}
    types = {
        **dict.fromkeys(TEXTS, pyarrow.string()),
        "score": pyarrow.float64(),
        "candidates": pyarrow.list_(pyarrow.struct(candidate)),
        "embedding": pyarrow.list_(pyarrow.float32()),
        "terms": pyarrow.list_(pyarrow.struct({**term, "similarity": pyarrow.float64()})),
        "tags": pyarrow.list_(pyarrow.struct({**term, "probability": pyarrow.float64()})),
    }
    return pyarrow.schema([(column, types[column]) for column in columns])


def table_of(rows: list[Row], schema: pyarrow.Schema) -> pyarrow.Table:
    """Rows as parquet keeps them: what is not UTF-8 is escaped."""
    import pyarrow

    for row in rows:
        row |= {column: as_text(row[column]) for column in TEXTS if row.get(column) is not None}
    return pyarrow.Table.from_pylist(rows, schema)


def write_parquet(journal: Journal, path: Path) -> None:
    from pyarrow import parquet

    schema = schema_of(journal.columns)
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in groups(journal, ROW_GROUP):
            writer.write_table(table_of(rows, schema))


def read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches(ROW_GROUP):
        yield from batch.to_pylist()


def write_npy(journal: Journal, path: Path) -> None:
    """The embeddings alone, float32 `[rows, d]`."""
    shape = journal.count, len(next(iter(journal))["embedding"])
    arrays.write_pieces(path, shape, "<f4", (np.array([row["embedding"]], np.float32) for row in journal))


WRITERS: dict[str, Callable[[Journal, Path], None]] = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".npy": write_npy,
}
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
