"""Nearest neighbours: a picture's prompt embedding is the mean of those of the pictures that look most like it.

An index is a folder of plain arrays, memory-mapped: features as float16, the prompts' embeddings, which picture has
which prompt, and for large sets the links of an HNSW graph. FAISS searches in these arrays where they lie. Its own
file format is never read: of 3,000 files of 71 kB with a few wrong bytes (FAISS 1.15.1) none made it crash, but 12 made
it ask for more than 4 GiB. So the graph is checked here and then handed over. `build.py` beside it makes an index,
`tune.py` chooses its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from PIL.Image import Image

from captioner import compute, zoo
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput, counted
from captioner.files.json import read_object
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.checkpoint import check_files
from captioner.text.embedding import suits, unit

swig: Any = faiss
"""FAISS, whose type stubs lack what a graph is made of."""
BREADTH = 4
"""An approximate search looks at this many candidates for each neighbour that is wanted."""
CANDIDATES = 100
"""A picture's links are chosen from so many. With FAISS's 40, 6 % of the nearest of a million were never found."""
EXTRA = 3
"""Pictures fetched for each prompt that is wanted: many pictures share one."""


class Features:
    """Pictures → feature vectors, as the index keeps them: centred, perhaps projected, of length 1."""

    def __init__(self, backbone: Backbone, centre: np.ndarray, projection: np.ndarray | None) -> None:
        self.backbone = backbone
        self.centre = centre
        self.projection = projection

    def __call__(self, images: Sequence[Image]) -> np.ndarray:
        return reduce(pooled(self.backbone, images), self.centre, self.projection)


@compute.inference_mode()
def pooled(backbone: Backbone, images: Sequence[Image]) -> np.ndarray:
    """The backbone's pooled vectors of RGB pictures, float32 `[n, width]`."""
    weight = next(backbone.parameters())
    return backbone.pooled(backbone.preprocess(images).to(weight.device, weight.dtype)).float().cpu().numpy()


def reduce(features: np.ndarray, centre: np.ndarray, projection: np.ndarray | None) -> np.ndarray:
    """Centring makes the cosine tell pictures apart: pooled features all share one large common part."""
    features = features - centre
    if projection is not None:
        features = features @ projection
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def too_few(holder: str, pictures: int, prompts: int, k: int) -> BadInput:
    """An answer is made of the k nearest prompts: there must be as many."""
    remedy = f", or set k to {prompts} or less" if prompts else ""
    return BadInput(
        f"{holder} {counted(pictures, 'picture')} with {counted(prompts, 'different prompt')}, fewer than the {k} "
        f"neighbours to use. Build the index of more pictures{remedy}."
    )


@dataclass(frozen=True)
class Similar:
    """A neighbour, for people."""

    picture: str
    prompt: str
    similarity: float


class Index:
    """A folder that `captioner index build` made, open for searching."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = _read_about(folder)
        check_files(folder)
        pictures, prompts, dims = (self.about[key] for key in ("pictures", "prompts", "dims"))
        self.features = self._array("features", np.float16, (pictures, dims))
        self.prompt_rows = self._array("prompt_rows", np.int32, (pictures,))
        self.embeddings = self._array("embeddings", np.float16, (prompts, self.about["embedding_size"]))
        self.centre = self._array("centre", np.float32, (self.about["width"],))
        self.projection = (
            self._array("projection", np.float32, (self.about["width"], dims)) if self.about["projected"] else None
        )
        if prompts < self.about["k"]:
            raise too_few(f"{folder} has", pictures, prompts, self.about["k"])
        for array in (self.centre, self.projection):
            if array is not None and not np.isfinite(array).all():
                raise self._damaged()
        if self.prompt_rows.min() < 0 or self.prompt_rows.max() >= prompts:
            raise BadCheckpoint(f"{folder}/prompt_rows.npy points to prompts that are not there. Build it anew.")

    def _damaged(self) -> BadCheckpoint:
        return BadCheckpoint(f"{self.folder} holds NaN or infinite numbers. Build the index anew.")

    def _array(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadCheckpoint(f"{path} cannot be read ({error}). Build the index anew.") from error
        fits = array.ndim == len(shape) and all(
            wanted in (size, -1) for size, wanted in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != dtype or not array.flags.c_contiguous:
            raise BadCheckpoint(
                f"{path} holds {array.dtype} {array.shape}, index.json says {np.dtype(dtype)} {shape}. "
                "Build the index anew."
            )
        return array

    @cached_property
    def flat(self) -> faiss.IndexScalarQuantizer:
        """Exact search in the mapped features."""
        index = faiss.IndexScalarQuantizer(
            self.about["dims"], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        _map_features(index, self.features)
        return index

    @cached_property
    def graph(self) -> Any:
        """Approximate search over the mapped features and links."""
        about = self.about["graph"]
        index = new_graph(self.about["dims"], about["links"])
        levels = self._array("levels", np.int32, (len(self.features),))
        self.neighbours = neighbours = self._array("neighbours", np.int32, (-1,))  # kept: FAISS only looks at it
        slots = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
        offsets = _check_graph(levels, neighbours, slots, about["entry"], self.folder)
        _map_features(faiss.downcast_index(index.storage), self.features)
        faiss.copy_array_to_vector(np.ascontiguousarray(levels), index.hnsw.levels)
        faiss.copy_array_to_vector(offsets.astype(np.uint64), index.hnsw.offsets)
        index.hnsw.neighbors = _view(swig.MaybeOwnedVectorInt32, neighbours, index.hnsw.neighbors)
        index.hnsw.entry_point = about["entry"]
        index.hnsw.max_level = int(levels.max()) - 1
        index.ntotal, index.is_trained = len(self.features), True
        return index

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` most similar pictures of each query: cosines and rows `[n, count]`, best first, -1 for none."""
        count = min(count, len(self.features))
        if self.about["graph"]:
            breadth = swig.SearchParametersHNSW(efSearch=max(64, BREADTH * count))
            cosines, rows = self.graph.search(queries, count, params=breadth)
        else:
            cosines, rows = self.flat.search(queries, count)
        if not np.isfinite(cosines[rows >= 0]).all() or (rows < 0).all():
            raise self._damaged()
        return cosines, rows

    def prompts_near(
        self, queries: np.ndarray, k: int, banned: Sequence[np.ndarray] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query the k nearest prompts and their cosines; a prompt counts once, by its most similar picture.

        So a prompt with a hundred pictures weighs no more than one with a single picture. banned: prompts that each
        query must not see (its own, when an index is tuned on itself).
        """
        fetched, unanswered = EXTRA * k + (max(map(len, banned)) if banned else 0), list(range(len(queries)))
        neighbours: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        while True:
            similarities, rows = self.nearest(queries[unanswered], fetched)
            for query, cosines, pictures in zip(unanswered, similarities, rows, strict=True):
                neighbours[query] = self._distinct_prompts(cosines, pictures, k, banned[query] if banned else None)
            unanswered = [query for query in unanswered if len(neighbours[query][0]) < k]
            if not unanswered or fetched >= len(self.features):
                return [neighbours[query] for query in range(len(queries))]
            fetched *= 4

    def _distinct_prompts(
        self, cosines: np.ndarray, pictures: np.ndarray, k: int, banned: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first k prompts of these pictures, and the cosines of the pictures that they come by first."""
        cosines, pictures = cosines[pictures >= 0], pictures[pictures >= 0]
        prompts, first = np.unique(self.prompt_rows[pictures], return_index=True)
        if banned is not None:
            first = first[~np.isin(prompts, banned)]
        first = np.sort(first)[:k]
        return self.prompt_rows[pictures[first]], cosines[first]

    def predict(self, queries: np.ndarray, k: int | None = None, temperature: float | None = None) -> np.ndarray:
        """The mean prompt embedding of the k nearest prompts `[n, 384]`, shorter the less they agree."""
        near = self.prompts_near(queries, k or self.about["k"])
        temperature = temperature or self.about["temperature"]
        return np.stack([weighted_mean(self.embeddings[rows], cosines, temperature) for rows, cosines in near])

    @cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """Names of all pictures, and all prompts."""
        return self._texts("pictures"), self._texts("prompts")

    def _texts(self, name: str) -> list[str]:
        import pyarrow.parquet

        path = self.folder / f"{name}.parquet"
        try:
            texts = pyarrow.parquet.read_table(path)[0].to_pylist()
        except (OSError, ValueError, IndexError, pyarrow.ArrowException) as error:
            raise BadCheckpoint(f"{path} cannot be read ({error}). Build the index anew.") from error
        if len(texts) != self.about[name] or not all(isinstance(text, str) for text in texts):
            raise BadCheckpoint(f"{path} does not hold the {self.about[name]} texts of this index. Build it anew.")
        return texts

    def similar(self, queries: np.ndarray, count: int) -> list[list[Similar]]:
        """Per query the most similar pictures with their prompts."""
        pictures, prompts = self.texts
        return [
            [
                Similar(pictures[r], prompts[self.prompt_rows[r]], float(np.clip(c, -1, 1)))  # float16 is not exact
                for c, r in zip(*neighbours, strict=True)
                if r >= 0
            ]
            for neighbours in zip(*self.nearest(queries, count), strict=True)
        ]


def weighted_mean(embeddings: np.ndarray, cosines: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of cosine / temperature as weights: embeddings `[k, d]` → `[d]`."""
    weights = np.exp((cosines - cosines.max()) / temperature)
    return (weights / weights.sum()) @ embeddings.astype(np.float32)


class Knn:
    """Pictures in, unit vectors out."""

    def __init__(self, index: Index, features: Features) -> None:
        self.index = index
        self.features = features

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed_images`, but shorter the less the neighbours agree."""
        return self.index.predict(self.features(images))

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        return unit(self.vectors(images))

    def similar(self, images: Sequence[Image], count: int = 5) -> list[list[Similar]]:
        return self.index.similar(self.features(images), count)


def load(folder: Path, options: LoadOptions) -> Knn:
    """An index folder and the backbone it was built with."""
    index = Index(folder)
    about = index.about
    if not suits(options.embedder, about["embedder"]):
        raise BadInput(
            f"{folder} holds embeddings of {about['embedder']}, not of {options.embedder}. "
            "Build it anew with that embedder, or leave embedder out."
        )
    backbone = backbones.build(about["backbone"], about["weights"], **about["settings"])
    if backbone.fingerprint() != about["fingerprint"]:
        raise BadInput(
            f"{folder} was built with other weights of {about['backbone']} than those now at "
            f"{about['weights'] or 'their usual place'}. Build it anew, or bring the old weights back."
        )
    return Knn(index, Features(compute.prepare(backbone, options), index.centre, index.projection))


def new_graph(dims: int, links: int) -> Any:
    """An empty graph over float16 vectors: FAISS's IndexHNSWSQ."""
    index = swig.IndexHNSWSQ(dims, faiss.ScalarQuantizer.QT_fp16, links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = CANDIDATES
    return index


def _view(kind: Any, array: np.ndarray, like: Any) -> Any:
    """A FAISS vector that looks at an array's memory; the array must live on. `like` lends its (empty) owner."""
    return kind.create_view(faiss.swig_ptr(array), array.size, like.owner)


def _map_features(index: Any, features: np.ndarray) -> None:
    """Let a scalar quantizer of FAISS search in these float16 features where they lie."""
    codes = features.reshape(-1).view(np.uint8)
    index.codes = _view(swig.MaybeOwnedVectorUInt8, codes, index.codes)
    index.ntotal, index.is_trained = len(features), True


def _check_graph(levels: np.ndarray, neighbours: np.ndarray, slots: np.ndarray, entry: int, folder: Path) -> np.ndarray:
    """Where each picture's links begin `[n + 1]`, after making sure that no link leads out of the arrays."""
    broken = BadCheckpoint(f"{folder} has a broken search graph. Build the index anew.")
    count, top = len(levels), int(levels.max())
    if levels.min() < 1 or top >= len(slots) or not 0 <= entry < count or levels[entry] != top:
        raise broken
    offsets = np.concatenate([[0], np.cumsum(slots[levels])])
    if offsets[-1] != len(neighbours) or neighbours.min() < -1 or neighbours.max() >= count:
        raise broken
    for level in range(1, top):  # a link on a level must lead to a picture that is on that level too
        on_level = np.flatnonzero(levels > level)
        linked = neighbours[offsets[on_level, None] + np.arange(slots[level], slots[level + 1])]
        if (levels[linked[linked >= 0]] <= level).any():
            raise broken
    return offsets


WANTED = {
    **dict.fromkeys(("backbone", "fingerprint", "embedder"), str),
    **dict.fromkeys(("width", "dims", "embedding_size", "pictures", "prompts", "k"), int),
    **{"projected": bool, "temperature": float, "settings": dict, "weights": str | None, "graph": dict | None},
}


def _read_about(folder: Path) -> dict:
    path, anew = folder / "index.json", "Build the index anew."
    zoo.check_index(folder)
    about = {"weights": None, "graph": None} | read_object(path, remedy=anew)
    for key, kind in WANTED.items():
        if not isinstance(about.get(key), kind):
            raise BadCheckpoint(f"{path} lacks {key!r} or has it wrong. {anew}")
    if not all(about[key] > 0 for key in ("width", "dims", "pictures", "prompts", "k", "temperature")):
        raise BadCheckpoint(f"{path} holds sizes that are not above 0. {anew}")
    graph = about["graph"] or {"links": 2, "entry": 0}
    if not all(isinstance(graph.get(key), int) for key in ("links", "entry")) or not 2 <= graph["links"] <= 512:
        raise BadCheckpoint(f"{path} describes a search graph that cannot be. {anew}")
    return about
