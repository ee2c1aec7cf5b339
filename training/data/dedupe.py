"""Texts that say the same: neighbours by cosine of their embeddings, near-duplicates dropped, a split that keeps apart.

Up to EXACT_UP_TO texts every pair is compared (FAISS, flat index); above, an inverted-file index looks into the nearest
cells only, and the split is then checked exactly, so that its promise holds whatever the index missed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 200_000
BLOCK = 2048
CELLS_LOOKED_INTO = 32


@dataclass(frozen=True)
class Neighbours:
    """Pairs of rows whose cosine is above a threshold: `first` < `second`."""

    count: int
    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray

    def above(self, threshold: float) -> Neighbours:
        """The pairs that are nearer than this."""
        chosen = self.cosine > threshold
        return Neighbours(self.count, self.first[chosen], self.second[chosen], self.cosine[chosen])

    def among(self, rows: np.ndarray) -> Neighbours:
        """Of these rows only, renumbered in their order."""
        new_number = np.full(self.count, -1)
        new_number[rows] = np.arange(len(rows))
        first, second = new_number[self.first], new_number[self.second]
        chosen = (first >= 0) & (second >= 0)
        return Neighbours(len(rows), first[chosen], second[chosen], self.cosine[chosen])


def neighbours(
    vectors: np.ndarray, threshold: float, exact: bool | None = None, progress: Callable = lambda blocks: blocks
) -> Neighbours:
    """All pairs of unit vectors `[n, d]` with a cosine above the threshold."""
    exact = len(vectors) <= EXACT_UP_TO if exact is None else exact
    index = _flat(vectors) if exact else _inverted_file(vectors)
    blocks = [_pairs_with(index, vectors, start, threshold) for start in progress(range(0, len(vectors), BLOCK))]
    if not blocks:
        return Neighbours(0, *(np.empty(0, dtype=kind) for kind in (np.int64, np.int64, np.float32)))
    return Neighbours(len(vectors), *(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _flat(vectors: np.ndarray):
    import faiss

    return faiss.IndexFlatIP(vectors.shape[1])


def _inverted_file(vectors: np.ndarray):
    import faiss

    cells = max(1, int(4 * len(vectors) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).permutation(len(vectors))[: 50 * cells]
    index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    index.nprobe = CELLS_LOOKED_INTO
    return index


def _pairs_with(index, vectors: np.ndarray, start: int, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of this block's rows with each other and with all before: the index grows block by block, so that no two
    blocks are compared twice."""
    block = np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32)
    index.add(block)
    limits, cosine, first = index.range_search(block, threshold)
    second = np.repeat(np.arange(start, start + len(block)), np.diff(limits).astype(np.int64))
    once = first < second  # within the block each pair comes from both sides, and each row with itself
    return first[once], second[once], cosine[once]


def representatives(near: Neighbours) -> np.ndarray:
    """Rows to keep: the first of each neighbourhood. No two of them are neighbours, and every other row has one."""
    stays = np.ones(near.count, dtype=bool)
    order = np.lexsort((near.second, near.first))
    starts = np.searchsorted(near.first[order], np.arange(near.count + 1))
    second = near.second[order]
    for row in np.flatnonzero(np.diff(starts)):
        if stays[row]:
            stays[second[starts[row] : starts[row + 1]]] = False
    return np.flatnonzero(stays)


def groups(near: Neighbours, pictures: Sequence[Hashable] = ()) -> np.ndarray:
    """A group number for every row: rows that are joined by a chain of neighbours share it, and rows of one picture.

    pictures: what tells the picture of each row, if there are any.
    """
    first_with: dict[Hashable, int] = {}
    earlier = np.array([first_with.setdefault(picture, row) for row, picture in enumerate(pictures)], dtype=np.int64)
    first = np.concatenate([near.first, earlier])
    return joined(near.count, first, np.concatenate([near.second, np.arange(len(earlier))]))


def joined(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[count]`: things that are joined by a chain of links, each from one of `first` to one of `second`, have one
    number; these ascend with the first of each."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def split(group_of: np.ndarray, share: float, seed: int, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows, drawn by whole groups; one larger than what is still wanted goes to training.

    least: so many are wanted to validate on, whatever the share comes to.
    """
    sizes = np.bincount(group_of)
    wanted = max(least, round(share * len(group_of)))
    to_validation = np.zeros(len(sizes), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[group] <= wanted:
            to_validation[group] = True
            wanted -= sizes[group]
    of_validation = to_validation[group_of]
    return np.flatnonzero(~of_validation), np.flatnonzero(of_validation)


def clear_of(vectors: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """True where a vector has no cosine above the threshold with any of the others. Exact."""
    clear = [(block @ others.T).max(axis=1, initial=-1) <= threshold for block in _blocks(vectors)]
    return np.concatenate(clear) if clear else np.empty(0, dtype=bool)


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    return (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))
