"""The pictures of a folder and its subfolders, and small copies of them to be shown.

Nothing outside of the root is ever opened: links to folders are not followed, a link to a file must stay inside. Small
copies are made when they are first looked at, by a few threads, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from captioner.errors import BadImage, BadInput, printable
from captioner.files.atomic import write_bytes
from captioner.files.cache import cache_folder
from captioner.images import MAX_PIXELS, identified, looks_like_picture
from captioner.images.open import decoded

MOST_PICTURES = 200_000
SMALL, LARGE = 256, 1600
"""Longest sides: in the list, and beside the text."""
MOST_CACHED = 1_000_000_000
"""Bytes of small copies that are kept, of all folders together."""
AT_ONCE = max(2, min(4, os.cpu_count() or 1))


def files_in(root: Path) -> Iterator[tuple[str, Path]]:
    """Names relative to the root, with / between folders, and paths; whatever begins with a dot is passed over."""
    count = 0
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: in_order(entry.name))
        except OSError:
            if folder == root:
                raise
            continue  # a subfolder that may not be read: its pictures are nobody's to correct
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif _is_file(entry, root):
                count += looks_like_picture(entry.name)
                if count > MOST_PICTURES:
                    raise BadInput(f"{root} holds more than {MOST_PICTURES:,} pictures: open one of its subfolders.")
                yield os.path.relpath(entry.path, root).replace(os.sep, "/"), Path(entry.path)
        waiting.extend(reversed(folders))


def _is_file(entry: os.DirEntry[str], root: Path) -> bool:
    """A file in the root, or a link to one. Of a link that leads to itself `entry.is_file` raises an error."""
    if entry.is_symlink():
        return is_inside(Path(entry.path), root) and os.path.isfile(entry.path)
    return entry.is_file()


def is_inside(path: Path, root: Path) -> bool:
    """Whether what a path leads to lies in the root; the root itself is resolved already."""
    return Path(os.path.realpath(path)).is_relative_to(root)


def in_order(name: str) -> list[tuple[int, str]]:
    """As people sort: 2.png before 10.png."""
    parts = re.findall(r"\d{1,18}|\D+|\d+", name.lower())
    return [(int(part), "") if len(part) < 19 and part.isdecimal() else (-1, part) for part in parts]


class Thumbnails:
    """Small copies as JPEG; the bytes, and the same the next time without the picture."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = cache_folder("thumbnails")
        self.room = threading.BoundedSemaphore(AT_ONCE)
        threading.Thread(target=self._tidy, name="thumbnails", daemon=True).start()

    def small(self, path: Path) -> bytes:
        """For the list; kept."""
        self.check(path)
        kept = self._kept(path)
        try:
            return kept.read_bytes()
        except OSError:
            content = self._make(path, SMALL, 80)
        with suppress(OSError):  # where the disk takes nothing, pictures are shown all the same
            kept.parent.mkdir(exist_ok=True)
            write_bytes(kept, content)
        return content

    def large(self, path: Path) -> bytes:
        """Beside the text."""
        self.check(path)
        return self._make(path, LARGE, 88)

    def check(self, path: Path) -> None:
        """A picture that leads out of the folder, though it did not when it was found, is a `BadImage`."""
        if not is_inside(path, self.root):
            raise BadImage(f"{printable(path.name)} leads out of the folder.")

    def _kept(self, path: Path) -> Path:
        try:
            status = path.stat()
        except OSError as error:
            raise BadImage(f"{printable(path.name)} cannot be read ({error.strerror}).") from error
        key = f"{status.st_mtime_ns} {status.st_size} {SMALL} ".encode() + os.fsencode(path)
        digest = hashlib.sha256(key).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.jpg"

    def _make(self, path: Path, side: int, quality: int) -> bytes:
        name = printable(path.name)
        with self.room, identified(path, name) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{name} has {image.width}×{image.height} pixels, more than are shown here.")
            picture = decoded(image, name, MAX_PIXELS, side=side)
            picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return stream.getvalue()

    def _tidy(self) -> None:
        """Forget the oldest where there are too many."""
        kept = []
        for file in self.folder.glob("*/*.jpg"):
            try:
                status = file.stat()
            except OSError:
                continue  # another server tidies, too
            kept.append((status.st_mtime, status.st_size, file))
        size = sum(size for _, size, _ in kept)
        for _, length, file in sorted(kept):
            if size <= MOST_CACHED:
                return
            file.unlink(missing_ok=True)
            size -= length
