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

from captioner import compute
from captioner.models.parts.attention import TextCache

Write: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[Tensor]], Tensor]
"""(tokens `[rows, 1]`, their position `[1]`, all layers' words, the places of the newest, unseen, memory) → logits
`[rows, vocabulary]`. Words, places and unseen are what `attend_shared` wants."""


class RecordedStep:
    """One more word of every text: so many texts of so many images, with room for so many words, over a memory of these
    sizes.

    An image's texts share one room, in which word p of its text t is at p · texts + t, and each sees what is its own:
    a room for every text would have to be gathered anew at each step, which took longer than the attention.
    """

    def __init__(self, write: Write, like: TextCache, images: int, memory: Sequence[Tensor], room: int) -> None:
        rows, device = len(like.places), like.places.device
        layers, _, *sizes = like.words.shape
        self.images, self.texts, self.room = images, rows // images, room
        self.memory = [torch.empty_like(part) for part in memory]
        self.words = like.words.new_zeros(layers, images, room * self.texts, *sizes)
        self.unseen = like.words.new_full((rows, room * self.texts), -torch.inf)
        """0 where a text sees a word."""
        self.order = torch.arange(rows, device=device)
        self.parents = self.order.clone()
        """Of each text, the row in which it was at the last step."""
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.replay = compute.recorded(partial(self._step, write), device)

    def begin(self, past: TextCache, memory: Sequence[Tensor]) -> None:
        """Take over texts, and what depends on their images."""
        for own, given in zip(self.memory, memory, strict=True):
            own.copy_(given)
        self.words.zero_()  # what is not seen counts nothing, but where it is no number
        length = past.length
        places = past.places.view(self.images, self.texts, length).transpose(1, 2).flatten()
        self.words[:, :, : length * self.texts] = past.words[:, places].unflatten(1, (self.images, -1))
        self.unseen.fill_(-torch.inf)
        of_texts = self.unseen.view(self.images, self.texts, self.room, self.texts)
        of_texts.diagonal(dim1=1, dim2=3)[:, :length] = 0
        self.parents.copy_(self.order)
        self.position.fill_(length)

    def fits(self, past: TextCache, images: int, memory: Sequence[Tensor]) -> bool:
        """Can it take over these?"""
        return (
            (images, len(past.places)) == (self.images, len(self.order))
            and past.length < self.room
            and [part.shape for part in memory] == [part.shape for part in self.memory]
        )

    def places(self, length: int) -> Tensor:
        """Where the words of every text are, among those of all images `[rows, length]`."""
        seen = (self.unseen[self.parents] == 0).nonzero()[:, 1].view(-1, length)
        return seen + (self.order // self.texts * self.words.shape[2])[:, None]

    def _step(self, write: Write) -> Tensor:
        newest = self.position * self.texts + self.order % self.texts  # the place of every row's
        self.unseen.copy_(self.unseen[self.parents].scatter_(1, newest[:, None], 0.0))
        self.parents.copy_(self.order)
        logits = write(self.tokens, self.position, self.words, newest[: self.texts], self.unseen, self.memory)
        self.position.add_(1)
        return logits


class RecordedTexts(TextCache):
    """Texts that go on by a recorded step alone, theirs until they are gone; where their words are, it knows."""

    def __init__(self, step: RecordedStep, length: int) -> None:
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
        """These rows alone, in this order, each at its image. Other than as many as before leave the recording."""
        if len(rows) != len(self.step.order):
            return self.copy().select(rows)
        self.step.parents.copy_(self.step.parents[rows])
        return self

    def copy(self) -> TextCache:
        """The texts in memory of their own."""
        places = self.step.places(self.length)
        words = self.step.words.flatten(1, 2)[:, places.flatten()]
        return TextCache(words, torch.arange(words.shape[1], device=words.device).view(places.shape), words.shape[1])


class Recordings:
    """The recorded steps of one decoder."""

    KEPT = 8
    """Steps that wait for texts of their sizes. Each holds as much memory as the memory of its images."""
    ROOM = 32
    """Words for which a step has room, or a multiple of it."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self.lending: compute.Lending[RecordedStep] = compute.Lending(self.KEPT)

    def step(
        self, tokens: Tensor, images: int, memory: Sequence[Tensor], past: TextCache
    ) -> tuple[Tensor, RecordedTexts]:
        """Read one more token of every text `[rows, 1]` of so many images, as `Decoder.step` does."""
        if not isinstance(past, RecordedTexts):
            past = self._take_over(past, images, memory)
        elif past.length == past.step.room:
            past = self._take_over(past.copy(), images, memory)
        return past.write(tokens), past

    def _take_over(self, past: TextCache, images: int, memory: Sequence[Tensor]) -> RecordedTexts:
        room = (past.length // self.ROOM + 1) * self.ROOM
        step = self.lending.take(
            lambda kept: kept.fits(past, images, memory),
            lambda: RecordedStep(self.write, past, images, memory, room),
        )
        step.begin(past, memory)
        texts = RecordedTexts(step, past.length)
        weakref.finalize(texts, self.lending.give_back, step).atexit = False
        return texts
