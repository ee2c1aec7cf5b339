"""A tiny ViT with the linear head, straight to 384 numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from captioner.models.direct import DirectModel
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import Preprocess

TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def make(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = backbones.blank("vit", Preprocess(32, resample="bilinear"), **TOWER)
    DirectModel.on(backbone, head="linear").save_pretrained(folder)
