"""A tiny Gemma 3: SigLIP's tower, pooled to sixteen tokens, before a text model with windows."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tests.tiny.chat import save_processor
from tests.tiny.clip import TOWER, scrambled

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<start_of_image>{% else %}"
    "{{ item['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def words(**named: str) -> GemmaTokenizer:
    """Gemma's kind of tokenizer: ▁ for a space, and bytes for what has no letter."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = ["▁", "\n", *map(chr, range(33, 127))]
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "ca", "cat", "▁a", "▁cat"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "a"), ("▁", "cat")]
    ids = {token: n for n, token in enumerate(dict.fromkeys(vocabulary))}
    return GemmaTokenizer(ids, merges, add_bos_token=True, extra_special_tokens=named)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    tokens.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    text = TOWER | {
        "vocab_size": len(tokens),
        "head_dim": 8,
        "query_pre_attn_scalar": 1,
        "num_key_value_heads": 2,
        "sliding_window": 64,
    }
    config = Gemma3Config(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 2048},
        vision_config=TOWER | {"image_size": 64, "patch_size": 8, "vision_use_head": False},
        mm_tokens_per_image=16,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
        image_token_index=tokens.image_token_id,
        tie_word_embeddings=False,  # a random model would say what it read last, again and again
    )
    model = scrambled(Gemma3ForConditionalGeneration(config))
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.mul_(4)  # seen among a hundred
    model.generation_config.eos_token_id = [1, tokens.convert_tokens_to_ids("<end_of_turn>")]
    model.save_pretrained(folder)
    pixels = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    save_processor(folder, "Gemma3Processor", pixels, tokens, TEMPLATE, image_seq_length=16)
