"""BLEU, ROUGE-L and CIDEr-D over words, one value an item.

Words are runs of letters and digits without case; punctuation does not count, as in the COCO caption evaluation.
Sequences of words are counted for all texts at once in arrays: less than half the time of a loop over Python counters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import LCSseq

ORDERS = 4
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class GramTable:
    """How often each sequence of n words occurs in each text: three columns, sorted by text, then sequence."""

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    distinct: int
    """Sequences are numbered 0 … distinct - 1."""

    @property
    def key(self) -> np.ndarray:
        return self.text * self.distinct + self.gram

    def split(self, at: int) -> tuple[GramTable, GramTable]:
        """The texts before number `at`, and those from it on, numbered from 0 again."""
        row = np.searchsorted(self.text, at)
        return (
            GramTable(self.text[:row], self.gram[:row], self.count[:row], self.distinct),
            GramTable(self.text[row:] - at, self.gram[row:], self.count[row:], self.distinct),
        )


def count_grams(tokens: list[list[str]]) -> list[GramTable]:
    """The tables of 1, 2, 3 and 4 words in a row."""
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(w, len(numbers)) for text in tokens for w in text], dtype=np.int64)
    text = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    tables, gram, distinct = [], word, max(len(numbers), 1)
    for order in range(1, ORDERS + 1):
        if order > 1:  # lengthen every sequence by the next word of its text
            inside = text[: len(text) - order + 1] == text[order - 1 :]
            at = np.flatnonzero(inside)
            _, compact = np.unique(gram[at] * len(numbers) + word[at + order - 1], return_inverse=True)
            gram = np.full(len(word), -1)
            gram[at], distinct = compact, max(compact.max(initial=-1) + 1, 1)
        there = np.flatnonzero(gram >= 0)
        key, count = np.unique(text[there] * distinct + gram[there], return_counts=True)
        tables.append(GramTable(key // distinct, key % distinct, count, distinct))
    return tables


@dataclass(frozen=True)
class Pairs:
    """Every prediction beside each of its references."""

    item: np.ndarray
    """Which item a pair belongs to `[pairs]`, ascending."""
    said: list[list[str]]
    truth: list[list[str]]

    @classmethod
    def of(cls, predictions: list[str], references: list[tuple[str, ...]]) -> Pairs:
        said = [words(text) for text in predictions]
        item = [i for i, truths in enumerate(references) for _ in truths]
        return cls(np.array(item), [said[i] for i in item], [words(truth) for truths in references for truth in truths])

    @property
    def first(self) -> np.ndarray:
        """The first pair of every item."""
        return np.flatnonzero(np.diff(self.item, prepend=-1))

    def tables(self) -> list[tuple[GramTable, GramTable]]:
        """For each order: the sequences said and those of the truth, text = pair."""
        return [table.split(len(self.said)) for table in count_grams(self.said + self.truth)]


def bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4; matches and totals of the orders above 1 are raised by one (Lin and Och, 2004), so that one
    missing four-word sequence does not make the whole sentence 0."""
    pairs = Pairs.of(predictions, references)
    items = len(predictions)
    log_precision = np.zeros(items)
    for order, (said, truth) in enumerate(pairs.tables()):
        # A sequence counts as often as it is said, but not more often than in the reference that has it most.
        keys, row = np.unique(pairs.item[truth.text] * truth.distinct + truth.gram, return_inverse=True)
        most = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(most, row, truth.count)
        own = np.isin(said.text, pairs.first)
        item, count = pairs.item[said.text[own]], said.count[own]
        _, mine, theirs = np.intersect1d(item * said.distinct + said.gram[own], keys, True, return_indices=True)
        matches = np.bincount(item[mine], np.minimum(count[mine], most[theirs]), minlength=items)
        total = np.bincount(item, count, minlength=items)
        smooth = int(order > 0)
        with np.errstate(divide="ignore"):  # no word in common: log 0, precision 0
            log_precision += np.log((matches + smooth) / np.maximum(total + smooth, 1)) / ORDERS
    said_words = np.array([len(pairs.said[p]) for p in pairs.first])
    brevity = np.minimum(0.0, 1 - _nearest_length(pairs, said_words) / np.maximum(said_words, 1))
    return np.exp(log_precision + brevity)


def _nearest_length(pairs: Pairs, said_words: np.ndarray) -> np.ndarray:
    """The length of the reference nearest in length, the shorter of two equally near ones."""
    truth_words = np.array([len(truth) for truth in pairs.truth])
    order = np.lexsort((truth_words, np.abs(truth_words - said_words[pairs.item]), pairs.item))
    return truth_words[order[pairs.first]]


def rouge_l(predictions: list[str], references: list[tuple[str, ...]], beta: float = 1.2) -> np.ndarray:
    """F of the longest common subsequence; precision and recall are each the best over the references."""
    pairs = Pairs.of(predictions, references)
    common = np.array([LCSseq.similarity(a, b) for a, b in zip(pairs.said, pairs.truth, strict=True)], dtype=float)
    precision, recall = (
        np.maximum.reduceat(common / [max(len(text), 1) for text in texts], pairs.first)
        for texts in (pairs.said, pairs.truth)
    )
    return (1 + beta**2) * precision * recall / np.maximum(recall + beta**2 * precision, 1e-12)


def cider_d(predictions: list[str], references: list[tuple[str, ...]], sigma: float = 6.0) -> np.ndarray:
    """CIDEr-D (Vedantam et al., 2015): cosine of tf-idf vectors with clipped counts and a penalty on the difference of
    lengths, mean over the orders and the references, times 10. NaN for a single item: its words have no idf."""
    items = len(predictions)
    if items < 2:
        return np.full(items, np.nan)
    pairs = Pairs.of(predictions, references)
    similarity = np.zeros(len(pairs.item))
    for said, truth in pairs.tables():
        seen = np.unique(pairs.item[truth.text] * truth.distinct + truth.gram) % truth.distinct
        idf = np.log(items / np.maximum(np.bincount(seen, minlength=truth.distinct), 1))
        mine, theirs = said.count * idf[said.gram], truth.count * idf[truth.gram]
        norms = [
            np.bincount(table.text, weight**2, minlength=len(similarity)) ** 0.5
            for table, weight in ((said, mine), (truth, theirs))
        ]
        _, a, b = np.intersect1d(said.key, truth.key, True, return_indices=True)
        clipped = np.bincount(said.text[a], np.minimum(mine[a], theirs[b]) * theirs[b], minlength=len(similarity))
        product = norms[0] * norms[1]
        similarity += np.where(product > 0, clipped / np.where(product > 0, product, 1), 0.0)
    longer = np.array([len(a) - len(b) for a, b in zip(pairs.said, pairs.truth, strict=True)])
    similarity *= 10 / ORDERS * np.exp(-(longer**2) / (2 * sigma**2))
    return np.bincount(pairs.item, similarity) / np.bincount(pairs.item)
