"""BLEU, ROUGE-L and CIDEr-D over words, one value an item.

Words are runs of letters and digits without case (`words`), or what the COCO caption evaluation counts (`ptb_words`):
the tokens of the Penn Treebank in lower case without punctuation, so that "don't" is two and "black-and-white" is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

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
_FOLDED = bytes(ord(chr(code).lower()) if re.match(r"\w", chr(code)) else ord(" ") for code in range(128)).ljust(256)
"""Letters without case, and spaces for signs."""
_LETTERS = b"abcdefghijklmnopqrstuvwxyz ,"
_THOUSANDS = re.compile(r"\d,\d")
_PTB_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
BETA = 1.2
"""How much more recall counts than precision in ROUGE-L."""
SIGMA = 6.0
"""Words that the lengths of two texts may differ by, in CIDEr-D's penalty."""
TINY, SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to matches and to totals, instead of smoothing."""

Tokenise = Callable[[str], bytes]
"""Of a text the words, with spaces between them."""


def words(text: str) -> list[str]:
    """The words of a text."""
    return word_line(text).decode().split()


def ptb_words(text: str) -> list[str]:
    """The words of a text as COCO counts them: Penn Treebank tokens in lower case, punctuation left out."""
    return ptb_line(text).decode().split()


def word_line(text: str) -> bytes:
    """`words`, with spaces between them."""
    if text.isascii() and "'" not in text:  # the same, in a tenth of the time
        return text.encode().translate(_FOLDED).strip()
    return " ".join(_WORD.findall(text.casefold())).encode()


def ptb_line(text: str) -> bytes:
    """`ptb_words`, with spaces between them."""
    lowered = text.lower()
    plain = _is_words_and_commas(lowered)  # the same, in a fifth of the time
    line = lowered.replace(",", " ").strip() if plain else " ".join(_PTB_WORD.findall(lowered))
    if any(map(line.__contains__, _PTB_SPLIT)):
        line = " ".join(_PTB_SPLIT.get(word, word) for word in line.split(" "))
    return line.encode("utf-8", "backslashreplace")  # a lone surrogate is a sign, and no UTF-8


def _is_words_and_commas(lowered: str) -> bool:
    if not lowered.isascii():
        return False
    others = lowered.encode().translate(None, _LETTERS)
    return not others or (others.isdigit() and not _THOUSANDS.search(lowered))


def numbered(texts: Sequence[str], tokenise: Tokenise) -> tuple[np.ndarray, np.ndarray]:
    """The words of all texts one after another as numbers from 0 on, equal ones equal, and how many each text has.

    By Arrow, which makes no object of a word: a fifth of the time of Python's own strings and dictionary.
    """
    import pyarrow as pa
    from pyarrow import compute

    lines = [tokenise(text) for text in texts]
    sizes = np.array([len(line) for line in lines], dtype=np.int64)
    spoken = sizes > 0  # Arrow splits an empty text into one empty word
    ends = np.cumsum(sizes[spoken], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    joined = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(b"".join(lines)))
    split = compute.ascii_split_whitespace(joined)
    lengths = np.zeros(len(texts), dtype=np.int64)
    lengths[spoken] = np.from_dlpack(split.value_lengths())  # Arrow's own way to numpy imports pandas
    return np.from_dlpack(split.flatten().dictionary_encode().indices), lengths


@dataclass(frozen=True)
class Counts:
    """How often each text has each sequence of words of one length: a row for every sequence that a text has.

    They stand sequence by sequence, and of a sequence in the texts' order: item by item, the prediction first, then its
    references.
    """

    texts: np.ndarray
    """`[rows]`"""
    times: np.ndarray
    """`[rows]`"""
    sequences: np.ndarray
    """`[sequences]`: where the rows of each begin."""
    begins: np.ndarray
    """`[rows]`: is this the first row of its item and sequence?"""
    items: np.ndarray
    """`[texts]`: whose each is."""

    @classmethod
    def of(cls, grams: np.ndarray, texts: np.ndarray, items: np.ndarray) -> Counts:
        """Of every sequence of every text, in any order: its number, and whose it is."""
        text_bits = len(items).bit_length()
        keys = np.sort((grams << text_bits) + texts)  # one number tells a row: one sort brings all into their order
        firsts = _firsts(keys)
        times, keys = np.diff(firsts, append=len(keys)), keys[firsts]
        texts, grams = keys & ((1 << text_bits) - 1), keys >> text_bits
        of_rows = items[texts]
        begins = _changes(grams)
        sequences = np.flatnonzero(begins)
        begins |= _changes(of_rows)
        return cls(texts, times, sequences, begins, items)

    @cached_property
    def shared(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of references that have what their prediction has, and its row beside each."""
        rows = np.flatnonzero(~self.begins)
        first = np.flatnonzero(self.begins)[np.cumsum(self.begins)[rows] - 1]
        predicted = self.is_predicted[self.texts[first]]
        return rows[predicted], first[predicted]

    @property
    def is_predicted(self) -> np.ndarray:
        """`[texts]`: the first of an item is its prediction."""
        return _changes(self.items)

    def right(self) -> np.ndarray:
        """`[items]`: how many of the predicted sequences are in the reference that has most of each."""
        rows, predicted = self.shared
        both = np.minimum(self.times[rows], self.times[predicted])
        firsts = _firsts(predicted)
        items = self.items[self.texts[predicted[firsts]]]
        return np.bincount(items, np.maximum.reduceat(both, firsts), minlength=1 + self.items[-1])

    def items_with(self) -> np.ndarray:
        """`[sequences]`: how many items have each in any reference."""
        true = ~self.is_predicted[self.texts]
        once = true.copy()
        once[1:] &= self.begins[1:] | ~true[:-1]  # the first of an item's references
        before = np.concatenate([[0], np.cumsum(once)])
        return np.diff(before[np.append(self.sequences, len(once))])


@dataclass(frozen=True)
class Compared:
    """Texts beside their references, as numbers of words."""

    words: np.ndarray
    """Of all texts one after another, the predictions first, then the references."""
    lengths: np.ndarray
    """`[items]`: words of the predictions."""
    true_lengths: np.ndarray
    """`[references]`"""
    items: np.ndarray
    """`[references]`, ascending: whose each is."""

    @classmethod
    def of(cls, predictions: Sequence[str], references: Sequence[tuple[str, ...]], tokenise: Tokenise) -> Compared:
        """Each item has one reference at least."""
        return _compared(tuple(predictions), tuple(references), tokenise)

    @cached_property
    def counts(self) -> list[Counts]:
        """By the length of the sequences, 1 to 4."""
        lengths = np.concatenate([self.lengths, self.true_lengths])
        own = np.arange(len(self.lengths))
        places = np.concatenate([own + self.first_references, np.arange(len(self.items)) + self.items + 1])
        items = np.empty_like(places)  # of the texts item by item, the prediction first, then its references
        items[places] = np.concatenate([own, self.items])
        owner = np.repeat(places, lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(owner))  # words of the text from here on
        counts = []
        for length, grams in enumerate(_sequences(self.words, 63 - len(items).bit_length())):
            whole = np.flatnonzero(left > length)  # the sequence ends in the text that it begins in
            counts.append(Counts.of(grams[whole], owner[whole], items))
        return counts

    @cached_property
    def first_references(self) -> np.ndarray:
        """`[items]`: where the references of each begin."""
        return _firsts(self.items)

    @property
    def nearest(self) -> np.ndarray:
        """`[items]`: the length of the reference that is nearest in length, the shorter of two equally near ones."""
        span = 1 + self.true_lengths.max(initial=0)
        ranked = np.abs(self.true_lengths - self.lengths[self.items]) * span + self.true_lengths
        return np.minimum.reduceat(ranked, self.first_references) % span

    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """`[items, 4]` each: how many predicted sequences are right, and how many there are.

        A sequence counts as often as it is predicted, but not more often than in the reference that has it most.
        """
        right = [counts.right() for counts in self.counts]
        return np.stack(right, axis=1), np.maximum(self.lengths[:, None] - np.arange(ORDERS), 0)

    def common(self) -> np.ndarray:
        """`[references]`: the length of the longest common subsequence of words."""
        ends = np.cumsum(np.concatenate([self.lengths, self.true_lengths]))
        texts = [of_text.tolist() for of_text in np.split(self.words, ends[:-1])]
        predicted = [texts[item] for item in self.items]
        return cpdist(predicted, texts[len(self.lengths) :], scorer=LCSseq.similarity, dtype=np.int64)


@lru_cache(maxsize=2)  # words and COCO's, for all metrics of the same texts
def _compared(predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...], tokenise: Tokenise) -> Compared:
    count = len(predictions)
    numbers, lengths = numbered([*predictions, *(truth for truths in references for truth in truths)], tokenise)
    items = np.repeat(np.arange(count), [len(truths) for truths in references])
    return Compared(numbers, lengths[:count], lengths[count:], items)


def forget() -> None:
    """Keep nothing of the texts that were compared last."""
    _compared.cache_clear()


def _sequences(words: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Of 1, 2, 3 and 4 words: the sequence that begins at each word, as a number of at most `room` bits, if there are
    not more sequences than that. Equal ones have equal numbers, others others."""
    words, bits = words.astype(np.int64), int(words.max(initial=0)).bit_length()
    pairs = _ranks((words[:-1] << bits) + words[1:], 2 * bits)
    pair_bits = int(pairs.max(initial=0)).bit_length()
    yield words
    yield pairs
    for before, after, after_bits in ((pairs[:-1], words[2:], bits), (pairs[:-2], pairs[2:], pair_bits)):
        joined = (before[: len(after)] << after_bits) + after
        yield joined if pair_bits + after_bits <= room else _ranks(joined, pair_bits + after_bits)


def _ranks(values: np.ndarray, bits: int) -> np.ndarray:
    """Equal values, of so many bits, get equal numbers, from 0 on, in their order.

    Values and places are sorted as one number where they fit into it: a third of the time of sorting the places.
    """
    place_bits = len(values).bit_length()
    if bits + place_bits > 63:
        return np.unique(values, return_inverse=True)[1]
    ordered = np.sort((values << place_bits) + np.arange(len(values)))
    ranks = np.zeros(len(values), dtype=np.int64)
    places = ordered & ((1 << place_bits) - 1)
    ordered >>= place_bits
    ranks[places[1:]] = np.cumsum(ordered[1:] != ordered[:-1])
    return ranks


def _firsts(ascending: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    return np.flatnonzero(_changes(ascending))


def _changes(values: np.ndarray) -> np.ndarray:
    """Is each another than the one before?"""
    changes = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4; matches and totals of the orders above 1 are raised by one (Lin and Och, 2004), so that one
    missing four-word sequence does not make the whole sentence 0."""
    compared = Compared.of(predictions, references, word_line)
    matches, totals = compared.matches()
    smooth = np.array([0, *[1] * (ORDERS - 1)])
    right = matches[:, 0] > 0
    precisions = np.where(right[:, None], matches + smooth, 1) / np.maximum(totals + smooth, 1)
    brevity = np.minimum(0.0, 1 - compared.nearest / np.maximum(compared.lengths, 1))
    return np.where(right, np.exp(np.log(precisions).mean(axis=1) + brevity), 0.0)


def coco_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    """Sentence BLEU-4 as the COCO caption evaluation gives it: not smoothed, so that most single texts score near 0."""
    compared = Compared.of(predictions, references, ptb_line)
    return _coco_bleu(*compared.matches(), compared.lengths, compared.nearest)


def coco_corpus_bleu(predictions: list[str], references: list[tuple[str, ...]]) -> float:
    """BLEU-4 of all texts as one: what papers on COCO print. Matches, totals and lengths are summed first."""
    compared = Compared.of(predictions, references, ptb_line)
    columns = (*compared.matches(), compared.lengths, compared.nearest)
    return float(_coco_bleu(*(column.sum(axis=0, keepdims=True) for column in columns))[0])


def _coco_bleu(matches: np.ndarray, totals: np.ndarray, lengths: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    scores = np.prod((matches + TINY) / (totals + SMALL), axis=1) ** (1 / ORDERS)
    ratios = (lengths + TINY) / (nearest + SMALL)
    return scores * np.exp(np.minimum(0.0, 1 - 1 / ratios))


def rouge_l(predictions: list[str], references: list[tuple[str, ...]], tokenise: Tokenise = word_line) -> np.ndarray:
    """F of the longest common subsequence; precision and recall are each the best over the references."""
    compared = Compared.of(predictions, references, tokenise)
    common, firsts = compared.common(), compared.first_references
    precision = np.maximum.reduceat(common, firsts) / np.maximum(compared.lengths, 1)
    recall = np.maximum.reduceat(common / np.maximum(compared.true_lengths, 1), firsts)
    return (1 + BETA**2) * precision * recall / np.maximum(recall + BETA**2 * precision, 1e-12)


def cider_d(predictions: list[str], references: list[tuple[str, ...]], tokenise: Tokenise = word_line) -> np.ndarray:
    """CIDEr-D (Vedantam et al., 2015): cosine of tf-idf vectors with clipped counts and a penalty on the difference of
    lengths, mean over the orders and the references, times 10. NaN for a single item: its words have no idf."""
    if len(predictions) < 2:
        return np.full(len(predictions), np.nan)
    compared = Compared.of(predictions, references, tokenise)
    similarities = np.sum([_clipped_cosines(compared, counts) for counts in compared.counts], axis=0)
    differences = compared.lengths[compared.items] - compared.true_lengths
    similarities *= np.exp(-(differences**2) / (2 * SIGMA**2)) * 10 / ORDERS
    return np.bincount(compared.items, similarities) / np.bincount(compared.items)


def _clipped_cosines(compared: Compared, counts: Counts) -> np.ndarray:
    """`[references]`: of the tf-idf vectors of one order. No weight of the prediction counts for more than the
    reference has of it."""
    items_with = counts.items_with()
    inverse = np.log(len(compared.lengths) / np.maximum(np.arange(items_with.max(initial=0) + 1), 1))[items_with]
    weights = counts.times * np.repeat(inverse, np.diff(counts.sequences, append=len(counts.times)))
    lengths = np.sqrt(np.bincount(counts.texts, weights**2, minlength=len(counts.items)))
    rows, predicted = counts.shared
    clipped = np.minimum(weights[predicted], weights[rows]) * weights[rows]
    common = np.bincount(counts.texts[rows], clipped, minlength=len(counts.items))[~counts.is_predicted]
    product = lengths[counts.is_predicted][compared.items] * lengths[~counts.is_predicted]
    return np.divide(common, product, out=np.zeros(len(product)), where=product > 0)
