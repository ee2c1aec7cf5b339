"""Parts → one output: a table, tars that webdataset reads, or a folder that `datasets` reads.

Each part is held against the plan first: it must have the pictures of its shard, each once, in order.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import BadImage, BadInput, BadOutput
from captioner.files.atomic import replacing
from captioner.images import EXTENSIONS, Source
from captioner.images.open import ending_of, open_file
from captioner.shards.part import done
from captioner.shards.plan import Plan, name_of
from captioner.sinks import (
    ImageFolder,
    Result,
    check_name,
    check_new,
    check_new_folder,
    check_place,
    explained,
    groups,
    not_resumable,
    to_json,
)

FORMATS = ("table", "webdataset", "imagefolder")
BATCH = 1024


@dataclass
class Merged:
    """What an output holds."""

    rows: int = 0
    failed: int = 0
    """Rows without a result: in a table they are rows, elsewhere they are left out."""
    missing: int = 0
    """Shards without a part."""


def merge(plan: Plan, out: Path, format: str, partial: bool = False) -> Merged:
    """Write all parts to one output. partial: those that are there."""
    parts = done(plan)
    missing = plan.shards - len(parts)
    if not parts or (missing and not partial):
        counts = f"{len(parts):,} of {plan.shards:,} shards"
        remedy = ", or set partial to leave them out" if parts else ""
        raise BadInput(f"{plan.out} has parts for {counts}: generate the others first{remedy}.")
    if len(hashes := {part.stem.split("-")[1] for part in parts.values()}) > 1:
        raise BadOutput(f"{plan.out} has parts of {len(hashes)} settings: remove those that are not wanted.")
    merged = WRITERS[format](plan, parts, out)
    merged.missing = missing
    return merged


def format_of(out: Path, asked: str | None) -> str:
    """What an output is by its name, where nothing is said."""
    if asked is not None:
        return asked
    if out.suffix == ".tar":
        raise BadInput(f"{out}: name a folder, and say webdataset: it gets a tar for each shard.")
    return "table" if out.suffix else "imagefolder"


# --- parts, read again -----------------------------------------------------------------------------------------------


def tables(plan: Plan, shard: int, part: Path) -> Iterator[Any]:
    """A part's rows as Arrow batches, held against the plan."""
    import pyarrow
    from pyarrow import parquet

    ids, begin = plan.ids(shard), 0
    wrong = BadOutput(f"{part} does not hold the pictures of its shard: remove it, and have it made anew.")
    try:
        with parquet.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH):
                if batch["file"].to_pylist() != ids[begin : begin + len(batch)]:
                    raise wrong
                begin += len(batch)
                yield batch
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise BadOutput(
            f"{part} is damaged ({' '.join(str(error).split())[:200]}): remove it, and have it made anew."
        ) from error
    if begin != len(ids):
        raise wrong


def _results(plan: Plan, shard: int, part: Path) -> Iterator[Result]:
    """Rows with their pictures, in the plan's order."""
    sources = plan.sources(plan.items(shard))
    for batch in tables(plan, shard, part):
        yield from (Result(next(sources), row) for row in batch.to_pylist())


# --- outputs ---------------------------------------------------------------------------------------------------------


def _write_table(plan: Plan, parts: dict[int, Path], out: Path) -> Merged:
    check_new(out)
    if out.suffix not in (".parquet", ".jsonl"):
        raise BadInput(f"{out}: name a file that ends in .parquet or .jsonl, or a folder.")
    merged = Merged()
    batches = _counted((batch for shard, part in parts.items() for batch in tables(plan, shard, part)), merged)
    with explained(out), replacing(out, expected=False) as new:
        TABLES[out.suffix](batches, new)
    return merged


def _counted(batches: Iterator[Any], merged: Merged) -> Iterator[Any]:
    for batch in batches:
        merged.rows += len(batch)
        merged.failed += len(batch) - batch["error"].null_count
        yield batch


def _to_parquet(batches: Iterator[Any], path: Path) -> None:
    from pyarrow import parquet

    first = next(batches)
    with parquet.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _to_jsonl(batches: Iterator[Any], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for batch in batches:
            stream.writelines(to_json(row) + "\n" for row in batch.to_pylist())


TABLES = {".parquet": _to_parquet, ".jsonl": _to_jsonl}


def _write_webdataset(plan: Plan, parts: dict[int, Path], out: Path) -> Merged:
    """A tar a shard: KEY.jpg (or whatever the picture is), KEY.txt and KEY.json. Tars that are there stay: a merge that
    was killed goes on."""
    check_place(out.absolute().parent)
    check_name(out)
    with explained(out):
        out.mkdir(exist_ok=True)
        wanted = {f"{name_of(shard)}.tar" for shard in parts}
        if strange := sorted(name for name in os.listdir(out) if not name.startswith(".") and name not in wanted):
            raise BadOutput(f"{out} holds {strange[0]}, which is not of this merge: name another folder.")
    merged = Merged()
    for shard, part in parts.items():
        tar = out / f"{name_of(shard)}.tar"
        rows, failed = (_count_tar if tar.exists() else _write_tar)(plan, shard, part, tar)
        merged.rows += rows
        merged.failed += failed
    return merged


def _write_tar(plan: Plan, shard: int, part: Path, tar: Path) -> tuple[int, int]:
    """How many rows went into it, and how many have no result or no picture any more."""
    rows = failed = 0
    with explained(tar), replacing(tar) as new, tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, (source, row) in enumerate(_results(plan, shard, part)):
            content = None if row["error"] is not None else _content(source)
            if content is None:
                failed += 1
                continue
            key = f"{name_of(shard)}{number:06d}"
            _add(archive, f"{key}{_ending(source, content)}", content)
            if "text" in row:  # which embeddings have not
                _add(archive, f"{key}.txt", (row["text"] or "").encode())
            _add(archive, f"{key}.json", to_json(row).encode())
            rows += 1
    return rows, failed


def _count_tar(plan: Plan, shard: int, part: Path, tar: Path) -> tuple[int, int]:
    """The same of one that an earlier merge has made of this part."""
    rows = [to_json(row) for batch in tables(plan, shard, part) for row in batch.to_pylist()]
    there = _rows_in(tar)
    if not set(there) <= set(rows):
        raise BadOutput(f"{tar} holds other rows than {part}: remove it, or name another folder.")
    return len(there), len(rows) - len(there)


def _rows_in(tar: Path) -> list[str]:
    """The rows that a tar of ours holds, as JSON."""
    try:
        with tarfile.open(tar, "r:") as archive:
            files = (archive.extractfile(member) for member in archive if member.name.endswith(".json"))
            return [file.read().decode() for file in files if file is not None]
    except (OSError, ValueError, tarfile.TarError) as error:
        raise BadOutput(f"{tar} is no tar of a merge: remove it, or name another folder.") from error


def _content(source: Source) -> bytes | None:
    """The picture's file; None where it is gone since."""
    try:
        content = source.content()
        return content if isinstance(content, bytes) else content.read_bytes()
    except (BadImage, OSError):
        return None


def _ending(source: Source, content: bytes) -> str:
    """What the picture's member is called: as its file, or by what it is."""
    ending = os.path.splitext(source.name)[1].lower()
    return ending if ending in EXTENSIONS else ending_of(content, source.title)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _write_imagefolder(plan: Plan, parts: dict[int, Path], out: Path) -> Merged:
    check_new_folder(out)
    merged = Merged()
    with not_resumable(f"Put it right, remove {out}, and merge again."), ImageFolder(out) as sink:
        for shard, part in parts.items():
            for group in groups(_results(plan, shard, part), BATCH // 16):
                good = []
                for result in group:
                    try:
                        good.append(_whole(result))
                    except BadImage as error:
                        sink.fail(result.row["file"], str(error))
                sink.write(good)
                merged.rows += len(good)
                merged.failed += len(group) - len(good)
    return merged


def _whole(result: Result) -> Result:
    """A row without its error, and a picture that is there; a `BadImage` says what is wrong with either."""
    source, row = result
    if row["error"] is not None:
        raise BadImage(row["error"])
    source = source.fetched()
    content = source.content()
    if isinstance(content, Path):
        open_file(content, source.title).close()
    return Result(source, {column: value for column, value in row.items() if column != "error"})


WRITERS = {"table": _write_table, "webdataset": _write_webdataset, "imagefolder": _write_imagefolder}
