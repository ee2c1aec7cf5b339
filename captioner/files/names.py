"""What users call files: paths, and addresses of the web in their place."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar
from unicodedata import normalize

SIDECARS = (".txt", ".caption")
"""How a text beside a picture ends; where both lie there, the first is the picture's."""

MANY = {".tar": "webdataset", ".parquet": "parquet"}
"""How files that hold many pictures end, and what says so before a name (`webdataset:shards`)."""


def path_of(name: str | Path) -> Path:
    """The path that a user names; ~ is their home. That of nobody stays as it is and is not there, where
    `Path.expanduser` raises an error."""
    return Path(os.path.expanduser(name))


def home() -> Path:
    """The user's folder. Whoever has none (a number without a name in a container, HOME unset or empty) has /, as
    containers tell it; `Path.home` raises an error, or gives the folder that one is in."""
    folder = os.path.expanduser("~")
    return Path(folder if os.path.isabs(folder) else os.path.abspath(os.sep))


def nearest_existing(path: Path) -> Path:
    """The path itself if it is there, or the nearest above it that is: where it would be made."""
    return next(place for place in (path, *path.absolute().parents) if os.path.exists(place))


def typed(path: str | Path) -> str:
    """A path as one types it in a command: what Windows starts commands with knows no single quotes."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def seen_from(folder: Path, path: Path | str) -> str:
    """What a path is called from a folder: all of it, where it lies on another drive of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return os.path.abspath(path)


def spellings(name: str) -> Iterator[str]:
    """A name, and where letters have accents its other forms: é is one character or two, and Macs keep two."""
    yield name
    if not name.isascii():
        yield from (form for kind in ("NFC", "NFD") if (form := normalize(kind, name)) != name)


def sidecar_of(picture: Path, endings: Sequence[str] = SIDECARS) -> Path:
    """The text beside a picture: the one that is there, or where it would be."""
    files = [picture.with_suffix(ending) for ending in endings]
    return next((file for file in files if os.path.lexists(file)), files[0])


Owner = TypeVar("Owner")


class Claims(Generic[Owner]):
    """Who has which file beside a picture: the first one who claims it. Cat.txt and cat.txt are one file where the disk
    takes them for one, as those of Macs, of Windows and USB disks do."""

    def __init__(self) -> None:
        self.owners: dict[Path, Owner] = {}
        self.folding: dict[Path, bool] = {}
        """Of each folder, whether capitals make no difference."""

    def owner(self, file: Path, picture: Path, claimant: Owner) -> Owner:
        folder = picture.parent
        if folder not in self.folding:
            self.folding[folder] = _is_found_by_other_case(picture)
        known_as = file.with_name(file.name.lower()) if self.folding[folder] else file
        return self.owners.setdefault(known_as, claimant)


def _is_found_by_other_case(file: Path) -> bool:
    """Numbers of files do not tell: some drivers give each spelling one of its own."""
    other = file.with_name(file.name.swapcase())
    try:
        found, status = other.stat(), file.stat()
    except OSError:
        return False
    return other.name != file.name and (found.st_size, found.st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def is_url(text: str) -> bool:
    """Whether it is an http(s) address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None
