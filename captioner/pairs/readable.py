"""Pictures of records, opened: `opened(records, 32, left_out)` gives batches, and says which could not be read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from captioner.errors import BadImage
from captioner.images import MAX_BYTES, open_image
from captioner.pairs.layouts import UNREADABLE, LeftOut, Record

ZIP = "zip://"


def opened(
    records: Iterable[Record], batch_size: int, left_out: list[LeftOut]
) -> Iterator[tuple[list[Record], list[Image]]]:
    """Batches with their pictures, upright RGB; what cannot be read is added to `left_out`."""
    records = iter(records)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(records, batch_size)):
            readable = []
            for record, image in zip(batch, pool.map(_open, batch), strict=True):
                if isinstance(image, BadImage):
                    left_out.append(LeftOut(record.name, UNREADABLE, str(image), record.source))
                else:
                    readable.append((record, image))
            if readable:
                yield [record for record, _ in readable], [image for _, image in readable]


def _open(record: Record) -> Image | BadImage:
    try:
        return open_picture(record.image)
    except BadImage as error:
        return error


def open_picture(image: str | bytes) -> Image:
    """The picture of a record, upright RGB."""
    is_path = isinstance(image, str) and not image.startswith(ZIP)
    return open_image(image if is_path else content(image))


def content(image: str | bytes) -> bytes:
    """The picture's file as it is, wherever it lies."""
    if isinstance(image, bytes):
        return image
    if image.startswith(ZIP):
        member, _, archive = image.removeprefix(ZIP).partition("::")
        return _from_zip(member, archive)
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise BadImage(f"{image} cannot be read ({error.strerror}).") from error


def _from_zip(member: str, archive: str) -> bytes:
    try:
        opened = _archive(archive, os.getpid())
        if opened.getinfo(member).file_size > MAX_BYTES:
            raise BadImage(f"{member} in {archive} is larger than {MAX_BYTES:,} bytes.")
        return opened.read(member)
    except (OSError, KeyError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        raise BadImage(f"{member} in {archive} cannot be read ({error}).") from error


@lru_cache(maxsize=8)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    """Kept open: reading the list of members costs more than one picture. Never shared between processes, whose reads
    would move each other's place in the file."""
    return zipfile.ZipFile(path)
