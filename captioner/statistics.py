"""Error bars: percentile bootstrap of means, paired differences, Holm's correction.

One set of resamples serves every column (model × metric), so that all intervals and all paired differences come from
the same draws. What is drawn are *groups*: pictures of one prompt are not independent, so they come along together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
_BLOCK_BYTES = 64e6


@dataclass(frozen=True)
class Interval:
    """A mean and the range it lies in with 95 % confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of b − a over the items that have both, its interval, and how likely a difference of 0 is (two-sided)."""

    interval: Interval
    p: float
    items: int


def resampled_means(
    values: np.ndarray, groups: Sequence | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Means of every column of `values` `[items, columns]` in each bootstrap resample: `[resamples, columns]`.

    NaN is left out of its column. groups: one label an item; None: every item stands for itself.
    """
    group = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(values))
    size = int(np.max(group, initial=-1)) + 1
    present = ~np.isnan(values)
    sums, counts = np.zeros((size, values.shape[1])), np.zeros((size, values.shape[1]))
    np.add.at(sums, group, np.where(present, values, 0.0))
    np.add.at(counts, group, present)

    means = np.empty((resamples, values.shape[1]))
    start = 0
    for times in resampled_counts(size, resamples, seed):
        with np.errstate(invalid="ignore"):  # a column without any value: NaN
            means[start : start + len(times)] = (times @ sums) / (times @ counts)
        start += len(times)
    return means


def resampled_counts(groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn in each resample, `[rows, groups]` in blocks that fit in memory.

    The draws do not depend on the blocks. The last digit of a product with them does: a BLAS sums in another order for
    matrices of another shape, and each processor in its own.
    """
    generator = np.random.default_rng(seed)
    block = max(1, int(_BLOCK_BYTES // (8 * max(groups, 1))))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)


def intervals(values: np.ndarray, means: np.ndarray) -> list[Interval]:
    """Mean and percentile interval of every column, from its resampled means."""
    tail = 50 * (1 - LEVEL)
    return [
        Interval(_mean(column), *(float(v) for v in _percentiles(drawn, [tail, 100 - tail])))
        for column, drawn in zip(values.T, means.T, strict=True)
    ]


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence | None = None, **settings: int
) -> Interval:
    """Mean of one series with its interval."""
    column = np.asarray(values, dtype=float)[:, None]
    return intervals(column, resampled_means(column, groups, **settings))[0]


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, groups: Sequence | None = None, **settings: int
) -> Difference:
    """b − a of the same items, item by item; items that miss either are left out."""
    delta = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return differences(delta[:, None], groups, **settings)[0]


def differences(deltas: np.ndarray, groups: Sequence | None = None, **settings: int) -> list[Difference]:
    """Each column of `deltas` `[items, columns]` is one pair's b − a."""
    labels = np.arange(len(deltas)) if groups is None else np.asarray(groups)
    means = resampled_means(deltas, groups, **settings)
    measured = []
    for interval, drawn, column in zip(intervals(deltas, means), means.T, deltas.T, strict=True):
        present = ~np.isnan(column)
        drawn = drawn[~np.isnan(drawn)]
        extreme = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p = 2 * (extreme + 1) / (len(drawn) + 1)  # never 0: the sample itself is one of the draws
        # Resampling three values of one sign never gives another sign: no p below what flipping signs could reach.
        least = 2.0 ** (1 - len(np.unique(labels[present])))
        measured.append(Difference(interval, float(min(1.0, max(p, least))), int(present.sum())))
    return measured


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction: adjusted p-values, in the given order; NaN is no hypothesis and stays NaN."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def _mean(column: np.ndarray) -> float:
    present = column[~np.isnan(column)]
    return float(present.mean()) if len(present) else float("nan")


def _percentiles(drawn: np.ndarray, levels: list[float]) -> np.ndarray:
    present = drawn[~np.isnan(drawn)]
    return np.percentile(present, levels) if len(present) else np.full(len(levels), np.nan)
