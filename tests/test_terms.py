"""Comma terms that are compared and merged."""

from __future__ import annotations

import pytest

from captioner.terms import merged


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("a cat, red", "Red,  A  cat, 8k", "a cat, red, 8k"),
        ("a cat, whiskers", "a cat", "a cat, whiskers"),
        ("whiskers", "a cat", "whiskers, a cat"),
        ("a cat", "a cat's whiskers, a, cat", "a cat, a cat's whiskers, a, cat"),
        ("a,cat,,\na dog ", "a  dog, b", "a,cat,,\na dog, b"),
        ("A cat sits on a mat.", "red, 8k", "A cat sits on a mat. red, 8k"),
        ("a cat,", "red", "a cat, red"),
        ("A cat.", ":d, red", "A cat. :d, red"),
        ("1girl, ...", "hat", "1girl, ..., hat"),
        ("1girl, sky", ";), d:", "1girl, sky, ;), d:"),
        ("1girl, ?, d:", "hat", "1girl, ?, d:, hat"),
        ("1girl, long_hair, fate_(series)", "long hair, fate (series), hat", "1girl, long_hair, fate_(series), hat"),
        (r"fate \(series\), hat", "fate (series), 1girl", r"fate \(series\), hat, 1girl"),
        ("", "a cat, a cat", "a cat, a cat"),
        ("a cat", "", "a cat"),
    ],
)
def test_two_texts_are_merged_without_saying_a_term_twice(first: str, second: str, both: str) -> None:
    assert merged(first, second) == both
