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
BLOCK = 512
"""Items whose sequences are counted at once."""
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
    plain = _are_words_and_commas(lowered)  # the same, in a tenth of the time
    line = lowered.replace(",", " ") if plain else " ".join(_PTB_WORD.findall(lowered))
    if any(word in line for word in _PTB_SPLIT):
        line = " ".join(_PTB_SPLIT.get(word, word) for word in line.split(" "))
    return line.encode("utf-8", "backslashreplace").strip()  # a lone surrogate is a sign, and no UTF-8


def _are_words_and_commas(lowered: str) -> bool:
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

    They stand item by item, in an item sequence by sequence, and of a sequence first the prediction's row, then those
    of the references. All that tells a row is packed into one number: one sort brings them into this order.
    """

    keys: np.ndarray
    """`[rows]`: from the highest bit on the item, the sequence and the side."""
    times: np.ndarray
    """`[rows]`"""
    gram_bits: int
    side_bits: int

    @classmethod
    def of(cls, keys: np.ndarray, gram_bits: int, side_bits: int) -> Counts:
        """Of every sequence of every text, in any order."""
        keys = np.sort(keys)
        firsts = _firsts(keys)
        return cls(keys[firsts], np.diff(firsts, append=len(keys)), gram_bits, side_bits)

    @property
    def items(self) -> np.ndarray:
        """`[rows]`"""
        return self.keys >> (self.gram_bits + self.side_bits)

    @property
    def grams(self) -> np.ndarray:
        """`[rows]`: the number of the sequence, the same in every item."""
        return (self.keys >> self.side_bits) & ((1 << self.gram_bits) - 1)

    @property
    def sides(self) -> np.ndarray:
        """`[rows]`: 0 is the prediction, n the n-th reference of the item."""
        return self.keys & ((1 << self.side_bits) - 1)

    @cached_property
    def firsts(self) -> np.ndarray:
        """`[sequences of items]`: where the rows of each begin."""
        return _firsts(self.keys >> self.side_bits)

    @cached_property
    def shared(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of references that have what their prediction has, and its row beside each."""
        first, sides = np.repeat(self.firsts, np.diff(self.firsts, append=len(self.keys))), self.sides
        rows = np.flatnonzero((sides > 0) & (sides[first] == 0))
        return rows, first[rows]

    @property
    def meant(self) -> np.ndarray:
        """The sequences that any reference of an item has, once an item."""
        lasts = np.append(self.firsts, len(self.keys))[1:] - 1
        return self.grams[lasts[self.sides[lasts] > 0]]


@dataclass(frozen=True)
class Block:
    """What some items have."""

    items: slice
    references: slice
    """Those of the items, among all."""
    counts: list[Counts]
    """By the length of the sequences, 1 to 4."""

    def right(self, order: int) -> np.ndarray:
        """`[items]`: how many of the predicted sequences are in the reference that has most of each."""
        counts = self.counts[order]
        rows, predicted = counts.shared
        both = np.minimum(counts.times[rows], counts.times[predicted])
        firsts = _firsts(predicted)
        items = counts.items[predicted[firsts]] - self.items.start
        return np.bincount(items, np.maximum.reduceat(both, firsts), minlength=self.items.stop - self.items.start)


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
    def blocks(self) -> list[Block]:
        """All items, counted by `BLOCK` items at once: what is counted fits into the processor's cache."""
        count, lengths = len(self.lengths), np.concatenate([self.lengths, self.true_lengths])
        sides = np.arange(len(self.items)) - self.first_references[self.items] + 1
        gram_bits, side_bits = len(self.words).bit_length(), int(sides.max(initial=1)).bit_length()
        owners = np.concatenate([np.arange(count), self.items]) << (gram_bits + side_bits)
        owners[count:] += sides
        owner = np.repeat(owners, lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        left = np.repeat(starts[1:], lengths) - np.arange(len(owner))  # words of the text from here on
        grams = _sequences(self.words)

        def counts(rows: np.ndarray) -> Iterator[Counts]:
            for order, gram in enumerate(grams):
                whole = rows[left[rows] > order]  # the sequence ends in the text that it begins in
                yield Counts.of(owner[whole] + (gram[whole].astype(np.int64) << side_bits), gram_bits, side_bits)

        blocks = []
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            begin, end = np.searchsorted(self.items, (first, last))
            said, true = (np.arange(starts[a], starts[b]) for a, b in ((first, last), (count + begin, count + end)))
            blocks.append(Block(slice(first, last), slice(begin, end), list(counts(np.concatenate([said, true])))))
        return blocks

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
        right = [np.concatenate([block.right(order) for block in self.blocks]) for order in range(ORDERS)]
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


def _sequences(words: np.ndarray) -> list[np.ndarray]:
    """Of 1, 2, 3 and 4 words: the number of the sequence that begins at each word, equal ones equal, in the order of
    their words. Where none is that long the number is 0."""
    size = 1 + int(words.max(initial=0))
    grams = [words]
    for order in range(1, ORDERS):
        count = max(len(words) - order, 0)
        gram = np.zeros_like(words)
        gram[:count] = _ranks(grams[-1][:count] * np.int64(size) + words[order:])
        grams.append(gram)
    return grams


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values get equal numbers, from 0 on, in their order: `unique`'s inverse in two thirds of the time."""
    order = np.argsort(values)
    ordered = values[order]
    ranks = np.zeros(len(values), dtype=np.int32)
    ranks[order[1:]] = np.cumsum(ordered[1:] != ordered[:-1], dtype=np.int32)
    return ranks


def _firsts(ascending: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    changes = ascending[1:] != ascending[:-1]
    return np.flatnonzero(np.concatenate([np.ones(min(len(ascending), 1), dtype=bool), changes]))


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


def rouge_l(
    predictions: list[str], references: list[tuple[str, ...]], beta: float = 1.2, tokenise: Tokenise = word_line
) -> np.ndarray:
    """F of the longest common subsequence; precision and recall are each the best over the references."""
    compared = Compared.of(predictions, references, tokenise)
    common, firsts = compared.common(), compared.first_references
    precision = np.maximum.reduceat(common, firsts) / np.maximum(compared.lengths, 1)
    recall = np.maximum.reduceat(common / np.maximum(compared.true_lengths, 1), firsts)
    return (1 + beta**2) * precision * recall / np.maximum(recall + beta**2 * precision, 1e-12)


def cider_d(
    predictions: list[str], references: list[tuple[str, ...]], sigma: float = 6.0, tokenise: Tokenise = word_line
) -> np.ndarray:
    """CIDEr-D (Vedantam et al., 2015): cosine of tf-idf vectors with clipped counts and a penalty on the difference of
    lengths, mean over the orders and the references, times 10. NaN for a single item: its words have no idf."""
    if len(predictions) < 2:
        return np.full(len(predictions), np.nan)
    compared = Compared.of(predictions, references, tokenise)
    similarities = np.zeros(len(compared.items))
    for order in range(ORDERS):
        similarities += _clipped_cosines(compared, order)
    differences = compared.lengths[compared.items] - compared.true_lengths
    similarities *= np.exp(-(differences**2) / (2 * sigma**2)) * 10 / ORDERS
    return np.bincount(compared.items, similarities) / np.bincount(compared.items)


def _clipped_cosines(compared: Compared, order: int) -> np.ndarray:
    """`[references]`: of the tf-idf vectors of one order. No weight of the prediction counts for more than the
    reference has of it."""
    meant = np.concatenate([block.counts[order].meant for block in compared.blocks])
    items_with = np.bincount(meant, minlength=len(compared.words))
    inverse = np.log(len(compared.lengths) / np.maximum(np.arange(items_with.max(initial=0) + 1), 1))[items_with]
    cosines = []
    for block in compared.blocks:
        counts, count = block.counts[order], block.items.stop - block.items.start
        weights = counts.times * inverse[counts.grams]
        items, sides = counts.items, counts.sides
        references = count - 1 + compared.first_references[items] - block.references.start + sides
        texts = np.where(sides > 0, references, items - block.items.start)
        lengths = np.sqrt(np.bincount(texts, weights**2, minlength=count + len(compared.items[block.references])))
        rows, predicted = counts.shared
        clipped = np.minimum(weights[predicted], weights[rows]) * weights[rows]
        common = np.bincount(texts[rows] - count, clipped, minlength=len(lengths) - count)
        product = lengths[compared.items[block.references] - block.items.start] * lengths[count:]
        cosines.append(np.divide(common, product, out=np.zeros(len(product)), where=product > 0))
    return np.concatenate(cosines)
