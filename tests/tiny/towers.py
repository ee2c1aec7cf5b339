"""Tiny pretrained parts that trainers build on, in the files that the real ones have: clip, vit, resnet, gpt2."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    ViTConfig,
    ViTModel,
)

from tests.tiny.resnet_lstm import backbone

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "intermediate_size": 64}


def make(folder: Path) -> None:
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, hidden_size=32, projection_dim=32))
    vit = ViTModel(ViTConfig(**SMALL, hidden_size=32), add_pooling_layer=False)
    for name, tower in (("clip", clip), ("vit", vit)):
        tower.save_pretrained(folder / name)
        file = folder / name / "model.safetensors"  # as small as random weights come, all pictures would look the same
        louder = {key: value * (8 if value.ndim > 1 else 1) for key, value in load_file(file).items()}
        save_file(louder, file, {"format": "pt"})
    backbone().tower.save_pretrained(folder / "resnet")
    seen = {"size": {"shortest_edge": 64}, "crop_size": 64, "crop_pct": 1.0}
    (folder / "resnet" / "preprocessor_config.json").write_text(json.dumps(seen))
    words = GPT2TokenizerFast(tokenizer_object=letters(), eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    words.save_pretrained(folder / "gpt2")
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": len(words), "n_positions": 96, "n_embd": 48, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, **quiet, eos_token_id=0, bos_token_id=0)).save_pretrained(folder / "gpt2")


def letters() -> Tokenizer:
    """GPT-2's way to write any text, without a single merge learnt."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    return made
