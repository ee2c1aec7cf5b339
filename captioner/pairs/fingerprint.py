"""What tells whether two prompts, or two pictures, are the same: short hashes that say nothing of their content."""

from __future__ import annotations

import hashlib

from PIL.Image import Image

DIGITS = 16
"""Of a fingerprint that is kept."""


def fingerprint(text: str) -> str:
    """Of a prompt, without case and spacing."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def picture_fingerprint(image: Image) -> str:
    """Of upright RGB pixels, all digits: the same picture in another file is the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
