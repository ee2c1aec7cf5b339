"""What a searched decoder is given of pictures: squares, and the seeds of sampled texts."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from captioner.contracts import LoadOptions
from captioner.decoding import Decoding
from captioner.models import blip
from captioner.models.blip import Blip
from captioner.models.parts.speaker import SearchedDecoder
from tests.decoders import pictures


@pytest.fixture
def speaker(tiny_checkpoint: Callable[[str], Path]) -> SearchedDecoder:
    return blip.load(tiny_checkpoint("blip"), LoadOptions(device="cpu", precision="bf16"))


def test_seeds_are_of_the_float32_pixels_and_only_for_samples(
    speaker: SearchedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, images = [], pictures(5)
    monkeypatch.setattr(speaker, "readings", lambda memory, seeds, decoding, request: given.append(seeds) or [])
    for samples in (True, False):
        speaker.read_images(images, Decoding(do_sample=samples))
    pixels = speaker.processor.images(images, return_tensors="pt").pixel_values.numpy()
    assert given == [[zlib.crc32(picture.tobytes()) for picture in pixels], None]


def test_squares_for_a_gpu_are_those_of_a_cpu(speaker: SearchedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """There they are made side by side; where the model computes is all that is looked at."""
    at_once = speaker._squares(pictures(5))
    monkeypatch.setattr(Blip, "device", torch.device("meta"))
    assert torch.equal(speaker._squares(pictures(5)), at_once)
