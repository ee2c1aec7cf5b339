"""The one folder where captioner keeps what it computed and may need again. Deleting it loses nothing but time.

And the journals of sidecars: without them `--on-existing append --resume` would append once more.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """`$CAPTIONER_CACHE`, or `captioner` in the user's cache folder; made when asked for."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("CAPTIONER_CACHE") or Path(home) / "captioner").joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
