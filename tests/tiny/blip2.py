"""A tiny BLIP-2: a Q-Former's answers before an OPT."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.tiny.chat import save_processor, words
from tests.tiny.clip import TOWER, scrambled

VISION = TOWER | {"image_size": 32, "patch_size": 8}
QFORMER = TOWER | {"encoder_hidden_size": 32, "vocab_size": 64, "cross_attention_frequency": 1}


def save(folder: Path, text: PreTrainedConfig, tokens: PreTrainedTokenizerBase) -> None:
    """Around any text model."""
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    scrambled(Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})
    save_processor(folder, "Blip2Processor", pixels, tokens, None, num_query_tokens=4)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    text = OPTConfig(**sizes, **ends, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id)
    save(folder, text, tokens)
