"""What the trainers of captioners share: rows, splits, cached features, the sample to read along → one `Job`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn

from captioner.errors import BadInput
from captioner.models.parts.speaker import SearchedDecoder
from captioner.pairs.sources import parse_all
from training.batches import Pairs, TextTargets, split_by_prompt
from training.data.features import cached_features, fingerprint
from training.data.sources import load_pairs
from training.freezing import is_frozen
from training.job import Job
from training.loop import train
from training.recipe import Recipe
from training.sampling import sampler
from training.streamed import StreamedPairs, split_stream

HELD_BACK = 0.1
"""Share of the prompts to validate on, where the data has no validation part and none is named."""
BLANK = new_image("RGB", (8, 8))
"""Any picture: its pixels tell the size and the scale that the tower sees."""

Rows: TypeAlias = "Dataset | IterableDataset"


def load_rows(recipe: Recipe) -> tuple[Rows, Dataset]:
    """Training and validation rows that share no prompt and, unless these are named, no picture."""
    load = partial(
        load_pairs,
        seed=recipe.seed,
        text_column=recipe.text_column or None,
        image_column=recipe.image_column or None,
    )
    rows = load(recipe.data, streaming=recipe.stream)
    if recipe.validation:
        return rows, load(recipe.validation)
    folders = [Path(source.location) for source in parse_all(recipe.data) if source.kind == "parquet"]
    if prepared := [folder for folder in folders if any(folder.glob("validation*.parquet"))]:
        return rows, load(prepared, split="validation")
    return split_stream(rows) if recipe.stream else split_by_prompt(rows, HELD_BACK, recipe.seed)


def fit(recipe: Recipe, rows: tuple[Rows, Dataset], speaker: SearchedDecoder, model: nn.Module, **more: Any) -> None:
    """Train a captioner; the arguments are those of `job_of`."""
    train(job_of(recipe, rows, speaker, model, **more))


def job_of(
    recipe: Recipe,
    rows: tuple[Rows, Dataset],
    speaker: SearchedDecoder,
    model: nn.Module,
    encoder: nn.Module | None = None,
    unknown: int | None = None,
    save_base: Callable[[Path], None] | None = None,
    base: str = "",
) -> Job:
    """What the loop needs to train a captioner.

    Args:
        rows: what `load_rows` gave.
        speaker: the decoder and its processor.
        model: what learns: the decoder, or the adapter around it.
        encoder: the part behind `encode`; while it is frozen, --cache-features may keep its outputs.
        unknown: the token of words outside the vocabulary, which is read but never written.
        save_base, base: see `Job`.
    """
    processor, (train_rows, validation_rows) = speaker.processor, rows
    if speaker.positions is not None:
        most = speaker.positions - len(processor.start_ids) - 1  # beside the start and the end
        if recipe.max_tokens > most:
            raise BadInput(
                f"--max-tokens {recipe.max_tokens}: this model reads prompts of at most {max(most, 0):,} tokens. "
                + ("Lower it." if most > 0 else "Shorten what every text begins with.")
            )
    inputs = Inputs(recipe, processor.preprocess, encoder, partial(encode, speaker, model))
    has_sample = recipe.samples > 0 and len(validation_rows) > 0
    return Job(
        recipe=recipe,
        model=model,
        train_rows=inputs.to_train_on(train_rows),
        validation_rows=inputs.to_validate_on(validation_rows),
        targets=TextTargets(processor, recipe.max_tokens, unknown),
        save_processor=processor.save_pretrained,
        caption_sample=sampler(speaker, model, validation_rows, recipe.samples, recipe.max_tokens)
        if has_sample
        else None,
        save_base=save_base,
        base=base,
    )


@dataclass(frozen=True)
class Inputs:
    """Rows as the loop takes them: pictures, or with --cache-features what the frozen encoder gives for them."""

    recipe: Recipe
    pixels: Callable[[Sequence[Image]], Tensor]
    encoder: nn.Module | None
    encode: Callable[[list[Image]], Tensor]
    form: str = ""
    """Of the features, a word for the cache, where one encoder can give several."""

    def to_train_on(self, rows: Rows) -> Pairs | StreamedPairs:
        """Augmented and drawn from, as the recipe says."""
        if isinstance(rows, IterableDataset):
            return StreamedPairs(rows, self.pixels, augment=self.recipe.augment, seed=self.recipe.seed)
        return self._pairs(rows, self.recipe.augment, self.recipe.by_prompt)

    def to_validate_on(self, rows: Dataset) -> Pairs | None:
        """All of them as they are; None where there are none."""
        return self._pairs(rows) if len(rows) else None

    def _pairs(self, rows: Dataset, augment: bool = False, by_prompt: bool = False) -> Pairs:
        recipe = self.recipe
        if not recipe.cache_features:
            return Pairs(rows, self.pixels, augment, recipe.seed, by_prompt=by_prompt)
        cached = cached_features(rows, self.encode, self._key, recipe.cache_features)
        return Pairs(cached.rows, self.pixels, seed=recipe.seed, features=cached, by_prompt=by_prompt)

    @cached_property
    def _key(self) -> str:
        """Names encoder and preprocessing. It is made of all weights: once, for training and validation rows."""
        if self.encoder is None or not is_frozen(self.encoder):
            raise BadInput("--cache-features needs an image tower of which nothing learns.")
        return fingerprint(self.encoder, self.pixels([BLANK]).tolist(), *filter(None, [self.form]))


@torch.inference_mode()
def encode(speaker: SearchedDecoder, model: nn.Module, images: list[Image]) -> Tensor:
    """The features that the frozen tower gives."""
    model.eval()
    return speaker.model.encode(speaker.processor.preprocess(images))
