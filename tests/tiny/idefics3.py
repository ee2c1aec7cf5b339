"""A tiny Idefics 3: SigLIP's tower over pieces of a large picture, before a Llama."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.tiny.chat import save_processor
from tests.tiny.clip import TOWER, scrambled
from tests.tiny.smolvlm import TEMPLATE, text, words


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = words()
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    image = tokens.convert_tokens_to_ids("<image>")
    config = Idefics3Config(vision_config=vision, text_config=text(tokens), scale_factor=2, image_token_id=image)
    model = scrambled(Idefics3ForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    save_processor(folder, "Idefics3Processor", pixels, tokens, TEMPLATE, image_seq_len=4)
