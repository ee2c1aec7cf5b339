"""A tiny LLaVA-OneVision: SigLIP's tower over the best grid of pieces, before a Qwen 2."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tests.tiny.chat import qwen_words, save_processor, save_video_part
from tests.tiny.clip import TOWER, scrambled

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GRID = [[32, 32], [32, 64], [64, 32], [64, 64]]


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = qwen_words(image_token="<image>", video_token="<video>")
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    ends = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=Qwen2Config(**TOWER, **ends, vocab_size=len(tokens), num_key_value_heads=4),
        image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
        image_grid_pinpoints=GRID,
        vision_aspect_ratio="anyres_max_9",
    )
    model = scrambled(LlavaOnevisionForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    pixels = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=GRID)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    save_processor(folder, "LlavaOnevisionProcessor", pixels, tokens, TEMPLATE, **settings)
    save_video_part(folder, "LlavaOnevisionVideoProcessor")
