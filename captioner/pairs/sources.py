"""Records from anywhere: `read(["my/pictures", "coco:~/coco@0.5", "hub:NAME"])`.

What a folder holds is seen from its files (`layouts.py`), or said by a prefix: `folder:`, `kaggle:`, `coco:`,
`diffusiondb:`, `parameters:`, `parquet:`, `hub:`. `@2` behind a name: each of its records comes twice (`@0.5`: half of
them, drawn by the seed). A picture with several captions gives several records with one id.
Pictures are opened late: `readable.py` leaves out those that cannot be.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captioner.errors import BadInput, counted, one_line, refuse_idle
from captioner.files.names import path_of
from captioner.pairs import layouts
from captioner.pairs.layouts import LeftOut, ReadOptions, Record
from captioner.pairs.tables import caption_of, is_whole

TABLES = ("parquet", "hub")
BATCH = 64
"""Rows of a parquet file that are held at once, pictures included."""
PATIENCE = 5.0
"""Seconds that the Hub has to answer at all."""


@dataclass(frozen=True)
class PairSource:
    """One source of pairs: which layout, where, and how often its rows come."""

    kind: str
    location: str
    """A file, a folder, a pattern, or the name of a Hub data set."""
    weight: float = 1.0
    part: str = ""
    """`coco:FILE:PART`: of Karpathy's parts of COCO, this one."""

    @property
    def name(self) -> str:
        """What its records are said to come from."""
        return self.location if self.kind == "hub" else os.path.basename(os.path.abspath(self.location))


def parse(spec: str | Path) -> PairSource:
    """The source that DIR, KIND:DIR, hub:NAME or one of these with @WEIGHT means."""
    location, weight = str(spec), 1.0
    if (match := re.fullmatch(r"(.+)@(\d+\.?\d*)", location)) and not Path(location).exists():
        location, weight = match[1], float(match[2])
        if weight == 0:
            raise BadInput(f"{spec}: a weight is above 0. Leave the source out instead.")
    kind, separator, rest = location.partition(":")
    if separator and kind in (*layouts.READERS, *TABLES):
        if kind == "hub":
            return PairSource(kind, rest, weight)
        file, _, part = rest.rpartition(":")
        rest, part = (file, part) if kind == "coco" and file.endswith(".json") else (rest, "")
        return PairSource(kind, str(path_of(rest)), weight, part)
    if glob.has_magic(location) and not Path(location).exists():
        return PairSource("parquet", str(path_of(location)), weight)
    path = path_of(location)
    if not path.exists():
        raise BadInput(f"There is no {path}. A data set of the Hugging Face Hub is named hub:{location}.")
    return PairSource(layouts.kind_of(path), str(path), weight)


def absolute(spec: str | Path) -> str:
    """The same source for whoever stands in another folder."""
    source = parse(spec)
    if source.kind == "hub":
        return str(spec)
    part = f":{source.part}" if source.part else ""
    return f"{source.kind}:{os.path.abspath(source.location)}{part}@{source.weight}"


class Records:
    """The pairs of some sources, one source after the other. Each pass over them notes anew what it leaves out."""

    def __init__(self, sources: Sequence[PairSource], options: ReadOptions, seed: int) -> None:
        self.sources = sources
        self.options = options
        self.seed = seed
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[Record]:
        self.left_out.clear()
        for number, source in enumerate(self.sources):
            records = weighted(source, self.options, self.seed + number, self.left_out)
            if (first := next(records, None)) is None:
                refuse_empty(source, self.options)
            else:
                yield first
                yield from records

    def check(self) -> None:
        """Refuse sources without a single record: said before a model is loaded for them."""
        for source in self.sources:
            refuse_empty(source, self.options)

    def different_prompts(self, up_to: int) -> int:
        """How many prompts they have, counted no further than this; no picture is opened for it."""
        prompts: set[str] = set()
        for record in self:
            prompts.add(record.text)
            if len(prompts) == up_to:
                break
        return len(prompts)

    def total(self) -> int | None:
        """How many are to come at most, told without opening a picture; None where the Hub alone knows.

        What is wrong with a table is said here, before any work is done.
        """
        counts = [_count(source, self.options) for source in self.sources]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        return sum(round(count * source.weight) for count, source in zip(known, self.sources, strict=True))


def read(specs: Sequence[str | Path], options: ReadOptions | None = None, seed: int = 0) -> Records:
    """The pairs that these name; see the top of this module."""
    return Records(parse_all(specs), options or ReadOptions(), seed)


def parse_all(specs: Sequence[str | Path]) -> list[PairSource]:
    """What some names of sources mean; one may stand alone."""
    sources = [parse(spec) for spec in ([specs] if isinstance(specs, (str, Path)) else specs)]
    if not sources:
        raise BadInput("No data: name at least one folder, parquet file or Hub data set.")
    return sources


def check_options(sources: Sequence[PairSource], options: ReadOptions) -> None:
    """Refuse columns and a split that were named where none of the sources has any."""
    where = " and ".join(source.location for source in sources)
    columns = {"text_column": options.text_column, "image_column": options.image_column}
    named = [name for name, column in columns.items() if column]
    if named and not any(map(_has_columns, sources)):
        refuse_idle(named, f"{where} has no table with columns.")
    if options.split != ReadOptions.split and not any(source.kind in TABLES for source in sources):
        refuse_idle(["split"], f"{where} has no parquet files and is no Hub data set.")


def _has_columns(source: PairSource) -> bool:
    if source.kind == "folder":
        return any(layouts.tables_in(Path(source.location)))
    return source.kind in (*TABLES, "kaggle")


def weighted(
    source: PairSource, options: ReadOptions, seed: int, left_out: list[LeftOut] | None = None
) -> Iterator[Record]:
    """The records of one source as often as its weight says; what it leaves out is added to `left_out`, once."""
    whole, fraction = divmod(source.weight, 1)
    for again in range(int(whole)):
        yield from records_of(source, options, None if again else left_out)
    if fraction:
        import numpy as np

        generator = np.random.default_rng(seed)
        records = records_of(source, options, None if whole else left_out)
        yield from (record for record in records if generator.random() < fraction)


def records_of(source: PairSource, options: ReadOptions, left_out: list[LeftOut] | None = None) -> Iterator[Record]:
    """The records of one source, each once."""
    name = source.name
    for item in _items(source, options):
        item = item if item.source else replace(item, source=name)
        if not is_whole(item.name) or (isinstance(item, Record) and not is_whole(item.id)):
            item = LeftOut(item.name, layouts.BAD_NAME, source=item.source)  # no table can hold it
        if isinstance(item, Record):
            yield item
        elif left_out is not None:
            left_out.append(item)


def refuse_empty(source: PairSource, options: ReadOptions) -> None:
    """A source without a single record is a mistake: say what was seen, and what to add."""
    left_out: list[LeftOut] = []
    if next(records_of(source, options, left_out), None) is not None:
        return
    of_pictures = source.kind in ("folder", "parameters")
    closed = [one for one in left_out if one.noun == "folder"]
    seen = counted(len(left_out) - len(closed), "picture" if of_pictures else "row")
    sentence = f"{source.location} holds no picture with a caption ({seen} seen)."
    if odd := [*closed, *(one for one in left_out if one.reason != layouts.NO_CAPTION)]:
        sentence += f" {str(odd[0]).removesuffix('.')}."
    if of_pictures:
        sentence += " Add a .txt beside each picture, metadata.jsonl (file_name, text) or prompts.csv (imgId, prompt)."
    raise BadInput(sentence)


def _items(source: PairSource, options: ReadOptions) -> Iterator[Record | LeftOut]:
    if source.kind == "hub":
        yield from _read_hub(source, options)
        return
    if source.kind == "parquet":
        yield from _read_parquet(source, options)
        return
    if not Path(source.location).exists():
        raise BadInput(f"There is no {source.location}.")
    yield from layouts.READERS[source.kind](Path(source.location), replace(options, part=source.part))


def _count(source: PairSource, options: ReadOptions) -> int | None:
    if source.kind == "hub":
        return None
    if source.kind == "parquet":
        return sum(open_parquet(file).metadata.num_rows for file in parquet_files(source.location, options.split))
    if source.kind == "parameters":
        return sum(1 for _ in layouts.pictures_in(Path(source.location)))
    return sum(1 for _ in records_of(source, options))


# --- parquet ---------------------------------------------------------------------------------------------------------


def parquet_files(location: str, split: str) -> list[str]:
    """A file, a pattern, or the files under a folder; those of the split where names tell splits apart
    (train-0.parquet, data/train-0.parquet, train/0.parquet)."""
    folder = Path(location)
    below = map(str, layouts.parquet_in(folder)) if folder.is_dir() else glob.glob(location, recursive=True)
    files = sorted(below)
    if not files:
        raise BadInput(f"There is no parquet file at {location}.")
    if folder.is_dir():
        begins = re.compile(rf"{re.escape(split)}\b")
        of_split = [file for file in files if any(map(begins.match, Path(file).relative_to(folder).parts))]
        if not of_split and split != ReadOptions.split:
            raise BadInput(f"{location} has no parquet file of the split {split!r}, such as {split}-0.parquet.")
        return of_split or files
    return files


def _read_parquet(source: PairSource, options: ReadOptions) -> Iterator[Record | LeftOut]:
    number = 0
    for file in parquet_files(source.location, options.split):
        for row, item in enumerate(_parquet_rows(file, options)):
            yield _from_row(item, number, f"{Path(file).name}:{row}", f"{file}, row {row}")
            number += 1


def _parquet_rows(file: str, options: ReadOptions) -> Iterator[dict[str, Any]]:
    import pyarrow

    table = open_parquet(file)
    names = table.schema_arrow.names
    columns = {"text": options.text_in(names, file), "image": options.image_in(names, file)}
    columns |= {name: name for name in ("id", "source") if name in names}
    try:
        for batch in table.iter_batches(batch_size=BATCH, columns=list(dict.fromkeys(columns.values()))):
            cells = {name: batch[column].to_pylist() for name, column in columns.items()}
            yield from (dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True))
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is damaged ({' '.join(str(error).split())[:200]}).") from error


def open_parquet(file: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{file} is no parquet file, or is cut off ({one_line(error)}).") from error


def _from_row(row: dict[str, Any], number: int, name: str, where: str) -> Record | LeftOut:
    """A row of a table {text, image, perhaps id and source} as a record."""
    image, text, source = row["image"], caption_of(row["text"], where), row.get("source") or ""
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if image is not None and not isinstance(image, str | bytes):
        raise BadInput(f"{where}: the picture is {type(image).__name__}, not the bytes of a file or its path.")
    if not text:
        return LeftOut(name, layouts.NO_CAPTION, source=source)
    if not image:
        return LeftOut(name, layouts.NO_PICTURE, source=source, noun="row")
    own_id = row.get("id")
    return Record(image, text, str(number if own_id is None else own_id), name, source)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _read_hub(source: PairSource, options: ReadOptions) -> Iterator[Record | LeftOut]:
    from datasets import Image

    rows = load_hub(source, options.split, streaming=True)
    names = rows.column_names or list(next(iter(rows), {}))
    text, image = options.text_in(names, source.location), options.image_in(names, source.location)
    if rows.features:  # as it lies in the file, not decoded and encoded again
        rows = rows.cast_column(image, Image(decode=False))
    for number, row in enumerate(rows):
        name = f"{source.location}:{number}"
        yield _from_row(
            row | {"text": row[text], "image": row[image]}, number, name, f"{source.location}, row {number}"
        )


def load_hub(source: PairSource, split: str, streaming: bool = False, revision: str | None = None) -> Any:
    """A data set of the Hugging Face Hub as `datasets` gives it; revision: the commit that it must be of."""
    from datasets import load_dataset

    name, _, configuration = source.location.partition(":")
    if not name:
        raise BadInput("hub: names no data set: write its id after it, hub:ORG/NAME.")
    _refuse_unreachable(name)
    try:
        return load_dataset(name, configuration or None, split=split, streaming=streaming, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises has no common ancestor
        raise BadInput(f"{source.location} cannot be loaded: {reason_of(error)}") from error


def _refuse_unreachable(name: str) -> None:
    """Ask the Hub once whether it is there: `datasets` would try for a minute. What is in its cache needs no Hub."""
    from datasets import config
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    cached = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if constants.HF_HUB_OFFLINE or Path(name).exists() or cached.is_dir():
        return
    try:
        HfApi().dataset_info(name, timeout=PATIENCE)
    except HfHubHTTPError:
        return  # it answers: `datasets` knows better what is wrong with the name
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise BadInput(
            f"hub:{name} cannot be loaded: the Hugging Face Hub does not answer ({reason_of(error)}). "
            "Check the network, or name a folder or a parquet file."
        ) from error


def reason_of(error: BaseException) -> str:
    """A library's complaint on one line."""
    return " ".join(str(error.__cause__ or error).split())[:300]
