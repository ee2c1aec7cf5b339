"""Where results go: .jsonl, .csv, .parquet, .npy, a Hugging Face imagefolder, .txt sidecars, standard output.

Every sink but the last keeps a journal beside its output, `NAME.part`: finished rows as JSON lines. The output itself
appears in one piece when the run is over. A run that was killed loses at most the batch in flight, and resumes from the
journal to the same content as an unbroken run. Nothing that is already there is overwritten unasked.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np

from captioner.errors import BadInput, BadOutput
from captioner.images import Source, is_url

Row = dict[str, Any]
"""One result, ready for JSON. `file` says which picture it is about."""

OnExisting = Literal["skip", "overwrite", "append", "prepend", "error"]

RESUME = "What is done is kept: put it right, then add --resume."
LEAST_FREE = 1_000_000
"""Bytes that must be free before work starts."""


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

    def summary(self, done: int, skipped: int, failed: int) -> str:
        """What has become of a run, in one line."""


def file_of(source: Source) -> str:
    """What a row calls its picture: the path as the user gave it, the address, or "-"."""
    return source.name if source.path is None else os.fspath(source.path)


def as_text(file: str) -> str:
    """A file name as valid UTF-8: bytes that are no text become escapes."""
    return file.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(row: Row) -> str:
    """One line. Lone surrogates (bytes of a file name that are no UTF-8) become JSON's own escapes for them."""
    return as_text(json.dumps(row, ensure_ascii=False))


# --- the journal -----------------------------------------------------------------------------------------------------


class Journal:
    """Finished rows as JSON lines, safe against a kill at any moment: a half-written last line is cut off."""

    def __init__(self, path: Path, *, resume: bool, overwrite: bool = False) -> None:
        self.path = path
        self.done: set[str] = set()
        self.columns: list[str] | None = None
        if _size(path) and not (resume or overwrite):
            raise BadOutput(
                f"{path} is left from an unfinished run: add --resume to go on from there, or remove it to start anew."
            )
        with explained(path):
            self.stream = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        _lock(self.stream, path)
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
            _write_all(self.stream, rows)
        for row in rows:
            self._note(row)

    def close(self, *, remove: bool) -> None:
        """Let go of the file; an empty one is of no use to anybody."""
        self.stream.close()
        if self.path.exists() and (remove or not _size(self.path)):
            self.path.unlink()


def _write_all(stream: FileIO, rows: Iterable[Row]) -> None:
    lines = memoryview("".join(to_json(row) + "\n" for row in rows).encode("utf-8"))
    while lines:  # a disk that fills up takes a part, then complains
        lines = lines[stream.write(lines) :]


def _lock(stream: FileIO, path: Path) -> None:
    """Two runs at once would mix their rows. Windows has no such lock, and forbids the rename instead."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadOutput(f"{path} is being written by another run. Wait for it, or choose another --out.") from error


# --- one file --------------------------------------------------------------------------------------------------------


class FileSink:
    """A .jsonl, .csv, .parquet or .npy file, and `NAME.errors.jsonl` for what could not be read."""

    resumable = True

    def __init__(self, out: Path, *, resume: bool = False, overwrite: bool = False, errors: str | None = None) -> None:
        self.out = out
        check_place(out.parent)
        if out.is_dir():
            raise BadOutput(f"{out} is a folder: name a file.")
        if out.exists() and not (resume or overwrite):
            raise BadOutput(f"{out} is already there: add --resume to go on, or --overwrite to replace it.")
        part = out.with_name(f"{out.name}.part")
        if resume and out.exists() and not _size(part):
            self._reopen(part)
        self.journal = Journal(part, resume=resume, overwrite=overwrite)
        self.errors = Errors(out.with_name(errors or f"{out.name}.errors.jsonl"))

    def _reopen(self, part: Path) -> None:
        """A finished output as the journal of a run that goes on."""
        if (read := READERS.get(self.out.suffix)) is None:
            raise BadOutput(f"{self.out} is finished, and its rows have no names to go on from.")
        with explained(part), replacing(part) as temporary, open(temporary, "wb", buffering=0) as stream:
            try:
                for rows in groups(read(self.out), ROW_GROUP):
                    _write_all(stream, (row | {"file": row["file"]} for row in rows))
                if not stream.tell():
                    raise ValueError("no rows")
            except (ValueError, TypeError, KeyError) as error:
                raise BadOutput(f"{self.out} was not written by this command: choose another --out.") from error

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        finished = False
        try:
            if kind is None:
                self._finish()
                finished = True
        finally:
            self.errors.close()
            self.journal.close(remove=finished)

    def _finish(self) -> None:
        """The output in one piece. If that fails the journal stays, and the run can be resumed."""
        if self.journal.columns is None:
            return  # not one result: an output without rows would only look like one
        with explained(self.out, RESUME), replacing(self.out) as new:
            WRITERS[self.out.suffix](self.journal, new)

    def wants(self, source: Source) -> bool:
        return as_text(file_of(source)) not in self.journal.done

    def write(self, results: Sequence[Result]) -> None:
        self.journal.append(row for _, row in results)

    def fail(self, file: str, reason: str) -> None:
        self.errors.append(file, reason)

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return _summary(self.out, done, skipped, failed, self.errors)


def _summary(place: Path, done: int, skipped: int, failed: int, errors: Errors) -> str:
    parts = [f"{done:,} done", f"{skipped:,} were already" if skipped else ""]
    parts.append(f"{failed:,} failed, see {errors.path}" if failed else "")
    return f"{place}: {', '.join(part for part in parts if part)}"


class Errors:
    """errors.jsonl: what could not be read, and why. It speaks of the last run; resuming tries those again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: FileIO | None = None
        path.unlink(missing_ok=True)

    def append(self, file: str, reason: str) -> None:
        with explained(self.path, RESUME):
            self.stream = self.stream or open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
            _write_all(self.stream, [{"file": file, "error": reason}])

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


# --- file formats: rows in, rows out ---------------------------------------------------------------------------------


def write_jsonl(journal: Journal, path: Path) -> None:
    shutil.copyfile(journal.path, path)


def read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)


def write_csv(journal: Journal, path: Path) -> None:
    """Texts as they are, everything else as JSON."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(journal.columns)
        for row in journal:
            writer.writerow(
                json.dumps(value, ensure_ascii=False) if column in STRUCTURED else value
                for column, value in row.items()
            )


def read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield {column: _from_csv(column, value) for column, value in row.items()}


def _from_csv(column: str, value: str) -> Any:
    if column in STRUCTURED:
        return json.loads(value)
    return None if column == "model" and not value else value


STRUCTURED = frozenset({"score", "candidates", "embedding"})
TEXTS = ("file", "text", "model", "source", "raw")
ROW_GROUP = 4096


def write_parquet(journal: Journal, path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    candidate = {"text": pyarrow.string(), "score": pyarrow.float64(), "finished": pyarrow.bool_()}
    types = {
        **dict.fromkeys(TEXTS, pyarrow.string()),
        "score": pyarrow.float64(),
        "candidates": pyarrow.list_(pyarrow.struct(candidate)),
        "embedding": pyarrow.list_(pyarrow.float32()),
    }
    schema = pyarrow.schema([(column, types[column]) for column in journal.columns])
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in groups(journal, ROW_GROUP):
            for row in rows:
                row |= {column: as_text(row[column]) for column in TEXTS if row.get(column) is not None}
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches(ROW_GROUP):
        yield from batch.to_pylist()


def write_npy(journal: Journal, path: Path) -> None:
    """The embeddings alone, float32 `[rows, d]`."""
    first = next(iter(journal))
    rows = sum(1 for _ in journal)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, len(first["embedding"]))}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for row in journal:
            stream.write(np.asarray(row["embedding"], dtype="<f4").tobytes())


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


def groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


# --- a folder of pictures --------------------------------------------------------------------------------------------


class ImageFolder(FileSink):
    """Pictures and metadata.jsonl as `datasets.load_dataset("imagefolder", data_dir=…)` reads them."""

    def __init__(self, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        metadata = folder / "metadata.jsonl"
        if overwrite:
            raise BadOutput("--overwrite does not empty a folder: choose another --out, or remove it yourself.")
        if folder.is_dir() and any(folder.iterdir()):
            begun = metadata.exists() or metadata.with_name("metadata.jsonl.part").exists()
            if not (resume and begun):
                remedy = "add --resume to go on" if begun else "choose a new one"
                raise BadOutput(f"{folder} is a folder that is not empty: {remedy}.")
        check_place(folder.parent)
        with explained(folder):
            folder.mkdir(exist_ok=True)
        super().__init__(metadata, resume=resume, errors="errors.jsonl")
        self.folder = folder.resolve()
        self.taken = {row["file_name"] for row in self.journal}

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def wants(self, source: Source) -> bool:
        # With --recursive the folder may lie among the pictures; its copies are no new ones.
        inside = source.path is not None and self.folder in source.path.absolute().parents
        return not inside and super().wants(source)

    def write(self, results: Sequence[Result]) -> None:
        rows = []
        for source, row in results:
            name = self._keep(source, _plain_name(row["file"]))
            kept = {column: value for column, value in row.items() if column not in ("raw", "candidates")}
            rows.append({"file_name": name} | kept | {"file": as_text(row["file"])})
        self.journal.append(rows)

    def _keep(self, source: Source, wish: str) -> str:
        """Copy the picture into the folder; two of one name become NAME and NAME-2."""
        stem, suffix = os.path.splitext(wish)
        number = 1
        while True:
            name = f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}"
            number += 1
            if name in self.taken:
                continue
            with explained(self.folder / name, RESUME):
                if self._copy(source, self.folder / name):
                    self.taken.add(name)
                    return name

    def _copy(self, source: Source, target: Path) -> bool:
        """False if something else is there. The same picture may be: copied just before a kill, its row not written."""
        with replacing(target, keep=target.exists()) as new:
            if source.data is None:
                shutil.copyfile(source.path, new)
            else:
                new.write_bytes(source.data)
            return not target.exists() or filecmp.cmp(new, target, shallow=False)


def _plain_name(file: str) -> str:
    """A file name of letters, digits and harmless signs, at most 210 long, that ends like a picture."""
    name = PurePosixPath(urlsplit(file).path).name if is_url(file) else os.path.basename(file)
    plain = "".join(c if c.isalnum() or c in " ._-()+,@" else "_" for c in as_text(name)).lstrip(" .-")
    stem, suffix = os.path.splitext(plain)
    return f"{stem[:200] or 'picture'}{suffix[:10] or '.png'}"


# --- text beside the pictures ----------------------------------------------------------------------------------------


class Sidecars:
    """`photo.txt` beside `photo.png`. What a sidecar held is in the journal before it changes."""

    resumable = True

    def __init__(self, inputs: Sequence[str], on_existing: OnExisting = "skip", *, resume: bool = False) -> None:
        self.on_existing = on_existing
        folder = next((p for p in _with_parents(inputs) if p.is_dir()), Path("."))
        check_place(folder)
        # To skip what is there is to go on where a run stopped.
        self.journal = Journal(folder / "captioner-sidecars.part", resume=resume or on_existing == "skip")
        self.errors = Errors(folder / "captioner-errors.jsonl")
        self.owner: dict[Path, Source] = {}
        for row in self.journal:
            self._apply(row)  # those that were in flight when the run was killed

    def __enter__(self) -> Sidecars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.errors.close()
        self.journal.close(remove=kind is None)

    def wants(self, source: Source) -> bool:
        if source.path is None:
            raise BadOutput(f"{source.name} lies in no folder, so there is no place for a sidecar: use --out.")
        sidecar = source.path.with_suffix(".txt")
        if sidecar == source.path:
            raise BadOutput(f"{source.name} is itself named like a sidecar.")
        if (owner := self.owner.setdefault(sidecar, source)) is not source:
            raise BadOutput(f"{source.name} would share its sidecar with {owner.name}.")
        if as_text(file_of(source)) in self.journal.done:
            return False
        if not os.access(sidecar.parent, os.W_OK):
            raise BadOutput(f"The folder of {source.name} cannot be written to.")
        if self.on_existing == "error" and sidecar.exists():
            raise BadOutput(f"{source.name} already has a sidecar.")
        return not (self.on_existing == "skip" and sidecar.exists())

    def write(self, results: Sequence[Result]) -> None:
        rows = [self._row(source.path.with_suffix(".txt"), row) for source, row in results]
        self.journal.append(rows)
        for row in rows:
            self._apply(row)

    def _row(self, sidecar: Path, row: Row) -> Row:
        before = _read_sidecar(sidecar)
        old, text = (before or "").strip(), row["text"]
        parts = {"append": (old, text), "prepend": (text, old)}.get(self.on_existing, (text,))
        after = ", ".join(part for part in parts if part) + "\n"
        return {"file": row["file"], "sidecar": os.fspath(sidecar), "before": before, "after": after}

    def _apply(self, row: Row) -> None:
        """Write a sidecar, unless that is done or the user changed it meanwhile."""
        sidecar = Path(row["sidecar"])
        with explained(sidecar, RESUME):
            if _read_sidecar(sidecar) == row["before"]:
                with replacing(Path(os.path.realpath(sidecar))) as new:
                    new.write_bytes(row["after"].encode("utf-8", "surrogateescape"))

    def fail(self, file: str, reason: str) -> None:
        self.errors.append(file, reason)

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return _summary(Path("sidecars"), done, skipped, failed, self.errors)


def _read_sidecar(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else None


def _with_parents(inputs: Sequence[str]) -> Iterator[Path]:
    path = Path(inputs[0])
    return iter((path, *path.parents))


# --- standard output -------------------------------------------------------------------------------------------------


class Stdout:
    """What `show` makes of a row: alone, or `named` with the picture before it on one line."""

    resumable = False

    def __init__(self, show: Callable[[Row], str], *, named: bool = False) -> None:
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
        return f"{source.name}\t{' '.join(text.split())}" if self.named else text

    def fail(self, file: str, reason: str) -> None:
        """Standard error has said it."""

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return f"{done:,} done, {failed:,} failed"


# --- choosing and checking -------------------------------------------------------------------------------------------


def open_out(out: Path, *, resume: bool = False, overwrite: bool = False) -> FileSink:
    """The sink that a user's --out names: by its ending a file, without one a folder of pictures."""
    if out.suffix in WRITERS and not out.is_dir():
        return FileSink(out, resume=resume, overwrite=overwrite)
    if out.suffix and not out.is_dir():
        raise BadInput(f"--out {out}: the ending says the form, {', '.join(WRITERS)}; none is a folder of pictures.")
    return ImageFolder(out, resume=resume, overwrite=overwrite)


def write_lines(out: Path, lines: Iterable[str], *, overwrite: bool = False) -> None:
    """A whole text file at once."""
    if not overwrite:
        check_new(out)
    check_place(out.parent)
    with explained(out), replacing(out) as new, open(new, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def check_new(out: Path, ending: str = "") -> None:
    """A file that can be made."""
    if not out.name.endswith(ending):
        raise BadInput(f"{out}: name a file that ends in {ending}.")
    if out.exists():
        raise BadOutput(f"{out} is already there: remove it, or name another file.")
    check_place(out.parent)


def check_place(folder: Path) -> None:
    """A folder that is there, may be written to and has room: said before any work is done."""
    if not folder.is_dir():
        raise BadOutput(f"There is no folder {folder}: make it first (mkdir -p).")
    disk = shutil.disk_usage(folder)
    if not os.access(folder, os.W_OK | os.X_OK) or disk.total == 0:  # /proc and its like hold no files of users
        raise BadOutput(f"{folder} cannot be written to: choose another place.")
    if disk.free < LEAST_FREE:
        raise BadOutput(f"The disk of {folder} is full: make room, or choose another place.")


@contextmanager
def replacing(target: Path, keep: bool = False) -> Iterator[Path]:
    """A new file that takes the target's place when it is whole (with `keep` it does not, and is dropped)."""
    # The name follows from the target's: what a killed run leaves, its resumption takes away.
    temporary = target.with_name(f".captioner-{zlib.crc32(os.fsencode(target.name)):08x}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        if not keep:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path, remedy: str = "Choose another place.") -> Iterator[None]:
    """The system's complaint about a file as one clear line."""
    try:
        yield
    except OSError as error:
        raise BadOutput(f"{path} cannot be written ({error.strerror}). {remedy}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
