"""A tiny GIT: CLIP's image tower and a causal BERT that reads the picture before the words."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizer, GitConfig, GitForCausalLM, GitProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.blip import SPECIAL, WORDS
from tests.tiny.clip import TOWER, scrambled


def make(folder: Path) -> None:
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS.split()]) + "\n", encoding="utf-8")
    words = BertTokenizer(str(folder / "vocab.txt"))
    ids = {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id, "pad_token_id": words.pad_token_id}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = GitConfig(vision_config=vision, **TOWER, **ids, vocab_size=len(words), max_position_embeddings=64)
    scrambled(GitForCausalLM(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    GitProcessor(CLIPImageProcessorPil(**size), words).save_pretrained(folder)
