"""From what a user names to pictures: files, folders, globs, lists, addresses and standard input."""

from __future__ import annotations

import codecs
import errno
import glob
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from captioner.errors import BadImage, counted, printable
from captioner.files.names import is_url
from captioner.images.fetch import fetch_image, shown
from captioner.images.open import FRAME_FIRST, MAX_PIXELS, VIDEOS, at_once, open_named

STDIN = "-"
MAX_STDIN_BYTES = 500_000_000
MAX_LOOKED_AT = 10_000
"""Names in subfolders, only to say whether it pays to look there."""

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".avifs", ".heic", ".heics", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tga", ".ico", ".pcx", ".psd", ".qoi", ".sgi", ".dds"),
)
"""How pictures are named."""
MASKS = ("-masklabel.png", "-condlabel.png")
"""How OneTrainer names what it keeps beside a picture: where to look at it, and what it is drawn by."""


def looks_like_picture(name: str) -> bool:
    """What counts as a picture when a folder or a glob is expanded. A file that is named itself is always tried."""
    lower = name.lower()
    return lower.endswith(EXTENSIONS) and not lower.endswith(MASKS)


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
    id: str | None = None
    """What its row calls it, where that is not its path or name: how a plan of shards knows it."""
    inner: str = ""
    """What a tar or a table that it lies in calls it."""
    caption: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """Reads the text that it has by now, where that is not a file beside it."""
    admit: Callable[[int], object] = field(default=at_once, repr=False, compare=False)
    """Asked before the picture is decoded, with the bytes that takes: it may wait until there is room."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return "Standard input" if self.name == STDIN else self.name

    def content(self) -> Path | bytes:
        """The file, or the bytes read or fetched; `open_image` and `read_parameters` take either."""
        if self.problem is not None:
            raise BadImage(self.problem)
        if self.data is not None:
            return self.data
        if self.url is not None:
            return fetch_image(self.url)
        assert self.path is not None, "a picture is a file, an address or bytes"
        return self.path

    def fetched(self) -> Source:
        """The same with the bytes behind its address, where it has one: fetched once for all who want them."""
        return self if self.url is None else replace(self, url=None, data=fetch_image(self.url))

    def open(self, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
        """The picture, upright RGB, as `open_image`. Whatever is wrong is a `BadImage` that begins with the name."""
        return open_named(self.content(), self.title, max_pixels, self.admit, side)


@dataclass(frozen=True)
class _Walk:
    """How folders are gone through, and what was met there."""

    recursive: bool
    videos: set[str]
    """Those that were passed over beside pictures."""
    folders: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of those already seen; some drives number none."""


def find_images(inputs: Sequence[str], *, recursive: bool = False, videos: set[str] | None = None) -> Iterator[Source]:
    """The pictures that a user's inputs name, each once.

    An input is a file, a folder, a glob, an http(s) or file address, "-" (a picture on standard input), or "@FILE"
    (a list of all these but the last two, one a line; "@-" reads it from standard input).

    In the order of the inputs; folders and globs sorted by name, a folder's files before its subfolders. Hidden files
    and files without a picture's extension are passed over there, and below a folder links to others. An input that
    names nothing, and a folder that cannot be read, come out as a `Source` with a problem.
    videos: those that are passed over beside pictures are added to it, but none that has its frame beside it already.
    """
    seen: set[str] = set()
    walk = _Walk(recursive, set() if videos is None else videos)
    place = cache(os.path.realpath)  # one folder, by whatever links it is reached
    for text in map(os.fspath, inputs):
        for source in _sources(text, walk):
            key = source.url or source.name
            if source.path is not None:
                key = os.path.join(place(source.path.parent), source.path.name)
            if source.problem is not None or key not in seen:
                seen.add(key)
                yield source


def reads_once(text: str) -> bool:
    """Whether an input is a stream, so that what it names cannot be counted beforehand."""
    return text == STDIN or (_is_list(text) and not os.path.isfile(text[1:]))


def is_there(text: str) -> bool:
    """Whether an input names something to be looked at: a file, a folder, a matching glob, a list, an address, "-"."""
    named = text == STDIN or is_url(text) or text.lower().startswith("file:") or _is_list(text)
    return named or os.path.lexists(text) or any(glob.iglob(text))


def _sources(text: str, walk: _Walk) -> Iterator[Source]:
    if text == STDIN:
        yield _from_stdin()
    elif _is_list(text):
        anything = False
        try:
            for line in _lines(text[1:]):
                anything = True
                yield from _named(line, walk)
        except OSError as error:
            yield _problem(text[1:], f"cannot be read as a list of pictures ({error.strerror})")
        else:
            if not anything:
                yield _problem(text[1:], "is an empty list: name one picture a line")
    else:
        yield from _named(text, walk)


def _is_list(text: str) -> bool:
    return text.startswith("@") and not os.path.lexists(text) and (text[1:] == STDIN or os.path.exists(text[1:]))


def _lines(file: str) -> Iterator[str]:
    """The lines of a list that hold anything. Names need not be UTF-8."""
    with nullcontext(sys.stdin.buffer) if file == STDIN else open(file, "rb") as lines:
        for line in lines:
            if line := os.fsdecode(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")):
                yield line


def _named(text: str, walk: _Walk) -> Iterator[Source]:
    """What a file's name, a folder, a glob or an address stands for."""
    if is_url(text):
        yield Source(shown(text), url=text)
    elif not text:
        yield _problem("''", "names nothing")
    elif text.lower().startswith("file:"):
        yield _from_file_address(text)
    elif "\0" in text:
        yield _problem(text, "is not a file name")
    elif os.path.isdir(text):
        yield from _in_folder(text, walk)
    elif os.path.lexists(text):  # before globs: "[1].png" is a good file name
        yield _file(text)
    elif glob.has_magic(text):
        yield from _matching(text, walk)
    else:
        yield _problem(text, _what_is_wrong_with(text))


def _what_is_wrong_with(name: str) -> str:
    """Why nothing is found by a name: it is not there, may not be looked at, or a list cannot name it."""
    if name == STDIN:
        return "is standard input, which a list cannot name"
    if name.startswith("@") and os.path.isfile(name[1:]):
        return "is a list within a list: write its lines into this one"
    try:
        os.lstat(name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be read ({error.strerror})"
    except ValueError:  # no name that the system could have
        pass
    no_list = f", neither does a list {name[1:]}" if name.startswith("@") and len(name) > 1 else ""
    return f"does not exist{printable(no_list)}"


def _from_file_address(text: str) -> Source:
    try:
        parts = urlsplit(text)
        path = url2pathname(parts.path)
    except ValueError:
        return _problem(text, "is not an address")
    if parts.netloc not in ("", "localhost"):
        return _problem(text, "is an address on another machine: name a file of this one")
    return _file(path) if os.path.isfile(path) else _problem(text, "names no file")


def _matching(pattern: str, walk: _Walk) -> Iterator[Source]:
    """What a pattern matches. `**` is read as `*`: subfolders, where links may loop, are for `recursive`."""
    matches = sorted(glob.glob(pattern))
    if not matches:
        hint = ". ** is read as *: name the folder, and set recursive to look into its subfolders."
        yield _problem(pattern, f"matches nothing{hint if '**' in pattern else ''}")
    # "photos/*" should pass over notes.txt, but "*.data" means just those.
    named = [match for match in matches if os.path.isdir(match) or looks_like_picture(match)]
    if named:
        walk.videos.update(without_frame(filter(looks_like_video, set(matches) - set(named)), named))
    for match in named or matches:
        if os.path.isdir(match):
            yield from _in_folder(match, walk)
        else:
            yield _file(match)


def _in_folder(top: str, walk: _Walk) -> Iterator[Source]:
    """Below the folder itself no link to a folder is followed, as by find, rg and a training's reader."""
    waiting = [top]
    videos: list[str] = []
    anything = False
    links = 0
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if status.st_ino and (status.st_dev, status.st_ino) in walk.folders:
                anything = True
                continue
            walk.folders.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                inner, pictures, without_frame = _sorted_out(listed)
        except OSError as error:
            anything = True
            yield _problem(folder, f"cannot be read ({error.strerror})")
            continue
        subfolders = sorted(entry.path for entry in inner if not entry.is_symlink())
        links += len(inner) - len(subfolders)
        if walk.recursive:
            waiting.extend(reversed(subfolders))
        videos += without_frame
        anything = anything or bool(pictures)
        yield from map(_file, sorted(pictures))
    if anything:
        walk.videos.update(videos)
    elif not walk.recursive and _any_below(subfolders):
        yield _problem(top, "holds no pictures. Set recursive to look into its subfolders.")
    elif videos:
        yield _problem(top, f"holds no pictures, but {counted(len(videos), 'video')}: {FRAME_FIRST}")
    else:
        yield _problem(top, f"holds no pictures.{' Links to folders are not followed: name them.' if links else ''}")


def _sorted_out(entries: Iterable[os.DirEntry[str]]) -> tuple[list[os.DirEntry[str]], list[str], list[str]]:
    """The folders, with links to folders, the paths of pictures, and of videos of which no frame is there."""
    folders: list[os.DirEntry[str]] = []
    pictures: list[str] = []
    videos: list[str] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            folders.append(entry)
        elif looks_like_picture(entry.name):
            pictures.append(entry.path)
        elif looks_like_video(entry.name):
            videos.append(entry.path)
    return folders, pictures, without_frame(videos, pictures)


def looks_like_video(name: str) -> bool:
    """What is passed over beside pictures, and told."""
    return name.lower().endswith(VIDEOS)


def passed_over(videos: Collection[str]) -> str:
    """What is told of videos beside pictures."""
    return f"{counted(len(videos), 'video')} passed over: {FRAME_FIRST}"


def without_frame(videos: Iterable[str], pictures: Iterable[str]) -> list[str]:
    """Those beside which there is no picture of the same name: who was told to take a frame out is not told again."""
    frames = {os.path.splitext(picture)[0] for picture in pictures}
    return [video for video in videos if os.path.splitext(video)[0] not in frames]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder, or a link to one, by what its own folder tells: one that may not be looked at, or whose path is too
    long for the system, is told of when its turn comes. What a link leads to may not be told."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _any_below(folders: Sequence[str]) -> bool:
    """Whether there is a picture in these folders or theirs. In a huge tree one is taken for granted."""
    seen = 0
    for folder in folders:
        for _, files in below(folder):
            if any(map(looks_like_picture, files)):
                return True
            seen += 1 + len(files)
            if seen > MAX_LOOKED_AT:
                return True
    return False


def below(
    top: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and those in it, each with the names of its files. Links to folders are not followed: they may lead in
    circles. What begins with a dot is passed over: rubbish bins, and what Macs put beside every file of a USB disk."""
    for folder, inner, files in os.walk(os.fspath(top), onerror=onerror):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, [name for name in files if not name.startswith(".")]


def _file(path: str) -> Source:
    return Source(printable(path), path=Path(path))


def _problem(text: str, what: str) -> Source:
    name = printable(text)
    return Source(name, problem=f"{name} {what}{'' if what.endswith('.') else '.'}")


def _from_stdin() -> Source:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        return Source(STDIN, problem=f"Standard input holds more than {MAX_STDIN_BYTES:,} bytes.")
    return Source(STDIN, data=data)
