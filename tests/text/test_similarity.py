"""Measures of letters against difflib's and the definition."""

import difflib
import random
import tracemalloc
from functools import cache

import pytest
from rapidfuzz.distance import Indel

from captioner.text.similarity import indel_ratio, quick_ratios


@cache
def every_character() -> list[str]:
    return [chr(c) for c in range(0x110000)]  # lone surrogates too


def random_texts(count: int, seed: int) -> list[str]:
    """Short and long strings over a small alphabet, all of Unicode, and everything between."""
    chance = random.Random(seed)
    alphabets = ["ab ", "abcdefghij ,", "äöüßéñ猫犬🐈", every_character()]
    return [
        "".join(chance.choices(chance.choice(alphabets), k=chance.choice([0, 1, 5, 30, 260]))) for _ in range(count)
    ]


@cache
def random_pairs() -> tuple[list[str], list[str]]:
    return random_texts(3000, 1), random_texts(3000, 2)


def test_quick_ratio_is_difflibs() -> None:
    theirs = [
        difflib.SequenceMatcher(None, a, b, autojunk=False).quick_ratio() for a, b in zip(*random_pairs(), strict=True)
    ]
    assert quick_ratios(*random_pairs()).tolist() == theirs
    assert len(set(theirs)) > 50
    for a, b, ratio in zip(*random_pairs(), theirs[:100], strict=False):  # each in a table of its own
        assert quick_ratios([a], [b]) == ratio


def test_quick_ratio_of_a_large_alphabet_stays_small_in_memory() -> None:
    texts = ["".join(every_character()[first:300_000:64]) for first in range(64)]
    tracemalloc.start()
    assert quick_ratios(texts, texts[1:] + texts[-1:]).tolist() == [0.0] * 63 + [1.0]
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()


def test_indel_ratio_is_the_definition() -> None:
    for a, b, ratio in zip(*random_pairs(), indel_ratio(*random_pairs()), strict=True):
        total = len(a) + len(b)
        assert ratio == pytest.approx((total - Indel.distance(a, b)) / total if total else 1, abs=1e-12)
