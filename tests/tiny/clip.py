"""A CLIP of two narrow layers a side that reads 77 tokens, and CLIP's byte-pair tokenizer with a few words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = ("by", "art", "oil", "cat", "dog", "red", "blue", "photo", "trending", "on", "highly", "detailed")
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Bytes, bytes that end a word, and the merges that spell a few words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = letters + [letter + "</w>" for letter in letters], []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]  # CLIP's own are the last two, too
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def scrambled(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights, wide enough that different texts and pictures get different vectors."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def make(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer(folder)
    text = TOWER | {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    scrambled(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
