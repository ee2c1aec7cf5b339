"""A tiny LLaVA-NeXT: CLIP's tower over the best grid of pieces, before a Mistral."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.tiny.chat import save_processor, words
from tests.tiny.clip import TOWER, scrambled

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
GRID = [[32, 64], [64, 32], [64, 64]]


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words(image_token="<image>")
    ends = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=MistralConfig(**TOWER, **ends, vocab_size=len(tokens), num_key_value_heads=2, sliding_window=None),
        image_token_index=tokens.image_token_id,
        image_grid_pinpoints=GRID,
        image_seq_length=16,
    )
    model = scrambled(LlavaNextForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=GRID
    )
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    save_processor(folder, "LlavaNextProcessor", pixels, tokens, TEMPLATE, **settings)
