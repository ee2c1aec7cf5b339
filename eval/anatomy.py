"""What a prompt is made of: a subject and modifiers ("a castle at night, oil painting, highly detailed").

A prompt is split at its commas. Its first term is the subject; a later term is a modifier if the corpus has it often
enough, as in PromptStealer (Shen et al., 2024). Rare terms describe one picture rather than a style, and count for
neither side: a prediction is not blamed for them, nor is it expected to guess them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from captioner.errors import BadInput
from captioner.text.terms import clean_term, read_terms

LEAST = 10
"""How often a term must be seen in the corpus to count as a modifier."""
TALLIED = 12
"""Modifiers that are listed, of those that a model misses or invents."""
COMMA = re.compile("[,，、]")
_PLAIN = re.compile(r"[a-z]+(?:(?:,? |['-])[a-z]+)*")
"""Letters and single spaces, nothing in it to be cleaned."""


@dataclass(frozen=True)
class Anatomy:
    """A prompt, taken apart."""

    subject: str
    """The first term, as it is written."""
    terms: tuple[str, ...]
    """Every later term, each once: lower-case, without weights and brackets, without a leading "by"."""


@lru_cache(maxsize=2**16)
def split(prompt: str) -> Anatomy:
    """Subject and later terms; a text without a comma is all subject."""
    folded = prompt.casefold()
    if _PLAIN.fullmatch(folded):  # most are: a third of the time
        later = folded.split(", ")[1:]
        return Anatomy(prompt.split(", ", 1)[0], tuple(dict.fromkeys(term.removeprefix("by ") for term in later)))
    parts = [" ".join(part.split()) for part in COMMA.split(prompt)]
    parts = [part for part in parts if part]
    if not parts:
        return Anatomy("", ())
    return Anatomy(parts[0], tuple(dict.fromkeys(filter(None, map(normalise, parts[1:])))))


def normalise(term: str) -> str:
    """A term as it compares: "By ((Greg Rutkowski:1.2))" is "greg rutkowski"."""
    return re.sub(r"^by\s+", "", clean_term(" ".join(term.casefold().split())))


@dataclass(frozen=True)
class Vocabulary:
    """Which terms are modifiers."""

    terms: frozenset[str] | None
    """None: every term behind the subject."""
    rule: str
    """In words, for the reader of a report."""

    def modifiers(self, prompt: str) -> frozenset[str]:
        """The modifiers of one prompt."""
        terms = frozenset(split(prompt).terms)
        return terms if self.terms is None else terms & self.terms

    def overlap(self, prediction: str, truths: Iterable[str]) -> Overlap:
        """The modifiers of a prediction against those of the true prompt that is most alike."""
        predicted = self.modifiers(prediction)
        return max((Overlap(predicted, self.modifiers(truth)) for truth in truths), key=lambda o: o.jaccard)


EVERY_TERM = Vocabulary(None, "every comma term behind the subject")


def from_corpus(prompts: Iterable[str], least: int = LEAST) -> Vocabulary:
    """The terms that at least so many prompts have; a prompt counts as often as it comes.

    A corpus too small to have any such term cannot tell modifiers from the rest: then every term counts.
    """
    counts: Counter[str] = Counter()
    total = 0
    for prompt in prompts:
        counts.update(split(prompt).terms)
        total += 1
    frequent = frozenset(term for term, count in counts.items() if count >= least)
    if not frequent:
        return Vocabulary(None, f"{EVERY_TERM.rule}: none is in {least} of the {total:,} prompts")
    return Vocabulary(
        frequent, f"the {len(frequent):,} comma terms that at least {least} of the {total:,} prompts have"
    )


def from_file(file: Path) -> Vocabulary:
    """A list: one term a line, a table of `captioner terms mine`, or a CSV with a column `keyword`."""
    terms = _keywords(file) if file.suffix.lower() == ".csv" else read_terms(file)
    normal = frozenset(filter(None, map(normalise, terms)))
    return Vocabulary(normal, f"the {len(normal):,} terms of {file.name}")


def _keywords(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if "keyword" not in (rows.fieldnames or ()):
                raise BadInput(f"{file} has no column keyword: name such a CSV, or a text file with one term a line.")
            return [row["keyword"] or "" for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"The modifiers {file} cannot be read ({error}).") from error


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """The modifiers of a prediction, or other parts of it, against those of a true prompt."""

    predicted: frozenset[str]
    true: frozenset[str]

    @property
    def jaccard(self) -> float:
        return len(self.predicted & self.true) / max(len(self.predicted | self.true), 1)

    @property
    def precision(self) -> float:
        return len(self.predicted & self.true) / max(len(self.predicted), 1)

    @property
    def recall(self) -> float:
        return len(self.predicted & self.true) / max(len(self.true), 1)

    @property
    def f1(self) -> float:
        return 2 * len(self.predicted & self.true) / max(len(self.predicted) + len(self.true), 1)

    @property
    def empty(self) -> bool:
        """Neither side has any: there is nothing to measure."""
        return not (self.predicted or self.true)


@dataclass(frozen=True)
class Tally:
    """One modifier that a model misses or invents."""

    modifier: str
    count: int
    """Pictures where it was missed (or invented) …"""
    of: int
    """… of those whose prompt has it (or that it was predicted for)."""


def tally(
    predictions: Sequence[str | None], truths: Sequence[tuple[str, ...]], vocabulary: Vocabulary
) -> tuple[list[Tally], list[Tally]]:
    """The modifiers most often missed and most often invented. Of several true texts the most alike counts."""
    missed: Counter[str] = Counter()
    invented: Counter[str] = Counter()
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for text, of_item in zip(predictions, truths, strict=True):
        if text is None or not of_item:
            continue
        best = vocabulary.overlap(text, of_item)
        true.update(best.true)
        predicted.update(best.predicted)
        missed.update(best.true - best.predicted)
        invented.update(best.predicted - best.true)
    return _highest(missed, true), _highest(invented, predicted)


def _highest(counts: Counter[str], totals: Counter[str]) -> list[Tally]:
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TALLIED]
    return [Tally(modifier, count, totals[modifier]) for modifier, count in order]
