"""Where a model of a report comes from: the hash of its files, and whether it was trained on what it is measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.pairs import provenance
from captioner.pairs.provenance import Seen, TrainingData
from eval.baselines import EXPECTED, check_index, index_of

if TYPE_CHECKING:
    from eval.data import Pairs

_BLOCK = 2**20


def places(name: str) -> list[Path]:
    """A model's folder or file, or the index that a baseline is made from; those of all members of an ensemble."""
    index = index_of(name)
    if index is None:
        return provenance.files_of(name.removesuffix(EXPECTED))
    check_index(index)
    return provenance.with_members(index)


def weights_hash(name: str) -> str | None:
    """sha256 of a model's files and its members'; None for one that has no files of its own."""
    digest = hashlib.sha256()
    found = places(name)
    for place in found:
        for file in [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file()):
            digest.update(file.name.encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest() if found else None


def trained_on(name: str) -> TrainingData:
    """What a model and its members say about their training data."""
    return provenance.trained_on(places(name))


def overlap_warning(data: TrainingData, pairs: Pairs) -> str | None:
    """What to say, after the model's name, if it has seen what it is measured on."""
    seen = [Seen(item.image_hash, item.truths) for item in pairs.items]
    reasons = provenance.overlaps(data, pairs.names, seen)
    if not reasons:
        return None
    return f"was measured on what it was trained on ({'; '.join(reasons)}). Do not publish its figures."
