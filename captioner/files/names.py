"""What users call files."""

from __future__ import annotations

import os
from pathlib import Path


def path_of(name: str | Path) -> Path:
    """The path that a user names; ~ is their home. That of nobody stays as it is and is not there, where
    `Path.expanduser` raises an error."""
    return Path(os.path.expanduser(name))
