"""A tiny BLIP-2 that speaks through a T5."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5Config, T5Tokenizer

from tests.tiny.blip2 import save


def words() -> T5Tokenizer:
    """Pieces of SentencePiece's kind, with T5's own marks."""
    letters = ["▁", *map(chr, range(33, 127))]
    pieces = ["▁a", "▁cat", "▁dog", "▁photo", "▁red", *letters]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocabulary + [(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=2)


def text(tokens: T5Tokenizer) -> T5Config:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    return T5Config(
        **sizes, vocab_size=len(tokens), decoder_start_token_id=0, bos_token_id=1, tie_word_embeddings=False
    )


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    save(folder, text(tokens), tokens)
