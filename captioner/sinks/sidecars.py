"""Text beside the pictures: `photo.txt` beside `photo.png`, or `photo.caption` where that is there or asked for.

A folder of pictures may come from a stranger. Nothing that lies in it says what is written or where: the journal lies
in the user's cache, and a sidecar that leads out of its folder is not written to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioner.errors import BadOutput
from captioner.files.atomic import NO_LINKS, Leftovers, write_bytes
from captioner.files.cache import cache_to_write
from captioner.files.names import SIDECARS, Claims, sidecar_of
from captioner.images import Source
from captioner.sinks.checks import RESUME, check_place, explained
from captioner.sinks.journal import Errors, Journal, Run, Settings, is_ended, read_header, summary_line
from captioner.sinks.row import OnExisting, Result, Row, file_of, picture_key, with_existing

MOST_BYTES = 10_000_000
"""No caption is longer: what is, was not meant to be one."""


class Sidecars:
    """The journal notes what a sidecar held before it is changed, and stays when the run is over.

    So `append` happens once, however often a run is killed, and resuming a finished run changes nothing.
    """

    resumable = True

    def __init__(
        self,
        inputs: Sequence[str],
        on_existing: OnExisting = "skip",
        *,
        extension: str | None = None,
        resume: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.on_existing = on_existing
        self.extensions = SIDECARS if extension is None else (extension,)
        folder = next((p for p in _with_parents(inputs) if p.is_dir()), Path("."))
        check_place(folder, "name an output instead")
        path = journal_path(folder)
        given_extension = {} if extension is None else {"caption extension": extension}
        self.errors = Errors(folder / "captioner-errors.jsonl")
        self.journal = Journal(
            path,
            resume=resume,
            overwrite=not resume and (is_ended(path) or self._needs_no_journal(path)),
            run=Run.here({**(settings or {}), "on existing": on_existing, **given_extension}),
            remedy="Give the same again, or remove it to start anew.",
            title=f"The journal of sidecars in {folder} ({path})",
        )
        self.errors.begin()
        self.claims: Claims[Source] = Claims()
        self.last: Path | None = None
        self.leftovers = Leftovers()
        self.in_flight = {picture_key(row["file"], ""): row for row in self.journal if not self._is_applied(row)}

    def _needs_no_journal(self, path: Path) -> bool:
        """To skip what is there is to go on where such a run stopped, by the sidecars alone."""
        begun = read_header(path) if self.on_existing == "skip" else None
        return begun is not None and begun[0].settings.get("on existing") == "skip"

    def __enter__(self) -> Sidecars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.errors.close()
        try:
            if kind is None:
                self.journal.end()
        finally:
            self.journal.close(remove=not self.journal.count)

    def wants(self, source: Source) -> bool:
        sidecar = self._sidecar(source)
        self._claim(sidecar, source)
        if self.on_existing == "skip" and os.path.exists(sidecar):
            return False
        target = target_of(sidecar)
        self._claim(target, source)
        if self.journal.has(source):
            if row := self.in_flight.pop(picture_key(file_of(source), ""), None):
                self._apply(target, row)
            return False
        if not os.access(sidecar.parent, os.W_OK):
            raise BadOutput(f"The folder of {source.name} cannot be written to.")
        if self.on_existing == "error" and os.path.lexists(sidecar):
            raise BadOutput(f"{source.name} already has a sidecar.")
        before = read_sidecar(target)  # what is odd about it is said before the model is asked
        if self.on_existing in ("append", "prepend") and _is_utf_16(before or ""):
            raise BadOutput(f"{target} is not UTF-8 text (UTF-16?): save it as UTF-8, and the caption can be added.")
        return True

    def _sidecar(self, source: Source) -> Path:
        """The text file beside a picture."""
        if source.path is None:
            raise BadOutput(f"{source.name} lies in no folder, so there is no place for a sidecar: name an output.")
        if source.path.suffix in self.extensions:
            raise BadOutput(f"{source.name} is itself named like a sidecar.")
        return sidecar_of(source.path, self.extensions)

    def _is_applied(self, row: Row) -> bool:
        """Whether a row's sidecar has been written; if that cannot be told, its picture will say why."""
        try:
            return read_sidecar(target_of(sidecar_of(Path(row["file"]), self.extensions))) == row["after"]
        except BadOutput:
            return False

    def _claim(self, path: Path, source: Source) -> None:
        assert source.path is not None, "only what is a file has a sidecar"
        if (owner := self.claims.owner(path, source.path, source)) is not source:
            raise BadOutput(f"{source.name} would share its sidecar with {owner.name}.")

    def write(self, results: Sequence[Result]) -> None:
        targets = [target_of(self._sidecar(source)) for source, _ in results]
        rows = [self._row(target, *result) for target, result in zip(targets, results, strict=True)]
        self.journal.append(rows)
        for target, row in zip(targets, rows, strict=True):
            self._apply(target, row)

    def _row(self, target: Path, source: Source, row: Row) -> Row:
        before = read_sidecar(target)
        old = (before or "").removeprefix("\ufeff").strip()  # the mark would stand within the text
        after = with_existing(old, row["text"], self.on_existing) + "\n"
        return {"file": os.path.abspath(file_of(source)), "before": before, "after": after}

    def _apply(self, target: Path, row: Row) -> None:
        """Write a sidecar, unless that is done or the user changed it meanwhile."""
        with explained(target, RESUME):
            if read_sidecar(target) == row["before"]:
                write_bytes(target, row["after"].encode("utf-8", "surrogateescape"), self.leftovers)
        self.last = target

    def fail(self, file: str, reason: str) -> None:
        self.errors.append(file, reason)

    def existing(self) -> Iterator[Row]:
        return iter(self.journal)

    def summary(self, done: int, skipped: int, failed: int) -> str:
        alone = self.last if (done, skipped, failed) == (1, 0, 0) else None
        return summary_line(alone or "sidecars", done, skipped, failed, self.errors)


def journal_path(folder: Path) -> Path:
    """Where the journal of this folder's sidecars lies: in the user's cache, where no stranger can have put it."""
    resolved = folder.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return cache_to_write("sidecars") / f"{digest}.jsonl"


def target_of(sidecar: Path) -> Path:
    """The file that a sidecar is: itself, or what it is a link to within its folder."""
    if not sidecar.is_symlink():
        return sidecar
    target = Path(os.path.realpath(sidecar))
    if not target.is_relative_to(os.path.realpath(sidecar.parent)):
        raise BadOutput(f"{sidecar} is a link that leads out of its folder: remove it.")
    return target


def _is_utf_16(text: str) -> bool:
    """Of a text as `read_sidecar` gives it: a zero is in it, or it begins with the mark."""
    return "\0" in text or text.startswith(("\udcff\udcfe", "\udcfe\udcff"))


def read_sidecar(sidecar: Path) -> str | None:
    """What a sidecar holds; None if it is not there."""
    try:
        # Without waiting for a pipe, and not through a link that has just been put there.
        descriptor = os.open(sidecar, os.O_RDONLY | NO_LINKS | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadOutput(f"{sidecar} cannot be read ({error.strerror}).") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadOutput(f"{sidecar} is not a file: there is no place for a sidecar.")
        if status.st_size > MOST_BYTES:
            raise BadOutput(f"{sidecar} is larger than {MOST_BYTES:,} bytes: it is taken for no sidecar.")
        return os.read(descriptor, MOST_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(descriptor)


def _with_parents(inputs: Sequence[str]) -> Iterator[Path]:
    path = Path(inputs[0])
    return iter((path, *path.parents))
