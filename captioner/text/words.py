"""Words that a finished text must, or must not, contain. Any spelling counts, in whole words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from captioner.text.clean import drop_dangling, tidy


def holds(text: str, word: str) -> bool:
    """Is this word in the text?"""
    return _pattern([word]).search(text) is not None


def with_words(text: str, words: Sequence[str]) -> str:
    """The text with each word that it lacks as a comma term at its end: "a cat", ["8k"] → "a cat, 8k"."""
    missing = [word for word in words if not holds(text, word)]
    return ", ".join([*([text] if text else []), *missing])


def without_words(text: str, words: Sequence[str]) -> str:
    """The text without the comma terms that hold one of the words; of the first term, its subject, only the words go.

    A search that avoids a word's usual tokens can still spell it by others, and cleaning can join its parts.
    """
    if not words or not (pattern := _pattern(words)).search(text):
        return text
    subject, *terms = text.split(",")
    rest = tidy(pattern.sub(" ", subject))
    if subject.split()[-1:] != rest.split()[-1:]:
        rest = drop_dangling(rest)  # "a city in neon" → "a city"
    return tidy(",".join([rest, *(term for term in terms if not pattern.search(term))]))


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(_escape, words))})(?!\w)", re.IGNORECASE)


def _escape(words: str) -> str:
    return r"\s+".join(map(re.escape, words.split()))
