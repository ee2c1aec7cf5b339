"""A tiny Qwen3-VL."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.tiny.qwen2_5_vl import ids, save, text, words


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text(tokens) | {"head_dim": 16}, vision_config=vision, **ids(tokens))
    save(Qwen3VLForConditionalGeneration(config), folder, "Qwen3VLProcessor", 8, tokens)
