"""A tiny LLaVA: CLIP's image tower before a Llama, with a processor and a chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.clip import TOWER, scrambled
from tests.tiny.resnet_lstm_gpt2 import tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    words.image_token = "<image>"
    text = LlamaConfig(
        **TOWER, vocab_size=len(words), max_position_embeddings=512, pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-1, image_seq_length=16
    )
    scrambled(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    LlavaProcessor(
        CLIPImageProcessorPil(**size), words, patch_size=8, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
