"""The one folder where captioner keeps what it computed and may need again. Deleting it loses nothing but time.

And the journals of sidecars: without them `--on-existing append --resume` would append once more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from captioner.errors import BadOutput


def cache_folder(*parts: str) -> Path:
    """`$CAPTIONER_CACHE`, or `captioner` in the user's cache folder, to read from; made where that can be."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("CAPTIONER_CACHE") or Path(home) / "captioner").joinpath(*parts)
    with suppress(OSError):  # a machine whose disk takes nothing captions all the same: nothing is remembered there
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_to_write(*parts: str) -> Path:
    """The same for what has to be kept: said before the work that it is about."""
    folder = cache_folder(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied", str(folder))
    except OSError as error:
        raise BadOutput(
            f"What is to be kept cannot be written to the cache ({folder}: {error.strerror}). "
            "Set CAPTIONER_CACHE to a folder of yours."
        ) from error
    return folder
