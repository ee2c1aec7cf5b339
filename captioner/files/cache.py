"""The one folder where captioner keeps what it computed and may need again. Deleting it loses nothing but time, and

- the journals of sidecars: without them `--on-existing append --resume` would append once more;
- the journals of Review: its history, and an edit that a killed server had not written into its file yet.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from captioner.errors import BadOutput
from captioner.files.names import home, nearest_existing


def cache_folder(*parts: str) -> Path:
    """`$CAPTIONER_CACHE`, or `captioner` in the user's cache folder, to read from; made where that can be."""
    caches = os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
    folder = Path(os.environ.get("CAPTIONER_CACHE") or Path(caches) / "captioner").joinpath(*parts)
    with suppress(OSError):  # a machine whose disk takes nothing captions all the same: nothing is remembered there
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_to_write(*parts: str) -> Path:
    """The same for what has to be kept: said before the work that it is about."""
    folder = cache_folder(*parts)
    if problem := unwritable(folder):
        raise BadOutput(
            f"What is to be kept cannot be written to the cache ({folder}: {problem}). "
            "Set CAPTIONER_CACHE to a folder of yours."
        )
    return folder


def unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in a folder, or in the one that it would be made in; None if it can. It is tried: what
    a file system allows, its permissions alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            return None
    except OSError as error:
        return error.strerror
