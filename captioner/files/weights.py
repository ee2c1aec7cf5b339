"""Which files of a folder hold a model's weights: whoever fetches, counts, compares or loads them asks here."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".safetensors", ".bin")
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers calls a whole model's, or the list of their parts; the first that is there is read."""


def weights_in(folder: Path) -> list[Path]:
    """All weights files of a folder, by name; a link that leads nowhere is none."""
    return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.is_file())
