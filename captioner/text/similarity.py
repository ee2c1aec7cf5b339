"""How alike two texts are by their letters; by their meaning, that is the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cpdist

BLOCK = 128
"""Pairs that `quick_ratios` counts at once: what is made of them stays in a core's cache."""
MOST_COUNTS = 2**22
"""Cells of its table: 32 MB."""


def indel_ratio(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """`(len(a) + len(b) - insertions and deletions) / (len(a) + len(b))`, the `ratio` of python-Levenshtein."""
    return cpdist(a, b, scorer=Indel.normalized_similarity, dtype=np.float64)


def likeness(a: Sequence[str], b: Sequence[str], vectors: np.ndarray) -> list[dict[str, float]]:
    """Cosine, ratio and quick ratio of each pair; vectors: unit vectors of all texts of a, then of b."""
    cosines = np.einsum("nd,nd->n", vectors[: len(a)], vectors[len(a) :])
    figures = zip(cosines, indel_ratio(a, b), quick_ratios(a, b), strict=True)
    return [{"cosine": float(x), "ratio": float(y), "quick_ratio": float(z)} for x, y, z in figures]


def quick_ratios(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """`difflib.SequenceMatcher(None, a, b, autojunk=False).quick_ratio()` of many pairs at once.

    It is twice the size of the common multiset of characters over the sum of the lengths. One table
    [side, pair, letter] of counts replaces difflib's loop over characters in Python.
    """
    if len(a) > BLOCK:
        blocks = (slice(first, first + BLOCK) for first in range(0, len(a), BLOCK))
        return np.concatenate([quick_ratios(a[block], b[block]) for block in blocks])
    codes = _code_points([*a, *b])
    known = np.zeros(codes.max(initial=0) + 1, dtype=bool)
    known[codes] = True
    letters, alphabet = (np.cumsum(known) - 1)[codes], max(int(known.sum()), 1)
    if len(a) > 1 and 2 * len(a) * alphabet > MOST_COUNTS:
        half = len(a) // 2
        return np.concatenate([quick_ratios(a[:half], b[:half]), quick_ratios(a[half:], b[half:])])
    lengths = np.array([len(text) for text in (*a, *b)], dtype=int)
    rows = np.repeat(np.arange(2 * len(a)), lengths)
    counts = np.bincount(rows * alphabet + letters, minlength=2 * len(a) * alphabet).reshape(2, len(a), alphabet)
    common = counts.min(axis=0).sum(axis=1)
    total = lengths[: len(a)] + lengths[len(a) :]
    return np.where(total > 0, 2.0 * common / np.maximum(total, 1), 1.0)  # two empty texts are equal


def _code_points(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
