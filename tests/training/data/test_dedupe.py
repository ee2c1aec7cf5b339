"""Near-duplicates go, validation stays apart: against brute force, and on real sentences."""

import numpy as np
import pytest

from training.data import dedupe


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Unit vectors in clusters, so that there are neighbours at every threshold."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(60, 16))
    rows = (centres[random.integers(0, 60, 600)] + random.normal(size=(600, 16)) * 0.35).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs_by_brute_force(vectors: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    return set(zip(*(side.tolist() for side in np.nonzero(np.triu(vectors @ vectors.T > threshold, k=1))), strict=True))


def test_all_pairs_are_found_across_blocks(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "BLOCK", 128)
    found = dedupe.neighbours(vectors, 0.75)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == pairs_by_brute_force(vectors, 0.75)
    assert len(pairs) > 1000
    np.testing.assert_allclose(found.cosine, (vectors[found.first] * vectors[found.second]).sum(1), atol=1e-5)


def test_the_large_index_finds_nearly_all(vectors: np.ndarray) -> None:
    exact, fast = dedupe.neighbours(vectors, 0.85), dedupe.neighbours(vectors, 0.85, exact=False)
    assert 0.95 * len(exact.first) < len(fast.first) <= len(exact.first)


def test_representatives_are_no_neighbours_and_stand_for_the_rest(vectors: np.ndarray) -> None:
    kept = dedupe.representatives(dedupe.neighbours(vectors, 0.8))
    cosines = vectors @ vectors[kept].T
    assert (cosines.max(axis=1) > 0.8).all()
    assert not pairs_by_brute_force(vectors[kept], 0.8)
    assert 0 in kept
    assert 20 < len(kept) < 600


def test_groups_are_chains_of_neighbours() -> None:
    first, second = np.array([0, 1, 4]), np.array([1, 3, 5])
    group = dedupe.groups(dedupe.Neighbours(7, first, second, np.ones(3, dtype=np.float32)))
    assert len(set(group)) == 4
    assert group[0] == group[1] == group[3]
    assert group[4] == group[5]
    near = dedupe.Neighbours(7, first, second, np.ones(3, dtype=np.float32)).among(np.array([1, 3, 6]))
    assert (near.count, near.first.tolist(), near.second.tolist()) == (3, [0], [1])


def test_the_split_keeps_groups_whole_and_apart(vectors: np.ndarray) -> None:
    group = dedupe.groups(dedupe.neighbours(vectors, 0.9))
    training, validation = dedupe.split(group, 0.1, seed=5)
    assert sorted([*training, *validation]) == list(range(600))
    assert len(validation) == 60
    assert not set(group[training]) & set(group[validation])
    assert (vectors[training] @ vectors[validation].T).max() <= 0.9
    assert dedupe.clear_of(vectors[validation], vectors[training], 0.9).all()
    again = dedupe.split(group, 0.1, seed=5)
    assert np.array_equal(again[1], validation)
    assert not np.array_equal(dedupe.split(group, 0.1, seed=6)[1], validation)


def test_clear_of_finds_what_is_near(vectors: np.ndarray) -> None:
    assert dedupe.clear_of(vectors, vectors[:1], 0.99).sum() == 599
    assert dedupe.clear_of(vectors[:0], vectors, 0.9).shape == (0,)


def test_no_texts_at_all() -> None:
    assert len(dedupe.representatives(dedupe.neighbours(np.empty((0, 384), dtype=np.float32), 0.8))) == 0


def test_sentences_that_say_the_same() -> None:
    from captioner.text.embedding import text_embedder

    said = [
        "a cat on a mat",
        "cat on the mat",
        "a rocket launch at night",
        "A cat on a mat.",
        "portrait of an old king",
    ]
    assert dedupe.representatives(dedupe.neighbours(text_embedder()(said), 0.85)).tolist() == [0, 2, 4]
