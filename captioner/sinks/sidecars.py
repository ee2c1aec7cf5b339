"""Text beside the pictures: `photo.txt` beside `photo.png`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioner.errors import BadOutput
from captioner.files.atomic import replacing
from captioner.images import Source
from captioner.sinks.checks import RESUME, check_place, explained
from captioner.sinks.journal import Errors, Journal
from captioner.sinks.row import OnExisting, Result, Row, as_text, file_of
from captioner.sinks.table import summary_line


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
        return summary_line(Path("sidecars"), done, skipped, failed, self.errors)


def _read_sidecar(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else None


def _with_parents(inputs: Sequence[str]) -> Iterator[Path]:
    path = Path(inputs[0])
    return iter((path, *path.parents))
