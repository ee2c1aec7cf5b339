"""Stage `gist`: what each token adds to a text's MiniLM embedding, by ridge regression on all training texts.

With that table the decoder's candidates are compared in no time; MiniLM itself would take as long as the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch.nn import functional as F

from training.mini.language import load_texts, load_tokenizer
from training.mini.saving import save_state

RIDGE = 0.3
CHECKED = 50
"""Every so many texts are left out at first, to see how near a gist comes."""


def gist(work: Path) -> None:
    """Stage `gist`."""
    _, lines, embeddings = load_texts(work)
    tokenizer = load_tokenizer(work)
    counts = bags([encoded.ids for encoded in tokenizer.encode_batch(lines)], tokenizer.get_vocab_size())
    unseen = np.arange(len(lines)) % CHECKED == 0
    guesses = torch.from_numpy(counts[unseen] @ fit(counts[~unseen], embeddings[~unseen]))
    cosine = F.cosine_similarity(guesses, torch.from_numpy(embeddings[unseen]))
    print(f"cosine of a gist and its embedding, {len(cosine)} texts left out: {cosine.mean():.3f}")
    save_state(work / "gist.pt", {"weight": torch.from_numpy(fit(counts, embeddings)).float()})


def bags(texts: Sequence[Sequence[int]], vocabulary: int) -> csr_matrix:
    """How often each token comes, rows of length 1 if no token comes twice. [texts, vocabulary]"""
    lengths = [len(ids) for ids in texts]
    rows = np.repeat(np.arange(len(texts)), lengths)
    values = np.repeat([max(length, 1) ** -0.5 for length in lengths], lengths)
    return csr_matrix((values, (rows, np.concatenate(texts))), shape=(len(texts), vocabulary))


def fit(counts: csr_matrix, embeddings: np.ndarray) -> np.ndarray:
    """Ridge regression without a constant. [vocabulary, 384]"""
    gram = (counts.T @ counts).toarray() + RIDGE * np.eye(counts.shape[1])
    return np.linalg.solve(gram, counts.T @ embeddings.astype(np.float64))
