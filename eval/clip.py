"""Pictures and texts in the space of any CLIP or SigLIP checkpoint of transformers, and CLIPScore.

CLIPScore is 2.5 × max(cosine, 0), as Hessel et al. (2021), but without their "A photo depicts" before the text: prompts
are rarely about photos. Texts are cut at the text tower's limit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.contracts import LoadOptions
from captioner.models.parts.ranker import Ranker
from eval.metrics import CLIP_WEIGHT, cosines

if TYPE_CHECKING:
    from PIL.Image import Image


class Clip:
    """Pictures and texts in one space: an image embedder."""

    def __init__(self, name: str, options: LoadOptions | None = None) -> None:
        self.folder = zoo.weights_folder(os.path.expanduser(name))
        self.ranker = Ranker.from_folder(self.folder, options or LoadOptions())

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors `[n, d]`."""
        return self.ranker.pictures(images).float().cpu().numpy()

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed_images`: their length says nothing."""
        return self.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `[n, d]`."""
        return self.ranker.texts(texts).float().cpu().numpy()

    def fits(self, text: str) -> bool:
        """Does the text tower read all of it?"""
        return len(self.ranker.tokenizer(text, verbose=False).input_ids) <= self.ranker.limit


def clip_scores(image_vectors: np.ndarray, text_vectors: np.ndarray) -> np.ndarray:
    """Row by row, 0 to 2.5."""
    return CLIP_WEIGHT * np.maximum(cosines(image_vectors, text_vectors), 0)
