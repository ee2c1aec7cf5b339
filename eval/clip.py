"""CLIPScore-style image–text similarity with any CLIP or SigLIP checkpoint of transformers.

2.5 × max(cosine, 0), as Hessel et al. (2021), but without their "A photo depicts" before the text: prompts are rarely
about photos. Texts are cut at the text tower's limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.contracts import LoadOptions
from captioner.models.ranker import Ranker
from eval.metrics import cosines

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHT = 2.5


class Clip:
    """Pictures and texts in one space. Offers `embed` like any image embedder, so that its answers are kept alike."""

    speaks = False

    def __init__(self, name: str, options: LoadOptions | None = None) -> None:
        place = Path(name).expanduser()
        self.ranker = Ranker.from_folder(place if place.is_dir() else zoo.hub_folder(name), options or LoadOptions())

    def embed(self, images: Sequence[Image], batch_size: int = 32) -> np.ndarray:
        """Unit vectors `[n, d]`."""
        parts = [self.ranker.pictures(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        return np.concatenate([part.float().cpu().numpy() for part in parts])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `[n, d]`."""
        return self.ranker.texts(texts).float().cpu().numpy()


def clip_scores(image_vectors: np.ndarray, text_vectors: np.ndarray) -> np.ndarray:
    """Row by row, 0 to 2.5."""
    return WEIGHT * np.maximum(cosines(image_vectors, text_vectors), 0)
