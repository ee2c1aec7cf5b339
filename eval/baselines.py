"""What every model has to beat, made from an index of training pictures (`captioner index build`).

`nearest:INDEX` says the prompt of the picture that looks most alike; `constant:INDEX` says the same to every picture:
the prompt that is nearest to all prompts on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.prompt import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.contracts import LoadOptions
    from captioner.models.knn import Index

KINDS = ("nearest", "constant")


def index_of(name: str) -> Path | None:
    """The index that a baseline is made from; None for every other model."""
    kind, _, folder = name.partition(":")
    return Path(folder).expanduser() if kind in KINDS and folder else None


class Baseline:
    """Speaks, as far as the evaluation asks."""

    speaks = True

    def __init__(self, say: Callable[[Sequence[Image]], list[str]]) -> None:
        self.say = say

    def generate(self, images: Sequence[Image], batch_size: int = 8) -> list[Prompt]:
        """One prompt per picture."""
        return [Prompt(text, 0.0, (), "baseline") for text in self.say(images)]


def load(name: str, options: LoadOptions) -> Baseline:
    """A baseline by its name."""
    from captioner.models import knn

    folder = index_of(name)
    if name.startswith("constant:"):
        text = constant(knn.Index(folder))
        return Baseline(lambda images: [text] * len(images))
    model = knn.load(folder, options)
    return Baseline(lambda images: [near[0].prompt for near in model.similar(images, 1)])


def constant(index: Index) -> str:
    """The prompt that reaches the highest mean cosine against all prompts, each counted once."""
    embeddings = index.embeddings.astype(np.float32)
    _, prompts = index.texts
    return prompts[int((embeddings @ embeddings.mean(0)).argmax())]
