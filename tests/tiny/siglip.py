"""A SigLIP of two narrow layers a side; its text tower reads 64 tokens, always padded to that length."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny.clip import TOWER, scrambled


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with an end."""
    letters = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", model_max_length=64, model_input_names=["input_ids"]
    )


def make(folder: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    text = TOWER | {"vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1, "projection_size": 32}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    scrambled(SiglipModel(SiglipConfig(text_config=text, vision_config=vision))).save_pretrained(folder)
    words.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
