"""A decoder and its processor as a speaker: pictures → pixels → search → readings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image

from captioner.contracts import Decoder, Processor
from captioner.decoding import Decoding
from captioner.prompt import Candidate, Reading
from captioner.search import search


class SearchedDecoder:
    """Any decoder that has its processor, ready to speak."""

    def __init__(self, model: Decoder, processor: Processor) -> None:
        self.model = model
        self.processor = processor

    @torch.inference_mode()
    def read_images(self, images: Sequence[Image], decoding: Decoding) -> list[Reading]:
        weight = next(self.model.parameters())
        pixels = self.processor.pixels(images).to(weight.device, weight.dtype)
        found = search(self.model, self.model.read(pixels), self.processor, decoding)
        return [Reading(tuple(self._candidate(f) for f in of_image)) for of_image in found]

    def _candidate(self, found) -> Candidate:
        return Candidate(self.processor.decode(found.ids), found.score, found.finished)
