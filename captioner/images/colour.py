"""Pixels of every kind → RGB as a screen shows it: sRGB, 8 bits, laid on white."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 8_000_000
"""Bytes of a colour profile; those of printing presses have one or two million."""
NEAR = 2
"""Levels of 255. A profile that moves no colour further is sRGB by whatever name, and the pixels stay as they are."""

WIDE = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""16 bits → 8 bits."""


LARGEST = float(np.finfo(np.float32).max)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB through the picture's own colour profile, if it has one that makes sense. May be the very same picture."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(WIDE[np.asarray(image).astype(np.uint16)])
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_narrow(np.asarray(image), 1 if image.mode == "F" else 65535))
    elif image.has_transparency_data:
        rgba = _through(profile, image if image.mode == "LA" else image.convert("RGBA")).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode not in ("L", "CMYK", "RGB"):
        image = image.convert("RGB")
    image = _through(profile, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _narrow(grey: np.ndarray, top: float) -> np.ndarray:
    """Numbers → 8 bits: 0..top where they lie in it, otherwise (depth maps and the like) from their least to most.

    Infinite ones count as the least or the most, what is no number as 0.
    """
    grey = grey.astype(np.float32)
    grey[np.isnan(grey)] = 0
    finite = grey[np.isfinite(grey)]
    low, high = (finite.min(), finite.max()) if finite.size else (np.float32(0), np.float32(0))
    if low < 0 or high > top:
        top = max(high, low + 1)
    else:
        low = np.float32(0)
    grey = np.clip(grey, low, top)
    if float(top) - float(low) > LARGEST:  # their difference must be a number too
        grey, low, top = grey / 2, low / 2, top / 2
    return np.rint((grey - low) / (top - low) * 255).astype(np.uint8)


def _through(profile: bytes | None, image: Image.Image) -> Image.Image:
    """The picture in sRGB, as its colour profile says; unchanged where the profile says nothing that can be used."""
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE:
        return image
    if image.mode == "LA":
        grey, alpha = image.split()
        rgb = _through(profile, grey).convert("RGB")
        rgb.putalpha(alpha)
        return rgb
    transform = _transform(profile, image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is damaged, made for other pixels, or sRGB already."""
    if profile[16:20] != {"L": b"GRAY", "CMYK": b"CMYK"}.get(mode, b"RGB "):
        return None
    try:
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB" if mode in ("L", "CMYK") else mode,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode != "CMYK" and _changes_little(transform) else transform
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):  # lcms2 finds it damaged
        return None


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    mode = transform.input_mode
    if mode == "L":
        colours = np.arange(256, dtype=np.uint8)[None]  # [1, 256]
    else:
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        channels = 4 if mode == "RGBA" else 3
        colours = np.stack(np.meshgrid(*[steps] * 3), -1).reshape(1, -1, 3)  # [1, 729, 3]
        colours = np.concatenate([colours, np.full((1, 729, 1), 255, np.uint8)], -1)[..., :channels]
    before = Image.fromarray(colours)
    after = transform.apply(before)
    difference = np.asarray(after.convert("RGB")).astype(int) - np.asarray(before.convert("RGB"))
    return bool(np.abs(difference).max() <= NEAR)
