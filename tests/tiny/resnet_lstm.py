"""A tiny ResNet-LSTM with a byte-pair vocabulary of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from captioner.models.lstm import attention_lstm
from captioner.models.parts.backbones import backbones
from tests.decoders import norms_that_have_seen, pictures

PROMPTS = (
    "a red fox in the snow, oil painting",
    "portrait of an old king, 35mm photo, sharp focus",
    "two ships on a stormy sea, dramatic light, by a romantic painter",
    "a city of glass at night, neon, rain",
)
SIZES = {"hidden_size": 32, "embedding_size": 24, "attention_size": 16}


def backbone() -> backbones.Backbone:
    """A ResNet of four narrow blocks; 64 pixels become a grid of 2 × 2. Its batch norms have seen pictures, without
    which all features would be much the same."""
    preprocess = replace(backbones.BACKBONES["resnet50"].preprocess, size=64, shortest=64)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
    made = backbones.blank("resnet50", preprocess, **sizes)
    norms_that_have_seen(made.tower, preprocess(pictures(16)))
    return made


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = attention_lstm.build_vocabulary(PROMPTS, "bpe", 300)
    model, processor = attention_lstm.new(backbone(), tokenizer, **SIZES)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
