"""Parts of the data, for readers who ask where a model is good: by source, and by the length of the true prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from captioner.statistics import SEED, intervals, resampled_means
from eval.ngrams import words
from eval.results import Results

MOST_SOURCES = 8
LEAST_ITEMS = 8
"""Of a part by length: fewer tell nothing."""
RESAMPLES = 1000
EVERYTHING = -1

Figure = tuple[float | None, float | None, float | None, int]
"""Mean, ends of its interval, and of how many items."""


@dataclass(frozen=True)
class Parts:
    """Which part each item belongs to."""

    sources: list[str]
    """Names, the one with most items first; empty if there is one only."""
    lengths: list[str]
    """In words, the shortest prompts first; empty if there are too few items, or all are alike."""
    source_of: np.ndarray
    """Index in `sources` of each item; -1: in none."""
    length_of: np.ndarray

    @classmethod
    def of(cls, results: Results) -> Parts:
        """By what the results say of their items."""
        count = Counter(results.sources)
        sources = [name for name, _ in count.most_common(MOST_SOURCES) if name] if len(count) > 1 else []
        index = {name: number for number, name in enumerate(sources)}
        source_of = np.array([index.get(name, -1) for name in results.sources or [""] * len(results.ids)], dtype=int)
        lengths = prompt_lengths(results)
        measured = np.flatnonzero(lengths)
        bins = length_bins(lengths[measured], most=3)
        length_of = np.full(len(results.ids), -1)
        for number, (_, rows) in enumerate(bins):
            length_of[measured[rows]] = number
        return cls(sources, [f"{label} words" for label, _ in bins], source_of, length_of)

    def rows(self, source: int, length: int) -> np.ndarray:
        """The items of a source and a length; `EVERYTHING` for either takes all."""
        chosen = np.ones(len(self.source_of), dtype=bool)
        if source != EVERYTHING:
            chosen &= self.source_of == source
        if length != EVERYTHING:
            chosen &= self.length_of == length
        return np.flatnonzero(chosen)

    @property
    def combinations(self) -> list[tuple[int, int]]:
        """Every choice of a source and a length but that of everything."""
        every = [
            (source, length)
            for source in range(EVERYTHING, len(self.sources))
            for length in range(EVERYTHING, len(self.lengths))
        ]
        return every[1:]


def prompt_lengths(results: Results) -> np.ndarray:
    """Words of each true prompt; 0 where there is none."""
    return np.array([len(words(truths[0])) if truths else 0 for truths in results.truths], dtype=int)


def length_bins(lengths: np.ndarray, most: int) -> list[tuple[str, np.ndarray]]:
    """Bins of about equally many prompts: (label, rows). Empty if there would be one only."""
    count = int(np.clip(len(lengths) // LEAST_ITEMS, 1, most))
    if not len(lengths):
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, count + 1), method="nearest").astype(int))
    if len(edges) < 3:
        return []
    which = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    last = len(edges) - 2
    bins = []
    for number, (low, high) in enumerate(pairwise(edges)):
        rows = np.flatnonzero(which == number)
        top = high if number == last else high - 1
        if len(rows):
            bins.append((f"{low}–{top}" if top > low else f"{low}", rows))
    return bins


def figures(
    results: Results, rows: np.ndarray, models: Sequence[str], metrics: Sequence[str], seed: int = SEED
) -> list[list[Figure]]:
    """Of these items: one list a model, one figure a metric."""
    columns = [results.models.index(model) for model in models]
    values = np.concatenate([results.values[metric][rows][:, columns] for metric in metrics], axis=1)
    flat = _figures(values, _groups(results, rows), seed)  # metric by metric
    return [flat[number :: len(models)] for number in range(len(models))]


def pair_differences(
    results: Results, parts: Parts, models: Sequence[str], metric: str, seed: int = SEED
) -> list[tuple[int, int, int, int, Figure]]:
    """(a, b, source, length, b minus a) of every two models in every part by source alone or by length alone."""
    pairs = list(combinations(range(len(models)), 2))
    columns = [results.models.index(model) for model in models]
    alone = [(source, length) for source, length in parts.combinations if EVERYTHING in (source, length)]
    rows_of_pairs = []
    for source, length in alone if pairs else ():
        rows = parts.rows(source, length)
        values = results.values[metric][rows][:, columns]
        deltas = np.stack([values[:, b] - values[:, a] for a, b in pairs], axis=1)
        of_part = _figures(deltas, _groups(results, rows), seed)
        rows_of_pairs += [
            (a, b, source, length, figure) for (a, b), figure in zip(pairs, of_part, strict=True) if figure[3]
        ]
    return rows_of_pairs


def _groups(results: Results, rows: np.ndarray) -> list[str]:
    return [results.groups[row] for row in rows]


def _figures(values: np.ndarray, groups: Sequence[str], seed: int) -> list[Figure]:
    """One a column of `[items, columns]`."""
    if not len(values):
        return [(None, None, None, 0)] * values.shape[1]
    spread = intervals(values, resampled_means(values, groups, RESAMPLES, seed))
    counts = (~np.isnan(values)).sum(axis=0)
    single = len(set(groups)) < 2  # one prompt tells nothing of how prompts differ
    return [
        (short(i.mean), None if single else short(i.low), None if single else short(i.high), int(count))
        for i, count in zip(spread, counts, strict=True)
    ]


def short(value: float | None) -> float | None:
    """Six digits are enough for a page."""
    return None if value is None or np.isnan(value) else float(f"{value:.6g}")
