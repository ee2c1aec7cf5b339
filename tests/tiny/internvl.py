"""A tiny InternVL in transformers' own layout (…-hf on the Hub)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.tiny.chat import qwen_words, save_processor, save_video_part
from tests.tiny.clip import TOWER, scrambled

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = qwen_words(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    ends = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    text = Qwen2Config(**TOWER, **ends, vocab_size=len(tokens), num_key_value_heads=4, max_position_embeddings=2048)
    vision = TOWER | {"image_size": [32, 32], "patch_size": [8, 8]}
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=tokens.context_image_token_id, image_seq_length=4
    )
    model = scrambled(InternVLForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    pixels = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    save_processor(folder, "InternVLProcessor", pixels, tokens, TEMPLATE, image_seq_length=4)
    save_video_part(folder, "InternVLVideoProcessor")
