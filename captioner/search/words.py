"""Words that must not be written: what `Decoding.forbid` means to the search."""

from __future__ import annotations

import re
from collections.abc import Sequence

from captioner.contracts import Processor


def forbidden_sequences(words: Sequence[str], processor: Processor) -> list[list[int]]:
    """The ways a tokenizer writes these words: as given, in lower case, capitalised, with or without a space before."""
    sequences = []
    for word in words:
        for spelling in dict.fromkeys((word, word.lower(), word.capitalize())):
            for space in (" ", ""):
                ids = processor.encode(space + spelling)
                if ids not in sequences and _writes(processor, ids, word):
                    sequences.append(ids)
    return sequences


def _writes(processor: Processor, ids: list[int], word: str) -> bool:
    """Do these ids spell the word? A small vocabulary may only know it as unknown."""
    written, wanted = (re.sub(r"\s", "", text).lower() for text in (processor.decode(ids), word))
    return bool(ids) and written == wanted
