"""Tiny prefix models: CLIP → transformer mapper → GPT-2, and mini's own kind with a head that predicts embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from captioner.models.parts.backbones import backbones
from captioner.models.prefix.clip_prefix import ClipPrefix, ClipPrefixConfig
from captioner.models.prefix.layers import PrefixProcessor

PROMPTS = (
    "a red fox in the snow, oil painting.",
    "portrait of an old king, 35mm photo, sharp focus.",
    "two ships on a stormy sea, dramatic light.",
    "a city of glass at night, neon, rain.",
)
GPT2 = {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0}  # fmt: skip
HEAD = {"rank": 8, "prototypes": 12}


def tokenizer() -> Tokenizer:
    """A byte-pair vocabulary of its own, in GPT-2's form."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(PROMPTS, trainers.BpeTrainer(vocab_size=150, special_tokens=["<|endoftext|>"]))
    return made


def clip() -> backbones.Backbone:
    """A CLIP of one narrow layer: 32 pixels, four patches, embeddings of 16."""
    preprocess = replace(backbones.BACKBONES["clip"].preprocess, size=32, shortest=32)
    return backbones.blank(
        "clip", preprocess, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16, projection_dim=16,
    )  # fmt: skip


def lite() -> backbones.Backbone:
    """The real EfficientNet-Lite2, random, on small pictures."""
    preprocess = replace(backbones.BACKBONES["efficientnet-lite2"].preprocess, size=64)
    return backbones.blank("efficientnet-lite2", preprocess, pool="statistics")


def model(seed: int = 0, head: bool = False, **settings) -> ClipPrefix:
    """Random weights, wide enough that different pictures give different texts."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = ClipPrefixConfig(
        backbone=(lite() if head else clip()).config,
        **{"joint_dim": 16, "prefix_length": 4, "clip_length": 3, "mapper_layers": 2, "mapper_heads": 3,
           "gpt2": GPT2 | {"vocab_size": words.get_vocab_size()}, "eos_ids": [words.token_to_id(".")], "pad_id": 0,
           "head": HEAD if head else None, "normalize": head} | settings,
    )  # fmt: skip
    made = ClipPrefix(config).eval()
    with torch.no_grad():
        for weight in [*made.mapper.parameters(), *made.gpt.parameters()]:
            if weight.ndim > 1:
                weight.normal_(std=0.4)
    return made


def save(made: ClipPrefix, folder: Path) -> None:
    made.save_pretrained(folder)
    PrefixProcessor(made.backbone.preprocess, tokenizer(), made.config).save_pretrained(folder)


def make(folder: Path) -> None:
    save(model(), folder)
