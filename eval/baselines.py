"""The models of a report by name, and what each of them has to beat.

The baselines are made from an index of training pictures (`captioner index build`). `nearest:INDEX` says the prompt of
the picture that looks most alike; `constant:INDEX` says the same to every picture: the prompt of the index that is
nearest to all its prompts on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner import pipeline, zoo
from captioner.contracts import PLAIN_REQUEST
from captioner.errors import BadInput
from captioner.files.names import path_of
from captioner.pipeline import LazyEmbedder
from captioner.prompt import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.contracts import LoadOptions, Model
    from captioner.decoding import Decoding
    from captioner.models.knn.knn import Index
    from captioner.pipeline import DirectEmbedder

KINDS = ("nearest", "constant")
EXPECTED = "+expected"
"""After a captioner's name: what it expects, of all its candidates, instead of what it says (as in ensembles)."""


def index_of(name: str) -> Path | None:
    """The index that a baseline is made from; None for every other model."""
    kind, _, folder = name.partition(":")
    return path_of(folder) if kind in KINDS and folder else None


def is_ensemble(name: str) -> bool:
    """The only model that is a file, and that is made of others."""
    return path_of(name).suffix == ".json" and path_of(name).is_file()


def absolute(name: str) -> str:
    """A model's name by which it is the same, wherever it is named from."""
    return zoo.absolute(name.removesuffix(EXPECTED)) + (EXPECTED if name.endswith(EXPECTED) else "")


class Baseline:
    """A model whose texts are prompts as somebody wrote them."""

    speaks = True
    decoding: Decoding | None = None

    def __init__(self, name: str, embedder: str | None, say: Callable[[Sequence[Image]], list[str]]) -> None:
        self.name = name
        self.embed_texts = LazyEmbedder(embedder)
        self.say = say

    def generate(
        self, images: Sequence[Image], request: object = None, finish: object = None, batch_size: int = 8
    ) -> list[Prompt]:
        """One prompt per picture."""
        return [Prompt(text, 0.0, (), self.name, embed=self.embed_texts) for text in self.say(images)]

    def embed(
        self, images: Sequence[Image], request: object = None, batch_size: int = 8, expected: bool = False
    ) -> np.ndarray:
        """Unit vectors `[n, d]` of the prompts."""
        return self.embed_texts(self.say(images))

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed`."""
        return self.embed(images)


def check(name: str, options: LoadOptions) -> None:
    """Refuse what can be told to be no model before anything is read; loading says the rest."""
    if (folder := index_of(name)) is not None:
        zoo.check_index(folder)
    else:
        pipeline.check(name.removesuffix(EXPECTED), options, PLAIN_REQUEST, speaks=False)


def load(name: str, options: LoadOptions) -> Model:
    """Any model that a report may name: a baseline, what a captioner expects, or what `captioner.load` knows."""
    if (folder := index_of(name)) is not None:
        return _baseline(name, folder, options)
    import captioner

    if name.endswith(EXPECTED):
        return _expected(name.removesuffix(EXPECTED), options)
    return captioner.load(name, options)


def _baseline(name: str, folder: Path, options: LoadOptions) -> Baseline:
    from captioner.models.knn import knn

    if name.startswith("constant:"):
        text = constant(knn.Index(folder))
        return Baseline(name, options.embedder, lambda images: [text] * len(images))
    model = knn.load(folder, replace(options, embedder=None))  # it says prompts: any embedder may embed them
    return Baseline(name, options.embedder, lambda images: [near[0].prompt for near in model.similar(images, 1)])


def _expected(name: str, options: LoadOptions) -> DirectEmbedder:
    """An ensemble of one."""
    import captioner
    from captioner.models.ensemble.ensemble import Ensemble, Member
    from captioner.pipeline import DirectEmbedder

    model = captioner.load(name, options)
    if not model.speaks:
        raise BadInput(f"{name} writes no text, so {EXPECTED} says nothing: name it without.")
    return DirectEmbedder(name + EXPECTED, Ensemble([Member(name, expected=True)], [model], by_norm=False))


def constant(index: Index) -> str:
    """The prompt that reaches the highest mean cosine against all prompts, each counted once."""
    embeddings = index.embeddings.astype(np.float32)
    _, prompts = index.texts
    return prompts[int(np.argmax(embeddings @ embeddings.mean(0)))]
