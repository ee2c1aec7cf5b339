"""Pictures of records, opened: `opened(records, 32, left_out)` gives batches, and says which could not be read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from PIL.Image import Image

from captioner.errors import BadImage, printable
from captioner.images import MAX_BYTES, open_image
from captioner.images.ahead import HELD_BYTES, read_ahead
from captioner.images.open import at_once, bytes_of, open_file
from captioner.pairs.layouts import BROKEN_ZIP, UNREADABLE, LeftOut, Record

ZIP = "zip://"


def opened(
    records: Iterable[Record], batch_size: int, left_out: list[LeftOut]
) -> Iterator[tuple[list[Record], list[Image]]]:
    """Batches with their pictures, upright RGB; what cannot be read is added to `left_out`.

    Pictures that take much memory come in smaller batches.
    """
    batch: list[tuple[Record, Image]] = []
    for record, image in read_ahead(records, _open, _bytes_of):
        if isinstance(image, BadImage):
            left_out.append(LeftOut(record.name, UNREADABLE, str(image), record.source))
            continue
        batch.append((record, image))
        if len(batch) == batch_size or sum(map(_bytes_of, batch)) >= HELD_BYTES:
            yield [record for record, _ in batch], [image for _, image in batch]
            batch = []
    if batch:
        yield [record for record, _ in batch], [image for _, image in batch]


def _open(record: Record, admit: Callable[[int], None]) -> tuple[Record, Image | BadImage]:
    try:
        return record, open_picture(record.image, admit)
    except BadImage as error:
        return record, error


def _bytes_of(opened: tuple[Record, Image | BadImage]) -> int:
    return 0 if isinstance(opened[1], BadImage) else bytes_of(opened[1])


def open_picture(image: str | bytes, admit: Callable[[int], object] = at_once) -> Image:
    """The picture of a record, upright RGB."""
    is_path = isinstance(image, str) and not image.startswith(ZIP)
    return open_image(image if is_path else content(image), admit=admit)


def content(image: str | bytes) -> bytes:
    """The picture's file as it is, wherever it lies."""
    if isinstance(image, bytes):
        return image
    if image.startswith(ZIP):
        member, _, archive = image.removeprefix(ZIP).partition("::")
        return _from_zip(member, archive)
    with open_file(Path(image), printable(image)) as stream:
        return stream.read()


def _from_zip(member: str, archive: str) -> bytes:
    try:
        opened = _archive(archive, os.getpid())
        if opened.getinfo(member).file_size > MAX_BYTES:
            raise BadImage(f"{member} in {archive} is larger than {MAX_BYTES:,} bytes.")
        return opened.read(member)
    except (KeyError, *BROKEN_ZIP) as error:
        raise BadImage(f"{printable(member)} in {archive} cannot be read ({str(error) or 'it is cut off'}).") from error


@lru_cache(maxsize=8)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    """Kept open: reading the list of members costs more than one picture. Never shared between processes, whose reads
    would move each other's place in the file."""
    return zipfile.ZipFile(path)
