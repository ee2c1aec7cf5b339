"""Choose among candidates by the cosine their embedding can be expected to reach (minimum Bayes risk)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PREDICTED = 3
"""The weight of a predicted embedding in what is expected of a picture; measured with mini on validation prompts."""


def choose(embeddings: np.ndarray, scores: Sequence[float], target: np.ndarray | None = None) -> int:
    """The index of the candidate nearest to the expected embedding."""
    return order(embeddings, scores, target)[0]


def order(embeddings: np.ndarray, scores: Sequence[float], target: np.ndarray | None = None) -> list[int]:
    """The indices of the candidates, the nearest to the expected embedding first."""
    return np.argsort(-(embeddings @ expected_embedding(embeddings, scores, target)), kind="stable").tolist()


def expected_embedding(
    embeddings: np.ndarray, scores: Sequence[float], target: np.ndarray | None = None, weight: float = 1
) -> np.ndarray:
    """Where the true prompt can be expected, as a unit vector `[d]`.

    embeddings `[n, d]` unit vectors of the candidates' texts; scores, their log-probabilities per token; target, the
    embedding that the model predicted from the pixels, where it has one. The candidates count by their probability,
    and the target `weight` times as much as all of them together: the two err differently.
    """
    expected = embeddings.T @ probabilities(scores)
    if target is not None:
        expected = expected + weight * target
    return expected / np.linalg.norm(expected)


def probabilities(scores: Sequence[float]) -> np.ndarray:
    """Softmax: log-probabilities → weights that sum to 1."""
    logits = np.asarray(scores, dtype=np.float32)
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()
