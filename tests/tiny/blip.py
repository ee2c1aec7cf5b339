"""A BLIP of two narrow layers a side, with a BERT tokenizer of a few words, in the files the real ones have."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from captioner.models.blip import Blip

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "a the of in on and with picture painting photo photograph portrait cat dog dragon castle forest city robot sea "
    "sunset red blue green golden dark light old small large oil digital art artist highly detailed style by , . ' - "
    "##s ##ing ##ter 4 8 ##k hat sky mountain river woman man child flower"
)


def config(**text) -> BlipConfig:
    """Sizes for tests. The start token lies outside the tokenizer's vocabulary, as it does in the real ones."""
    vocabulary = len(SPECIAL) + len(WORDS.split()) + 26
    text_config = BlipTextConfig(
        vocab_size=vocabulary + 2,
        hidden_size=32,
        encoder_hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=vocabulary,
        sep_token_id=SPECIAL.index("[SEP]"),
        initializer_range=0.5,
        **text,
    )
    vision_config = BlipVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    return BlipConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict())


def model(seed: int = 0) -> Blip:
    """Random weights, wide enough that different pictures give different texts."""
    torch.manual_seed(seed)
    blip = Blip(config())
    with torch.no_grad():
        for name, weight in blip.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
            if "crossattention" in name and weight.ndim > 1:
                weight.mul_(3)
    return blip.eval()


def make(folder: Path) -> None:
    model().save_pretrained(folder)
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *WORDS.split(), *letters]) + "\n", encoding="utf-8")
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
