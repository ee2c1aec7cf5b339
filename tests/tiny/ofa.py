"""A tiny OFA in the layout of the published folders: config.json, vocab.json, merges.txt and the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from captioner.models.ofa import OFA, OFAConfig
from captioner.models.ofa.processor import BINS, CODES, SPECIAL
from tests.decoders import BY_HEART

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "resnet_type": "resnet50",
    "vocab_size": 320 + len(CODES) + len(BINS),
}


def vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt: bytes, a few merges, the special tokens where BART has them; 320 in all."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    pairs.train_from_iterator([*BY_HEART * 2, *(" what does the image describe?",) * 9], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    pairs.model.save(str(folder))
    filled = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for number in range(len(filled), 320):  # as BART's vocabulary, which has words that are never used
        filled[f"madeupword{number}"] = number
    (folder / "vocab.json").write_text(json.dumps(filled, ensure_ascii=False), encoding="utf-8")


def scrambled(model: OFA, seed: int) -> OFA:
    """Random numbers everywhere, also where a fresh model has zeros and ones: what is left out cannot go unnoticed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.ndim == 0:
                continue
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("running_var"):
                weight.copy_(1 + 0.2 * noise.tanh())
            elif weight.ndim == 1:
                weight.add_(0.1 * noise)
            elif weight.ndim == 4:
                weight.copy_(noise * (2 / weight[0].numel()) ** 0.5)
            else:
                weight.copy_(noise * 0.3)
    return model


def make(folder: Path, **sizes) -> None:
    vocabulary(folder)
    scrambled(OFA(OFAConfig(**SIZES | sizes)), seed=0).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 64}', encoding="utf-8")


def on_smaller_pictures(made: Path, folder: Path) -> Path:
    """A copy to train: its convolutions, which are the real ones, take a quarter of the time."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text('{"size": 32}', encoding="utf-8")
    return folder
