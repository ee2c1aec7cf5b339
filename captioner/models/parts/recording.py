"""A text decoder's step on an NVIDIA GPU: all that it reads and writes stays at its place, so that it can be recorded.

Left to itself, a step launches some hundred kernels, each of which is done sooner than Python launches the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.compute.recorded import recorded
from captioner.models.parts.attention import TextCache

Write: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[Tensor]], Tensor]
"""(tokens `[rows, 1]`, their position `[1]`, words and places of a `TextCache`, unseen, memory) → logits
`[rows, vocabulary]`. unseen is a bias `[1, 1, length]` of the attention to the text, for the words stand at the end of
their room."""


class RecordedStep:
    """One more word of every text: so many texts, with room for so many words, over a memory of these sizes."""

    def __init__(self, write: Write, like: TextCache, memory: Sequence[Tensor], room: int) -> None:
        rows, device = len(like.places), like.places.device
        layers, _, *sizes = like.words.shape
        self.memory = [torch.empty_like(part) for part in memory]
        self.words = like.words.new_zeros(layers, room * rows, *sizes)  # word p of row r is at p · rows + r
        self.places = torch.zeros(rows, room, dtype=torch.long, device=device)
        self.order = torch.arange(rows, device=device)
        self.parents = self.order.clone()
        """Of each text, the row in which it was at the last step."""
        self.tokens = self.places.new_zeros(rows, 1)
        self.position = self.places.new_zeros(1)
        self.replay = recorded(partial(self._step, write), device)

    @property
    def room(self) -> int:
        return self.places.shape[1]

    def begin(self, past: TextCache, memory: Sequence[Tensor]) -> None:
        """Take over texts, and what depends on their images."""
        for own, given in zip(self.memory, memory, strict=True):
            own.copy_(given)
        rows, length = past.places.shape
        places = torch.arange(length * rows, device=self.places.device)
        self.words[:, places] = past.words[:, past.places.t().flatten()]
        self.places.zero_()
        self.places[:, self.room - length :] = places.view(length, rows).t()
        self.parents.copy_(self.order)
        self.position.fill_(length)

    def fits(self, past: TextCache, memory: Sequence[Tensor]) -> bool:
        """Can it take over these?"""
        return (
            past.places.shape[0] == len(self.order)
            and past.length < self.room
            and [part.shape for part in memory] == [part.shape for part in self.memory]
        )

    def _step(self, write: Write) -> Tensor:
        rows, room = self.places.shape
        newest = self.position * rows + self.order
        self.places.copy_(torch.cat((self.places[self.parents, 1:], newest[:, None]), dim=1))
        self.parents.copy_(self.order)
        empty = torch.arange(room, device=self.places.device) < room - 1 - self.position
        unseen = self.words.new_zeros(1, 1, room).masked_fill(empty, -torch.inf)
        logits = write(self.tokens, self.position, self.words, self.places, unseen, self.memory)
        self.position.add_(1)
        return logits


class RecordedTexts(TextCache):
    """Texts that go on by a recorded step alone, which is theirs until they are gone."""

    def __init__(self, step: RecordedStep, length: int) -> None:
        super().__init__(step.words, step.places, step.words.shape[1])
        self.step = step
        self._length = length

    @property
    def length(self) -> int:
        return self._length

    def write(self, tokens: Tensor) -> Tensor:
        """Read one more token of every text `[rows, 1]`: the logits after it."""
        self.step.tokens.copy_(tokens)
        self._length += 1
        return self.step.replay()

    def select(self, rows: Tensor) -> TextCache:
        """These rows alone, in this order; other than as many as before leave the recording."""
        if len(rows) != len(self.step.order):
            return self.copy().select(rows)
        self.step.parents.copy_(self.step.parents[rows])
        return self

    def copy(self) -> TextCache:
        """The texts in memory of their own."""
        places = self.places[self.step.parents, self.step.room - self.length :]
        words = self.words[:, places.flatten()]
        return TextCache(words, torch.arange(words.shape[1], device=words.device).view(places.shape), words.shape[1])


class Recordings:
    """The recorded steps of one decoder. Each is lent to one search at a time, so that threads stay apart."""

    KEPT = 8
    """Steps that wait for texts of their sizes. Each holds as much memory as the memory of its images."""
    ROOM = 32
    """Words for which a step has room, or a multiple of it."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self.waiting: list[RecordedStep] = []

    def step(self, tokens: Tensor, memory: Sequence[Tensor], past: TextCache) -> tuple[Tensor, RecordedTexts]:
        """Read one more token of every text `[rows, 1]`, as `Decoder.step` does."""
        if not isinstance(past, RecordedTexts):
            past = self._take_over(past, memory)
        elif past.length == past.step.room:
            past = self._take_over(past.copy(), memory)
        return past.write(tokens), past

    def _take_over(self, past: TextCache, memory: Sequence[Tensor]) -> RecordedTexts:
        step = self._lend(past, memory)
        step.begin(past, memory)
        texts = RecordedTexts(step, past.length)
        weakref.finalize(texts, self._give_back, step).atexit = False
        return texts

    def _lend(self, past: TextCache, memory: Sequence[Tensor]) -> RecordedStep:
        for index, step in enumerate(self.waiting):
            if step.fits(past, memory):
                return self.waiting.pop(index)
        room = (past.length // self.ROOM + 1) * self.ROOM
        try:
            return RecordedStep(self.write, past, memory, room)
        except torch.cuda.OutOfMemoryError:
            self.waiting.clear()  # a smaller batch that is tried next finds what they held
            raise

    def _give_back(self, step: RecordedStep) -> None:
        self.waiting.insert(0, step)
        del self.waiting[self.KEPT :]
