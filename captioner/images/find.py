"""From what a user names to pictures: files, folders, globs, addresses and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captioner.errors import BadImage
from captioner.images.fetch import fetch_image, is_url
from captioner.images.open import MAX_PIXELS, open_named, printable

MAX_STDIN_BYTES = 500_000_000

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".avifs", ".heic", ".heics", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tga", ".ico", ".pcx", ".psd", ".qoi", ".sgi", ".dds"),
)
"""What counts as a picture when a folder or a glob is expanded. A file that is named itself is always tried."""


@dataclass(frozen=True)
class Source:
    """One picture that a user named, or what was wrong with the name (`problem`)."""

    name: str
    """On one line, for reports: control characters are escaped."""
    path: Path | None = None
    url: str | None = None
    data: bytes | None = None
    """Read from standard input."""
    problem: str | None = None

    def content(self) -> Path | bytes:
        """The file, or the bytes read or fetched; `open_image` and `read_parameters` take either."""
        if self.problem is not None:
            raise BadImage(self.problem)
        if self.url is not None:
            return fetch_image(self.url)
        return self.path if self.data is None else self.data

    def open(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The picture, upright RGB. Whatever is wrong is a `BadImage` that begins with the name."""
        return open_named(self.content(), self.name, max_pixels)


def find_images(inputs: Sequence[str], *, recursive: bool = False) -> Iterator[Source]:
    """The pictures that files, folders, globs, http(s) addresses and "-" (standard input) name, each once.

    In the order of the inputs; folders and globs sorted by name, a folder's files before its subfolders. Hidden files
    and files without a picture's extension are passed over there. An input that names nothing, and a folder that
    cannot be read, come out as a `Source` with a problem.
    """
    seen: set[str] = set()
    for source in _all_sources(inputs, recursive):
        key = source.url or (source.name if source.path is None else os.path.abspath(source.path))
        if source.problem is not None or key not in seen:
            seen.add(key)
            yield source


def _all_sources(inputs: Sequence[str], recursive: bool) -> Iterator[Source]:
    folders: set[tuple[int, int]] = set()
    for text in map(os.fspath, inputs):
        if text == "-":
            yield _from_stdin()
        elif is_url(text):
            yield Source(printable(text), url=text)
        elif os.path.isdir(text):
            yield from _in_folder(text, recursive, folders)
        elif os.path.lexists(text):  # before globs: "[1].png" is a good file name
            yield _file(text)
        elif glob.has_magic(text):
            yield from _matching(text, recursive, folders)
        else:
            yield _problem(text, "does not exist")


def _matching(pattern: str, recursive: bool, folders: set[tuple[int, int]]) -> Iterator[Source]:
    """A glob. `**` means no more than `*`: through subfolders, links between which may loop, leads `--recursive`."""
    found = sorted(glob.glob(pattern), key=os.fsencode)
    if not found:
        yield _problem(pattern, "matches nothing")
    # "photos/*" should pass over notes.txt, but "*.data" means just those.
    for match in [m for m in found if os.path.isdir(m) or _looks_like_image(m)] or found:
        if os.path.isdir(match):
            yield from _in_folder(match, recursive, folders)
        else:
            yield _file(match)


def _in_folder(top: str, recursive: bool, folders: set[tuple[int, int]]) -> Iterator[Source]:
    """`folders`: device and inode of those already seen, so that links which loop are followed once."""
    waiting = [top]
    anything = False
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in folders:
                anything = True
                continue
            folders.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                names = sorted((e.name for e in entries if not e.name.startswith(".")), key=os.fsencode)
        except OSError as error:
            anything = True
            yield _problem(folder, f"cannot be read ({error.strerror})")
            continue
        paths = [os.path.join(folder, name) for name in names]
        subfolders = [path for path in paths if os.path.isdir(path)]
        if recursive:
            waiting.extend(reversed(subfolders))
        for path in paths:
            if _looks_like_image(path) and not os.path.isdir(path):
                anything = True
                yield _file(path)
    if not anything:
        hint = "" if recursive else " Use --recursive to look into its subfolders."
        yield _problem(top, f"holds no pictures.{hint}")


def _looks_like_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def _file(path: str) -> Source:
    return Source(printable(path), path=Path(path))


def _problem(text: str, what: str) -> Source:
    name = printable(text)
    return Source(name, problem=f"{name} {what}{'' if what.endswith('.') else '.'}")


def _from_stdin() -> Source:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        return Source("-", problem=f"Standard input holds more than {MAX_STDIN_BYTES:,} bytes.")
    return Source("-", data=data)
