"""Text → 384-d unit vectors, as sentence-transformers' all-MiniLM-L6-v2 gives them.

The packaged MiniLM is run by `minilm.py`, any other model by sentence-transformers itself. Both bring torch, and are
imported when one is asked for: what only names an embedder pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from captioner import zoo
from captioner.errors import BadCheckpoint, MissingModel

DEFAULT = "all-MiniLM-L6-v2"
MINILM = (None, DEFAULT, f"sentence-transformers/{DEFAULT}")
"""Names of the packaged MiniLM. The embeddings that our models predict are in its space."""

TextEmbedder = Callable[[Sequence[str]], np.ndarray]
"""list of n texts → float32 [n, d], each row of length 1."""


def text_embedder(name: str | None = None, precision: str = "fp32") -> TextEmbedder:
    """The packaged MiniLM-L6, or by name any sentence-transformers model (folder or Hub id).

    precision "bf16" is three times as fast on CPUs that have it and moves cosines by less than 0.01: right for
    preparing training data, wrong for scoring. "fp16" takes as long as "fp32" and half the memory, and moves cosines by
    less than 0.0001: right for choosing among texts.
    """
    return _loaded(None if name in MINILM else name, precision)  # MiniLM by all its names is in memory once


@lru_cache(maxsize=2)
def _loaded(name: str | None, precision: str) -> TextEmbedder:
    if name is None:
        from captioner.text.minilm import MiniLM

        return MiniLM(precision)
    return foreign(name, precision)


def unit(vectors: np.ndarray) -> np.ndarray:
    """A model's vectors as unit vectors, float32; what is no embedding is refused."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise BadCheckpoint("The model answers with numbers that are no embedding: its weights are zero or damaged.")
    return (vectors / norms).astype(np.float32)


def absolute(name: str) -> str:
    """An embedder's name for whoever stands in another folder."""
    return name if name in MINILM else zoo.absolute(name)


def suits(requested: str | None, trained_with: str) -> bool:
    """Whether the embedder that is requested (None: any) is the one that a model was made with."""
    if requested is None or {requested, trained_with} <= set(MINILM):
        return True
    return _identifier(absolute(requested)) == _identifier(absolute(trained_with))


def _identifier(name: str) -> str:
    """Of the Hub: sentence-transformers' own models are named without it."""
    return name if "/" in name else f"sentence-transformers/{name}"


def foreign(name: str, precision: str = "fp32") -> TextEmbedder:
    """Another embedder, by sentence-transformers."""
    # Found or fetched first: sentence-transformers needs a minute of retries to say that there is no network.
    folder = Path(name) if Path(name).is_dir() else zoo.hub_folder(_identifier(name), modules=True)
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
