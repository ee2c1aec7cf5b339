"""A decoder and its processor as a speaker: pictures → pixels → search → readings."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Generic

import torch
from PIL.Image import Image
from torch import Tensor

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, Attentive, Decoder, MemoryType, Processor, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadCheckpoint, BadInput
from captioner.prompt import Candidate, Reading
from captioner.search.search import Hypothesis, search


class SearchedDecoder(Generic[MemoryType]):
    """Any decoder that has its processor, ready to speak."""

    uses = frozenset({"prompt"})

    def __init__(self, model: Decoder[MemoryType, Any], processor: Processor, positions: int | None = None) -> None:
        self.model = model
        self.processor = processor
        self.positions = positions
        """Tokens of a text, its start among them, that the model can read; None: any number."""

    @property
    def longest(self) -> int | None:
        """New tokens that it can write."""
        return longest_after(self.positions, len(self.processor.start_ids))

    @compute.inference_mode()
    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        squares, scaled = self._squares(images), self.processor.preprocess.scaled
        seeds = None
        if self.model.device.type == "cpu":
            pixels = scaled(squares)
            if decoding.do_sample:
                seeds = compute.each_alone(seed_of, list(pixels))
        else:
            pixels = scaled(compute.sent(squares, self.model.device), self.model.dtype)
            if decoding.do_sample:  # of the same float32 pixels, which are nowhere else here
                seeds = compute.each_alone(lambda square: seed_of(scaled(square)[0]), squares.split(1))
        return self.readings(self.remember(self.encode(pixels, request), request), seeds, decoding, request)

    @property
    def at_once(self) -> int:
        """Batches that it may be asked about in threads: while a GPU reads one, the processor makes the next ready."""
        return 2 if compute.has_room_for_another(self.model.device) else 1

    def ready(self, image: Image) -> Image:
        """A picture of which it reads the same, resized already if that can be: who opens many does it in threads.

        Not for a GPU: sixteen threads that also resize keep the one that launches kernels waiting for Python longer.
        """
        return self.processor.preprocess.ready(image) if self.model.device.type == "cpu" else image

    def _squares(self, images: Sequence[Image]) -> Tensor:
        """All at once; for a GPU, which would wait for one core to resize them, side by side."""
        squares = self.processor.preprocess.squares
        if self.model.device.type == "cpu":
            return squares(images)
        return torch.cat(list(compute.side_by_side().map(lambda image: squares([image]), images)))

    @compute.inference_mode()
    def encode(self, pixels: Tensor, request: Request = PLAIN_REQUEST) -> Tensor:
        """The image encoder alone, one row a picture: it depends on no more of a request than `encoded_by` says."""
        return self.model.encode(pixels.to(self.model.device, self.model.dtype))

    def encoded_by(self, request: Request) -> Hashable:
        """What of a request the encoder looks at."""
        return None

    @compute.inference_mode()
    def read_features(
        self, features: Tensor, seeds: Sequence[int] | None, decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        """As `read_images`, of pictures that are encoded already."""
        return self.readings(self.remember(features, request), seeds, decoding, request)

    def remember(self, features: Tensor, request: Request = PLAIN_REQUEST) -> MemoryType:
        """All else that can be known before the first word is written."""
        return self.model.remember(features)

    def look(self, pixels: Tensor, ids: Sequence[int], request: Request = PLAIN_REQUEST) -> Tensor:
        """Where the model looked as it wrote this text (see contracts.py), if it attends to regions."""
        if not isinstance(self.model, Attentive):
            raise BadInput("This model has no attention over the picture: use blip, ofa or resnet-lstm.")
        return self.model.look(pixels, ids)

    def readings(
        self, memory: MemoryType, seeds: Sequence[int] | None, decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        """One reading per image of the memory. Seeds: one per image, needed to sample."""
        processor = self.beginning(request.prompt)
        start = len(processor.start_ids)
        decoding = within_positions(self.positions, start, decoding, request)
        return [self.reading(hypotheses) for hypotheses in search(self.model, memory, processor, decoding, seeds)]

    def beginning(self, prompt: str | None) -> Processor:
        """The processor, whose texts begin with this prompt."""
        if not prompt:
            return self.processor
        processor = copy(self.processor)
        processor.start_ids = [*self.processor.start_ids, *self.processor.encode(prompt)]
        return processor

    def reading(self, hypotheses: Sequence[Hypothesis]) -> Reading:
        """The texts of one image."""
        if not all(math.isfinite(text.score) for text in hypotheses):
            raise BadCheckpoint("The model answers with numbers that are none (NaN): its weights are damaged.")
        return Reading(
            tuple(Candidate(self.processor.decode(text.ids), text.score, text.finished) for text in hypotheses)
        )


def seed_of(pixels: Tensor) -> int:
    """What a sampled text may depend on: the picture `[3, h, w]`, not its position in a run."""
    return zlib.crc32(pixels.contiguous().numpy().data)


def longest_after(positions: int | None, start: int) -> int | None:
    """New tokens for which there are positions after a start of so many: the last of them is never read."""
    return None if positions is None else max(0, positions - start + 1)


def within_positions(positions: int | None, start: int, decoding: Decoding, request: Request) -> Decoding:
    """The settings of a search whose texts do not outgrow the positions that a model was trained with.

    A limit that the request names is refused where it lies beyond them; the model's own gives way.

    Args:
        positions: tokens of a text, its start among them, that the model can read; None: any number.
        start: tokens that a text begins with.
    """
    longest = longest_after(positions, start)
    if longest is None or decoding.max_new_tokens <= longest:
        return decoding
    name, number = "max_new_tokens", decoding.max_new_tokens
    if isinstance(request.decoding, DecodingChanges) and request.decoding.max_new_tokens is None:
        if longest >= max(1, decoding.min_new_tokens):
            return replace(decoding, max_new_tokens=longest)
        name, number = "min_new_tokens", max(1, decoding.min_new_tokens)
    after = f" after a start of {start:,}" if start > 1 else ""
    raise BadInput(
        f"This model writes at most {longest:,} tokens{after}, and {name} is {number:,}. "
        + ("Lower it." if longest else "Shorten the start.")
    )
