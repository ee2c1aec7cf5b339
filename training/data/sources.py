"""Pairs as `datasets` rows {image, text, id, source}: `load_pairs(["my/pictures", "coco:~/coco@0.5"])`.

What a --data means and what is read of it is decided by `captioner.pairs`, which every reader of pairs shares. Here its
records become a data set: paths and captions in memory, or Arrow tables mapped from disk, or a stream.
Pictures are opened late: `readable.py` skips and counts those that cannot be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, Value, concatenate_datasets, load_dataset

from captioner.errors import BadInput
from captioner.pairs import layouts, sources
from captioner.pairs.layouts import LeftOut, ReadOptions, Record
from captioner.pairs.sources import TABLES, PairSource, weighted
from captioner.pairs.tables import caption_of

ROW = Features({"image": Image(), "text": Value("string"), "id": Value("string"), "source": Value("string")})
log = logging.getLogger(__name__)


def load_pairs(
    specs: Sequence[str | Path],
    *,
    streaming: bool = False,
    text_column: str | None = None,
    image_column: str | None = None,
    split: str = "train",
    max_nsfw: float = layouts.BLURRED_IS_ABOVE,
    seed: int = 0,
    left_out: list[LeftOut] | None = None,
) -> Dataset | IterableDataset:
    """All sources as one data set.

    Args:
        specs: what `--data` says; see `captioner/pairs/sources.py`.
        streaming: an `IterableDataset` that reads as it goes, taking from the sources in turns.
        text_column, image_column: where the usual names (text, prompt, caption; image, file_name …) do not do.
        split: which part of a Hub data set, or of a folder with train-*.parquet and validation-*.parquet.
        max_nsfw: DiffusionDB's scores above this are left out; 1 leaves out only what it has blurred.
        left_out: what gives no row is added to this list. Without one the log names them.
    """
    parsed = sources.parse_all(specs)
    options = ReadOptions(text_column, image_column, split, max_nsfw)
    if streaming:
        for source in parsed:
            sources.refuse_empty(source, options)
        arguments = {"sources": tuple(parsed), "options": options, "seed": seed}
        return IterableDataset.from_generator(_in_turns, features=ROW, gen_kwargs=arguments)
    missed: list[LeftOut] = []
    parts = []
    for number, source in enumerate(parsed):
        rows = (_table if source.kind in TABLES else _records)(source, options, missed)
        if not len(rows):
            sources.refuse_empty(source, options)
        drawn = _weighted(rows, source.weight, seed + number)
        if not len(drawn):
            raise BadInput(f"{source.location}@{source.weight:g} takes none of its {len(rows):,} rows: weigh more.")
        parts.append(drawn)
    if left_out is None:
        for sentence in layouts.summaries(missed):
            log.warning("%s", sentence)
    else:
        left_out += missed
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


# --- kept in memory: paths and captions of records, Arrow tables mapped from disk ------------------------------------


def _records(source: PairSource, options: ReadOptions, left_out: list[LeftOut]) -> Dataset:
    rows = [_row_of(record) for record in sources.records_of(source, options, left_out)]
    return Dataset.from_dict({column: [row[column] for row in rows] for column in ROW}, features=ROW)


def _row_of(record: Record) -> dict[str, Any]:
    return {"image": record.image, "text": record.text, "id": record.id, "source": record.source}


def _table(source: PairSource, options: ReadOptions, left_out: list[LeftOut]) -> Dataset:
    rows = sources.load_hub(source, options.split) if source.kind == "hub" else _mapped(source, options.split)
    text = options.text_in(rows.column_names, source.location)
    image = options.image_in(rows.column_names, source.location)
    captions = [caption_of(cell, f"{source.location}, row {number}") for number, cell in enumerate(rows[text])]
    own_ids = rows["id"] if "id" in rows.column_names else range(len(rows))
    ids = [str(number if own is None else own) for number, own in enumerate(own_ids)]
    names = rows["source"] if "source" in rows.column_names else [source.name] * len(rows)
    # The pictures stay where they are; only the three columns of text are made anew.
    rows = rows.select_columns(image).rename_columns({image: "image"}).cast_column("image", ROW["image"])
    for column, values in (("text", captions), ("id", ids), ("source", list(names))):
        rows = rows.add_column(column, values, feature=ROW[column])
    has_caption = np.array([bool(caption) for caption in captions], dtype=bool)
    left_out += [LeftOut(f"row {row}", layouts.NO_CAPTION, source=source.name) for row in np.flatnonzero(~has_caption)]
    return rows if has_caption.all() else rows.select(np.flatnonzero(has_caption))


def _mapped(source: PairSource, split: str) -> Dataset:
    files = sources.parquet_files(source.location, split)
    try:
        return load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises has no common ancestor
        raise BadInput(f"{source.location} cannot be loaded: {sources.reason_of(error)}") from error


def _weighted(rows: Dataset, weight: float, seed: int) -> Dataset:
    """Every row `weight` times; of a fraction, so many rows drawn at random."""
    if weight == 1:
        return rows
    whole, fraction = divmod(weight, 1)
    drawn = np.random.default_rng(seed).permutation(len(rows))[: round(fraction * len(rows))]
    return rows.select(np.concatenate([np.tile(np.arange(len(rows)), int(whole)), np.sort(drawn)]))


# --- streamed --------------------------------------------------------------------------------------------------------


def _in_turns(sources: Sequence[PairSource], options: ReadOptions, seed: int) -> Iterator[dict[str, Any]]:
    """One row of each source in turn, until all have ended."""
    # Not `interleave_datasets`: it holds every stream open in a thread and sleeps five seconds at the end.
    streams = [weighted(source, options, seed + number) for number, source in enumerate(sources)]
    while streams:
        for stream in list(streams):
            if (record := next(stream, None)) is None:
                streams.remove(stream)
            else:
                yield _row_of(record)
