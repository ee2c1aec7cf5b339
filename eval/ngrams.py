"""BLEU, ROUGE-L and CIDEr-D over words, one value an item.

Words are runs of letters and digits without case (`words`), or what the COCO caption evaluation counts (`ptb_words`):
the tokens of the Penn Treebank in lower case without punctuation, so that "don't" is two and "black-and-white" is one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import or_

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
_PTB_SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na")}
TINY, SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to matches and to totals, instead of smoothing."""

Tokenise = Callable[[str], list[str]]
Grams = Counter[tuple[str, ...]]
"""How often each sequence of words of one length occurs."""


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.casefold())


def ptb_words(text: str) -> list[str]:
    """The words of a text as COCO counts them: Penn Treebank tokens in lower case, punctuation left out."""
    return [part for word in _PTB_WORD.findall(text.lower()) for part in _PTB_SPLIT.get(word, (word,))]


def count_grams(tokens: list[str]) -> list[Grams]:
    """The sequences of 1, 2, 3 and 4 words."""
    return [Counter(zip(*(tokens[start:] for start in range(order)), strict=False)) for order in range(1, ORDERS + 1)]


def bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4; matches and totals of the orders above 1 are raised by one (Lin and Och, 2004), so that one
    missing four-word sequence does not make the whole sentence 0."""
    return np.array([_bleu(words(a), [words(b) for b in of]) for a, of in zip(predictions, references, strict=True)])


def _bleu(prediction: list[str], references: list[list[str]]) -> float:
    log_precision = 0.0
    for order, (matches, total) in enumerate(_matches(prediction, references)):
        smooth = int(order > 0)
        if not matches + smooth:
            return 0.0
        log_precision += math.log((matches + smooth) / max(total + smooth, 1)) / ORDERS
    return math.exp(log_precision + min(0.0, 1 - _nearest(prediction, references) / max(len(prediction), 1)))


def _matches(prediction: list[str], references: list[list[str]]) -> Iterator[tuple[int, int]]:
    """Of each order, how many of how many predicted sequences are right.

    A sequence counts as often as it is predicted, but not more often than in the reference that has it most.
    """
    most = (reduce(or_, counts) for counts in zip(*map(count_grams, references), strict=True))
    for predicted, allowed in zip(count_grams(prediction), most, strict=True):
        yield sum(min(count, allowed[gram]) for gram, count in predicted.items()), predicted.total()


def _nearest(prediction: list[str], references: list[list[str]]) -> int:
    """The length of the reference that is nearest in length, the shorter of two equally near ones."""
    return min((abs(len(reference) - len(prediction)), len(reference)) for reference in references)[1]


def coco_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4 as the COCO caption evaluation gives it: not smoothed, so that most single texts score near 0."""
    counts = [_coco_counts(text, truths) for text, truths in zip(predictions, references, strict=True)]
    return np.array([_coco_bleu(matches, totals, *lengths) for matches, totals, lengths in counts])


def coco_corpus_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> float:
    """BLEU-4 of all texts as one: what papers on COCO print. Matches, totals and lengths are summed first."""
    matches, totals, lengths = np.zeros(ORDERS), np.zeros(ORDERS), np.zeros(2)
    for text, truths in zip(predictions, references, strict=True):
        of_text = _coco_counts(text, truths)
        matches, totals, lengths = matches + of_text[0], totals + of_text[1], lengths + of_text[2]
    return _coco_bleu(matches, totals, *lengths)


def _coco_counts(text: str, truths: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches `[4]` and totals `[4]` of the orders, and the lengths of the text and of the reference that counts."""
    tokens, true = ptb_words(text), [ptb_words(truth) for truth in truths]
    matches, totals = np.array(list(_matches(tokens, true)), float).T
    return matches, totals, np.array([len(tokens), _nearest(tokens, true)])


def _coco_bleu(matches: np.ndarray, totals: np.ndarray, length: float, nearest: float) -> float:
    score = float(np.prod((matches + TINY) / (totals + SMALL)) ** (1 / ORDERS))
    ratio = (length + TINY) / (nearest + SMALL)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score


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
    items = len(predictions)
    if items < 2:
        return np.full(items, np.nan)
    true = [[tokenise(text) for text in texts] for texts in references]
    occurs = Counter(gram for texts in true for gram in _distinct_grams(texts))
    inverse = {gram: math.log(items / count) for gram, count in occurs.items()}
    unseen = math.log(items)

    def weigh(tokens: list[str]) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: count * inverse.get(gram, unseen) for gram, count in grams.items()} for grams in count_grams(tokens)
        ]

    values = []
    for tokens, of_item in zip(map(tokenise, predictions), true, strict=True):
        predicted = weigh(tokens)
        similarities = [
            math.exp(-((len(tokens) - len(reference)) ** 2) / (2 * sigma**2))
            * sum(map(_clipped_cosine, predicted, weigh(reference)))
            for reference in of_item
        ]
        values.append(10 / ORDERS * sum(similarities) / len(similarities))
    return np.array(values)


def _distinct_grams(texts: Iterable[list[str]]) -> set[tuple[str, ...]]:
    return {gram for tokens in texts for grams in count_grams(tokens) for gram in grams}


def _clipped_cosine(predicted: dict[tuple[str, ...], float], true: dict[tuple[str, ...], float]) -> float:
    """No weight of the prediction counts for more than the reference has of it."""
    product = math.hypot(*predicted.values()) * math.hypot(*true.values())
    if not product:
        return 0.0
    return sum(min(weight, true[gram]) * true[gram] for gram, weight in predicted.items() if gram in true) / product
