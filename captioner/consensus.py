"""Choose among candidates by the cosine their embedding can be expected to reach (minimum Bayes risk)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(embeddings: np.ndarray, scores: Sequence[float], target: np.ndarray | None = None) -> int:
    """The index of the best candidate.

    embeddings `[n, d]` unit vectors of the candidates' texts; scores, their log-probabilities per token; target,
    the embedding that the model predicted from the pixels, where it has one. With a target the nearest candidate
    wins; without, the one nearest on average to all candidates, each weighted by its probability.
    """
    target = embeddings.T @ probabilities(scores) if target is None else target
    return int(np.argmax(embeddings @ target))


def expected_embedding(embeddings: np.ndarray, scores: Sequence[float]) -> np.ndarray:
    """The candidates' mean embedding weighted by probability, as a unit vector `[d]`."""
    mean = embeddings.T @ probabilities(scores)
    return mean / np.linalg.norm(mean)


def probabilities(scores: Sequence[float]) -> np.ndarray:
    """Softmax: log-probabilities → weights that sum to 1."""
    scores = np.asarray(scores, dtype=np.float32)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
