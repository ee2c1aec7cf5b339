"""Words that must not, or must, be written: what `Decoding.forbid` and `Decoding.require` mean to the search."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from captioner.contracts import Processor
from captioner.errors import BadInput

PLAUSIBLE = 5
"""A required word is begun where its first token is among so many likeliest ones."""


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


class RequireWords(LogitsProcessor):
    """Keep a text from ending before it contains every word.

    A missing word is begun where its first token is plausible, after a comma, where the text would end, or where the
    room just holds what is missing; once begun it is completed. Words are looked for in the decoded text, so any
    spelling counts, and a piece glued to a word ("hat" + "ter") makes it missing again.
    """

    def __init__(self, words: Sequence[str], processor: Processor, max_new_tokens: int) -> None:
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.words = {word: processor.encode(" " + word) for word in words}
        self.patterns = {}
        for word, ids in self.words.items():
            if not _writes(processor, ids, word):
                raise BadInput(f"This model's vocabulary cannot write the required word {word!r}.")
            spellings = "|".join(re.escape(spelling) for spelling in (word, processor.decode(ids).strip()))
            self.patterns[word] = re.compile(rf"(?<!\w)(?:{spellings})(?!\w)", re.IGNORECASE)
        if sum(map(len, self.words.values())) > max_new_tokens:
            raise BadInput(f"{', '.join(words)} do not fit into {max_new_tokens} new tokens: raise max_new_tokens.")
        self.comma = processor.encode(",")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        eos = list(self.processor.eos_ids)
        likeliest = scores.topk(min(PLAUSIBLE, scores.shape[1])).indices.tolist()
        for row, ids in enumerate(input_ids[:, len(self.processor.start_ids) :].tolist()):
            missing, token = self._next(ids, likeliest[row])
            if token is not None:
                own = scores[row, token].clamp(min=-100.0)  # even where another rule forbids it
                scores[row] = -torch.inf
                scores[row, token] = own
            elif missing:
                scores[row, eos] = -torch.inf
        return scores

    def _next(self, ids: list[int], likeliest: list[int]) -> tuple[list[str], int | None]:
        """The words that are missing, and the token that must come next, if one must."""
        text = self.processor.decode(ids).strip()
        missing = [word for word, pattern in self.patterns.items() if not pattern.search(text)]
        room = self.max_new_tokens - len(ids)
        for word in missing:
            if (begun := _overlap(ids, self.words[word])) > 0:
                return missing, self.words[word][begun]
        # A word at the very end of the text may still be lost to a glued piece: keep room to write it again.
        found = {word: pattern.search(text) for word, pattern in self.patterns.items() if word not in missing}
        fragile = [word for word, match in found.items() if match.end() == len(text)]
        tight = sum(len(self.words[word]) for word in missing + fragile) >= room
        if not missing:
            return missing, self.processor.eos_ids[0] if tight else None
        firsts = [self.words[word][0] for word in missing]
        if tight or ids[-1:] == self.comma:
            return missing, firsts[0]
        plausible = next((token for token in firsts if token in likeliest), None)
        if plausible is not None or likeliest[0] not in self.processor.eos_ids:
            return missing, plausible
        return missing, self.comma[0] if ids and len(self.comma) == 1 else firsts[0]


def _overlap(ids: list[int], word: list[int]) -> int:
    """How many tokens of the word the text ends with; 0 if it has not begun."""
    return next((n for n in range(len(word) - 1, 0, -1) if ids[-n:] == word[:n]), 0)


def _writes(processor: Processor, ids: list[int], word: str) -> bool:
    """Do these ids spell the word? A small vocabulary may only know it as unknown."""
    return re.sub(r"\W", "", processor.decode(ids)).lower() == re.sub(r"\W", "", word).lower()
