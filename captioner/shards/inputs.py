"""Pictures in great numbers: what a user names → items of a plan, and items → pictures to be opened.

An item says where one picture lies, so that it is found again without a search: a file, an address, a row of a parquet
file or of a Hub data set, or the bytes of a member of a tar (webdataset).
"""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from captioner.errors import BadImage, BadInput, printable, refuse_idle
from captioner.files.names import MANY, SIDECARS
from captioner.images import MAX_BYTES, Source, find_images, is_url, looks_like_picture
from captioner.images.find import MAX_LOOKED_AT, STDIN, below, looks_like_video, without_frame
from captioner.pairs.layouts import LONGEST_SIDECAR, ReadOptions, caption_in
from captioner.pairs.sources import PATIENCE, TABLES, PairSource, load_hub, open_parquet, parquet_files
from captioner.pairs.tables import caption_of
from captioner.sinks import as_text

KINDS = ("pictures", *MANY.values(), "hub")
"""What a prefix may say."""
ROWS = 64
"""Of a parquet file, held at once."""


class Item(NamedTuple):
    """One picture of a plan."""

    id: str
    """What its row calls it; no other picture of the plan has it."""
    kind: str
    """file, address, row, member, hub, or missing: a name that led nowhere."""
    location: bytes
    """A path, an address, a data set, or what is wrong."""
    place: int = 0
    """Its row, or where its bytes begin."""
    length: int = 0
    """Of its bytes in a tar."""
    size: int = 0
    """Of the whole file that it lies in: another size is another file."""
    text_place: int = 0
    """Where the caption begins that a tar keeps beside it."""
    text_length: int = 0
    """0: it keeps none."""


class BadShard(BadInput):
    """What a whole shard lies in cannot be read. Other shards may be sound."""


@dataclass(frozen=True)
class Finding:
    """How inputs are read."""

    recursive: bool = False
    split: str = "train"
    image_column: str | None = None
    text_column: str | None = None

    @property
    def columns(self) -> ReadOptions:
        return ReadOptions(self.text_column, self.image_column, self.split)


def find(inputs: Sequence[str], finding: Finding, videos: set[str] | None = None) -> Iterator[Item]:
    """All pictures that these name, each once: plain pictures first, then those of each container.

    videos: as of `find_images`.
    """
    kinds = [_kind_of(text, finding.recursive) for text in inputs]
    of_tables = [
        name for name in ("split", "image_column", "text_column") if getattr(finding, name) != getattr(Finding, name)
    ]
    if not any(kind in TABLES for kind, _ in kinds):
        refuse_idle(of_tables, "no parquet and no Hub data set is named.")
    pictures = [rest for kind, rest in kinds if kind == "pictures"]
    if STDIN in pictures:
        raise BadInput("A plan is read again by every worker, and standard input only once: write it to a file.")
    missing: set[str] = set()
    for item in map(_plain, find_images(pictures, recursive=finding.recursive, videos=videos)):
        if item.kind != "missing" or item.id not in missing:
            yield item
        if item.kind == "missing":
            missing.add(item.id)
    named = (place for kind, rest in kinds if kind != "pictures" for place in _containers(kind, rest, finding))
    containers = dict.fromkeys(named)
    for kind, where in containers:
        yield from CONTAINERS[kind](where, finding, set() if videos is None else videos)


def _kind_of(text: str, recursive: bool) -> tuple[str, str]:
    """What an input is: said by its prefix or its ending, or seen in a folder that holds no picture."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in KINDS:
        if not rest:
            raise BadInput(f"{text} names nothing: write after it what is meant.")
        return prefix, rest
    if text.startswith("@") or is_url(text):
        return "pictures", text
    if text.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise BadInput(
            f"{text} is compressed, so no picture in it can be found without reading it all: unpack the tar."
        )
    if os.path.isdir(text):
        try:
            names = sorted(name.lower() for name in os.listdir(text) if not name.startswith("."))
        except OSError as error:
            raise BadInput(f"{printable(text)} cannot be read ({error.strerror}).") from error
        if any(map(looks_like_picture, names)):
            if any(name.endswith(".tar") for name in names):  # a table may well lie beside the pictures it is about
                raise BadInput(
                    f"{printable(text)} holds pictures and tars: say which are meant by "
                    f"{printable(f'pictures:{text}')} or {printable(f'webdataset:{text}')}, or name both."
                )
            return "pictures", text
        ending = next((end for end in MANY if any(name.endswith(end) for name in names)), None)
        if ending is not None and recursive:
            files = printable(os.path.join(text, f"*{ending}"))
            refuse_idle(
                ["recursive"],
                f"{printable(text)} holds {ending} files, and only they are read. "
                f"Leave it out; or name {files}, and its subfolders beside that.",
            )
        return ("pictures" if ending is None else MANY[ending]), text
    return MANY.get(Path(text).suffix.lower(), "pictures"), text


def hint(inputs: Sequence[str]) -> str:
    """What lies below folders in which no picture is found, as it does in a data set's own folder."""
    files = (Path(folder, file) for text in inputs for folder, names in below(text) for file in sorted(names))
    there = next((file for file in islice(files, MAX_LOOKED_AT) if file.suffix.lower() in MANY), None)
    return "" if there is None else printable(f" Below lies {there}: name its folder, {there.parent}.")


def _containers(kind: str, text: str, finding: Finding) -> list[tuple[str, str]]:
    if kind == "hub":
        return [(kind, text)]
    text = os.path.expanduser(text)
    if kind == "parquet":
        return [(kind, os.path.normpath(file)) for file in parquet_files(text, finding.split)]
    if os.path.isdir(text):
        names = (name for name in os.listdir(text) if name.lower().endswith(".tar") and not name.startswith("."))
        files = sorted(os.path.join(text, name) for name in names)
    else:
        files = [text] if os.path.isfile(text) else sorted(glob.glob(text))
    if not files:
        raise BadInput(f"There is no tar at {printable(text)}.")
    return [(kind, os.path.normpath(file)) for file in files]


# --- what inputs hold ------------------------------------------------------------------------------------------------


def _plain(source: Source) -> Item:
    if source.problem is not None:
        return Item(as_text(source.name), "missing", source.problem.encode())
    if source.url is not None and urlsplit(source.url).path.lower().endswith(tuple(MANY)):
        return Item(source.name, "missing", f"{source.name} may hold pictures: fetch it, and name the file.".encode())
    if source.url is not None:
        return Item(source.name, "address", source.url.encode())
    assert source.path is not None, "standard input was refused"
    name = as_text(os.fspath(source.path))
    if (ending := source.path.suffix).lower() in MANY:
        remedy = f"name it itself, or by a pattern that ends in {ending}"
        return Item(name, "missing", f"{source.name} may hold pictures: {remedy}.".encode())
    return Item(name, "file", os.fsencode(source.path))


def _rows_in(file: str, finding: Finding, _: set[str]) -> Iterator[Item]:
    table, size = open_parquet(file), os.path.getsize(file)
    finding.columns.image_and_text_in(table.schema_arrow.names, file)
    for row in range(table.metadata.num_rows):
        yield Item(f"{as_text(file)}#{row}", "row", os.fsencode(file), row, 0, size)


def _members_in(file: str, _: Finding, videos: set[str]) -> Iterator[Item]:
    pictures: list[tuple[str, int, int, bool]] = []
    captions: dict[str, tuple[int, int]] = {}
    clips: list[str] = []
    try:
        size = os.path.getsize(file)
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isdir() or _is_hidden(member.name):  # macOS has a ._a.png packed for each a.png
                    continue
                if looks_like_picture(member.name):
                    pictures.append((member.name, member.offset_data, member.size, member.isreg()))
                elif looks_like_video(member.name):
                    clips.append(member.name)
                elif member.isreg() and member.name.endswith(SIDECARS):
                    captions[member.name] = member.offset_data, member.size
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{file} is no tar, or is cut off ({printable(str(error))}).") from error
    videos.update(f"{file}#{name}" for name in without_frame(clips, [name for name, *_ in pictures]))
    seen: set[str] = set()
    for member_name, place, length, is_file in pictures:  # at the end: a caption may stand anywhere in a tar
        name = as_text(member_name)
        name = name if name not in seen else f"{name}@{place}"  # a tar may hold two of one name
        seen.add(name)
        name = f"{as_text(file)}#{name}"
        if not is_file:
            why = f"{printable(name)} is a link within a tar: pack the file itself, as tar -h --hard-dereference does."
            yield Item(name, "missing", why.encode())
            continue
        beside = (os.path.splitext(member_name)[0] + ending for ending in SIDECARS)
        caption = next((captions[text] for text in beside if text in captions), (0, 0))
        yield Item(name, "member", os.fsencode(file), place, length, size, *caption)


def _is_hidden(member: str) -> bool:
    """Of a tar: by its own name, or by that of a folder."""
    return any(part.startswith(".") for part in member.split("/") if part not in (".", ".."))


def _rows_of(name: str, finding: Finding, _: set[str]) -> Iterator[Item]:
    revision = _revision(name)
    rows = load_hub(PairSource("hub", name), finding.split, revision=revision)
    finding.columns.image_and_text_in(rows.column_names, name)
    where = json.dumps([name, finding.split, revision]).encode()
    for row in range(len(rows)):
        yield Item(f"hub:{name}#{row}", "hub", where, row, 0, len(rows))


def _revision(name: str) -> str | None:
    """The commit that a data set of the Hub is at, so that all workers read the same; None of one on this machine."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    repository = name.partition(":")[0]
    if constants.HF_HUB_OFFLINE or os.path.exists(repository):
        return None
    try:
        return HfApi().dataset_info(repository, timeout=PATIENCE).sha
    except (HTTPError, OSError, ValueError):
        return None  # one that the cache holds is loaded all the same; what else is wrong, load_hub says


CONTAINERS: dict[str, Callable[[str, Finding, set[str]], Iterator[Item]]] = {
    "parquet": _rows_in,
    "webdataset": _members_in,
    "hub": _rows_of,
}


# --- pictures of items -----------------------------------------------------------------------------------------------


def sources(items: Iterable[Item], folder: str, columns: ReadOptions) -> Iterator[Source]:
    """The pictures of a plan's items, in order; relative names begin in `folder`.

    What is wrong with one is its source's problem, what is wrong with the file that many lie in a `BadShard`.
    """
    for (kind, location, size), group in groupby(items, key=lambda item: (item.kind, item.location, item.size)):
        yield from READERS[kind](list(group), _Place(location, size, folder, columns))


@dataclass(frozen=True)
class _Place:
    """Where some items lie."""

    location: bytes
    size: int
    folder: str
    columns: ReadOptions

    @property
    def path(self) -> str:
        """A file that is as large as when it was planned."""
        path = self.below(os.fsdecode(self.location))
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise BadShard(f"{printable(path)} cannot be read ({error.strerror}).") from error
        if size != self.size:
            raise BadShard(f"{printable(path)} has changed since the plan was made: make a new plan.")
        return path

    def below(self, path: str) -> str:
        return os.path.join(self.folder, path)


def _files(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    path = place.below(os.fsdecode(place.location))
    return (Source(printable(item.id), path=Path(path), id=item.id) for item in items)


def _addresses(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    return (Source(item.id, url=place.location.decode(), id=item.id) for item in items)


def _missing(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    return (Source(printable(item.id), problem=place.location.decode(), id=item.id) for item in items)


def _members(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    path, called = place.path, len(f"{as_text(os.fsdecode(place.location))}#")
    with open(path, "rb") as stream:
        for item in items:
            if item.length > MAX_BYTES:
                yield _problem(item, f"is larger than {MAX_BYTES:,} bytes")
                continue
            try:
                stream.seek(item.place)
                data = stream.read(item.length)
            except OSError as error:
                raise BadShard(f"{printable(path)} cannot be read ({error.strerror}).") from error
            caption = partial(_text_beside, path, item) if item.text_length else None
            yield Source(printable(item.id), data=data, id=item.id, inner=item.id[called:], caption=caption)


def _text_beside(path: str, item: Item) -> str:
    """The caption that a tar keeps beside a picture."""
    try:
        with open(path, "rb") as stream:
            stream.seek(item.text_place)
            enough = min(item.text_length, 4 * (LONGEST_SIDECAR + 1))  # a letter takes four bytes at most
            return caption_in(io.BytesIO(stream.read(enough)))
    except UnicodeDecodeError as error:
        raise BadImage(f"{printable(item.id)}: the text beside it is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise BadImage(f"{printable(path)} cannot be read ({error.strerror}).") from error


def _rows(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    import pyarrow

    path = place.path
    table = open_parquet(path)
    columns = image, *text = place.columns.image_and_text_in(table.schema_arrow.names, path)
    wanted, begin = {item.place: item for item in items}, 0
    try:
        for group in range(table.num_row_groups):
            end = begin + table.metadata.row_group(group).num_rows
            if items[0].place < end and items[-1].place >= begin:
                row = begin
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
                    if row + len(batch) > items[0].place and row <= items[-1].place:
                        captions = ([cell.as_py for cell in batch[column]] for column in text)
                        cells = enumerate(zip(batch[image].to_pylist(), *captions, strict=True), row)
                        yield from (_of_cells(wanted[n], place, *given) for n, given in cells if n in wanted)
                    row += len(batch)
            begin = end
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise BadShard(f"{printable(path)} is damaged ({' '.join(str(error).split())[:200]}).") from error


def _hub_rows(items: Sequence[Item], place: _Place) -> Iterator[Source]:
    from datasets import Image

    name, split, revision = json.loads(place.location)
    rows = load_hub(PairSource("hub", name), split, revision=revision)
    if len(rows) != place.size:
        raise BadShard(f"hub:{name} has changed since the plan was made: make a new plan.")
    columns = image, *text = place.columns.image_and_text_in(rows.column_names, name)
    rows = rows.select_columns(columns)
    if isinstance(rows.features[image], Image):  # as it lies in the file, not decoded and encoded again
        rows = rows.cast_column(image, Image(decode=False))
    cells = ((item, rows[item.place]) for item in items)
    return (_of_cells(item, place, row[image], *(partial(row.get, column) for column in text)) for item, row in cells)


def _of_cells(item: Item, place: _Place, cell: Any, *caption: Callable[[], Any]) -> Source:
    """The picture in a cell: its bytes, a path, an address, or what `datasets` makes of them; and its caption."""
    called = cell.get("path") if isinstance(cell, dict) else cell
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else called
    source = Source(
        printable(item.id),
        id=item.id,
        inner=called if isinstance(called, str) else "",
        caption=partial(_text_of, caption[0], printable(item.id)) if caption else None,
    )
    if isinstance(cell, bytes):
        return replace(source, data=cell)
    if isinstance(cell, str) and is_url(cell):
        return replace(source, url=cell)
    if isinstance(cell, str) and cell:
        return replace(source, path=Path(place.below(cell)))
    return _problem(item, "holds no picture")


def _text_of(read_cell: Callable[[], Any], where: str) -> str:
    """The caption in a cell, read when it is asked for; what else it holds is told of its picture alone."""
    try:
        return caption_of(read_cell(), where).strip()
    except UnicodeDecodeError as error:
        raise BadImage(f"{where}: the caption is not UTF-8. Save it as UTF-8.") from error
    except BadInput as error:
        raise BadImage(str(error)) from error


def _problem(item: Item, what: str) -> Source:
    name = printable(item.id)
    return Source(name, problem=f"{name} {what}.", id=item.id)


READERS: dict[str, Callable[[Sequence[Item], _Place], Iterator[Source]]] = {
    "file": _files,
    "address": _addresses,
    "missing": _missing,
    "member": _members,
    "row": _rows,
    "hub": _hub_rows,
}
