"""What a direct model learns from: the prompts' embeddings as targets, the frozen tower's outputs, rates by depth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from captioner.files import arrays, atomic
from captioner.files.cache import cache_to_write
from captioner.models.direct import DirectModel
from captioner.models.parts.backbones.towers import Backbone
from captioner.sinks import explained
from captioner.text.embedding import text_embedder


@torch.inference_mode()
def pooled(backbone: Backbone, images: list[Image]) -> Tensor:
    """What the frozen tower gives `[n, width]`."""
    return backbone.eval().pooled(backbone.preprocess(images))


class Vectors:
    """Texts → their embeddings, computed once and kept in the cache."""

    def __init__(self, texts: Sequence[str], embedder: str) -> None:
        unique = sorted(set(texts))
        files = sorted(Path(embedder).resolve().rglob("*"))  # of a folder, which may be trained anew; a name has none
        weights = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        about = "\0".join([embedder, *weights, *unique])
        digest = hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        file = cache_to_write("targets") / f"{digest}.npy"
        if not file.exists():
            vectors = text_embedder(embedder)(unique)
            with explained(file, "Make room, or set CAPTIONER_CACHE to another folder."), atomic.replacing(file) as new:
                arrays.write(new, vectors)
        self.vectors = np.load(file, mmap_mode="r")
        self.row_of = {text: row for row, text in enumerate(unique)}

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"labels": torch.from_numpy(self.vectors[[self.row_of[text] for text in texts]])}  # [B, 384]


def layer_wise(model: DirectModel, lr: float, decay: float) -> list[dict[str, Any]] | None:
    """Optimiser groups: the head at the full rate, each block below it a little slower, the stem slowest."""
    if decay == 1.0:
        return None
    towers = [list(model.head.parameters())]
    towers += [list(block.parameters()) for block in reversed(model.backbone.blocks)]
    claimed = {id(parameter) for tower in towers for parameter in tower}
    towers.append([parameter for parameter in model.parameters() if id(parameter) not in claimed])
    groups = []
    for depth, parameters in enumerate(towers):
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": lr * decay**depth})
    return groups
