"""Weights for an ensemble: those that reach the highest mean cosine on pictures with known prompts.

What they are worth is measured on prompts that were left out of the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from captioner.contracts import LoadOptions, Model
from captioner.errors import BadInput, CaptionerError
from captioner.files.names import path_of
from captioner.models.ensemble.ensemble import Member, check_new, files_of, label, member_vectors, save, weighted
from captioner.pairs import sources
from captioner.pairs.fingerprint import picture_fingerprint
from captioner.pairs.layouts import LeftOut
from captioner.pairs.provenance import Seen, name_of, overlaps, trained_on
from captioner.pairs.readable import opened
from captioner.text.embedding import text_embedder

FOLDS = 5
RESAMPLES = 2000
SEED = 0
NEGLIGIBLE = 0.002
"""A fitted weight below this is no reason to run a model."""
Progress = Callable[[str, int, int | None], None]
"""Is told which member has answered for how many pictures just now, and how many there are, if that is known."""


@dataclass(frozen=True)
class Fitted:
    """What came of a fit, and how much it is worth on prompts that it did not see."""

    weights: dict[str, float]
    alone: dict[str, float]
    """Each member's own mean cosine."""
    cosine: float
    """The ensemble's mean cosine, each prompt predicted with weights fitted without it."""
    gain: float
    """That above the best member's."""
    interval: tuple[float, float]
    """Where the gain lies with 95 % confidence: paired bootstrap over prompts."""
    pictures: int
    prompts: int
    unreadable: int
    warnings: tuple[str, ...] = ()
    """What speaks against believing these figures: members that have learnt from the data."""


def fit(
    members: Sequence[Member],
    data: str | Path,
    out: str | Path,
    load: Callable[[str, LoadOptions], Model],
    by_norm: bool = False,
    options: LoadOptions | None = None,
    batch_size: int = 8,
    progress: Progress = lambda step, done, total: None,
) -> Fitted:
    """Weights for these members from DATA (`captioner/pairs/`), saved as an ensemble file.

    load: `captioner.load`, which stands above this module.
    """
    options, out = options or LoadOptions(), path_of(out)
    check_new(out)
    records = sources.read([data])
    _check_enough(records.different_prompts(up_to=2 * FOLDS), data)
    loaded = {name: load(name, options) for name in dict.fromkeys(member.model for member in members)}
    models = [loaded[member.model] for member in members]
    seen, batches, unreadable = _answered(records, members, models, by_norm, batch_size, progress)
    prompts = [picture.prompts[0] for picture in seen]
    texts = list(dict.fromkeys(prompts))
    _check_enough(len(texts), data)
    vectors = np.concatenate(batches, axis=1)  # [members, n, d]
    if by_norm:
        norms = np.linalg.norm(vectors, axis=-1).mean(1)
        vectors = vectors / norms[:, None, None]
        members = [replace(m, norm=float(m.norm * norm)) for m, norm in zip(members, norms, strict=True)]
    row_of = {text: row for row, text in enumerate(texts)}
    groups = np.array([row_of[prompt] for prompt in prompts])
    truth = text_embedder(options.embedder)(texts)[groups]
    if truth.shape[1] != vectors.shape[2]:
        raise BadInput(f"The members give {vectors.shape[2]} numbers, the embedder {truth.shape[1]}: name theirs.")
    problem = Fit(vectors, truth, groups)
    weights = problem.weights()
    members = weighted([replace(member, weight=float(w)) for member, w in zip(members, weights, strict=True)])
    cosine, gain, interval = problem.unseen()
    report = Fitted(
        weights=_by_name(members, [member.weight for member in members]),
        alone=_by_name(members, problem.alone()),
        cosine=cosine,
        gain=gain,
        interval=interval,
        pictures=len(prompts),
        prompts=len(texts),
        unreadable=unreadable,
        warnings=tuple(_warnings(members, [name_of(source) for source in records.sources], seen)),
    )
    save(out, members, by_norm, asdict(report))
    return report


def _answered(
    records: sources.Records,
    members: Sequence[Member],
    models: Sequence[Model],
    by_norm: bool,
    batch_size: int,
    progress: Progress,
) -> tuple[list[Seen], list[np.ndarray], int]:
    """The pictures with their prompts, what the members say of them `[members, batch, d]`, and how many cannot be
    read."""
    total, unreadable = records.total(), list[LeftOut]()
    seen, batches = [], []
    for batch, images in opened(records, batch_size, unreadable):
        batches.append(member_vectors(members, models, images, by_norm, lambda name, done: progress(name, done, total)))
        seen += [Seen(picture_fingerprint(i), (record.text,)) for record, i in zip(batch, images, strict=True)]
    return seen, batches, len(unreadable)


def _check_enough(prompts: int, data: str | Path) -> None:
    """Every fold needs prompts of its own to be measured on."""
    if prompts < 2 * FOLDS:
        raise BadInput(f"{data} has {prompts} readable prompts; weights need at least {2 * FOLDS} to be fitted on.")


def _warnings(members: Sequence[Member], names: Sequence[str], seen: Sequence[Seen]) -> Iterator[str]:
    """Which members have learnt from what the weights are fitted on."""
    for model in dict.fromkeys(member.model for member in members):
        try:
            reasons = overlaps(trained_on(files_of(model)), names, seen)
        except CaptionerError as error:
            yield f"{model} could not be compared with its training data: {error}"
            continue
        if reasons:
            yield (
                f"{model} has learnt from these data ({'; '.join(reasons)}): its weight says nothing about other "
                "pictures. Fit on pictures that no member has seen."
            )


def _by_name(members: Sequence[Member], values: Iterable[float]) -> dict[str, float]:
    return {label(member): float(value) for member, value in zip(members, values, strict=True)}


class Fit:
    """The mean cosine as a function of the weights. A prompt counts once, however many pictures it has.

    The cosine of a weighted sum needs only two things of each picture, both small: each member's dot product with
    the truth, and the members' dot products with each other.
    """

    def __init__(self, vectors: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> None:
        vectors = vectors.astype(np.float64)
        self.hits = np.einsum("mnd,nd->nm", vectors, truth)  # [n, m]
        self.gram = np.einsum("mnd,knd->nmk", vectors, vectors)  # [n, m, m]
        self.groups = groups

    def cosines(self, weights: np.ndarray) -> np.ndarray:
        """Per picture `[n]`."""
        return self.hits @ weights / np.sqrt(np.einsum("m,nmk,k->n", weights, self.gram, weights))

    def alone(self) -> np.ndarray:
        """Each member's mean cosine `[m]`."""
        rows = np.arange(len(self.groups))
        return np.array([self._mean(member, rows)[0] for member in np.eye(self.hits.shape[1])])

    def weights(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The best weights on these pictures: non-negative, their sum 1.

        The mean cosine is not concave, so the search starts from the middle and from near every corner, and the best
        end wins.
        """
        rows = np.arange(len(self.groups)) if rows is None else rows
        count = self.hits.shape[1]
        starts = [np.full(count, 1 / count), *(0.8 * np.eye(count) + 0.2 / count)]
        ends = [self._climb(start, rows) for start in starts]
        best = max(ends, key=lambda weights: self._mean(weights, rows)[0])
        best = np.where(best < NEGLIGIBLE, 0, best)
        return best / best.sum()

    def _climb(self, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Sequential least squares over the simplex."""

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            height, gradient = self._mean(weights, rows)
            return -height, -gradient

        sum_is_one = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like}
        options = {"ftol": 1e-12, "maxiter": 500}
        bounds = [(0, 1)] * len(start)
        end = minimize(loss, start, jac=True, method="SLSQP", bounds=bounds, constraints=sum_is_one, options=options)
        weights = end.x.clip(min=0)
        return weights / weights.sum()

    def _mean(self, weights: np.ndarray, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean cosine over prompts, and its gradient `[m]`."""
        hits, gram = self.hits[rows], self.gram[rows]
        pulled = gram @ weights  # [n, m]
        length = np.sqrt(pulled @ weights)  # [n]
        cosines = hits @ weights / length
        gradient = (hits - (cosines / length)[:, None] * pulled) / length[:, None]
        share = 1 / np.bincount(self.groups)[self.groups[rows]]
        share /= share.sum()
        return float(share @ cosines), share @ gradient

    def _best_member(self, rows: np.ndarray) -> np.ndarray:
        """All weight on the member that does best alone."""
        return max(np.eye(self.hits.shape[1]), key=lambda member: self._mean(member, rows)[0])

    def unseen(self) -> tuple[float, float, tuple[float, float]]:
        """Mean cosine, gain over the best member, and the gain's interval, all on prompts left out of the fit.

        The bootstrap is `captioner.statistics`' but for the draws, which go on with the folds' generator: published
        figures stay what they are.
        """
        generator = np.random.default_rng(SEED)
        prompts = int(self.groups.max()) + 1
        fold_of = generator.permutation(prompts) % FOLDS
        reached, best = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        for fold in range(FOLDS):
            held_out = fold_of[self.groups] == fold
            reached[held_out] = self.cosines(self.weights(np.flatnonzero(~held_out)))[held_out]
            best[held_out] = self.cosines(self._best_member(np.flatnonzero(~held_out)))[held_out]
        pictures = np.bincount(self.groups)
        gains = np.bincount(self.groups, reached - best) / pictures  # one a prompt
        drawn = gains[generator.integers(0, prompts, (RESAMPLES, prompts))].mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        cosine = (np.bincount(self.groups, reached) / pictures).mean()
        return float(cosine), float(gains.mean()), (float(low), float(high))
