"""Minimum-Bayes-risk choice and expected embeddings."""

import numpy as np
import pytest

from captioner.text.consensus import choose, expected_embedding, probabilities


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def test_the_candidate_most_agree_with_wins_over_the_likeliest() -> None:
    vectors = np.stack([unit(1, 0, 0), unit(0, 1, 0.1), unit(0, 1, -0.1), unit(0, 1, 0)])
    assert choose(vectors, [-0.9, -1, -1, -1]) == 3


def test_probability_counts() -> None:
    vectors = np.stack([unit(1, 0), unit(0, 1), unit(0, 1)])
    assert choose(vectors, [-0.1, -5, -5]) == 0


def test_a_predicted_embedding_counts_as_much_as_all_candidates() -> None:
    vectors = np.stack([unit(1, 0), unit(0, 1)])
    assert choose(vectors, [0, -0.5], target=unit(0.2, 1)) == 1
    assert choose(vectors, [0, -9], target=unit(1, 0.9)) == 0
    expected = expected_embedding(vectors, [0, 0], target=unit(0, 1))
    np.testing.assert_allclose(expected, unit(1, 3), atol=1e-6)
    np.testing.assert_allclose(expected_embedding(vectors, [0, 0], target=unit(0, 1), weight=3), unit(1, 7), atol=1e-6)


def test_expected_embedding_is_the_weighted_mean_on_the_sphere() -> None:
    vectors = np.stack([unit(1, 0), unit(0, 1)])
    mean = expected_embedding(vectors, np.log([0.75, 0.25]))
    np.testing.assert_allclose(mean, unit(3, 1), atol=1e-6)


def test_probabilities_survive_very_small_scores() -> None:
    weights = probabilities([-2000.0, -2001.0])
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[1] > 0
