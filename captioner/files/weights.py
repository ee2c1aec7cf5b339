"""Which files of a folder hold a model's weights: whoever fetches, counts, compares or loads them asks here."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".safetensors", ".bin")
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers calls a whole model's, or the list of their parts; the first that is there is read."""
TAGGER = ("model.onnx", "selected_tags.csv")
"""All that a booru tagger is: its graph with the weights inside, and what the outputs stand for."""


def is_tagger(folder: Path) -> bool:
    """Whether a folder holds a booru tagger, whatever else."""
    return all((folder / name).is_file() for name in TAGGER)


def weights_in(folder: Path) -> list[Path]:
    """All weights files of a folder, by name; a link that leads nowhere is none."""
    if is_tagger(folder):
        return [folder / TAGGER[0]]
    return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.is_file())
