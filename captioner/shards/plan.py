"""The plan: every picture once, in shards that never change, each with its rows' ids.

    OUT/plan.json         how many, where relative names begin
    OUT/plan/00012.parquet  the items of shard 12
    OUT/parts/, OUT/leases/   what workers write; see part.py
    OUT/settings.json     what all parts depend on, written by the first worker

The folder appears whole, so there is a plan or there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from captioner import __version__
from captioner.errors import BadInput, BadOutput
from captioner.files.atomic import beside, replacing_folder, write_first
from captioner.files.json import read_object, write_object
from captioner.images import Source
from captioner.images.fetch import shown
from captioner.pairs.layouts import ReadOptions
from captioner.shards import inputs
from captioner.shards.inputs import Finding, Item
from captioner.sinks import check_new_folder, check_place, explained, groups

PLAN = "plan.json"
SHARDS, PARTS, LEASES = "plan", "parts", "leases"
SHARD_SIZE = 10_000


@dataclass(frozen=True)
class Plan:
    """A folder with a plan."""

    out: Path
    pictures: int
    shards: int
    shard_size: int
    folder: str
    """Where relative names begin."""
    image_column: str | None
    inputs: tuple[str, ...]
    text_column: str | None = None
    captioner: str = __version__
    """The version that made it."""

    def items(self, shard: int) -> list[Item]:
        """The pictures of a shard, in order. Shards are counted from 0."""
        import pyarrow
        from pyarrow import parquet

        path = self.out / SHARDS / f"{name_of(shard)}.parquet"
        try:
            columns = parquet.read_table(path).to_pydict()
            items = [Item(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        except (OSError, TypeError, ValueError, pyarrow.ArrowException) as error:
            raise BadOutput(f"{path} is damaged ({' '.join(str(error).split())[:200]}): make a new plan.") from error
        if len(items) != self.size(shard):
            raise BadOutput(f"{path} does not hold the {self.size(shard):,} pictures of its shard: make a new plan.")
        return items

    def ids(self, shard: int) -> list[str]:
        return [item.id for item in self.items(shard)]

    def size(self, shard: int) -> int:
        """Pictures of a shard: all but the last have as many."""
        return min(self.shard_size, self.pictures - shard * self.shard_size)

    def sources(self, items: Sequence[Item]) -> Iterator[Source]:
        """The pictures themselves."""
        return inputs.sources(items, self.folder, ReadOptions(self.text_column, self.image_column))


def name_of(shard: int) -> str:
    """A shard in the name of a file."""
    return f"{shard:05d}"


def is_plan(out: Path) -> bool:
    """Whether a plan was made here."""
    return os.path.isfile(out / PLAN)  # False, too, of a name that is too long


def read(out: Path) -> Plan:
    """The plan of a folder."""
    if not is_plan(out):
        raise BadInput(f"{out} holds no plan: make one with captioner plan.")
    about = read_object(out / PLAN, BadInput, "Make a new plan.")
    try:
        plan = Plan(out, **{**about, "inputs": tuple(about["inputs"])})
        sizes = (plan.pictures, plan.shards, plan.shard_size)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or not isinstance(plan.folder, str):
            raise ValueError("its sizes are no numbers")
        if plan.shards != -(-plan.pictures // plan.shard_size):
            raise ValueError("its sizes contradict each other")
    except (TypeError, KeyError, ValueError) as error:
        raise BadInput(f"{out / PLAN} is no plan ({error}): make a new one.") from error
    return plan


def make(
    out: Path,
    names: Sequence[str],
    shard_size: int = SHARD_SIZE,
    finding: Finding | None = None,
    videos: set[str] | None = None,
) -> Plan:
    """List all pictures that these inputs name. Nothing is opened but tables and the headers of tars.

    videos: those that are passed over beside pictures are added to it.
    """
    finding = finding or Finding()
    check_new_folder(out)
    check_place(out.absolute().parent)
    with explained(out):
        probe = beside(out)
        write_first(probe, b"")  # as workers will: a disk that has no links is told of before millions are listed
        probe.unlink()
    sizes: list[int] = []
    problem, readable = "", 0
    with explained(out), replacing_folder(out) as work:
        for folder in (SHARDS, PARTS, LEASES):
            (work / folder).mkdir()
        for items in groups(inputs.find(names, finding, videos), shard_size):
            _write(work / SHARDS / f"{name_of(len(sizes))}.parquet", items)
            sizes.append(len(items))
            missing = [item for item in items if item.kind == "missing"]
            problem = problem or (missing[0].location.decode() if missing else "")
            readable += len(items) - len(missing)
        if not readable:
            raise BadInput((problem or "These inputs name no picture.") + inputs.hint(names))
        named = tuple(map(shown, names))
        plan = Plan(
            out, sum(sizes), len(sizes), shard_size, os.getcwd(), finding.image_column, named, finding.text_column
        )
        write_object(work / PLAN, {name: value for name, value in asdict(plan).items() if name != "out"})
    return plan


def _write(path: Path, items: Sequence[Item]) -> None:
    import pyarrow
    from pyarrow import parquet

    named = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())
    whole = pyarrow.int64()
    columns = dict(zip(Item._fields, zip(*items, strict=True), strict=True))
    kinds = dict(zip(Item._fields, (pyarrow.string(), *named, *[whole] * 5), strict=True))
    table = pyarrow.table({name: pyarrow.array(column, kinds[name]) for name, column in columns.items()})
    parquet.write_table(table, path, compression="zstd")
