"""Where a model of a report comes from: the hash of its files, and whether it was trained on what it is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.errors import BadInput
from captioner.models.ensemble.ensemble import files_of
from captioner.pairs import provenance, sources
from captioner.pairs.fingerprint import fingerprint
from captioner.pairs.provenance import Seen, TrainingData
from captioner.sinks.row import groups
from eval.baselines import EXPECTED, index_of
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
        return files_of(name.removesuffix(EXPECTED))
    zoo.check_index(index)
    return [index]


def weights_hash(name: str) -> str | None:
    """sha256 of a model's files and its members'; None for one that has no files of its own."""
    model_files = model_paths(name)
    return hash_of(model_files) if model_files else None


def hash_of(paths: Iterable[Path]) -> str:
    """sha256 of files, and of the files in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file()):
            digest.update(file.name.encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def trained_on(name: str) -> TrainingData:
    """What a model and its members say about their training data."""
    return provenance.trained_on(model_paths(name))


def overlap_warning(data: TrainingData, pairs: Pairs) -> str | None:
    """What to say, after the model's name, if it has seen what it is measured on."""
    seen = [Seen(item.image_hash, item.truths) for item in pairs.items]
    return _warning(provenance.overlaps(data, pairs.names, seen))


def told_overlap_warning(counted: NearDuplicates) -> str | None:
    """The same of a model that is said to be trained on the data that these were counted in."""
    exact, pictures = counted["exact"], counted["pictures"]
    return _warning([f"{exact:,} of the {pictures:,} prompts are in its training data"] if exact else [])


def _warning(reasons: Sequence[str]) -> str | None:
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
        sources.read([spec]).check()  # a mistake is said now, not after the models were asked
        training_data.setdefault(label, []).append(spec)
    return training_data


Block = tuple[Sequence[str], np.ndarray]
"""Training prompts and their embeddings `[n, d]`."""


def training_blocks(
    name: str | None, specs: Sequence[str], embedder: str | None, embed_texts: TextEmbedder, size: int = 4096
) -> Iterator[Block]:
    """The prompts that a model (None: none of ours) holds itself, as an index does, and those of its training data.

    An index holds the embeddings as well: those of a million prompts would take an hour. embedder: its name.
    """
    from captioner.models.knn.knn import Index
    from captioner.text.embedding import DEFAULT, suits

    for folder in [] if name is None else model_paths(name):
        if not (folder / "prompts.parquet").is_file():
            continue
        index = Index(folder)
        _, prompts = index.texts
        embedded = suits(embedder or DEFAULT, index.about["embedder"])
        for start in range(0, len(prompts), size):
            block = prompts[start : start + size]
            vectors = index.embeddings[start : start + size].astype(np.float32) if embedded else embed_texts(block)
            yield block, vectors
    records = sources.read(specs) if specs else ()
    for block in groups((record.text for record in records), size):
        yield block, embed_texts(block)


def near_duplicates(
    training: Iterable[Block], truths: Sequence[tuple[str, ...]], embed_texts: TextEmbedder
) -> NearDuplicates | None:
    """How many items have a prompt that is nearly one of the training prompts; None if there are none of these."""
    prompts = list(dict.fromkeys(truth for of_item in truths for truth in of_item))
    fingerprints = set(map(fingerprint, prompts))
    vectors = embed_texts(prompts)  # [prompts, d]
    exact: set[str] = set()
    near, total = np.zeros(len(prompts), dtype=bool), 0
    for block, embedded in training:
        near |= (vectors @ embedded.T > NEAR).any(axis=1)
        exact |= fingerprints & set(map(fingerprint, block))
        total += len(block)
    if not total:
        return None
    is_exact = {prompt for prompt in prompts if fingerprint(prompt) in exact}
    is_near = is_exact | {prompts[row] for row in np.flatnonzero(near)}
    return {
        "near": sum(not is_near.isdisjoint(of_item) for of_item in truths),
        "exact": sum(not is_exact.isdisjoint(of_item) for of_item in truths),
        "pictures": len(truths),
        "training_prompts": total,
        "threshold": NEAR,
    }


def near_duplicates_note(label: str, counted: NearDuplicates) -> str:
    """In a sentence."""
    return (
        f"{label}: {counted['near']:,} of the {counted['pictures']:,} pictures have a prompt with a near-duplicate "
        f"(cosine above {counted['threshold']}) among the {counted['training_prompts']:,} training prompts, "
        f"{counted['exact']:,} of them word for word."
    )
