"""A tiny Kosmos-2, which goes on with a text that begins with the picture."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor, XLMRobertaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.chat import save_processor
from tests.tiny.clip import TOWER, scrambled


def make(folder: Path) -> None:
    torch.manual_seed(0)
    pieces = ["▁", "▁An", "▁image", "▁of", "▁a", "▁cat", *map(chr, range(33, 127))]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokens = XLMRobertaTokenizer(vocabulary + [(piece, -float(n)) for n, piece in enumerate(pieces)])
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    Kosmos2Processor(pixels, tokens, 4)  # which adds tokens for places
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 4, "max_position_embeddings": 512}
    text |= {"dropout": 0.0, "attention_dropout": 0.0, "vocab_size": len(tokens)}
    config = Kosmos2Config(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8})
    model = scrambled(Kosmos2ForConditionalGeneration(config))
    with torch.no_grad():
        model.text_model.model.embed_tokens.weight.mul_(0.3)  # tied: it would say what it read last, again and again
    model.save_pretrained(folder)
    save_processor(folder, "Kosmos2Processor", pixels, tokens, None, num_patch_index_tokens=4)
