"""What a trainer script hands to the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from training.recipe import Recipe

if TYPE_CHECKING:
    from training.batches import Pairs
    from training.streamed import StreamedPairs

Sample = tuple[str, str, float]
"""The true prompt, the caption, the cosine of their embeddings."""


@dataclass
class Job:
    """Everything a run needs, made by a trainer script."""

    recipe: Recipe
    model: nn.Module
    train_rows: Pairs | StreamedPairs
    validation_rows: Pairs | None
    targets: Callable[[Sequence[str]], dict[str, Tensor]]
    """Texts → the batch's text side: token ids and labels, or target vectors."""
    save_processor: Callable[[Path], None]
    caption_sample: Callable[[], list[Sample]] | None = None
    """Caption the validation sample, for the cosine and to read along."""
    verb: str = "generate"
    """What the finished model is used with: captioner generate, or captioner embed."""
    parameter_groups: list[dict[str, Any]] | None = None
    """Optimiser groups with rates of their own (layer-wise decay)."""
    save_base: Callable[[Path], None] | None = None
    """Write what a fresh adapter stands on, where that has no folder yet."""
    base: str = ""
    """The pretrained model that this one began with, as the user names it."""
