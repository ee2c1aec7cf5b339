"""Tiny Qwen VLs: 2, 2.5 and 3 differ in their towers alone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny.chat import END, qwen_words, save_processor, save_video_part
from tests.tiny.clip import scrambled

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ("<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def words():
    tokens = qwen_words()
    tokens.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    return tokens


def ids(tokens) -> dict[str, int]:
    """What a configuration calls the tokens around a picture."""
    named = dict(zip(("vision_start", "vision_end", "image", "video"), TOKENS[2:], strict=True))
    return {f"{name}_token_id": tokens.convert_tokens_to_ids(token) for name, token in named.items()}


def text(tokens) -> dict:
    ends = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    return TEXT | {"vocab_size": len(tokens), "rope_parameters": ROPE, **ends}


def save(model: PreTrainedModel, folder: Path, processor: str, patch: int, tokens) -> None:
    model.generation_config.eos_token_id = tokens.eos_token_id
    scrambled(model).save_pretrained(folder)
    pixels = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    )
    save_processor(folder, processor, pixels, tokens, TEMPLATE)
    save_video_part(folder, "Qwen3VLVideoProcessor" if "Qwen3" in processor else "Qwen2VLVideoProcessor")


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text(tokens), vision_config=vision, **ids(tokens))
    save(Qwen2_5_VLForConditionalGeneration(config), folder, "Qwen2_5_VLProcessor", 8, tokens)
