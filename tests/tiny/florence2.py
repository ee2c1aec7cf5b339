"""A tiny Florence-2 in transformers' own layout: DaViT before a BART that is told a task."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BartConfig, BartTokenizer, Florence2Config, Florence2ForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.chat import save_processor
from tests.tiny.clip import scrambled
from tests.tiny.resnet_lstm_gpt2 import tokenizer


def words() -> BartTokenizer:
    """BART's beginning and end of a text, and bytes."""
    pairs = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *pairs["vocab"], "<mask>"]
    merges = [tuple(pair) for pair in pairs["merges"]]
    ids = {token: n for n, token in enumerate(dict.fromkeys(vocabulary))}
    return BartTokenizer(ids, merges, extra_special_tokens={"image_token": "<image>"})


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = {
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 16, 16, 32],
        "num_heads": [1, 2, 2, 4],
        "num_groups": [1, 2, 2, 4],
    }
    vision |= {"window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0}
    sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()}
    ends = {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    text = BartConfig(**both, **ends, d_model=32, vocab_size=len(tokens), max_position_embeddings=512)
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=tokens.image_token_id, **ends)
    model = scrambled(Florence2ForConditionalGeneration(config))
    model.generation_config.update(no_repeat_ngram_size=3, num_beams=3, forced_bos_token_id=0, **ends)
    model.save_pretrained(folder)
    pixels = CLIPImageProcessorPil(
        size={"height": 64, "width": 64},
        do_center_crop=False,
        crop_size={"height": 64, "width": 64},
        image_seq_length=5,
    )
    save_processor(folder, "Florence2Processor", pixels, tokens, None)
