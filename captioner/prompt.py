"""What comes out: candidates as a model says them, readings of one image, and the finished prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """One text a model proposes, uncleaned."""

    text: str
    score: float
    """Log-probability per token (beam score), so that `exp(score)` lies in 0..1; higher is better."""
    finished: bool = True
    """False when the length limit cut the text short."""


@dataclass(frozen=True)
class Reading:
    """All that a model says of one image: candidates, best first."""

    candidates: tuple[Candidate, ...]
    embedding: np.ndarray | None = field(default=None, repr=False)
    """The prompt embedding `[384]` that the model itself predicts from the pixels, where it has such a head."""
    gists: np.ndarray | None = field(default=None, repr=False)
    """`[candidates, 384]`: what the model takes the candidates' embeddings to be, where it can tell."""
    shortlist: int = 0
    """So many candidates, the best by their gists, are worth embedding to choose among them; 0: the gists choose."""


@dataclass(frozen=True)
class Prompt:
    """The finished answer for one image."""

    text: str
    score: float
    candidates: tuple[Candidate, ...]
    """The cleaned candidates, best first."""
    model: str
    source: Literal["model", "metadata"] = "model"
    raw: str = ""
    """The chosen candidate as the model said it."""
    precision: str | None = None
    """What the model computed in; None: a server knows."""
    embed: Callable[[list[str]], np.ndarray] | None = None

    def __repr__(self) -> str:
        """Without the candidates: sixteen of them fill a screen."""
        count = len(self.candidates)
        candidates = f"{count} candidate{'s' if count != 1 else ''}"
        return f"<Prompt {self.text!r}, from {self.source} {self.model}, score {self.score:.3f}, {candidates}>"

    @cached_property
    def embedding(self) -> np.ndarray:
        """The text's unit vector `[384]`, computed when first asked for."""
        if self.embed is None:
            raise ValueError("This Prompt was made without an embedder.")
        return self.embed([self.text])[0]
