"""How pairs lie on disk: one reader a layout, each giving records, and what it leaves out, without opening a picture.

A picture inside a zip is named `zip://MEMBER::ARCHIVE`, which `readable.py` and `datasets` understand.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from captioner.errors import BadImage, BadInput, counted, one_line, printable
from captioner.files.names import SIDECARS, seen_from, spellings
from captioner.images import looks_like_picture
from captioner.images.find import below
from captioner.pairs.tables import caption_of, file_name, rows_of

FILES = {".parquet": "parquet", ".json": "coco", ".zip": "diffusiondb"}
"""Layouts of single files."""
TEXT_COLUMNS = ("text", "prompt", "caption")
IMAGE_COLUMNS = ("image", "file_name", "file", "filename", "path")
BLURRED_IS_ABOVE = 1.0
"""DiffusionDB scores pictures 0..1, and 2 where Stable Diffusion's own filter has blurred them."""
KARPATHY = ("dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json")
LONGEST_SIDECAR = 1_000_000
LARGEST_JSON = 2_000_000_000
"""Bytes; the captions of COCO have a tenth of it."""
NAMED = 5
"""Pictures whose names a summary gives."""
NO_CAPTION = "without a caption"
NO_PICTURE = "without a picture"
UNREADABLE = "that cannot be read"
BROKEN_ZIP = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What reading a zip raises where it is damaged; a RuntimeError where it is encrypted or packed in a way of its own."""
BAD_NAME = "whose name is not UTF-8"


@dataclass(frozen=True)
class Record:
    """One caption of one picture, which is not yet opened."""

    image: str | bytes
    """A path, `zip://MEMBER::ARCHIVE`, or the picture's file itself."""
    text: str
    id: str
    name: str
    """What to call it in a message."""
    source: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A picture or a row that gives no record."""

    name: str
    reason: str
    """As it goes on after "3 pictures": "without a caption"."""
    detail: str = ""
    source: str = ""
    noun: str = "picture"
    """What it is that was left out: where there is no picture, a row, or a file of captions."""

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.detail or self.reason}")


def summaries(left_out: Iterable[LeftOut], named: bool = True) -> list[str]:
    """One sentence for each source and reason: "pictures: 3 pictures without a caption left out: a.png, b.png …"."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for one in left_out:
        names.setdefault((one.source, one.noun, one.reason), []).append(one.name)
    sentences = []
    for (source, noun, reason), of_reason in names.items():
        which = ": " + ", ".join(of_reason[:NAMED]) + (" …" if len(of_reason) > NAMED else "") if named else ""
        sentences.append(printable(f"{source}: {counted(len(of_reason), noun)} {reason} left out{which}."))
    return sentences


@dataclass(frozen=True)
class ReadOptions:
    """What is read of every source."""

    text_column: str | None = None
    """The column of the captions; None: the first of the usual names."""
    image_column: str | None = None
    split: str = "train"
    """Which part of a Hub data set, or of a folder with train-*.parquet and validation-*.parquet."""
    max_nsfw: float = BLURRED_IS_ABOVE
    """What DiffusionDB scores higher is left out; 1 leaves out only what it has blurred."""
    part: str = ""
    """Which part of a file that says of each picture which it is in (Karpathy's splits)."""

    def text_in(self, columns: Iterable[str], where: str | Path) -> str:
        """The column of the captions among these."""
        return _column(self.text_column, TEXT_COLUMNS, list(columns), where, "caption", "text_column")

    def image_in(self, columns: Iterable[str], where: str | Path, usual: tuple[str, ...] = IMAGE_COLUMNS) -> str:
        """The column of the pictures among these."""
        return _column(self.image_column, usual, list(columns), where, "picture", "image_column")

    def image_and_text_in(self, columns: Sequence[str], where: str | Path) -> list[str]:
        """Both of a table that need not have captions, unless their column is named; the pictures' comes first."""
        has_text = self.text_column is not None or not set(TEXT_COLUMNS).isdisjoint(columns)
        return [self.image_in(columns, where), *([self.text_in(columns, where)] if has_text else [])]


def _column(wanted: str | None, usual: tuple[str, ...], columns: list[str], where, what: str, option: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in columns:
            return name
    names = printable(", ".join(map(repr, columns))) or "none"
    sought = f"{wanted!r}" if wanted else " or ".join(map(repr, usual))
    remedy = f"Rename one, or say which with {option}."
    raise BadInput(f"{where} has no {what} column {sought}. The columns are: {names}. {remedy}")


def kind_of(path: Path) -> str:
    """The layout of what is on disk."""
    if path.is_file():
        kind = FILES.get(path.suffix)
        if kind is None:
            raise BadInput(f"{path} is no data set: name a folder, a .parquet file or a COCO captions .json.")
        return kind
    if _parts(path):
        return "diffusiondb"
    if (path / "prompts.csv").exists():
        return "kaggle"
    if any(tables_in(path)):
        return "folder"
    if _captions_files(path):
        return "coco"
    if next(parquet_in(path), None):
        return "parquet"
    return "folder" if any(_sidecar(picture) for picture in pictures_in(path)) else "parameters"


# --- folders of pictures ---------------------------------------------------------------------------------------------


def read_folder(folder: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    """metadata.jsonl or metadata.csv beside the pictures (in any subfolder), otherwise a .txt or .caption beside each
    picture."""
    closed: list[LeftOut] = []
    tables = list(tables_in(folder, closed))
    for table in tables:
        yield from _read_table(table, folder, options)
    if not tables:
        for picture in pictures_in(folder):
            yield with_sidecar(picture, os.path.relpath(picture, folder))
    yield from closed


def _read_table(table: Path, folder: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    pictures: Path | None = None
    for where, row in rows_of(table):
        file = file_name(row[options.image_in(row, where)])
        text = caption_of(row[options.text_in(row, where)], where)
        if not file:
            yield LeftOut(where, NO_PICTURE, noun="row")
            continue
        pictures = pictures or _folder_with(file, table.parent, table.parent / "images")
        file = _on_disk(pictures, file)
        name = _named_from(folder, pictures, file)
        if text:
            yield Record(str(pictures / file), text, str(row.get("id") or name), name)
        else:
            yield LeftOut(name, NO_CAPTION)


def _named_from(folder: Path, pictures: Path, file: str) -> str:
    """`seen_from`, which takes three times as long for a file below the folder."""
    if os.path.isabs(file):
        return seen_from(folder, file)
    return os.path.normpath(file if pictures == folder else os.path.join(os.path.relpath(pictures, folder), file))


def _folder_with(file: str, *folders: Path) -> Path:
    """The first of these folders that has the file. Without any the first, so that the missing picture is named."""
    return next((folder for folder in folders if (folder / _on_disk(folder, file)).is_file()), folders[0])


def _on_disk(folder: Path, file: str) -> str:
    """A file's name in the form that it has in this folder; as it is, where there is none."""
    return file if file.isascii() else next((form for form in spellings(file) if (folder / form).is_file()), file)


def with_sidecar(picture: Path, name: str) -> Record | LeftOut:
    """A picture with the .txt or .caption beside it."""
    sidecar = _sidecar(picture)
    if sidecar is None:
        return LeftOut(name, NO_CAPTION)
    try:
        with sidecar.open("rb") as stream:
            text = caption_in(stream)
    except UnicodeDecodeError:
        return LeftOut(name, "whose caption is not UTF-8", f"{sidecar.name} is not UTF-8. Save it as UTF-8.")
    except OSError as error:
        return LeftOut(name, "whose caption cannot be read", f"{sidecar.name} cannot be read ({error.strerror}).")
    return Record(str(picture), text, name, name) if text else LeftOut(name, NO_CAPTION)


def caption_in(sidecar: BinaryIO) -> str:
    """The text of a sidecar."""
    return io.TextIOWrapper(sidecar, encoding="utf-8-sig").read(LONGEST_SIDECAR).strip()


def read_kaggle(folder: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    """The competition's layout: prompts.csv (imgId, prompt), and the pictures as images/ID.png or beside it."""
    table = folder / "prompts.csv"
    if not table.is_file():
        raise BadInput(f"{folder} has no prompts.csv (columns imgId, prompt), which the competition's layout needs.")
    inside = folder / "images" if (folder / "images").is_dir() else folder
    pictures = {picture.stem: picture for picture in pictures_in(inside)}
    for where, row in rows_of(table):
        name = file_name(row[options.image_in(row, where, ("imgId", *IMAGE_COLUMNS))])
        text = caption_of(row[options.text_in(row, where)], where)
        if not name:
            yield LeftOut(where, NO_PICTURE, noun="row")
        elif not text:
            yield LeftOut(name, NO_CAPTION)
        else:  # a picture that is missing is still named, so that it is counted among the unreadable
            picture = pictures.get(name) or pictures.get(Path(name).stem) or inside / f"{name}.png"
            yield Record(str(picture), text, name, os.path.relpath(picture, folder))


def read_parameters(folder: Path, _: ReadOptions) -> Iterator[Record | LeftOut]:
    """Pictures that carry the prompt they were made from."""
    from captioner.images.metadata import read_parameters as parameters_of

    closed: list[LeftOut] = []
    for picture in pictures_in(folder, closed):
        name = os.path.relpath(picture, folder)
        try:
            parameters = parameters_of(picture)
        except BadImage as error:
            yield LeftOut(name, UNREADABLE, str(error))
            continue
        if parameters and parameters.prompt:
            yield Record(str(picture), parameters.prompt, name, name)
        else:
            yield LeftOut(name, NO_CAPTION, "carries no prompt, and has no caption beside it")
    yield from closed


def pictures_in(folder: Path, closed: list[LeftOut] | None = None) -> Iterator[Path]:
    """All pictures below, sorted. closed: gets the subfolders that cannot be read."""
    for where, files in _walk(folder, closed):
        yield from (Path(where, file) for file in sorted(files) if looks_like_picture(file))


def tables_in(folder: Path, closed: list[LeftOut] | None = None) -> Iterator[Path]:
    """All tables of captions below."""
    for where, files in _walk(folder, closed):
        yield from (Path(where, name) for name in ("metadata.jsonl", "metadata.csv") if name in files)


def _walk(top: Path, closed: list[LeftOut] | None) -> Iterator[tuple[str, list[str]]]:
    """As `below`; what cannot be read is noted."""

    def note(error: OSError) -> None:
        if closed is not None:
            name = os.path.relpath(error.filename, top)
            closed.append(LeftOut(name, UNREADABLE, f"cannot be read ({error.strerror})", noun="folder"))

    return below(top, note)


def parquet_in(folder: Path) -> Iterator[Path]:
    """All parquet files below."""
    return (Path(where, name) for where, files in below(folder) for name in files if name.lower().endswith(".parquet"))


def _sidecar(picture: Path) -> Path | None:
    return next((file for ending in SIDECARS if (file := picture.with_suffix(ending)).is_file()), None)


# --- COCO captions ---------------------------------------------------------------------------------------------------


def read_coco(path: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    """captions_*.json, or Karpathy's dataset_coco.json, with its pictures in a folder beside it. One record a caption;
    the id is the picture's. Of several files, those that have no pictures here are left out."""
    files = [path] if path.is_file() else _captions_files(path)
    if not files:
        raise BadInput(f"{path} has no captions_*.json, which COCO's layout needs, and none of Karpathy's files.")
    missing: list[BadInput] = []
    for file in files:
        try:
            yield from _read_captions(file, options)
        except _NoPictures as error:
            missing.append(error)
            yield LeftOut(file.name, "whose pictures are not here", str(error), noun="file")
    if missing and len(missing) == len(files):
        raise BadInput(str(missing[0]))


class _NoPictures(BadInput):
    """A captions file without its pictures."""


def _read_captions(file: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    content = _json_of(file, "file of COCO captions")
    try:
        if "annotations" not in content and any("sentences" in picture for picture in content["images"]):
            captions, pictures = _karpathy(content, file, options.part), {}
        else:
            pictures = {picture["id"]: picture["file_name"] for picture in content["images"]}
            captions = [(one["image_id"], one["image_id"], one["caption"]) for one in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file} is no file of COCO captions ({type(error).__name__}: {error}).") from error
    folder = _coco_pictures(file, str(next(iter(pictures.values()), captions[0][1] if captions else "")))
    for number, key, caption in captions:
        name = (pictures.get(key) if isinstance(key, Hashable) else None) if pictures else key
        text = caption_of(caption, f"{file}, a caption of picture {number}")
        if not isinstance(name, str):
            yield LeftOut(str(number), "that the captions name and the list of pictures does not")
        else:
            yield Record(str(folder / name), text, str(number), name) if text else LeftOut(name, NO_CAPTION)


def _karpathy(content: dict[str, Any], file: Path, part: str) -> list[tuple[Any, str, str]]:
    """(id, file, caption) of one part of Karpathy's file; "train" holds restval too, as he trained."""
    counts = Counter("train" if picture["split"] == "restval" else picture["split"] for picture in content["images"])
    if part not in counts:
        parts = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
        raise BadInput(f"{file} has the parts {parts}. Name one of them: coco:{file}:{next(iter(counts), 'train')}")
    wanted = {part, "restval"} if part == "train" else {part}
    return [
        (picture.get("cocoid", picture.get("imgid")), _karpathy_name(picture), sentence["raw"])
        for picture in content["images"]
        if picture["split"] in wanted
        for sentence in picture["sentences"]
    ]


def _karpathy_name(picture: dict[str, Any]) -> str:
    return "/".join(filter(None, (picture.get("filepath"), picture["filename"])))


def _captions_files(folder: Path) -> list[Path]:
    captions = sorted([*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")])
    return [file for file in captions or [folder / name for name in KARPATHY] if file.is_file()]


def _coco_pictures(captions: Path, example: str) -> Path:
    """captions_val2017.json → val2017/, images/val2017/ or images/, beside it or one folder up."""
    part = captions.stem.removeprefix("captions_")
    roots = (captions.parent, captions.parent.parent)
    folders = [root / inner for root in roots for inner in (part, f"images/{part}", "images", ".")]
    for folder in folders:
        if (folder / example).is_file():
            return folder
    raise _NoPictures(f"{captions} names {example!r}, which is in none of: {', '.join(map(str, folders))}.")


def _json_of(file: Path, what: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} is no {what} ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file} is no {what}: it should hold a JSON object.")
    return content


# --- DiffusionDB -----------------------------------------------------------------------------------------------------


def read_diffusiondb(path: Path, options: ReadOptions) -> Iterator[Record | LeftOut]:
    """part-000001.zip or part-000001/, each with its json, as published; scores from metadata.parquet where it is."""
    parts = _parts(path)
    above = _above(path, options.max_nsfw)
    for part in parts:
        for name, prompt in _part_prompts(part).items():
            if name in above:
                yield LeftOut(name, f"with an nsfw score above {options.max_nsfw:g}")
            elif text := caption_of(prompt, f"{part}, {name}"):
                picture = f"zip://{name}::{part.absolute()}" if part.suffix == ".zip" else str(part / name)
                yield Record(picture, text, Path(name).stem, name)
            else:
                yield LeftOut(name, NO_CAPTION)


def _parts(path: Path) -> list[Path]:
    """The parts of DiffusionDB: `path` itself, in it, or up to two folders down (images/, …-large-part-1/)."""
    if path.is_file() or (path / f"{path.name}.json").exists():
        return [path] if path.name.startswith("part-") else []
    parts = [part for depth in ("", "*/", "*/*/") for part in path.glob(f"{depth}part-*")]
    numbered = [part for part in parts if re.fullmatch(r"part-\d+(\.zip)?", part.name)]
    return sorted(part for part in numbered if part.suffix == ".zip" or (part / f"{part.name}.json").exists())


def _part_prompts(part: Path) -> dict[str, Any]:
    name = f"{part.stem}.json"
    try:
        if part.suffix == ".zip":
            with zipfile.ZipFile(part) as archive:
                if archive.getinfo(name).file_size > LARGEST_JSON:
                    raise ValueError(f"{name} has more than {LARGEST_JSON:,} bytes")
                content = json.loads(archive.read(name))
        else:
            content = json.loads((part / name).read_bytes())
        return {picture: entry["p"] for picture, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, *BROKEN_ZIP) as error:
        raise BadInput(f"{part} is no whole part of DiffusionDB ({type(error).__name__}: {error}).") from error


def _above(path: Path, max_nsfw: float) -> set[str]:
    """Names of the pictures whose own score or whose prompt's score is too high."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.dataset as dataset

    tables = [file for folder in (path, path.parent) for file in sorted(folder.glob("metadata*.parquet"))]
    if not tables:
        if max_nsfw < BLURRED_IS_ABOVE:
            raise BadInput(f"Scores are filtered by DiffusionDB's metadata.parquet: there is none in {path}.")
        return set()
    too_high = (compute.field("image_nsfw") > max_nsfw) | (compute.field("prompt_nsfw") > max_nsfw)
    try:
        names = dataset.dataset(tables).to_table(columns=["image_name"], filter=too_high)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{tables[0]} does not hold DiffusionDB's scores ({one_line(error)}).") from error
    return set(names["image_name"].to_pylist())


READERS: dict[str, Callable[[Path, ReadOptions], Iterator[Record | LeftOut]]] = {
    "folder": read_folder,
    "kaggle": read_kaggle,
    "coco": read_coco,
    "diffusiondb": read_diffusiondb,
    "parameters": read_parameters,
}
"""Layout → its reader."""
