"""A tiny InstructBLIP: its Q-Former reads the instruction, too, in words of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizer, InstructBlipConfig, InstructBlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.tiny import blip2_t5
from tests.tiny.blip import SPECIAL, WORDS
from tests.tiny.blip2 import QFORMER, VISION
from tests.tiny.chat import save_processor
from tests.tiny.clip import scrambled


def make(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = blip2_t5.words()
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    vocabulary = list(dict.fromkeys([*SPECIAL, *WORDS.split(), *letters]))
    (folder / "qformer_tokenizer").mkdir()
    (folder / "qformer_tokenizer" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "qformer_tokenizer" / "vocab.txt")).save_pretrained(folder / "qformer_tokenizer")
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=QFORMER | {"vocab_size": len(vocabulary)},
        text_config=blip2_t5.text(tokens),
        num_query_tokens=4,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    scrambled(InstructBlipForConditionalGeneration(config)).save_pretrained(folder)
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})
    save_processor(folder, "InstructBlipProcessor", pixels, tokens, None, num_query_tokens=4)
