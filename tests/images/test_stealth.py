"""Parameters in the lowest bits of pixels, written here in all four forms, and what only looks like them."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image
from sd_parsers.data import Generators
from sd_parsers.extractors._png_stenographic_alpha import png_stenographic_alpha

from captioner.images import stealth
from captioner.images.metadata import read_parameters

A1111 = "a red fox, сова\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"
NOVELAI = {
    "Title": "AI generated image",
    "Description": "an owl at night",
    "Software": "NovelAI",
    "Source": "Stable Diffusion F1022D28",
    "Comment": json.dumps({"sampler": "k_euler", "seed": 7, "steps": 28, "scale": 6.0, "uc": "lowres"}),
}


def hide(mark: str, data: bytes, bits: int | None = None, size: tuple[int, int] = (70, 61)) -> Image.Image:
    """A noisy picture with data in it, after this mark, of so many bits by its own account."""
    mode = "RGB" if "rgb" in mark else "RGBA"
    pixels = np.random.default_rng(0).integers(0, 256, (*size, len(mode)), dtype=np.uint8)  # [columns, rows, channels]
    length = (8 * len(data) if bits is None else bits).to_bytes(4, "big")
    written = np.unpackbits(np.frombuffer(mark.encode() + length + data, np.uint8))
    part = np.ascontiguousarray(pixels[..., :3] if mode == "RGB" else pixels[..., 3])
    flat = part.reshape(-1)
    flat[: len(written)] = flat[: len(written)] & 0xFE | written
    if mode == "RGB":
        pixels = part
    else:
        pixels[..., 3] = part
    return Image.fromarray(pixels.swapaxes(0, 1).copy(), mode)


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    into = io.BytesIO()
    image.save(into, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return into.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mark", [*stealth.ALPHA, *stealth.COLOURS])
def test_what_lies_in_the_pixels_is_read(mark, kind):
    data = A1111.encode()
    picture = saved(hide(mark, gzip.compress(data) if mark.endswith("comp") else data), kind)
    found = read_parameters(picture)
    assert (found.prompt, found.negative_prompt, found.seed, found.size) == ("a red fox, сова", "blurry", 5, "64x64")


def test_the_same_as_sd_parsers_reads():

    picture = hide("stealth_pngcomp", gzip.compress(A1111.encode()))

    assert png_stenographic_alpha(picture, Generators.AUTOMATIC1111) == {"parameters": A1111}
    assert stealth.read(picture, 10**6) == A1111


def test_novelai_hides_all_its_texts():
    found = read_parameters(saved(hide("stealth_pngcomp", gzip.compress(json.dumps(NOVELAI).encode()))))
    assert (found.tool, found.prompt, found.negative_prompt, found.seed) == ("NovelAI", "an owl at night", "lowres", 7)


HOSTILE = {
    "too long": ("stealth_pnginfo", A1111.encode()[:20], 2**32 - 1),
    "no gzip": ("stealth_pngcomp", b"junk" * 20, None),
    "cut gzip": ("stealth_rgbcomp", gzip.compress(A1111.encode())[:9], None),
    "no text": ("stealth_rgbinfo", b"\xff\xfe" * 20, None),
    "nothing": ("stealth_pnginfo", b"", None),
    "another mark": ("stealth_pngjunk", A1111.encode(), None),
}


@pytest.mark.parametrize("form", HOSTILE)
def test_what_only_looks_like_it_carries_nothing(form):
    mark, data, bits = HOSTILE[form]
    assert read_parameters(saved(hide(mark, data, bits))) is None


def test_a_bomb_is_not_blown_up():
    bomb = gzip.compress(b"a" * 50_000_000)
    picture = hide("stealth_pngcomp", bomb, size=(700, 600))
    assert len(stealth.read(picture, 1000)) == 1000


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 400)])
def test_small_pictures_carry_nothing(size):
    assert read_parameters(saved(Image.new("RGBA", size))) is None


def test_damaged_pixels_carry_nothing():
    data = bytearray(saved(Image.effect_noise((99, 99), 90).convert("RGB")))
    data[200:300] = bytes(100)
    assert read_parameters(bytes(data)) is None
