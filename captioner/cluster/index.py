"""`captioner index build` by Ray's workers: each reads a share of the pictures, then one index is made of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from captioner import zoo
from captioner.cluster.pool import Cluster, each
from captioner.contracts import LoadOptions
from captioner.errors import CaptionerError
from captioner.models.knn.build import Built, Progress, Recipe, build_shard, merge
from captioner.pairs import sources
from captioner.text import embedding


def build_with_ray(
    data: Sequence[str],
    out: Path,
    recipe: Recipe,
    options: LoadOptions,
    batch_size: int,
    cluster: Cluster,
    progress: Progress,
) -> Built:
    """As many shares as workers. Where a worker dies, another goes on with its share."""
    count = cluster.workers or 2
    # Workers stand in folders of their own.
    data, out = list(map(sources.absolute, data)), out.absolute()
    recipe = replace(recipe, weights=recipe.weights and zoo.absolute(str(recipe.weights)))
    options = replace(options, embedder=options.embedder and embedding.absolute(options.embedder))

    def make() -> Callable[[int], int]:
        return lambda number: build_shard(data, out, (number, count), recipe, options, batch_size).pictures

    for _, pictures in each(range(1, count + 1), make, cluster):
        if isinstance(pictures, CaptionerError):
            raise pictures
        progress("shares", 1, count)
    return merge(out, progress)
