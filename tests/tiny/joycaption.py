"""JoyCaption's layout: a LLaVA of SigLIP's tower and Llama 3; its template takes plain text and places the picture."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny.chat import save_processor, words
from tests.tiny.clip import TOWER, scrambled

PLACES = ("<|reserved_special_token_70|>", "<|reserved_special_token_69|>", "<|reserved_special_token_71|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['role'] == 'user' and loop.index <= 2 %}" + "".join(PLACES) + "{% endif %}"
    "{{ message['content'].replace('" + PLACES[1] + "', '') | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words(image_token=PLACES[1])
    others = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", PLACES[0], PLACES[2]]
    tokens.add_special_tokens({"additional_special_tokens": others})
    ends = {"bos_token_id": tokens.bos_token_id, "pad_token_id": tokens.pad_token_id}
    ends["eos_token_id"] = tokens.convert_tokens_to_ids("<|eot_id|>")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=LlamaConfig(**TOWER, **ends, vocab_size=len(tokens), max_position_embeddings=2048),
        image_token_id=tokens.image_token_id,
        image_seq_length=16,
        vision_feature_select_strategy="full",
    )
    model = scrambled(LlavaForConditionalGeneration(config))
    model.generation_config.eos_token_id = ends["eos_token_id"]
    model.save_pretrained(folder)
    pixels = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    settings = {"patch_size": 8, "vision_feature_select_strategy": "full", "image_token": PLACES[1]}
    save_processor(folder, "LlavaProcessor", pixels, tokens, TEMPLATE, **settings)
