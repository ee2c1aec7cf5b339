"""Generation parameters in the lowest bits of a picture's pixels ("stealth PNG info"), where uploads lose the texts.

Some forks of A1111's interface and NovelAI write them, column by column: a mark of 15 letters, the length of the text
in 32 bits, then the text, plain or as gzip. They lie in the alpha channel, or in red, green and blue by turns.
"""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

ALPHA, COLOURS = ("stealth_pnginfo", "stealth_pngcomp"), ("stealth_rgbinfo", "stealth_rgbcomp")
"""Marks of a plain text and of a compressed one."""
FORMATS = ("PNG", "WEBP")
"""What keeps the lowest bits."""
MAX_PIXELS = 40_000_000
"""No generator draws so many, and looking means decoding them."""
HEAD = 8 * 15 + 32
"""Bits before the text."""


def may_hide(image: Image.Image) -> bool:
    """Whether its kind and size could hold such a text; the pixels are not decoded."""
    width, height = image.size
    return image.format in FORMATS and image.mode in ("RGB", "RGBA") and 0 < width * height <= MAX_PIXELS


def read(image: Image.Image, max_text: int) -> str | None:
    """The text in the pixels, if there is one of at most so many bytes."""
    channels = {"A": ALPHA} if image.mode == "RGBA" else {}
    for names, marks in (channels | {"RGB": COLOURS}).items():
        head = _bits(image, names, HEAD)
        mark = np.packbits(head[:120]).tobytes()
        if len(head) == HEAD and mark in [known.encode() for known in marks]:
            length = int.from_bytes(np.packbits(head[120:]).tobytes(), "big")
            bits = _bits(image, names, HEAD + min(length, 8 * max_text))
            data = np.packbits(bits[HEAD:]).tobytes()
            return _text(data, mark.endswith(b"comp"), max_text)
    return None


def _bits(image: Image.Image, channels: str, count: int) -> np.ndarray:
    """The lowest bits of the first pixels, as many as there are."""
    per_column = image.height * len(channels)
    columns = min(image.width, -(-count // per_column))
    part = image.crop((0, 0, columns, image.height))
    values = np.asarray(part.getchannel("A") if channels == "A" else part.convert("RGB"))
    return values.swapaxes(0, 1).reshape(-1)[:count] & 1  # [columns, rows, channels]


def _text(data: bytes, is_compressed: bool, max_text: int) -> str | None:
    try:
        if is_compressed:
            data = zlib.decompressobj(wbits=31).decompress(data, max_text)
        return data.decode("utf-8")
    except (zlib.error, UnicodeDecodeError):
        return None
