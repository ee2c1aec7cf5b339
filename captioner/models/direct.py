"""Straight from the picture to its prompt's embedding: a backbone and a small head, no text.

These are the approaches that won the competition, so they are what every captioner is measured against. The heads
are those of the published recipes, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.checkpoint import load_pretrained
from captioner.models.parts.narrow import narrowed
from captioner.text.embedding import DEFAULT as DEFAULT_EMBEDDER
from captioner.text.embedding import suits, unit

DROPOUT = {"mlp3": 0.1, "bn": 0.1, "tanh": 0.4, "linear": 0.0, "residual": 0.5}


class Normed(nn.BatchNorm1d):
    """Batch norm that takes a batch of one picture, as the last of an epoch may be: it has no variance of its own."""

    def forward(self, values: Tensor) -> Tensor:
        if self.training and len(values) == 1:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(values)


def head(name: str, inputs: int, outputs: int, dropout: float) -> nn.Module:
    """A head by name. The hidden sizes are the published ones, whatever the backbone's width.

    `residual` is ours, for few pairs: it begins with one answer for all pictures and learns how they differ from it.
    """
    if name == "mlp3":
        return nn.Sequential(
            *(nn.Linear(inputs, 1024), nn.Dropout(dropout), nn.GELU()),
            *(nn.Linear(1024, 512), nn.Dropout(dropout), nn.GELU()),
            nn.Linear(512, outputs),
        )
    if name == "bn":
        return nn.Sequential(
            nn.Linear(inputs, 512), Normed(512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, outputs)
        )
    if name == "tanh":
        return nn.Sequential(nn.Linear(inputs, 2048), nn.Tanh(), nn.Dropout(dropout), nn.Linear(2048, outputs))
    if name == "residual":
        differs = nn.Linear(1024, outputs)
        nn.init.zeros_(differs.weight)
        return nn.Sequential(
            Normed(inputs, affine=False),  # statistics of early and late layers differ in scale a hundredfold
            *(nn.Dropout(dropout), nn.Linear(inputs, 1024)),
            *(nn.GELU(), nn.Dropout(dropout), differs),
        )
    if name == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, outputs))
    raise BadInput(f"No head {name!r}. There are: {', '.join(DROPOUT)}.")


class DirectConfig(PreTrainedConfig):
    """All that inference needs, pixels included."""

    model_type = "direct"

    def __init__(
        self,
        backbone: dict | None = None,
        head: str = "linear",
        dropout: float | None = None,
        embedding_size: int = 384,
        embedder: str = DEFAULT_EMBEDDER,
        **rest,
    ) -> None:
        if not isinstance(embedder, str):
            raise ValueError(f"embedder is {embedder!r}, not a name")
        self.backbone = backbone or {}
        """`Backbone.config`."""
        self.head = head
        self.dropout = DROPOUT.get(head, 0.0) if dropout is None else dropout
        self.embedding_size = embedding_size
        self.embedder = embedder
        """Whose embeddings it learnt to predict."""
        super().__init__(**rest)


@dataclass
class DirectOutput(ModelOutput):
    loss: Tensor | None = None
    embeddings: Tensor | None = None
    """Unit vectors `[n, embedding_size]`."""


class DirectModel(PreTrainedModel):
    """Backbone and head, as transformers saves and trains it."""

    config_class = DirectConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.backbone = backbones.from_config(config.backbone)
        self.head = head(config.head, self.backbone.width, config.embedding_size, config.dropout)
        self.post_init()

    @classmethod
    def on(cls, backbone: Backbone, **settings) -> DirectModel:
        """A fresh head on a backbone that keeps its weights. Settings are those of `DirectConfig`."""
        model = cls(DirectConfig(backbone=backbone.config, **settings))
        model.backbone = backbone
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation stays; towers of transformers bring theirs."""

    def vectors(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """What the head gives, of any length `[n, embedding_size]`."""
        return self.head(self.backbone.pooled(narrowed(pixel_values, Tensor)) if features is None else features)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> DirectOutput:
        """Pixels `[n, 3, h, w]`, or cached features `[n, width]` of a frozen backbone.

        labels: the prompts' unit vectors `[n, embedding_size]`; the loss is the mean of 1 - cosine, over weight `[n]`
        where some pairs count more than others.
        """
        embeddings = F.normalize(self.vectors(pixel_values, features), dim=-1)
        if labels is None:
            return DirectOutput(embeddings=embeddings)
        weight = torch.ones_like(labels[:, 0]) if weight is None else weight
        same = torch.ones_like(weight)
        losses = F.cosine_embedding_loss(embeddings, labels, same, reduction="none")  # [n]
        return DirectOutput(loss=(losses * weight).sum() / weight.sum(), embeddings=embeddings)


class Direct:
    """Pictures in, unit vectors out."""

    def __init__(self, model: DirectModel) -> None:
        self.model = model

    @compute.inference_mode()
    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed_images`, but as long as the head made them."""
        weight = next(self.model.parameters())
        pixels = self.model.backbone.preprocess(images).to(weight.device, weight.dtype)
        return self.model.vectors(pixels).float().cpu().numpy()

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        return unit(self.vectors(images))


def load(folder: Path, options: LoadOptions) -> Direct:
    """A folder that `DirectModel.save_pretrained` wrote."""
    model = load_pretrained(DirectModel, folder, options)
    if not suits(options.embedder, model.config.embedder):
        raise BadInput(
            f"{folder} learnt the embeddings of {model.config.embedder}, not of {options.embedder}. "
            "Leave embedder out, or train it anew on that embedder."
        )
    return Direct(model)
