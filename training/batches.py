"""Pairs → batches: pictures (augmented, or as cached features) beside the text as token ids, or as a vector.

Everything random about a row follows from seed, epoch and row, never from the order of calls: a run that was killed
and resumed, or that loads with other worker counts, sees the same pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from captioner.contracts import Processor
from captioner.errors import counted
from captioner.pairs.fingerprint import fingerprint
from training.data import dedupe
from training.data.readable import ReadableRows

IGNORED = -100  # the label that no loss counts


class Features(Protocol):
    """One tensor a row, as `cached_features` gives them."""

    def __getitem__(self, index: int) -> Tensor: ...


class Pairs(Dataset):
    """Rows {image, text} as {pixel_values or features, text, row}. Pictures that cannot be read are passed over.

    by_prompt: an epoch shows one picture of each prompt, drawn at random, so that a prompt counts once.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        pixels: Callable[[Sequence[Image.Image]], Tensor],
        augment: bool = False,
        seed: int = 0,
        features: Features | None = None,
        by_prompt: bool = False,
    ) -> None:
        self.rows = ReadableRows(rows)
        texts = rows["text"]
        pictures: dict[Any, list[int]] = {}
        for row, text in enumerate(texts):
            pictures.setdefault(text if by_prompt else row, []).append(row)
        self.pictures = list(pictures.values())
        """The rows that each item may show."""
        self.texts = [texts[rows[0]] for rows in self.pictures]
        self.pixels = pixels
        self.augment = augment
        self.seed = seed
        self.features = features
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return counted(len(self), "pair")

    def name(self, row: int) -> str:
        """What to call a row in a message."""
        return self.rows.name(row)

    def fingerprints(self) -> set[str]:
        """Of all prompts."""
        return set(map(fingerprint, self.texts))

    def digest(self) -> str:
        """Of all rows in their order: two runs with one digest meet the same pairs."""
        rows = self.rows.rows
        columns = rows.select_columns([name for name in ("id", "text") if name in rows.column_names])
        digest = hashlib.sha256()
        for batch in columns.iter(10_000):
            digest.update(json.dumps(batch).encode())
        return digest.hexdigest()

    def begin_epoch(self, epoch: int) -> None:
        """Another epoch, other augmentations. (Not `set_epoch`: accelerate calls that in a fresh epoch, but not in one
        that is resumed in its middle.)"""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng((self.seed, self.epoch, index))
        pictures = self.pictures[index]
        chosen = pictures[generator.integers(len(pictures))] if len(pictures) > 1 else pictures[0]
        if self.features is not None:
            return {"features": self.features[chosen], "text": self.texts[index], "row": chosen}
        row = self.rows[chosen]
        image = row["image"]
        if self.augment:
            image = augmented(image, generator)
        return {"pixel_values": self.pixels([image])[0], "text": row["text"], "row": row["index"]}


def augmented(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Flip, crop (at least 80 % of each side), turn (up to 10°) and colour jitter (up to 20 %)."""
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(generator.uniform(-10, 10), Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
    width, height = image.size
    crop_width = max(1, int(width * generator.uniform(0.8, 1)))
    crop_height = max(1, int(height * generator.uniform(0.8, 1)))
    left = int(generator.integers(0, width - crop_width + 1))
    top = int(generator.integers(0, height - crop_height + 1))
    image = image.crop((left, top, left + crop_width, top + crop_height))
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(generator.uniform(0.8, 1.2))
    return image


class TextTargets:
    """Texts → input_ids, attention_mask, labels. The start of the text (decoder start, a conditional prompt), the
    padding and the token that is read but never written (`unknown`) carry no loss; the end token does, so that the
    model learns to stop."""

    def __init__(self, processor: Processor, max_tokens: int, unknown: int | None = None) -> None:
        self.processor = processor
        self.max_tokens = max_tokens
        self.unknown = unknown

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        start = self.processor.start_ids
        bodies = [self._body(text) for text in texts]
        length = len(start) + max(map(len, bodies))
        input_ids = torch.full((len(texts), length), self.processor.pad_id)  # [B, T]
        labels = torch.full((len(texts), length), IGNORED)
        for row, body in enumerate(bodies):
            stop = len(start) + len(body)
            input_ids[row, :stop] = torch.tensor([*start, *body])
            labels[row, len(start) : stop] = torch.tensor(body)
        if self.unknown is not None:
            labels[labels == self.unknown] = IGNORED
        lengths = torch.tensor([len(start) + len(body) for body in bodies])
        attention_mask = (torch.arange(length) < lengths[:, None]).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _body(self, text: str) -> list[int]:
        ids = self.processor.encode(text)
        is_cut = len(ids) > self.max_tokens  # a prompt cut short does not end here: no end token to learn
        return ids[: self.max_tokens] if is_cut else [*ids, self.processor.eos_ids[0]]


class Collate:
    """A list of rows → one batch, which rows they are, and how many labels count. Picklable, so that worker processes
    can have it. What the loop itself must know is no tensor: those go to the GPU, and asking there means waiting."""

    def __init__(self, targets: Callable[[Sequence[str]], dict[str, Tensor]]) -> None:
        self.targets = targets

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = "features" if "features" in rows[0] else "pixel_values"
        batch = {inputs: torch.stack([row[inputs] for row in rows]), **self.targets([row["text"] for row in rows])}
        counted = int(batch["labels"].ne(IGNORED).sum())
        return {**batch, "rows": [row["row"] for row in rows], "counted": counted}


def split_by_prompt(rows: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Train and validation rows that share neither a prompt nor a picture, which may have several captions: prompts are
    split, with all that hangs together by their pictures."""
    # Not the prompts themselves: in an array of texts each takes as much memory as the longest.
    prompts = {prompt: number for number, prompt in enumerate(sorted(set(rows["text"])))}
    prompt_of = np.array([prompts[text] for text in rows["text"]])
    group_of = _joined_by_pictures(prompt_of, rows, len(prompts))  # [prompts]
    sizes = np.bincount(group_of)
    held_back = np.empty(0, dtype=np.int64)  # prompts; of a single group none
    if len(sizes) > 1:
        _, held_back = dedupe.split(group_of, share, seed, least=int(np.min(sizes)))
    of_validation = np.isin(prompt_of, held_back)
    return rows.select(np.flatnonzero(~of_validation)), rows.select(np.flatnonzero(of_validation))


def _joined_by_pictures(prompt_of: np.ndarray, rows: datasets.Dataset, count: int) -> np.ndarray:
    """`[count]`: the group of each prompt; prompts of one picture are in one, whose numbers ascend with the first."""
    if not {"id", "source"} <= set(rows.column_names):
        return np.arange(count)
    first_with: dict[tuple[str, str], int] = {}
    pictures = zip(rows["source"], rows["id"], prompt_of.tolist(), strict=True)
    first = np.array([first_with.setdefault((source, name), prompt) for source, name, prompt in pictures])
    return dedupe.joined(count, first, prompt_of)
