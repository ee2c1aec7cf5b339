"""Drawing the next word: inverse-CDF sampling after top-p, where the probabilities are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from captioner.decoding import Decoding

Quantiles: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Images → what their texts draw next, `[images, copies]` of all images."""


def search_seed(decoding: Decoding) -> int:
    """The seed that was named, or one that torch's own generator draws."""
    return int(torch.randint(2**31, ())) if decoding.seed is None else decoding.seed


def quantiles_of(decoding: Decoding, image_seeds: Sequence[int]) -> Quantiles:
    """What the texts of these images draw next, from one generator per image, on the CPU so that devices agree."""
    seed = search_seed(decoding)
    # Generators seeded with neighbouring numbers are only unrelated if the numbers are mixed first.
    generators = [torch.Generator().manual_seed(hash((seed, image_seed)) % 2**63) for image_seed in image_seeds]
    quantiles = np.zeros((len(generators), decoding.num_return_sequences))

    def draw_for(images: np.ndarray) -> np.ndarray:
        for image in images.tolist():
            quantiles[image] = torch.rand(quantiles.shape[1], dtype=torch.float64, generator=generators[image]).numpy()
        return quantiles

    return draw_for


def draw(
    probabilities: np.ndarray, quantiles: np.ndarray, top_p: float = 1.0, rows: np.ndarray | None = None
) -> np.ndarray:
    """Inverse-CDF sampling, after top-p: the token at each quantile `[texts]` of a row of probabilities
    `[rows, tokens]`: of its own, or of the one that `rows` `[texts]` names."""
    tokens, likely = nucleus(probabilities, top_p)
    cumulative = likely.cumsum(axis=1, dtype=np.float64)
    if rows is not None:
        tokens, cumulative = tokens[rows], cumulative[rows]
    passed = (cumulative <= quantiles[:, None] * cumulative[:, -1:]).sum(axis=1, keepdims=True)
    return np.take_along_axis(tokens, np.minimum(passed, tokens.shape[1] - 1), axis=1)[:, 0]


def draw_in_place(probabilities: Tensor, quantiles: Tensor, top_p: float = 1.0) -> Tensor:
    """`draw` where the probabilities are: the token at the quantile `[rows]` of each row `[rows, 1]`."""
    dtype = exact(probabilities.device)
    if top_p < 1:
        descending = probabilities.sort(dim=-1, descending=True).values
        before = descending.cumsum(-1, dtype=dtype) - descending
        kept = (descending > 0) & (before < top_p * probabilities.sum(-1, keepdim=True))
        last = descending.gather(1, kept.sum(-1, keepdim=True) - 1)
        probabilities = torch.where(probabilities >= last, probabilities, 0)
    cumulative = probabilities.cumsum(-1, dtype=dtype)
    passed = (cumulative <= quantiles[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return passed.clamp_max_(probabilities.shape[1] - 1)


def exact(device: torch.device) -> torch.dtype:
    """What sums of many probabilities are kept in: Apple's GPUs have nothing above float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def nucleus(probabilities: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens of every row `[rows, tokens]` that together reach top_p: those that transformers keeps.

    Tokens in the order of the vocabulary and their probabilities, both `[rows, most]`; 0 of what is not kept.
    transformers sorts the whole vocabulary to find them, which took a third of a small model's time.
    """
    least = (1 - top_p) / probabilities.shape[1]  # tokens that are less likely have less than 1 - top_p all together
    if top_p == 1:
        return _likely(probabilities, np.full(len(probabilities), least))
    # For almost all rows those suffice that are sixteen times as likely: they reach top_p, and are few to sort.
    wanted = top_p * probabilities.sum(axis=1)
    tokens, likely = _likely(probabilities, np.full(len(probabilities), 16 * least))
    short = likely.sum(axis=1, dtype=np.float64) < 1.000001 * wanted
    if short.any():
        tokens, likely = _likely(probabilities, np.where(short, least, 16 * least))
    descending = np.sort(likely)[:, ::-1]
    before = descending.cumsum(axis=1, dtype=np.float64) - descending
    kept = (descending > 0) & (before < wanted[:, None])
    last = np.take_along_axis(descending, kept.sum(axis=1, keepdims=True) - 1, axis=1)
    return tokens, np.where(likely >= last, likely, 0)


def _likely(probabilities: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every row the tokens above its least probability, and their probabilities: both `[rows, most]`, then 0."""
    indices = np.flatnonzero(probabilities > least[:, None])  # by far quicker than where in two dimensions
    rows, chosen = np.divmod(indices, probabilities.shape[1])
    counts = np.bincount(rows, minlength=len(probabilities))
    filled = np.arange(max(1, int(np.max(counts)))) < counts[:, None]
    tokens, likely = np.zeros(filled.shape, dtype=np.int64), np.zeros(filled.shape, dtype=probabilities.dtype)
    tokens[filled], likely[filled] = chosen, probabilities.ravel()[indices]
    return tokens, likely
