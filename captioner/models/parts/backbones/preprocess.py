"""Pictures → pixels as a checkpoint's image processor makes them, by Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner import compute
from captioner.errors import BadCheckpoint
from captioner.files.json import read_object
from captioner.images.open import LONGEST


class Scale(TypedDict):
    """What is taken from the pixels' three channels, and what they are then divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


HALF = (0.5, 0.5, 0.5)
IMAGENET: Scale = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP: Scale = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers

LARGEST = 4096
"""Pixels a side that a model may want; its configuration could name any number."""


@dataclass(frozen=True)
class Preprocess:
    """Pictures → pixels, by Pillow alone, with the numbers that transformers' image processors give."""

    size: int
    """Height and width of the pixels."""
    shortest: int | None = None
    """The shorter side becomes this long, then the middle is cut out. None: the whole picture is squashed."""
    resample: str = "bicubic"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    rounded: bool = False
    """What is cut out begins at the nearest pixel, as in torchvision and so for CLIP's authors and open_clip;
    transformers takes the one before, which is another where an odd number is cut off."""
    squashed: bool = False
    """Not the shorter side alone becomes `shortest`, but both, as DeiT has it."""

    def __post_init__(self) -> None:
        sides = (self.size, self.size if self.shortest is None else self.shortest)
        if not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
            raise BadCheckpoint(f"Pictures cannot be read at {sides[0]!r} pixels a side, cut from {sides[1]!r}.")
        if self.resample not in RESAMPLING or not _three_numbers(self.mean, self.std) or 0 in self.std:
            raise BadCheckpoint("Pixels need a way to resize, three means, and three spreads above 0.")

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size → float32 `[n, 3, size, size]`."""
        return self.scaled(self.squares(images))

    def squares(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size → resized and cut, still bytes: `[n, size, size, 3]`."""
        return torch.from_numpy(np.stack([np.asarray(self._square(image)) for image in images]))

    def ready(self, image: Image.Image) -> Image.Image:
        """The picture as `squares` makes it, if that would leave it alone then; else the picture."""
        return self._square(image) if self._keeps_squares else image

    @property
    def _keeps_squares(self) -> bool:
        """Is nothing cut off a picture that has the wanted size?"""
        return self.shortest in (None, self.size)

    def scaled(self, squares: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Those bytes → numbers `[n, 3, size, size]`, where they lie; the same on every device."""
        return self._computed(squares, dtype) if squares.device.type == "cpu" else self.looked_up(squares, dtype)

    def _computed(self, squares: Tensor, dtype: torch.dtype) -> Tensor:
        rows = squares.flatten(2).float().div_(255)  # [n, size, size × 3], as they lie: each pass takes a third so
        mean, std = (
            torch.tensor(channels, dtype=rows.dtype).repeat(squares.shape[2]) for channels in (self.mean, self.std)
        )
        return rows.sub_(mean).div_(std).to(dtype).view(squares.shape).permute(0, 3, 1, 2)

    def looked_up(self, squares: Tensor, dtype: torch.dtype) -> Tensor:
        """The same in two passes, where arithmetic would give other last bits: a GPU divides by multiplying."""
        levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
        table = compute.sent(self._computed(levels, dtype).flatten(), squares.device)  # what each makes of each byte
        places = squares + torch.arange(0, 768, 256, dtype=torch.int32, device=squares.device)
        return table.index_select(0, places.flatten()).view(squares.shape).permute(0, 3, 1, 2)

    def _square(self, image: Image.Image) -> Image.Image:
        resample = RESAMPLING[self.resample]
        if self._keeps_squares and image.size == (self.size, self.size):
            return image
        if self.shortest is None:
            return image.resize((self.size, self.size), resample)
        if self.squashed:
            width = height = self.shortest
        else:
            image = _without_ends(image)
            short = min(image.size)
            width, height = (int(self.shortest * side / short) for side in image.size)
        left, top = (
            round((side - self.size) / 2) if self.rounded else (side - self.size) // 2 for side in (width, height)
        )
        return image.resize((width, height), resample).crop((left, top, left + self.size, top + self.size))

    def to_dict(self) -> dict[str, Any]:
        """All fields; how it is cut only where that is not the usual way: fingerprints of indexes hold these."""
        return {name: value for name, value in asdict(self).items() if value is not False}

    @classmethod
    def from_dict(cls, saved: dict) -> Preprocess:
        """What `to_dict` gave, perhaps through JSON."""
        return cls(**{**saved, "mean": tuple(saved["mean"]), "std": tuple(saved["std"])})

    @classmethod
    def from_folder(cls, folder: Path, default: Preprocess) -> Preprocess:
        """As a checkpoint says; the default where it does not."""
        settings = image_settings(folder)
        return default if settings is None else cls.from_settings(settings, default, folder)

    @classmethod
    def from_settings(cls, settings: dict, default: Preprocess, folder: Path) -> Preprocess:
        """As one of transformers' image processors does, by its settings. folder: what to call it in a message."""
        edge, crop = (_edge(settings[key]) if key in settings else None for key in ("size", "crop_size"))
        size = crop or edge or default.size
        shortest, is_squashed = None, False
        if "crop_pct" in settings and size < 384:  # how transformers treats ResNet and ConvNeXt
            shortest = int(size / settings["crop_pct"])
        elif settings.get("do_center_crop"):
            shortest = edge or size
            is_squashed = isinstance(settings.get("size"), dict) and "height" in settings["size"]
        if is_squashed and shortest == size:  # nothing is left to be cut off
            shortest, is_squashed = None, False
        is_unscaled = settings.get("do_resize") is False or settings.get("do_rescale") is False
        if is_unscaled or abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise BadCheckpoint(f"The image processor of {folder} does not resize, or scales otherwise. Name another.")
        by_number: dict[object, str] = {number: name for name, number in RESAMPLING.items()}
        is_plain = settings.get("do_normalize") is False
        return cls(
            size,
            shortest,
            by_number.get(settings.get("resample"), default.resample),
            (0.0, 0.0, 0.0) if is_plain else _channels(settings.get("image_mean", default.mean)),
            (1.0, 1.0, 1.0) if is_plain else _channels(settings.get("image_std", default.std)),
            squashed=is_squashed,
        )


def _without_ends(image: Image.Image) -> Image.Image:
    """A strip's middle, which alone will stay: enlarged as a whole, it would take gigabytes."""
    longest = LONGEST * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def image_settings(folder: Path) -> dict | None:
    """A checkpoint's image processor: a file of its own, or since transformers 5 a part of processor_config.json."""
    if (file := folder / "preprocessor_config.json").exists():
        return read_object(file)
    if (file := folder / "processor_config.json").exists():
        settings = read_object(file).get("image_processor")
        return settings if isinstance(settings, dict) else None
    return None


def _channels(value: float | Sequence[float]) -> tuple[float, ...]:
    """transformers takes one number for all three."""
    return (value,) * 3 if isinstance(value, (int, float)) else tuple(value)


def _three_numbers(*rows: tuple[float, ...]) -> bool:
    return all(len(row) == 3 and all(isinstance(n, (int, float)) and math.isfinite(n) for n in row) for row in rows)


def _edge(size: int | dict) -> int:
    if isinstance(size, dict) and size.get("height") != size.get("width"):
        raise BadCheckpoint(f"Pictures of {size} are not square: no backbone here reads them.")
    return size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
