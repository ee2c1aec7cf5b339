"""Pictures with their prompts, from a folder or parquet files: what an index is built of and an ensemble fitted on.

A light reader. Cleaning, splitting and the many sources of training data are `training/data`'s.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from captioner.errors import BadImage, BadInput
from captioner.images import EXTENSIONS, open_image

FILE_COLUMNS = ("file_name", "image", "imgId")
PROMPT_COLUMNS = ("text", "prompt", "caption")


@dataclass(frozen=True)
class Reference:
    """A picture, not yet opened, and its prompt."""

    name: str
    prompt: str
    source: Path | bytes


def read(data: str | Path) -> Iterator[Reference]:
    """The pairs of DATA, one after the other; pictures without a prompt are passed over.

    DATA is a parquet file, a folder of them, or a folder of pictures with metadata.jsonl, metadata.csv, prompts.csv
    (imgId, prompt; pictures beside it or in images/) or a .txt file beside each picture.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise BadInput(f"{path} does not exist. Name a folder of pictures with prompts, or a parquet file.")
    found = (pair for pair in _pairs(path) if pair.prompt)
    first = next(found, None)
    if first is None:
        raise BadInput(
            f"{path} holds no picture with a prompt: add metadata.jsonl, metadata.csv, prompts.csv or a .txt beside "
            "each picture, or name a parquet file."
        )
    yield first
    yield from found


def opened(
    references: Iterable[Reference], batch_size: int, unreadable: list[str]
) -> Iterator[tuple[list[Reference], list[Image]]]:
    """Batches with their pictures decoded; what cannot be read is named in `unreadable` and left out."""
    references = iter(references)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(references, batch_size)):
            found = list(pool.map(_open, batch))
            unreadable += [str(image) for image in found if isinstance(image, BadImage)]
            kept = [pair for pair in zip(batch, found, strict=True) if not isinstance(pair[1], BadImage)]
            if kept:
                yield tuple(map(list, zip(*kept, strict=True)))


def _open(reference: Reference) -> Image | BadImage:
    try:
        return open_image(reference.source)
    except BadImage as error:
        return BadImage(f"{reference.name}: {error}")


def _pairs(path: Path) -> Iterator[Reference]:
    if path.is_file():
        return _from_parquet(path)
    if tables := sorted(path.glob("*.parquet")):
        return (pair for table in tables for pair in _from_parquet(table))
    if (lines := path / "metadata.jsonl").exists():
        return _from_table(lines, _json_lines(lines))
    for name in ("metadata.csv", "prompts.csv"):
        if (table := path / name).exists():
            with table.open(newline="", encoding="utf-8-sig") as opened:
                return _from_table(table, list(csv.DictReader(opened)))
    return _from_sidecars(path)


def _json_lines(path: Path) -> Iterator[dict]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}, line {number} is not JSON ({error}).") from error


def _from_table(table: Path, rows: Iterable[dict]) -> Iterator[Reference]:
    for row in rows:
        file, prompt = (_first(row, columns, table) for columns in (FILE_COLUMNS, PROMPT_COLUMNS))
        yield Reference(str(row[file]), str(row[prompt] or "").strip(), _picture(table.parent, str(row[file])))


def _picture(folder: Path, name: str) -> Path:
    """The file of this name, beside its table or in images/; an id stands for its .png. It may be missing."""
    places = [folder / name, folder / "images" / name, folder / f"{name}.png", folder / "images" / f"{name}.png"]
    return next((place for place in places if place.is_file()), places[0])


def _from_sidecars(folder: Path) -> Iterator[Reference]:
    for picture in sorted(folder.rglob("*")):
        sidecar = picture.with_suffix(".txt")
        if picture.suffix.lower() in EXTENSIONS and sidecar.is_file():
            prompt = sidecar.read_text(encoding="utf-8", errors="replace").strip()
            yield Reference(str(picture.relative_to(folder)), prompt, picture)


def _from_parquet(path: Path) -> Iterator[Reference]:
    import pyarrow.parquet
    from pyarrow import ArrowInvalid

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise BadInput(f"{path} is no parquet file ({error}).") from error
    names = dict.fromkeys(file.schema_arrow.names)
    image, prompt = (_first(names, columns, path) for columns in (("image",), PROMPT_COLUMNS))
    row = 0
    for batch in file.iter_batches(batch_size=64, columns=[image, prompt]):
        for picture, text in zip(batch[image].to_pylist(), batch[prompt].to_pylist(), strict=True):
            data = picture["bytes"] if isinstance(picture, dict) else picture
            yield Reference(f"{path.name}:{row}", (text or "").strip(), data or b"")
            row += 1


def _first(row: dict, columns: tuple[str, ...], where: Path) -> str:
    for column in columns:
        if column in row:
            return column
    raise BadInput(f"{where} has no column {' or '.join(columns)} (it has {', '.join(map(str, row))}).")
