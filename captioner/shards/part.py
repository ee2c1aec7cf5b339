"""One shard → one part: a parquet file with a row for every picture, and a small JSON that counts them.

    OUT/parts/00012-1f6a0c2b9d3e.parquet   shard 12 under settings 1f6a…: all its pictures, in the plan's order
    OUT/parts/00012-1f6a0c2b9d3e.json      how many, how many of them failed and why, how long it took, where

A picture that cannot be read is a row too: its `error` says why, the other columns are empty. A part is written aside
and renamed when it is whole, after its JSON; so a part that is there is done, and whatever a killed worker had begun
counts for nothing. Two who write the same part write the same rows.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captioner.errors import BadOutput, Stopped
from captioner.files import lease
from captioner.files.atomic import replacing, write_first
from captioner.files.json import read_object, write_object
from captioner.images import Source
from captioner.run.batch import Answers, run
from captioner.run.progress import Silent, Tally
from captioner.shards.inputs import BadShard
from captioner.shards.plan import LEASES, PARTS, Plan, name_of
from captioner.sinks import Result, Row, Settings, explained
from captioner.sinks.journal import Run
from captioner.sinks.row import as_text
from captioner.sinks.table import schema_of, table_of

GROUP = 1024
"""Rows that are held until they are written."""
LISTED = 20
"""Errors that the JSON names; the part holds all."""
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Job:
    """What is asked of every picture of a plan."""

    answers: Answers[Any]
    columns: tuple[str, ...]
    """Of a row, but for `file` and `error`."""
    settings: Settings
    """All that rows depend on but the pictures."""
    batch_size: int | None = None
    explain: Callable[[str], str] = str
    """Puts what is wrong with a picture into the words of whoever asks."""

    @property
    def hash(self) -> str:
        """Of the settings, in the name of every part."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Manifest:
    """What became of a shard."""

    shard: int
    settings: str
    """The hash of the settings."""
    pictures: int
    failed: int
    seconds: float
    ended: float
    """By the clock of the machine, in seconds since 1970."""
    machine: str
    errors: list[dict[str, str]] = field(default_factory=list)
    """The first of them."""


@dataclass(frozen=True)
class Failure:
    """A shard that could not be made: what its pictures lie in cannot be read."""

    shard: int
    error: str


def begin(plan: Plan, job: Job) -> None:
    """All parts of a folder are made with the same settings: the first worker writes them down."""
    path = plan.out / SETTINGS
    with explained(path):
        write_first(path, (json.dumps(asdict(Run.here(job.settings)), indent=1) + "\n").encode())
    try:
        begun = Run.parse(read_object(path, BadOutput, "Make a new plan."))
    except ValueError as error:
        raise BadOutput(f"{path} does not tell the settings of a run: make a new plan.") from error
    remedy = "Give the same, or make a plan in another folder."
    if not done(plan):
        remedy = f"No part is made yet: give the same, or remove {path} and begin with others."
    begun.check(Run.here(job.settings), str(plan.out), remedy)


def path_of(plan: Plan, job_hash: str, shard: int) -> Path:
    return plan.out / PARTS / f"{name_of(shard)}-{job_hash}.parquet"


def _lease_of(plan: Plan, shard: int) -> Path:
    return plan.out / LEASES / f"{name_of(shard)}.json"


def done(plan: Plan) -> dict[int, Path]:
    """The parts that are there, by shard."""
    files = sorted((plan.out / PARTS).glob("[0-9]*-*.parquet"))
    named = [(file.name.split("-")[0], file) for file in files]
    return {int(number): file for number, file in named if number.isdigit() and int(number) < plan.shards}


# --- a worker --------------------------------------------------------------------------------------------------------


def work(plan: Plan, job: Job, share: tuple[int, int] | None = None) -> Iterator[Manifest | Failure]:
    """Shard after shard, until none is left that nobody has.

    share: (2, 10) is the second of ten equal shares of the shards. None: whichever is free next.
    """
    begin(plan, job)
    _tidy(plan)
    began = time.time()
    failed: set[int] = set()
    """Here: what the clock says of a failure counts for those of others alone, as clocks are set back."""
    while True:
        free = [shard for shard in missing(plan, share) if shard not in failed and not _gave_up(plan, shard, began)]
        made = 0
        for shard in free if share else _from_anywhere(free):
            what = make(plan, job, shard)
            if what is not None:
                made += 1
                if isinstance(what, Failure):
                    failed.add(shard)
                yield what
        if not made:
            return


def _tidy(plan: Plan) -> None:
    """Take away the leases of workers who died between their part and the end of its lease."""
    made = done(plan)
    for path in (plan.out / LEASES).glob("*.json"):
        shard = path.name.split(".")[0]
        if shard.isdigit() and int(shard) in made and (left := lease.take(path)) is not None:
            left.release()


def missing(plan: Plan, share: tuple[int, int] | None = None) -> list[int]:
    """Shards of a share that have no part yet."""
    parts = done(plan)
    first, step = (share[0] - 1, share[1]) if share else (0, 1)
    return [shard for shard in range(first, plan.shards, step) if shard not in parts]


def _from_anywhere(shards: list[int]) -> list[int]:
    """Workers that take what is free begin at different shards, so that they seldom meet."""
    at = random.randrange(len(shards)) if shards else 0
    return shards[at:] + shards[:at]


def make(plan: Plan, job: Job, shard: int) -> Manifest | Failure | None:
    """The part of one shard; None where it is there already or somebody is at it."""
    part = path_of(plan, job.hash, shard)
    progress = Counted(plan.size(shard))
    with explained(part):
        held = lease.take(_lease_of(plan, shard), progress.about)
    if held is None:
        return None
    with held:
        if part.exists():
            return None
        failed = _failure_of(plan, shard)
        try:
            manifest = _write(plan, job, shard, part, progress)
        except BadShard as error:
            write_object(failed, {"error": str(error), "time": time.time(), "machine": lease.machine()})
            return Failure(shard, str(error))
        failed.unlink(missing_ok=True)
        return manifest


def _write(plan: Plan, job: Job, shard: int, part: Path, progress: Counted) -> Manifest:
    began = time.monotonic()
    items = plan.items(shard)
    with explained(part), replacing(part) as temporary:
        sink = PartSink(temporary, [item.id for item in items], job.columns)
        try:
            tally = run(plan.sources(items), sink, job.answers, progress, job.batch_size, job.explain)
        except Stopped:
            raise Stopped("Stopped. The parts that are written stay; the same command makes the others.") from None
        if sink.waiting or sink.rows != len(items):
            raise RuntimeError(f"{sink.rows} rows of {len(items)} pictures in shard {shard}")
        manifest = Manifest(
            shard=shard,
            settings=job.hash,
            pictures=len(items),
            failed=tally.failed,
            seconds=round(time.monotonic() - began, 3),
            ended=time.time(),
            machine=lease.machine(),
            errors=sink.errors,
        )
        write_object(part.with_suffix(".json"), asdict(manifest))
    return manifest


class Counted(Silent):
    """What the lease tells of a shard that is being made."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self.pictures = pictures
        self.tally = Tally()
        self.began = time.time()

    def show(self, tally: Tally) -> None:
        self.tally = tally

    def say(self, line: str) -> None:
        """Bad pictures are rows; of 10,000 a line each would say less than their number."""

    def about(self) -> dict[str, Any]:
        return {"began": self.began, "done": self.tally.done, "failed": self.tally.failed}


class PartSink:
    """Rows of one shard, in the plan's order, whatever order they come in; some hundreds are held at a time."""

    resumable = False

    def __init__(self, path: Path, ids: Sequence[str], columns: Sequence[str]) -> None:
        self.path = path
        self.ids = ids
        self.columns = columns
        self.waiting: dict[str, Row] = {}
        """Those that came before one that stands before them."""
        self.group: list[Row] = []
        self.rows = 0
        self.errors: list[dict[str, str]] = []

    def __enter__(self) -> PartSink:
        from pyarrow import parquet

        self.schema = schema_of(["file", *self.columns, "error"])
        self.writer = parquet.ParquetWriter(self.path, self.schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self.writer.close()

    def wants(self, source: Source) -> bool:
        return True

    def write(self, results: Sequence[Result]) -> None:
        for _, row in results:
            if row.keys() != {"file", *self.columns}:
                raise RuntimeError(f"a row of {', '.join(row)} where there should be {', '.join(self.columns)}")
            self._take({**row, "error": None})

    def fail(self, file: str, reason: str) -> None:
        reason = as_text(reason)
        if len(self.errors) < LISTED:
            self.errors.append({"file": file, "error": reason})
        self._take({"file": file, **dict.fromkeys(self.columns), "error": reason})

    def _take(self, row: Row) -> None:
        self.waiting[row["file"]] = row
        while self.rows < len(self.ids) and (following := self.waiting.pop(self.ids[self.rows], None)) is not None:
            self.rows += 1
            self.group.append(following)
            if len(self.group) == GROUP:
                self._flush()

    def _flush(self) -> None:
        if self.group:
            self.writer.write_table(table_of(self.group, self.schema))
            self.group = []

    def existing(self) -> Iterator[Row]:
        return iter(())

    def summary(self, done: int, skipped: int, failed: int) -> str:
        return f"{done:,} done, {failed:,} failed"


# --- what could not be made ------------------------------------------------------------------------------------------


def _failure_of(plan: Plan, shard: int) -> Path:
    return plan.out / LEASES / f"{name_of(shard)}.failed.json"


def _gave_up(plan: Plan, shard: int, since: float) -> bool:
    """Whether somebody has tried this shard in vain since a moment: a worker that begins later tries it once more."""
    path = _failure_of(plan, shard)
    if (failure := _read_failure(path)) is None:
        return False
    tried = failure.get("time")
    if not isinstance(tried, int | float):
        raise BadOutput(f"{path} does not tell when its shard was tried. Remove it.")
    return tried >= since


def failures(plan: Plan) -> list[Failure]:
    """The shards that could not be made at the last try."""
    named = [(path.name.split(".")[0], path) for path in sorted((plan.out / LEASES).glob("*.failed.json"))]
    unmade = set(missing(plan))
    return [
        Failure(int(number), str(failure.get("error")))
        for number, path in named
        if number.isdigit() and int(number) in unmade and (failure := _read_failure(path)) is not None
    ]


def _read_failure(path: Path) -> dict[str, Any] | None:
    """What is told of a shard that was tried in vain, if it was, and has not been made meanwhile."""
    if not path.exists():
        return None
    try:
        return read_object(path, BadOutput, "Remove it.")
    except BadOutput:
        if path.exists():
            raise
        return None  # whoever made the shard has just removed it


def manifest_of(part: Path) -> Manifest:
    """What the JSON beside a part tells."""
    path = part.with_suffix(".json")
    about = read_object(path, BadOutput, f"Remove {part.name}, and have it made anew.")
    try:
        manifest = Manifest(**about)
        numbers = (manifest.shard, manifest.pictures, manifest.failed, manifest.seconds, manifest.ended)
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("no numbers")
    except TypeError as error:
        raise BadOutput(f"{path} tells nothing of a part: remove {part.name}, and have it made anew.") from error
    return manifest
