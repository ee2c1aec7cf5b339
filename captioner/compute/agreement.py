"""What `auto` means for one model on this machine: bf16 where it was measured to write the same captions, else fp32.

`python -m eval speed --model NAME --precisions fp32,bf16 --data PAIRS` measures it and keeps the share in the cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from captioner.compute.devices import has_bf16
from captioner.errors import BadInput
from captioner.files.cache import cache_folder
from captioner.files.json import read_object, write_object
from captioner.files.weights import weights_in

LEAST = 0.98
"""The share of captions that must be the same for bf16 to be taken."""
FEWEST = 50
"""Pictures that tell enough."""


def keep(folder: Path, precision: str, share: float, pictures: int) -> None:
    """Remember in how many captions of so many pictures a precision agrees with fp32."""
    write_object(_file(folder), _known(folder) | {precision: {"share": share, "pictures": pictures}})


def bf16_agrees(folder: Path) -> bool:
    """Does this CPU compute in bf16, and does the model of this folder write the same captions in it?"""
    if not has_bf16() or not folder.is_dir():
        return False
    measured = _known(folder).get("bf16")
    if not isinstance(measured, dict):
        return False
    share, pictures = measured.get("share"), measured.get("pictures")
    return isinstance(share, int | float) and share >= LEAST and isinstance(pictures, int) and pictures >= FEWEST


def _file(folder: Path) -> Path:
    """Another file for other weights."""
    statuses = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights_in(folder)]
    digest = hashlib.sha256(repr((str(folder.resolve()), statuses)).encode("utf-8", "surrogatepass")).hexdigest()
    return cache_folder("precision") / f"{digest[:32]}.json"


def _known(folder: Path) -> dict[str, object]:
    file = _file(folder)
    try:
        return read_object(file, BadInput) if file.exists() else {}
    except BadInput:
        return {}  # a damaged note of the cache says as much as none: fp32
