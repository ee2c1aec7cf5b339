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
from captioner.errors import BadCheckpoint
from eval.metrics import cosines

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHT = 2.5
BATCH = 32


class Clip:
    """Pictures and texts in one space. Offers `embed` like any image embedder, so that its vectors are kept, too."""

    speaks = False

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoModel, AutoProcessor

        try:
            config = AutoConfig.from_pretrained(folder)
            if config.model_type not in ("clip", "siglip", "siglip2"):
                raise BadCheckpoint(f"{folder} holds a {config.model_type}, not a CLIP or SigLIP.")
            self.model = AutoModel.from_pretrained(folder).eval()
            self.processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{folder} cannot be loaded as a CLIP ({error}).") from error

    @classmethod
    def load(cls, name: str) -> Clip:
        """By folder or Hub id."""
        return cls(folder_of(name))

    def embed(self, images: Sequence[Image], batch_size: int = BATCH) -> np.ndarray:
        """float32 `[n, d]`."""
        return self._vectors(images, batch_size, self._images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[n, d]`."""
        return self._vectors(texts, BATCH, self._texts)

    def _vectors(self, things: Sequence, batch_size: int, encode) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [encode(list(things[i : i + batch_size])) for i in range(0, len(things), batch_size)]
        return torch.cat(parts).float().numpy()

    def _images(self, images: list[Image]):
        return self.model.get_image_features(**self.processor(images=images, return_tensors="pt")).pooler_output

    def _texts(self, texts: list[str]):
        # SigLIP has only seen texts padded to the full length.
        padding = True if self.model.config.model_type == "clip" else "max_length"
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.processor(text=texts, return_tensors="pt", padding=padding, truncation=True, max_length=limit)
        return self.model.get_text_features(**tokens).pooler_output


def folder_of(name: str) -> Path:
    """A CLIP's folder, by path or Hub id."""
    return Path(name).expanduser() if Path(name).expanduser().is_dir() else zoo.hub_folder(name)


def clip_scores(image_vectors: np.ndarray, text_vectors: np.ndarray) -> np.ndarray:
    """Row by row, 0 to 2.5."""
    return WEIGHT * np.maximum(cosines(image_vectors, text_vectors), 0)
