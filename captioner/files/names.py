"""What users call files: paths, and addresses of the web in their place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

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


def sidecar_of(picture: Path, endings: Sequence[str] = SIDECARS) -> Path:
    """The text beside a picture: the one that is there, or where it would be."""
    files = [picture.with_suffix(ending) for ending in endings]
    return next((file for file in files if os.path.lexists(file)), files[0])


def is_url(text: str) -> bool:
    """Whether it is an http(s) address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None
