"""Train a direct model: picture → backbone → head → the prompt's MiniLM embedding. No text.

    python -m training.direct --data my-pictures --out runs/vit --backbone vit --head mlp3
    python -m training.direct --data my-pictures --out runs/clip --backbone clip --freeze backbone --unfreeze 4
    python -m training.direct --data my-pictures --out runs/clip-lora --backbone clip --lora
    python -m training.direct --data my-pictures --out runs/small --backbone efficientnet-lite2 --pool statistics \\
        --head residual --freeze backbone --cache-features features --by-prompt
    captioner embed --model runs/vit new.png

Published recipe (defaults): ViT-B/16, 90/10 split, AdamW 1e-4, cosine annealing, cosine loss, batch 64, three epochs:
a test cosine of 0.5364 with a plain head. ResNet-152 was published with --freeze backbone --head tanh --lr 1e-3.
--lora is for vit, vit-large and clip: every block of the tower gets an adapter, and the head learns whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL.Image import Image
from torch import Tensor

from captioner.cache import cache_folder
from captioner.embedding import DEFAULT, text_embedder
from captioner.errors import BadInput
from captioner.models import backbones
from captioner.models.backbones import Backbone, CLIPVision, ViT
from captioner.models.direct import DROPOUT, DirectModel
from training.adapters import BESIDE, adapted
from training.batches import Pairs
from training.captioners import load_rows, prepare
from training.loop import Job, train
from training.recipe import LoraRecipe, changed, command_line, option, parse

ADAPTABLE = r"backbone\.tower\..*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2)"


@dataclass
class DirectRecipe(LoraRecipe):
    epochs: float = changed("epochs", 3.0)
    batch_size: int = changed("batch_size", 64)
    samples: int = changed("samples", 0)
    backbone: str = option("vit", "The image tower", choices=sorted(backbones.BACKBONES))
    weights: str = option("", "Folder or Hub id of the tower's weights; left out: the usual ones")
    pool: str = option("", "efficientnet-lite0, 1, 2: statistics adds those of every stage", choices=["", "statistics"])
    head: str = option("mlp3", "From the tower's width to 384", choices=sorted(DROPOUT))
    freeze: str = option("none", "backbone: the head (and --unfreeze N blocks) learns", choices=["none", "backbone"])
    layer_decay: float = option(1.0, "Each block learns at this share of the rate of the block above it")
    embedder: str = option(DEFAULT, "Whose text embeddings are the targets")


def main(argv: list[str] | None = None) -> None:
    recipe = parse(DirectRecipe, __doc__, argv)
    check_adapter(recipe)
    if recipe.stream:
        raise BadInput("The prompts are embedded before training: leave out --stream.")
    train_rows, validation_rows = load_rows(recipe)
    settings = {"pool": recipe.pool} if recipe.pool else {}
    model = DirectModel.on(backbones.build(recipe.backbone, recipe.weights or None, **settings), head=recipe.head)
    model.backbone.thaw(recipe.unfreeze if recipe.freeze == "backbone" else None)
    pixels = model.backbone.preprocess
    targets = Vectors([*train_rows["text"], *validation_rows["text"]], recipe.embedder)
    if recipe.head == "residual":
        mean = targets(sorted(set(train_rows["text"])))["labels"].mean(0)
        model.head[-1].bias.data.copy_(mean)
    if recipe.lora:  # the adapter needs a base to stand on, and the head is fresh: tower and head are kept beside it
        model.save_pretrained(Path(recipe.out) / BESIDE)
    learning = adapted(model, recipe, ADAPTABLE, base=BESIDE, whole=["head"])

    def pairs(part: Dataset, learns: bool) -> Pairs | None:
        return prepare(
            recipe, part, pixels, model.backbone, partial(pooled, model.backbone), learns, "pooled" + recipe.pool
        )

    train(
        Job(
            recipe=recipe,
            model=learning,
            train_rows=pairs(train_rows, learns=True),
            validation_rows=pairs(validation_rows, learns=False),
            targets=targets,
            save_processor=lambda folder: None,  # the preprocessing is part of the model's config
            verb="embed",
            parameter_groups=layer_wise(model, recipe.lr, recipe.layer_decay),
        )
    )


def check_adapter(recipe: DirectRecipe) -> None:
    """What does not go with an adapter is said before anything is loaded."""
    if recipe.qlora:
        raise BadInput("--qlora is for BLIP and OFA. The small towers here learn with --lora.")
    if recipe.lora and not issubclass(backbones.BACKBONES[recipe.backbone].make, ViT | CLIPVision):
        raise BadInput(f"--lora is for vit, vit-large and clip: {recipe.backbone} is convolutional. Leave it out.")
    if recipe.lora and (recipe.cache_features or recipe.unfreeze):
        raise BadInput("--lora adapts every block of the tower: leave out --cache-features and --unfreeze.")


@torch.inference_mode()
def pooled(backbone: Backbone, images: list[Image]) -> Tensor:
    """What the frozen tower says `[n, width]`."""
    return backbone.eval().pooled(backbone.preprocess(images))


class Vectors:
    """Texts → their embeddings, computed once and kept in the cache."""

    def __init__(self, texts: Sequence[str], embedder: str) -> None:
        unique = sorted(set(texts))
        digest = hashlib.sha256("\0".join([embedder, *unique]).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        file = cache_folder("targets") / f"{digest}.npy"
        if not file.exists():
            beside = file.with_suffix(".part.npy")
            np.save(beside, text_embedder(embedder)(unique))
            beside.replace(file)
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


if __name__ == "__main__":
    command_line(main)
