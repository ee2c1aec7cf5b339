"""What a run keeps while it works: its settings, the journal of finished rows, the list of pictures that failed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import BadOutput, counted
from captioner.files import atomic
from captioner.files.json import read_object, write_object
from captioner.files.lock import is_at, lock
from captioner.images import Source, is_url
from captioner.sinks.checks import RESUME, explained
from captioner.sinks.row import Row, as_text, file_of, picture_key, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = dict[str, Any]
"""All that a run's rows depend on but the pictures: model, search, what is done to the text. Ready for JSON."""

LONGEST_HEADER = 1_000_000
OPENING = b'{"run": '
END = b'{"end": true}\n'


@dataclass(frozen=True)
class Run:
    """What rows depend on, kept with them: a run that goes on must be the same one."""

    settings: Settings
    folder: str
    """Where relative names of pictures begin."""

    @classmethod
    def here(cls, settings: Settings | None) -> Run:
        """A run that begins now."""
        return cls(json.loads(json.dumps(settings or {}, default=str)), os.getcwd())

    @classmethod
    def read(cls, path: Path) -> Run | None:
        """The run that was saved beside a finished output; None if there is no such file."""
        if not path.exists():
            return None
        try:
            return cls.parse(read_object(path, BadOutput, "Remove it."))
        except ValueError as error:
            raise BadOutput(f"{path} does not tell the settings of a run: remove it.") from error

    @classmethod
    def parse(cls, content: object) -> Run:
        """Raises a ValueError for what is no run."""
        if not isinstance(content, dict) or content.keys() != {"settings", "folder"}:
            raise ValueError("no record of a run")
        if not isinstance(content["settings"], dict) or not isinstance(content["folder"], str):
            raise ValueError("no record of a run")
        return cls(**content)

    def save(self, path: Path) -> None:
        write_object(path, asdict(self))

    def check(self, now: Run, what: str, remedy: str) -> None:
        """Rows of different settings are not mixed."""
        names = sorted(self.settings.keys() | now.settings.keys())
        pairs = [(name, self.settings.get(name), now.settings.get(name)) for name in names]
        changes = [f"{name} was {_shown(old)} and is now {_shown(new)}" for name, old, new in pairs if old != new]
        if changes:
            raise BadOutput(f"{what} was begun with other settings: {'; '.join(changes)}. {remedy}")


def given(options: DataclassInstance) -> Settings:
    """The fields of a dataclass that are not as they are by default."""
    values = {field.name: (getattr(options, field.name), field.default) for field in fields(options)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _shown(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) and value else json.dumps(value)


# --- finished rows ---------------------------------------------------------------------------------------------------


class Journal:
    """Finished rows as JSON lines, safe against a kill at any moment: a half-written last line is cut off.

    With a `run` the first line tells its settings. A journal that was begun with others, or whose rows have other
    columns than are to come, is not gone on with: `remedy` says what then.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool,
        overwrite: bool = False,
        run: Run | None = None,
        remedy: str = "",
        title: str | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        self.path = path
        self.title = title or str(path)
        self.run = run
        self.done: set[str] = set()
        self.count = 0
        self.columns = list(columns)
        self.has_relative = False
        self.start = 0
        """Where rows begin."""
        with explained(path):
            self.stream = open_to_append(path)
        try:
            with explained(path):  # a disk may keep no locks
                lock(self.stream, self.title)
            self._begin(resume, overwrite, remedy)
        except BaseException:
            self.stream.close()
            raise

    def _begin(self, resume: bool, overwrite: bool, remedy: str) -> None:
        """Go on with what is there, or begin."""
        begun = None
        if self.run is not None and (header := read_header(self.path)) is not None:
            begun, self.start = header
        has_rows = file_size(self.path) > self.start and (begun is not None or self.run is None)
        if has_rows and not (resume or overwrite):
            raise BadOutput(
                f"{self.title} is left from an unfinished run: set resume to go on from there, "
                "or remove it to start anew."
            )
        if has_rows and not overwrite:
            if begun is not None and self.run is not None:
                begun.check(self.run, self.title, remedy)
                self.run = begun
            self._keep_whole_rows()
        else:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.stream.truncate(0)
        if self.run is not None:
            with explained(self.path):
                self._write([{"run": asdict(self.run)}])
                atomic.flush(self.path.parent)
            self.start = file_size(self.path)

    def _keep_whole_rows(self) -> None:
        """Cut off what is not whole, and note the rest as done."""
        end = self.start
        for row, length in self._rows():
            self._check(row)
            self._note(row)
            end += length
        self.stream.truncate(end)

    def _check(self, row: Row) -> None:
        self.columns = self.columns or list(row)
        if row.keys() != set(self.columns):
            raise BadOutput(f"{self.title} was begun with other columns: resume with the options it was begun with.")

    def _note(self, row: Row) -> None:
        self.count += 1
        if "file" not in row:
            return  # embeddings of texts are about no file
        file = row["file"]
        self.done.add(as_text(file) if self.run is None else picture_key(file, self.run.folder))
        self.has_relative |= file != "-" and not is_url(file) and not os.path.isabs(file)

    def _rows(self) -> Iterator[tuple[Row, int]]:
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            for line in stream:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):  # a power failure may leave anything
                    return
                if not line.endswith(b"\n") or not _is_row(row):  # cut off by a kill; the end
                    return
                yield row, len(line)

    def __iter__(self) -> Iterator[Row]:
        return (row for row, _ in self._rows())

    def has(self, source: Source) -> bool:
        """Whether this picture is done, by whatever name."""
        here = os.getcwd()
        if picture_key(file_of(source), here) in self.done:
            return True
        is_relative = source.path is not None and not source.path.is_absolute()
        begun = here if self.run is None else self.run.folder
        if is_relative and self.has_relative and os.path.normcase(begun) != os.path.normcase(here):
            raise BadOutput(
                f"{source.name} is named from {here}, the pictures of {self.path} from {begun}: "
                "go on from there, or give absolute paths."
            )
        return False

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows, all in one write; when it returns they are on the disk."""
        rows = list(rows)
        for row in rows:
            self._check(row)
        self.check_there()
        with explained(self.path, RESUME):
            self._write(rows)
        for row in rows:
            self._note(row)

    def check_there(self) -> None:
        """What is written to a file without a name is lost: said at once, not when all is done."""
        with explained(self.path):
            if not is_at(self.stream, self.path):
                lost = f", with the {counted(self.count, 'row')} in it" if self.count else ""
                raise BadOutput(f"{self.title} was removed while this run wrote it{lost}: begin anew.")

    def _write(self, rows: Iterable[Row]) -> None:
        write_rows(self.stream, rows)
        os.fsync(self.stream.fileno())

    def end(self) -> None:
        """Mark it as finished: it may be begun anew without being asked."""
        self.check_there()
        with explained(self.path, RESUME):
            write_whole(self.stream, END)

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and remove it if it is of no more use. One that has taken its name is another run's."""
        remove = remove and is_at(self.stream, self.path)
        if remove and not atomic.OPEN_FILES_STAY:
            self.path.unlink(missing_ok=True)  # while it is locked: another run may be waiting to begin one
        self.stream.close()
        if remove and atomic.OPEN_FILES_STAY:
            self.path.unlink(missing_ok=True)


def read_header(path: Path) -> tuple[Run, int] | None:
    """The run that a journal was begun by, and where its rows begin; None if there is none yet.

    What is no journal is refused.
    """
    try:
        with open(path, "rb") as stream:
            line = stream.readline(LONGEST_HEADER)
    except FileNotFoundError:
        return None
    if not line.endswith(b"\n") and (OPENING.startswith(line[: len(OPENING)]) or not line.strip(b"\0")):
        return None  # a kill or a power failure came at once
    try:
        return Run.parse(json.loads(line)["run"]), len(line)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadOutput(f"{path} was not written by this command: move it away, or choose another place.") from error


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("file", row.get("text")), str)


def is_ended(path: Path) -> bool:
    """Whether this journal's run came to its end."""
    if file_size(path) < len(END):
        return False
    with open(path, "rb") as stream:
        stream.seek(-len(END), os.SEEK_END)
        return stream.read() == END


def write_rows(stream: FileIO, rows: Iterable[Row]) -> None:
    """Rows as JSON lines, in one write if the system takes it whole."""
    write_whole(stream, "".join(to_json(row) + "\n" for row in rows).encode("utf-8"))


def write_whole(stream: FileIO, content: bytes) -> None:
    """All of it, or the system's complaint: a disk that fills up takes a part first, and says nothing."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def open_to_append(path: Path) -> FileIO:
    """Through no link, and without waiting for whoever reads a pipe of this name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | atomic.NO_LINKS | getattr(os, "O_NONBLOCK", 0)
    return open(path, "ab", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))


# --- what failed -----------------------------------------------------------------------------------------------------


class Errors:
    """errors.jsonl: what could not be read, and why. It speaks of the last run; resuming tries those again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: FileIO | None = None
        if not is_error_list(path):
            raise BadOutput(
                f"{path} is not a list of errors that captioner wrote: move it away, or choose another place."
            )

    def begin(self) -> None:
        """Forget the last run's."""
        with explained(self.path):
            self.path.unlink(missing_ok=True)

    def append(self, file: str, reason: str) -> None:
        with explained(self.path, RESUME):
            self.stream = self.stream or open(atomic.create(self.path), "wb", buffering=0)  # noqa: SIM115 (see close)
            write_rows(self.stream, [{"file": file, "error": reason}])

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def is_error_list(path: Path) -> bool:
    """Whether a list of errors may be written here: there is nothing, or such a list of an earlier run."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with open(path, "rb") as stream:
            line = stream.readline(LONGEST_HEADER)
        cut_off = line.startswith(b'{"file": ') and not line.endswith(b"\n")
        return not line or cut_off or json.loads(line).keys() == {"file", "error"}
    except FileNotFoundError:
        return True
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def summary_line(output: Path | str, done: int, skipped: int, failed: int, errors: Errors) -> str:
    """What has become of a run, in one line."""
    verb = "was" if skipped == 1 else "were"
    parts = [f"{done:,} done", f"{skipped:,} {verb} already" if skipped else ""]
    parts.append(f"{failed:,} failed, see {errors.path}" if failed else "")
    return f"{output}: {', '.join(part for part in parts if part)}"
