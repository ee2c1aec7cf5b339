"""A tiny PaliGemma: SigLIP's tower before a Gemma that sees the whole beginning at once."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny.chat import save_processor
from tests.tiny.clip import TOWER, scrambled
from tests.tiny.gemma3 import words


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words(image_token="<image>")
    pixels = SiglipImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16)
    PaliGemmaProcessor(pixels, tokens)  # which adds tokens for places
    text = TOWER | {"model_type": "gemma", "vocab_size": len(tokens), "head_dim": 8, "num_key_value_heads": 2}
    config = PaliGemmaConfig(
        vision_config=TOWER | {"image_size": 32, "patch_size": 8, "vision_use_head": False, "projection_dim": 32},
        text_config=text | {"tie_word_embeddings": False},
        projection_dim=32,
        image_token_index=tokens.image_token_id,
        vocab_size=len(tokens),
        tie_word_embeddings=False,  # a random model would say what it read last, again and again
    )
    scrambled(PaliGemmaForConditionalGeneration(config)).save_pretrained(folder)
    save_processor(folder, "PaliGemmaProcessor", pixels, tokens, None)
