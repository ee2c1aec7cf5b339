"""How pairs lie on disk: one reader a layout, each giving (picture, caption, id) without opening any picture.

A picture inside a zip is named `zip://MEMBER::ARCHIVE`, which `datasets` and `readable.py` understand.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import BadImage, BadInput
from captioner.images import EXTENSIONS

TEXT_COLUMNS = ("text", "prompt", "caption")
IMAGE_COLUMNS = ("image", "file_name", "file", "filename", "path")
BLURRED_IS_ABOVE = 1.0
"""DiffusionDB scores pictures 0..1, and 2 where Stable Diffusion's own filter has blurred them."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One caption of one picture."""

    image: str
    text: str
    id: str


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold caption and picture; None: the first of the usual names."""

    text: str | None = None
    image: str | None = None

    def text_in(self, there: Iterable[str], where: str | Path) -> str:
        return _column(self.text, TEXT_COLUMNS, list(there), where, "caption", "--text-column")

    def image_in(self, there: Iterable[str], where: str | Path) -> str:
        return _column(self.image, IMAGE_COLUMNS, list(there), where, "picture", "--image-column")


def _column(wanted: str | None, usual: tuple[str, ...], there: list[str], where, what: str, option: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in there:
            return name
    names = ", ".join(map(repr, there)) or "none"
    sought = f"{wanted!r}" if wanted else " or ".join(map(repr, usual))
    raise BadInput(f"{where} has no {what} column {sought}. The columns are: {names}. Say which with {option}.")


def kind_of(path: Path) -> str:
    """The layout of what is on disk."""
    if path.is_file():
        kind = {".parquet": "parquet", ".json": "coco", ".zip": "diffusiondb"}.get(path.suffix)
        if kind is None:
            raise BadInput(f"{path} is no data set: name a folder, a .parquet file or a COCO captions .json.")
        return kind
    if _parts(path):
        return "diffusiondb"
    if (path / "prompts.csv").exists():
        return "kaggle"
    if any(_tables(path)):
        return "folder"
    if _captions_files(path):
        return "coco"
    if next(path.rglob("*.parquet"), None):
        return "parquet"
    return "folder" if any(_sidecar(picture).exists() for picture in _pictures(path)) else "parameters"


# --- folders of pictures ---------------------------------------------------------------------------------------------


def read_folder(folder: Path, columns: Columns, _: float) -> Iterator[Record]:
    """metadata.jsonl or metadata.csv beside the pictures (in any subfolder), otherwise a .txt beside each picture."""
    tables = list(_tables(folder))
    for table in tables:
        for row in _rows(table):
            picture = table.parent / str(row[columns.image_in(row, table)])
            text = row[columns.text_in(row, table)]
            yield Record(str(picture), text or "", str(row.get("id") or os.path.relpath(picture, folder)))
    if not tables:
        for picture in _pictures(folder):
            if (sidecar := _sidecar(picture)).exists():
                yield Record(str(picture), _text_of(sidecar), os.path.relpath(picture, folder))


def read_kaggle(folder: Path, columns: Columns, _: float) -> Iterator[Record]:
    """The competition's layout: images/ID.png and prompts.csv (imgId, prompt)."""
    table = folder / "prompts.csv"
    pictures = {picture.stem: picture for picture in _pictures(folder / "images")}
    for row in _rows(table):
        name = str(row[_column(columns.image, ("imgId",), list(row), table, "picture", "--image-column")])
        # A picture that is missing is still named, so that it is counted among the unreadable.
        yield Record(str(pictures.get(name, folder / "images" / f"{name}.png")), row[columns.text_in(row, table)], name)


def read_parameters(folder: Path, columns: Columns, _: float) -> Iterator[Record]:
    """Pictures that carry the prompt they were made from."""
    from captioner.images.metadata import read_parameters as parameters_of

    for picture in _pictures(folder):
        try:
            found = parameters_of(picture)
        except BadImage as error:
            log.warning("skipped %s: %s", picture, error)
            continue
        if found and found.prompt:
            yield Record(str(picture), found.prompt, os.path.relpath(picture, folder))


def _pictures(folder: Path) -> Iterator[Path]:
    """All pictures below, sorted. Links to folders are not followed: they may lead in circles."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(where, file) for file in sorted(files) if Path(file).suffix.lower() in EXTENSIONS)


def _tables(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(where, name) for name in ("metadata.jsonl", "metadata.csv") if name in files)


def _sidecar(picture: Path) -> Path:
    return picture.with_suffix(".txt")


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()


def _rows(table: Path) -> Iterator[dict]:
    """The rows of a .csv, or of a .jsonl."""
    with table.open(encoding="utf-8-sig", newline="") as lines:
        if table.suffix == ".csv":
            yield from csv.DictReader(lines)
            return
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise BadInput(f"{table}, line {number}: this is no JSON ({error}).") from error
            if row is not None:
                yield row


# --- COCO captions ---------------------------------------------------------------------------------------------------


def read_coco(path: Path, columns: Columns, _: float) -> Iterator[Record]:
    """captions_*.json with its pictures in a folder beside it. One row a caption; the id is the picture's."""
    for file in [path] if path.is_file() else _captions_files(path):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            names = {picture["id"]: picture["file_name"] for picture in content["images"]}
            captions = [(caption["image_id"], caption["caption"]) for caption in content["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{file} is no file of COCO captions ({type(error).__name__}: {error}).") from error
        folder = _coco_pictures(file, next(iter(names.values()), ""))
        for number, caption in captions:
            yield Record(str(folder / names[number]), caption, str(number))


def _captions_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")])


def _coco_pictures(captions: Path, example: str) -> Path:
    """captions_val2017.json → val2017/, images/val2017/ or images/, beside it or one folder up."""
    part = captions.stem.removeprefix("captions_")
    roots = (captions.parent, captions.parent.parent)
    folders = [root / inner for root in roots for inner in (part, f"images/{part}", "images", ".")]
    for folder in folders:
        if (folder / example).is_file():
            return folder
    raise BadInput(f"{captions} names {example!r}, which is in none of: {', '.join(map(str, folders))}.")


# --- DiffusionDB -----------------------------------------------------------------------------------------------------


def read_diffusiondb(path: Path, columns: Columns, max_nsfw: float) -> Iterator[Record]:
    """part-000001.zip or part-000001/, each with its json, as published; scores from metadata.parquet where it is."""
    parts = _parts(path)
    left_out = _above(path, max_nsfw)
    for part in parts:
        for name, prompt in _part_prompts(part).items():
            if name not in left_out:
                picture = f"zip://{name}::{part.absolute()}" if part.suffix == ".zip" else str(part / name)
                yield Record(picture, prompt, Path(name).stem)


def _parts(path: Path) -> list[Path]:
    """The parts of DiffusionDB: `path` itself, in it, or up to two folders down (images/, …-large-part-1/)."""
    if path.is_file() or (path / f"{path.name}.json").exists():
        return [path] if path.name.startswith("part-") else []
    found = [part for depth in ("", "*/", "*/*/") for part in path.glob(f"{depth}part-*")]
    numbered = [part for part in found if re.fullmatch(r"part-\d+(\.zip)?", part.name)]
    return sorted(part for part in numbered if part.suffix == ".zip" or (part / f"{part.name}.json").exists())


def _part_prompts(part: Path) -> dict[str, str]:
    name = f"{part.stem}.json"
    try:
        if part.suffix == ".zip":
            with zipfile.ZipFile(part) as archive:
                content = json.loads(archive.read(name))
        else:
            content = json.loads((part / name).read_bytes())
        return {picture: entry["p"] for picture, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{part} is no whole part of DiffusionDB ({type(error).__name__}: {error}).") from error


def _above(path: Path, max_nsfw: float) -> set[str]:
    """Names of the pictures whose own score or whose prompt's score is too high."""
    import pyarrow.compute as compute
    import pyarrow.dataset as dataset

    tables = [file for folder in (path, path.parent) for file in sorted(folder.glob("metadata*.parquet"))]
    if not tables:
        if max_nsfw < BLURRED_IS_ABOVE:
            raise BadInput(f"Scores are filtered by DiffusionDB's metadata.parquet: there is none in {path}.")
        return set()
    too_high = (compute.field("image_nsfw") > max_nsfw) | (compute.field("prompt_nsfw") > max_nsfw)
    names = dataset.dataset(tables).to_table(columns=["image_name"], filter=too_high)
    return set(names["image_name"].to_pylist())


READERS: dict[str, Callable[[Path, Columns, float], Iterator[Record]]] = {
    "folder": read_folder,
    "kaggle": read_kaggle,
    "coco": read_coco,
    "diffusiondb": read_diffusiondb,
    "parameters": read_parameters,
}
"""Layout → its reader."""
