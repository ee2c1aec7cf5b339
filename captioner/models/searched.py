"""A decoder and its processor as a speaker: pictures → pixels → search → readings."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from PIL.Image import Image

from captioner.contracts import Decoder, Memory, Processor
from captioner.decoding import Decoding
from captioner.prompt import Candidate, Reading
from captioner.search import Found, search


class SearchedDecoder:
    """Any decoder that has its processor, ready to speak."""

    def __init__(self, model: Decoder, processor: Processor) -> None:
        self.model = model
        self.processor = processor

    @torch.inference_mode()
    def read_images(self, images: Sequence[Image], decoding: Decoding) -> list[Reading]:
        pixels = self.processor.pixels(images)
        # What a sampled text may depend on: the picture, not its place in the run.
        seeds = [zlib.crc32(picture.contiguous().numpy()) for picture in pixels] if decoding.do_sample else None
        return self.readings(self.model.read(pixels.to(self.model.device, self.model.dtype)), seeds, decoding)

    def readings(self, memory: Memory, seeds: Sequence[int] | None, decoding: Decoding) -> list[Reading]:
        """One reading per image of the memory. Seeds: one per image, needed to sample."""
        found = search(self.model, memory, self.processor, decoding, seeds)
        return [self.reading(of_image) for of_image in found]

    def reading(self, found: Sequence[Found]) -> Reading:
        """What was found for one image."""
        return Reading(tuple(Candidate(self.processor.decode(each.ids), each.score, each.finished) for each in found))
