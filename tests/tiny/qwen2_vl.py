"""A tiny Qwen2-VL."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.tiny.qwen2_5_vl import ids, save, text, words


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text(tokens), vision_config=vision, **ids(tokens))
    save(Qwen2VLForConditionalGeneration(config), folder, "Qwen2VLProcessor", 8, tokens)
