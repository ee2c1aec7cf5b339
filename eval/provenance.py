"""Where a model of a report comes from: the hash of its files, and whether it was trained on what it is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.errors import BadInput
from captioner.pairs import provenance, sources
from captioner.pairs.fingerprint import fingerprint
from captioner.pairs.provenance import Seen, TrainingData
from eval.baselines import EXPECTED, check_index, index_of
from eval.schema import NearDuplicates

if TYPE_CHECKING:
    from captioner.text.embedding import TextEmbedder
    from eval.data import Pairs

NEAR = 0.9
"""Prompts with a higher cosine say nearly the same."""

_BLOCK = 2**20


def model_paths(name: str) -> list[Path]:
    """A model's folder or file, or the index that a baseline is made from; those of all members of an ensemble."""
    index = index_of(name)
    if index is None:
        return provenance.files_of(name.removesuffix(EXPECTED))
    check_index(index)
    return provenance.with_members(index)


def weights_hash(name: str) -> str | None:
    """sha256 of a model's files and its members'; None for one that has no files of its own."""
    digest = hashlib.sha256()
    model_files = model_paths(name)
    for path in model_files:
        for file in [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file()):
            digest.update(file.name.encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest() if model_files else None


def trained_on(name: str) -> TrainingData:
    """What a model and its members say about their training data."""
    return provenance.trained_on(model_paths(name))


def overlap_warning(data: TrainingData, pairs: Pairs) -> str | None:
    """What to say, after the model's name, if it has seen what it is measured on."""
    seen = [Seen(item.image_hash, item.truths) for item in pairs.items]
    reasons = provenance.overlaps(data, pairs.names, seen)
    if not reasons:
        return None
    return f"was measured on what it was trained on ({'; '.join(reasons)}). Do not publish its figures."


# --- near-duplicates -------------------------------------------------------------------------------------------------


def parse_trained_on(entries: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """`LABEL=DATA` → the data that each model is said to be trained on."""
    training_data: dict[str, list[str]] = {}
    for entry in entries:
        label, separator, spec = entry.partition("=")
        if not separator or label not in labels:
            raise BadInput(
                f"{entry!r} names no model of this report: write LABEL=DATA with one of {', '.join(labels)}."
            )
        sources.parse(spec)  # a mistake is said now
        training_data.setdefault(label, []).append(spec)
    return training_data


def training_prompts(name: str | None, specs: Sequence[str]) -> list[str]:
    """The prompts that a model (None: none of ours) holds itself, as an index does, and those of its training data."""
    held = [] if name is None else provenance.prompts_in(model_paths(name))
    read = [record.text for record in sources.read(specs)] if specs else []
    return list(dict.fromkeys([*held, *read]))


def near_duplicates(
    training: Sequence[str], truths: Sequence[tuple[str, ...]], embed_texts: TextEmbedder, block: int = 4096
) -> NearDuplicates:
    """How many items have a prompt that is nearly one of the training prompts."""
    prompts = list(dict.fromkeys(truth for of_item in truths for truth in of_item))
    vectors = embed_texts(prompts)  # [prompts, d]
    nearest = np.full(len(prompts), -1.0)
    for start in range(0, len(training), block):
        nearest = np.maximum(nearest, (vectors @ embed_texts(training[start : start + block]).T).max(axis=1))
    seen = {fingerprint(prompt) for prompt in training}
    near = {prompt for prompt, cosine in zip(prompts, nearest, strict=True) if cosine > NEAR}
    exact = {prompt for prompt in prompts if fingerprint(prompt) in seen}
    return {
        "near": sum(any(truth in near or truth in exact for truth in of_item) for of_item in truths),
        "exact": sum(any(truth in exact for truth in of_item) for of_item in truths),
        "prompts": len(truths),
        "training_prompts": len(training),
        "threshold": NEAR,
    }


def near_duplicates_note(label: str, counted: NearDuplicates) -> str:
    """In a sentence."""
    return (
        f"{label}: {counted['near']:,} of the {counted['prompts']:,} prompts have a near-duplicate (cosine above "
        f"{counted['threshold']}) among the {counted['training_prompts']:,} training prompts, {counted['exact']:,} of "
        "them word for word."
    )
