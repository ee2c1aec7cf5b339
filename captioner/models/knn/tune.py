"""Choose how many neighbours an index asks and how sharply they are weighed: `captioner index tune`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.files.json import write_object
from captioner.files.names import path_of
from captioner.models.knn import knn
from captioner.models.knn.build import CHUNK, chunks
from captioner.pairs import sources
from captioner.pairs.layouts import Record
from captioner.pairs.readable import opened
from captioner.text.embedding import text_embedder

KS = (5, 10, 20, 40, 80, 160)
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5)


@dataclass(frozen=True)
class Tuned:
    """The settings that did best, and how all did."""

    k: int
    temperature: float
    cosine: float
    before: float | None
    """The mean cosine with the settings the index had; None if too few prompts were left to try them."""
    queries: int
    table: dict[tuple[int, float], float]
    """(k, temperature) → mean cosine."""


def tune(
    folder: str | Path,
    data: str | Path | None = None,
    sample: int = 1000,
    same: float = 0.9,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> Tuned:
    """Choose k and temperature by the mean cosine on validation pictures, and write them into the index.

    Without DATA, pictures of the index itself ask, one of each of up to `sample` prompts. Nothing is predicted from
    its own prompt: prompts nearer to it than the cosine `same` are kept from it.
    """
    folder = path_of(folder)
    index = knn.Index(folder)
    queries, truth = _from_data(folder, data, sample, options) if data else _from_index(index, sample, seed)
    banned = _prompts_like(index.embeddings, truth, same)
    left = index.about["prompts"] - max(map(len, banned))
    ks = [k for k in sorted({*KS, index.about["k"]}) if k <= left]
    if not ks:
        raise BadInput(f"{folder} has too few prompts that differ from each other to tune on ({left}). Add pictures.")
    temperatures = sorted({*TEMPERATURES, index.about["temperature"]})
    near = index.prompts_near(queries, ks[-1], banned)
    cosines = np.zeros((len(ks), len(temperatures)))
    for (rows, similarities), target in zip(near, truth, strict=True):
        cosines += _cosines(index.embeddings[rows], similarities, target, ks, temperatures)
    cosines /= len(near)
    settings = list(itertools.product(ks, temperatures))
    table = dict(zip(settings, cosines.flatten().tolist(), strict=True))
    best = max(table, key=table.__getitem__)
    write_object(folder / "index.json", {**index.about, "k": best[0], "temperature": best[1]})
    before = table.get((index.about["k"], index.about["temperature"]))
    return Tuned(*best, table[best], before, len(near), table)


def _from_index(index: knn.Index, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture of each of some prompts: features, and their prompts' embeddings."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(index.prompt_rows))
    prompts, first = np.unique(index.prompt_rows[order], return_index=True)
    chosen = generator.permutation(len(prompts))[:sample]
    return (
        index.features[order[first[chosen]]].astype(np.float32),
        index.embeddings[prompts[chosen]].astype(np.float32),
    )


def _from_data(
    folder: Path, data: str | Path, sample: int, options: LoadOptions | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures of each prompt of DATA, as `_from_index`."""
    model = knn.load(folder, options or LoadOptions())
    by_prompt: dict[str, Record] = {}
    for record in sources.read([data]):
        by_prompt.setdefault(record.text, record)
        if len(by_prompt) == sample:
            break
    features, prompts = [], []
    for batch, images in opened(by_prompt.values(), 32, []):
        features.append(model.features(images))
        prompts += [record.text for record in batch]
    if not prompts:
        raise BadInput(f"No picture of {data} can be read.")
    return np.concatenate(features), text_embedder(model.index.about["embedder"])(prompts)


def _prompts_like(embeddings: np.ndarray, truth: np.ndarray, same: float) -> list[np.ndarray]:
    """For each true embedding the prompts that are as good as it."""
    alike: list[list[int]] = [[] for _ in truth]
    for number, chunk in enumerate(chunks(embeddings)):
        rows, queries = np.nonzero(chunk @ truth.T > same)
        for row, query in zip(rows, queries, strict=True):
            alike[query].append(number * CHUNK + row)
    return [np.array(rows, dtype=np.int64) for rows in alike]


def _cosines(
    embeddings: np.ndarray, similarities: np.ndarray, target: np.ndarray, ks: list[int], temperatures: list[float]
) -> np.ndarray:
    """The cosine that every k and temperature would reach for one picture `[ks, temperatures]`."""
    embeddings = embeddings.astype(np.float32)
    means = np.array(
        [[knn.weighted_mean(embeddings[:k], similarities[:k], t) for t in temperatures] for k in ks]
    )  # [ks, temperatures, d]
    return means @ target / np.linalg.norm(means, axis=-1)
