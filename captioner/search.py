"""One search for every decoder: greedy, beam and sampling over the `read`/`step` contract."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.contracts import Decoder, Memory, Processor
from captioner.decoding import Decoding


@dataclass(frozen=True)
class Found:
    """One text that the search found."""

    ids: list[int]
    """Generated ids, without the start, the end token and padding."""
    score: float
    finished: bool


def search(decoder: Decoder, memory: Memory, processor: Processor, decoding: Decoding) -> list[list[Found]]:
    """For every image of the memory, `num_return_sequences` texts, best first."""
    raise NotImplementedError
