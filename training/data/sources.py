"""Pairs from anywhere as `datasets` rows {image, text, id, source}: `load_pairs(["my/pictures", "coco:~/coco@0.5"])`.

What a folder holds is seen from its files (`layouts.py`), or said by a prefix: `folder:`, `kaggle:`, `coco:`,
`diffusiondb:`, `parameters:`, `parquet:`, `hub:`. `@2` behind a name: each of its rows comes twice (`@0.5`: half of
them, drawn by the seed). A picture with several captions gives several rows with one id.
Pictures are opened late: `readable.py` skips and counts those that cannot be.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
)

from captioner.errors import BadInput
from training.data import layouts

ROW = Features({"image": Image(), "text": Value("string"), "id": Value("string"), "source": Value("string")})
TABLES = ("parquet", "hub")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One --data: which layout, where, and how often its rows come."""

    kind: str
    place: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.place if self.kind == "hub" else Path(self.place).name


@dataclass(frozen=True)
class Reading:
    """What is read of every source."""

    columns: layouts.Columns
    split: str
    max_nsfw: float


def load_pairs(
    specs: Sequence[str | Path],
    *,
    streaming: bool = False,
    text_column: str | None = None,
    image_column: str | None = None,
    split: str = "train",
    max_nsfw: float = layouts.BLURRED_IS_ABOVE,
    seed: int = 0,
) -> Dataset | IterableDataset:
    """All sources as one data set.

    Args:
        specs: what `--data` says; see the top of this module.
        streaming: an `IterableDataset` that reads as it goes, taking from the sources in turns.
        text_column, image_column: where the usual names (text, prompt, caption; image, file_name …) do not do.
        split: which part of a Hub data set, or of a folder with train-*.parquet and validation-*.parquet.
        max_nsfw: DiffusionDB's scores above this are left out; 1 leaves out only what it has blurred.
    """
    sources = [parse(spec) for spec in ([specs] if isinstance(specs, (str, Path)) else specs)]
    if not sources:
        raise BadInput("No data: name at least one folder, parquet file or Hub data set.")
    reading = Reading(layouts.Columns(text_column, image_column), split, max_nsfw)
    if streaming:
        for source in sources:
            _refuse_empty(next(_rows_of(source, reading), None) is None, source)
        options = {"sources": tuple(sources), "reading": reading, "seed": seed}
        return IterableDataset.from_generator(_in_turns, features=ROW, gen_kwargs=options)
    parts = []
    for number, source in enumerate(sources):
        rows = (_table if source.kind in TABLES else _records)(source, reading)
        _refuse_empty(len(rows) == 0, source)
        parts.append(_weighted(rows, source.weight, seed + number))
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def parse(spec: str | Path) -> Source:
    """What one `--data` means."""
    place, weight = str(spec), 1.0
    if (match := re.fullmatch(r"(.+)@(\d+\.?\d*)", place)) and not Path(place).exists():
        place, weight = match[1], float(match[2])
        if weight == 0:
            raise BadInput(f"{spec}: a weight is above 0. Leave the source out instead.")
    kind, separator, rest = place.partition(":")
    if separator and kind in (*layouts.READERS, *TABLES):
        return Source(kind, rest if kind == "hub" else str(Path(rest).expanduser()), weight)
    if glob.has_magic(place) and not Path(place).exists():
        return Source("parquet", str(Path(place).expanduser()), weight)
    path = Path(place).expanduser()
    if not path.exists():
        raise BadInput(f"There is no {path}. A data set of the Hugging Face Hub is named hub:{place}.")
    return Source(layouts.kind_of(path), str(path), weight)


# --- kept in memory: paths and captions of records, Arrow tables mapped from disk ------------------------------------


def _records(source: Source, reading: Reading) -> Dataset:
    rows = list(_rows_of(source, reading))
    return Dataset.from_dict({column: [row[column] for row in rows] for column in ROW}, features=ROW)


def _table(source: Source, reading: Reading) -> Dataset:
    rows = _load_table(source, reading.split)
    text = reading.columns.text_in(rows.column_names, source.place)
    image = reading.columns.image_in(rows.column_names, source.place)
    captions = [_caption(cell) for cell in rows[text]]
    ids = rows["id"] if "id" in rows.column_names else range(len(rows))
    names = rows["source"] if "source" in rows.column_names else [source.name] * len(rows)
    # The pictures stay where they are; only the three columns of text are made anew.
    rows = rows.select_columns(image).rename_columns({image: "image"}).cast_column("image", ROW["image"])
    for column, values in (("text", captions), ("id", [str(number) for number in ids]), ("source", list(names))):
        rows = rows.add_column(column, values, feature=ROW[column])
    kept = np.flatnonzero([bool(caption) for caption in captions])
    if len(kept) < len(rows):
        log.warning("%s: %d rows without a caption are left out.", source.place, len(rows) - len(kept))
        rows = rows.select(kept)
    return rows


def _weighted(rows: Dataset, weight: float, seed: int) -> Dataset:
    """Every row `weight` times; of a fraction, so many rows drawn by chance."""
    if weight == 1:
        return rows
    whole, fraction = divmod(weight, 1)
    drawn = np.random.default_rng(seed).permutation(len(rows))[: round(fraction * len(rows))]
    return rows.select(np.concatenate([np.tile(np.arange(len(rows)), int(whole)), np.sort(drawn)]))


# --- streamed --------------------------------------------------------------------------------------------------------


def _in_turns(sources: Sequence[Source], reading: Reading, seed: int) -> Iterator[dict[str, Any]]:
    """One row of each source in turn, until all have ended."""
    # Not `interleave_datasets`: it holds every stream open in a thread and sleeps five seconds at the end.
    streams = [_weighted_stream(source, reading, seed + number) for number, source in enumerate(sources)]
    while streams:
        for stream in list(streams):
            if (row := next(stream, None)) is None:
                streams.remove(stream)
            else:
                yield row


def _weighted_stream(source: Source, reading: Reading, seed: int) -> Iterator[dict[str, Any]]:
    whole, fraction = divmod(source.weight, 1)
    for _ in range(int(whole)):
        yield from _rows_of(source, reading)
    if fraction:
        chance = np.random.default_rng(seed)
        yield from (row for row in _rows_of(source, reading) if chance.random() < fraction)


def _rows_of(source: Source, reading: Reading) -> Iterator[dict[str, Any]]:
    """The rows of one source, pictures undecoded."""
    if source.kind in TABLES:
        yield from _table_rows(source, reading)
        return
    if not Path(source.place).exists():
        raise BadInput(f"There is no {source.place}.")
    for record in layouts.READERS[source.kind](Path(source.place), reading.columns, reading.max_nsfw):
        if text := _caption(record.text):
            yield {"image": record.image, "text": text, "id": record.id, "source": source.name}


def _table_rows(source: Source, reading: Reading) -> Iterator[dict[str, Any]]:
    rows = _load_table(source, reading.split, streaming=True)
    names = rows.column_names or list(next(iter(rows), {}))
    text = reading.columns.text_in(names, source.place)
    image = reading.columns.image_in(names, source.place)
    if rows.features:  # as it lies in the file, not decoded and encoded again
        rows = rows.cast_column(image, Image(decode=False))
    for number, row in enumerate(rows):
        if caption := _caption(row[text]):
            number, name = str(row.get("id", number)), row.get("source", source.name)
            yield {"image": row[image], "text": caption, "id": number, "source": name}


# --- what both share -------------------------------------------------------------------------------------------------


def _caption(cell: str | list[str] | None) -> str:
    """A caption; of several, the first."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    return cell if cell and cell.strip() else ""


def _load_table(source: Source, split: str, streaming: bool = False) -> Any:
    try:
        if source.kind == "parquet":
            files = parquet_files(source.place, split)
            return load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        name, _, configuration = source.place.partition(":")
        return load_dataset(name, configuration or None, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises has no common ancestor
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise BadInput(f"{source.place} cannot be loaded: {reason}") from error


def parquet_files(place: str, split: str) -> list[str]:
    """A file, a pattern, or the files under a folder; those of the split where names tell splits apart."""
    folder = Path(place)
    found = sorted(map(str, folder.rglob("*.parquet"))) if folder.is_dir() else sorted(glob.glob(place, recursive=True))
    if not found:
        raise BadInput(f"There is no parquet file at {place}.")
    if folder.is_dir():
        of_split = [f for f in found if re.match(rf"{re.escape(split)}\b", str(Path(f).relative_to(folder)))]
        return of_split or found
    return found


def _refuse_empty(empty: bool, source: Source) -> None:
    if empty:
        raise BadInput(f"{source.place} (read as {source.kind}) holds no picture with a caption.")
