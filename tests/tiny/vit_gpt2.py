"""A tiny ViT that a GPT-2 looks at: transformers' VisionEncoderDecoderModel, its start and end the same token."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.tiny.clip import TOWER, scrambled
from tests.tiny.resnet_lstm_gpt2 import tokenizer


def make(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    end = words.eos_token_id
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": len(words)}
    gpt2 = GPT2Config(**sizes, bos_token_id=end, eos_token_id=end, add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**TOWER, image_size=32, patch_size=8), gpt2
    )
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = end
    scrambled(VisionEncoderDecoderModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
