"""Words that must not be written: what `Decoding.forbid` means to the search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """A processor's ways to spell (see contracts.Processor)."""

    def encode(self, text: str) -> list[int]:
        """Text → ids without any special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""


def forbidden_sequences(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ways a tokenizer writes these words: as given, in lower case, capitalised, with or without a space before."""
    sequences = []
    for word in words:
        for spelling in dict.fromkeys((word, word.lower(), word.capitalize())):
            for space in (" ", ""):
                ids = tokenizer.encode(space + spelling)
                if ids not in sequences and _writes(tokenizer, ids, word):
                    sequences.append(ids)
    return sequences


def _writes(tokenizer: Tokenizer, ids: list[int], word: str) -> bool:
    """Do these ids spell the word? A small vocabulary may only know it as unknown."""
    written, wanted = (re.sub(r"\s", "", text).lower() for text in (tokenizer.decode(ids), word))
    return written == wanted
