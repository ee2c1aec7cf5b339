"""Pixels: the bytes of a square, and what becomes of every byte on any device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from captioner.errors import BadCheckpoint
from captioner.models.parts.backbones.preprocess import CLIP, HALF, IMAGENET, Preprocess, Scale
from tests.decoders import DEVICES

BYTES = torch.arange(3 * 256).view(1, 16, 16, 3).roll(1, 1).to(torch.uint8)
"""Every byte in every channel."""


@pytest.mark.parametrize(
    "scale", [CLIP, IMAGENET, {"mean": HALF, "std": HALF}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_every_byte_becomes_the_same_on_every_device(scale: Scale, dtype: torch.dtype, device: str) -> None:
    assert all(len(BYTES[..., channel].unique()) == 256 for channel in range(3))
    squares = torch.cat((BYTES, BYTES.flip(1)))
    mean, std = (torch.tensor(scale[name])[:, None, None] for name in ("mean", "std"))
    expected = ((squares.permute(0, 3, 1, 2).float() / 255 - mean) / std).to(dtype)
    preprocess = Preprocess(16, **scale)
    assert torch.equal(preprocess.scaled(squares, dtype), expected)
    assert torch.equal(preprocess.looked_up(squares.to(device), dtype).cpu(), expected)
    assert torch.equal(preprocess.scaled(squares.to(device), dtype).cpu(), expected)


def test_pixels_are_scaled_squares() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise[:, ::-1])]
    preprocess = Preprocess(48, 56, **IMAGENET)
    squares = preprocess.squares(images)
    assert (squares.shape, squares.dtype) == ((2, 48, 48, 3), torch.uint8)
    pixels = preprocess(images)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 48, 48), torch.float32)
    assert torch.equal(pixels, preprocess.scaled(squares))
    assert torch.equal(preprocess([images[1]])[0], pixels[1])


@pytest.mark.parametrize(("shortest", "ready"), [(None, (48, 48)), (48, (48, 48)), (56, (101, 70))])
def test_a_picture_that_is_ready_stays_as_it_is(shortest: int | None, ready: tuple[int, int]) -> None:
    """Cut from the middle of something larger, it would be enlarged and cut again."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8))
    preprocess = Preprocess(48, shortest)
    once = preprocess.ready(image)
    assert once.size == ready
    assert torch.equal(preprocess.squares([once]), preprocess.squares([image]))
    assert preprocess.ready(once) is once


@pytest.mark.parametrize("squashed", [{"height": 40, "width": 40}, {"height": 32, "width": 32}])
@pytest.mark.parametrize("processor", [CLIPImageProcessorPil, DeiTImageProcessorPil])
def test_what_is_squashed_before_it_is_cut_is_squashed_here(processor: type, squashed: dict, tmp_path: Path) -> None:
    theirs = processor(size=squashed, crop_size={"height": 32, "width": 32})
    theirs.save_pretrained(tmp_path)
    ours = Preprocess.from_folder(tmp_path, Preprocess(1))
    noise = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise[:5])):
        assert torch.equal(ours([image]), theirs(image, return_tensors="pt").pixel_values)
    assert Preprocess.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parametrize("settings", [{"do_rescale": False}, {"do_resize": False}, {"rescale_factor": 1 / 127.5}])
def test_pixels_that_it_cannot_make_are_refused(settings: dict, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, **settings}))
    with pytest.raises(BadCheckpoint, match="does not resize, or scales otherwise"):
        Preprocess.from_folder(tmp_path, Preprocess(32))


def test_it_survives_json() -> None:
    preprocess = Preprocess(224, 256, **IMAGENET)
    assert Preprocess.from_dict(json.loads(json.dumps(asdict(preprocess)))) == preprocess
