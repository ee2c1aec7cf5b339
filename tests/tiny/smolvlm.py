"""A tiny SmolVLM: Idefics 3's way of reading a picture in pieces, with a video part that captions do not need."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny import chat
from tests.tiny.clip import TOWER, scrambled

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def words() -> PreTrainedTokenizerFast:
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokens = chat.words(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *places]})
    return tokens


def text(tokens: PreTrainedTokenizerFast) -> LlamaConfig:
    ends = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(**TOWER, **ends, vocab_size=len(tokens), max_position_embeddings=2048)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = TOWER | {"image_size": 16, "patch_size": 4}  # no more than tokens a piece: transformers 5.20
    config = SmolVLMConfig(
        vision_config=vision, text_config=text(tokens), scale_factor=2, image_token_id=tokens.image_token_id
    )
    model = scrambled(SmolVLMForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokens.convert_tokens_to_ids("<end_of_utterance>")
    model.save_pretrained(folder)
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    chat.save_processor(folder, "SmolVLMProcessor", pixels, tokens, TEMPLATE, image_seq_len=4)
    chat.save_video_part(folder, "SmolVLMVideoProcessor")
