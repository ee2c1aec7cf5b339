"""A tiny ResNet-LSTM-GPT-2 with a byte-pair tokenizer in GPT-2's file format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from captioner.models.lstm import lstm_gpt2
from tests.tiny.resnet_lstm import PROMPTS, backbone


def tokenizer(texts: Sequence[str] = PROMPTS) -> GPT2TokenizerFast:
    """Bytes and a few merges; one special token, as GPT-2 has it."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator(texts, trainer)
    return GPT2TokenizerFast(tokenizer_object=pairs, bos_token=end, eos_token=end, unk_token=end)


def gpt2(tokens: GPT2TokenizerFast, dropout: float = 0.1) -> GPT2LMHeadModel:
    end = tokens.eos_token_id
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokens), bos_token_id=end, eos_token_id=end, **sizes, **drop))


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = tokenizer()
    model, processor = lstm_gpt2.new(backbone(), gpt2(tokens), tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
