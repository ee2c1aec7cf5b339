"""What the trainers of captioners share: rows, splits, cached features, the sample to read along → one `Job`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn

from captioner.contracts import Processor
from captioner.errors import BadInput
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


Rows = Dataset | IterableDataset


def load_rows(recipe: Recipe) -> tuple[Rows, Dataset]:
    """Training and validation rows that share no prompt."""
    columns = {"text_column": recipe.text_column or None, "image_column": recipe.image_column or None}
    rows = load_pairs(recipe.data, seed=recipe.seed, streaming=recipe.stream, **columns)
    if recipe.validation:
        return rows, load_pairs(recipe.validation, seed=recipe.seed, **columns)
    prepared = [place for place in recipe.data if Path(place).is_dir() and any(Path(place).glob("validation*.parquet"))]
    if prepared:
        return rows, load_pairs(prepared, split="validation", seed=recipe.seed, **columns)
    return split_stream(rows) if recipe.stream else split_by_prompt(rows, HELD_BACK, recipe.seed)


def fit(
    recipe: Recipe,
    rows: tuple[Rows, Dataset],
    model: nn.Module,
    processor: Processor,
    learning: nn.Module | None = None,
    encoder: nn.Module | None = None,
    unknown: int | None = None,
    save_base: Callable[[Path], None] | None = None,
    base: str = "",
) -> None:
    """Train a captioner.

    Args:
        rows: what `load_rows` gave.
        learning: the model as an adapter wraps it, where one does.
        encoder: the part behind `model.encode`; while it is frozen, --cache-features may keep what it says.
        unknown: the token of words outside the vocabulary, which is read but never written.
        save_base, base: see `Job`.
    """
    train_rows, validation_rows = rows

    def pairs(part: Rows, learns: bool) -> Pairs | StreamedPairs | None:
        return prepare(recipe, part, processor.pixels, encoder, partial(encode, model, processor), learns)

    listen = recipe.samples and len(validation_rows)
    train(
        Job(
            recipe=recipe,
            model=learning or model,
            train_rows=pairs(train_rows, learns=True),
            validation_rows=pairs(validation_rows, learns=False),
            targets=TextTargets(processor, recipe.max_tokens, unknown),
            save_processor=processor.save_pretrained,
            speak=sampler(processor, validation_rows, recipe.samples, recipe.max_tokens) if listen else None,
            save_base=save_base,
            base=base,
        )
    )


def prepare(
    recipe: Recipe,
    rows: Rows,
    pixels: Callable[[Sequence[Image]], Tensor],
    encoder: nn.Module | None,
    encode: Callable[[list[Image]], Tensor],
    learns: bool,
    form: str = "",
) -> Pairs | StreamedPairs | None:
    """Rows as the loop takes them; pictures, or with --cache-features what the frozen encoder says of them.

    Args:
        encode: pictures → what the encoder says; form: a word for it, where one encoder can say several things.
        learns: rows to train on, which may be augmented and drawn from.
    """
    if isinstance(rows, IterableDataset):
        return StreamedPairs(rows, pixels, augment=recipe.augment, seed=recipe.seed)
    if not len(rows):
        return None
    drawn = {"seed": recipe.seed, "by_prompt": learns and recipe.by_prompt}
    if not recipe.cache_features:
        return Pairs(rows, pixels, augment=learns and recipe.augment, **drawn)
    if encoder is None or not is_frozen(encoder):
        raise BadInput("--cache-features needs an image tower of which nothing learns.")
    key = fingerprint(encoder, pixels([BLANK]).tolist(), *filter(None, [form]))
    cached = cached_features(rows, encode, key, recipe.cache_features)
    return Pairs(cached.rows, pixels, features=cached, **drawn)


BLANK = new_image("RGB", (8, 8))
"""Any picture: its pixels tell the size and the scale that the tower sees."""


@torch.inference_mode()
def encode(model: nn.Module, processor: Processor, images: list[Image]) -> Tensor:
    """What the frozen tower says."""
    model.eval()
    return model.encode(processor.pixels(images))
