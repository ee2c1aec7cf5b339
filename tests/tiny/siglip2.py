"""A SigLIP 2 of two narrow layers a side, of the kind that reads pictures in their own proportions (NaFlex)."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import processors
from transformers import Siglip2Config, Siglip2Model, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.tiny.clip import TOWER, scrambled


def tokenizer() -> Siglip2Tokenizer:
    """Gemma's form with an end: letters, and bytes for the rest."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, "▁", *map(chr, range(ord("!"), ord("~") + 1)), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    words = Siglip2Tokenizer(vocabulary, [], padding_side="right", model_max_length=64, model_input_names=["input_ids"])
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return words


def make(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    text = TOWER | {"vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1, "projection_size": 32}
    vision = TOWER | {"patch_size": 8, "num_patches": 16}
    scrambled(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))).save_pretrained(folder)
    words.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
