"""BLEU, ROUGE-L and CIDEr-D over words, one value an item.

Words are runs of letters and digits without case (`words`), or what the COCO caption evaluation counts (`ptb_words`):
the tokens of the Penn Treebank in lower case without punctuation, so that "don't" is two and "black-and-white" is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from rapidfuzz.distance import LCSseq

ORDERS = 4
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_PTB_WORD = re.compile(
    r"\d+(?:[.,:/]\d+)+"  # 1.5, 1,000, 16:9
    r"|o['’]clock\b"
    r"|\w+(?=n['’]t\b)|n['’]t\b"  # do n't
    r"|['’](?:s|m|d|ll|re|ve)\b"  # it 's
    r"|(?:[^\W_]\.){2,}"  # u.s.
    r"|\w+(?:[-/&@]\w+)*"  # black-and-white
    r"|[^\w\s.?!,:;'\"`’‘“”(){}\[\]…–—-]"  # $ and other signs that are no punctuation
)
_NO_WORD = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
_PLAIN = dict.fromkeys(map(ord, "abcdefghijklmnopqrstuvwxyz0123456789 ,"))
"""Taken out of a text whose words are what stands between spaces and commas, nothing is left."""
_THOUSANDS = re.compile(r"\d,\d")
_PTB_SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na")}
TINY, SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to matches and to totals, instead of smoothing."""

Tokenise = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """The words of a text."""
    folded = text.casefold()
    if folded.isascii() and "'" not in folded:  # the same, in a third of the time
        return folded.translate(_NO_WORD).split()
    return _WORD.findall(folded)


def ptb_words(text: str) -> list[str]:
    """The words of a text as COCO counts them: Penn Treebank tokens in lower case, punctuation left out."""
    lowered = text.lower()
    if lowered.translate(_PLAIN) or _THOUSANDS.search(lowered):
        found = _PTB_WORD.findall(lowered)
    else:  # words and commas alone: the same, in a fifth of the time
        found = lowered.replace(",", " ").split()
    if _PTB_SPLIT.keys().isdisjoint(found):
        return found
    return [part for word in found for part in _PTB_SPLIT.get(word, (word,))]


@dataclass(frozen=True)
class Counts:
    """How often each text has each sequence of words of one length: a row for every sequence that it has."""

    texts: np.ndarray
    """`[rows]`, ascending."""
    grams: np.ndarray
    """`[rows]`: the number of the sequence, ascending within a text."""
    times: np.ndarray
    """`[rows]`"""
    size: int
    """The numbers of sequences lie below it, those of every text that was counted at once."""

    def at(self, texts: np.ndarray, grams: np.ndarray) -> np.ndarray:
        """`[n]`: how often those texts have those sequences."""
        keys, wanted = self.texts * self.size + self.grams, texts * self.size + grams
        row = np.searchsorted(keys, wanted)
        found = np.append(keys, -1)[row] == wanted
        return np.where(found, np.append(self.times, 0)[row], 0)


def count_grams(texts: list[list[str]]) -> list[Counts]:
    """The sequences of 1, 2, 3 and 4 words of many texts."""
    text = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    word = gram = _numbered(list(chain.from_iterable(texts)))
    orders = []
    for order in range(ORDERS):
        if order:
            whole = text[order:] == text[: len(text) - order]  # the sequence ends in the text that it began in
            pairs = gram[: len(whole)] * (1 + word.max(initial=0)) + word[order:]
            gram = np.unique(pairs, return_inverse=True)[1]
        else:
            whole = np.ones(len(text), dtype=bool)
        size = 1 + int(gram.max(initial=0))
        keys, times = np.unique((text[: len(whole)] * size + gram)[whole], return_counts=True)
        orders.append(Counts(keys // size, keys % size, times, size))
    return orders


def _numbered(tokens: list[str]) -> np.ndarray:
    """Equal words get equal numbers, from 0 on."""
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return np.fromiter(map(numbers.__getitem__, tokens), np.int64, len(tokens))


@dataclass(frozen=True)
class Compared:
    """Texts beside their references."""

    predicted: list[Counts]
    """By order."""
    true: list[Counts]
    lengths: np.ndarray
    """`[items]`: words of the texts."""
    true_lengths: np.ndarray
    """`[references]`"""
    items: np.ndarray
    """`[references]`, ascending: whose each is."""

    @classmethod
    def of(cls, predictions: list[str], references: list[tuple[str, ...]], tokenise: Tokenise) -> Compared:
        """Each item has one reference at least."""
        texts = [tokenise(text) for text in (*predictions, *(truth for truths in references for truth in truths))]
        count = len(predictions)
        lengths = np.array([len(tokens) for tokens in texts], dtype=np.int64)
        items = np.repeat(np.arange(count), [len(truths) for truths in references])
        orders = [(rows, np.searchsorted(rows.texts, count)) for rows in count_grams(texts)]
        predicted = [Counts(rows.texts[:cut], rows.grams[:cut], rows.times[:cut], rows.size) for rows, cut in orders]
        true = [Counts(rows.texts[cut:] - count, rows.grams[cut:], rows.times[cut:], rows.size) for rows, cut in orders]
        return cls(predicted, true, lengths[:count], lengths[count:], items)

    @property
    def nearest(self) -> np.ndarray:
        """`[items]`: the length of the reference that is nearest in length, the shorter of two equally near ones."""
        span = 1 + self.true_lengths.max(initial=0)
        ranked = np.abs(self.true_lengths - self.lengths[self.items]) * span + self.true_lengths
        return np.minimum.reduceat(ranked, _firsts(self.items)) % span

    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """`[items, 4]` each: how many predicted sequences are right, and how many there are.

        A sequence counts as often as it is predicted, but not more often than in the reference that has it most.
        """
        right, totals = zip(*map(self._matches, self.predicted, self.true), strict=True)
        return np.stack(right, axis=1), np.stack(totals, axis=1)

    def _matches(self, predicted: Counts, true: Counts) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.lengths)
        keys = self.items[true.texts] * true.size + true.grams
        order = np.argsort(keys, kind="stable")
        distinct, first = np.unique(keys[order], return_index=True)
        most = np.maximum.reduceat(true.times[order], first) if len(first) else true.times
        of_items = Counts(distinct // true.size, distinct % true.size, most, true.size)
        allowed = of_items.at(predicted.texts, predicted.grams)
        right = np.bincount(predicted.texts, np.minimum(predicted.times, allowed), minlength=count)
        return right, np.bincount(predicted.texts, predicted.times, minlength=count)


def _firsts(ascending: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(ascending, prepend=-1))


def bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4; matches and totals of the orders above 1 are raised by one (Lin and Och, 2004), so that one
    missing four-word sequence does not make the whole sentence 0."""
    compared = Compared.of(predictions, references, words)
    matches, totals = compared.matches()
    smooth = np.array([0, *[1] * (ORDERS - 1)])
    right = matches[:, 0] > 0
    precisions = np.where(right[:, None], matches + smooth, 1) / np.maximum(totals + smooth, 1)
    brevity = np.minimum(0.0, 1 - compared.nearest / np.maximum(compared.lengths, 1))
    return np.where(right, np.exp(np.log(precisions).mean(axis=1) + brevity), 0.0)


def coco_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4 as the COCO caption evaluation gives it: not smoothed, so that most single texts score near 0."""
    compared = Compared.of(predictions, references, ptb_words)
    return _coco_bleu(*compared.matches(), compared.lengths, compared.nearest)


def coco_corpus_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> float:
    """BLEU-4 of all texts as one: what papers on COCO print. Matches, totals and lengths are summed first."""
    compared = Compared.of(predictions, references, ptb_words)
    columns = (*compared.matches(), compared.lengths, compared.nearest)
    return float(_coco_bleu(*(column.sum(axis=0, keepdims=True) for column in columns))[0])


def _coco_bleu(matches: np.ndarray, totals: np.ndarray, lengths: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    scores = np.prod((matches + TINY) / (totals + SMALL), axis=1) ** (1 / ORDERS)
    ratios = (lengths + TINY) / (nearest + SMALL)
    return scores * np.exp(np.minimum(0.0, 1 - 1 / ratios))


def rouge_l(
    predictions: list[str], references: list[tuple[str, ...]], beta: float = 1.2, tokenise: Tokenise = words
) -> np.ndarray:
    """F of the longest common subsequence; precision and recall are each the best over the references."""
    values = []
    for text, truths in zip(predictions, references, strict=True):
        predicted, true = tokenise(text), [tokenise(truth) for truth in truths]
        common = [LCSseq.similarity(predicted, reference) for reference in true]
        precision = max(common) / max(len(predicted), 1)
        recall = max(shared / max(len(reference), 1) for shared, reference in zip(common, true, strict=True))
        values.append((1 + beta**2) * precision * recall / max(recall + beta**2 * precision, 1e-12))
    return np.array(values)


def cider_d(
    predictions: list[str], references: list[tuple[str, ...]], sigma: float = 6.0, tokenise: Tokenise = words
) -> np.ndarray:
    """CIDEr-D (Vedantam et al., 2015): cosine of tf-idf vectors with clipped counts and a penalty on the difference of
    lengths, mean over the orders and the references, times 10. NaN for a single item: its words have no idf."""
    count = len(predictions)
    if count < 2:
        return np.full(count, np.nan)
    compared = Compared.of(predictions, references, tokenise)
    similarities = sum(map(partial(_clipped_cosines, items=compared.items), compared.predicted, compared.true))
    differences = compared.lengths[compared.items] - compared.true_lengths
    similarities *= np.exp(-(differences**2) / (2 * sigma**2)) * 10 / ORDERS
    return np.bincount(compared.items, similarities) / np.bincount(compared.items)


def _clipped_cosines(predicted: Counts, true: Counts, items: np.ndarray) -> np.ndarray:
    """`[references]`: of the tf-idf vectors of one order. No weight of the prediction counts for more than the
    reference has of it."""
    count = int(items[-1]) + 1
    of_items = np.sort(items[true.texts] * true.size + true.grams)
    each_once = of_items[_firsts(of_items)] % true.size
    inverse = np.log(count / np.maximum(np.bincount(each_once, minlength=true.size), 1))
    said, meant = (rows.times * inverse[rows.grams] for rows in (predicted, true))
    lengths = [
        np.sqrt(np.bincount(rows.texts, weights**2, minlength=number))
        for rows, weights, number in ((predicted, said, count), (true, meant, len(items)))
    ]
    weights = predicted.at(items[true.texts], true.grams) * inverse[true.grams]
    common = np.bincount(true.texts, np.minimum(weights, meant) * meant, minlength=len(items))
    product = lengths[0][items] * lengths[1]
    return np.divide(common, product, out=np.zeros(len(items)), where=product > 0)
