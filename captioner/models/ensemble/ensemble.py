"""Several models as one: the weighted sum of their unit vectors.

An ensemble is one small JSON file that names its members and their weights; captioners take part by the embedding of
what they say. `fit` finds the weights that reach the highest cosine on pictures with known prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image

from captioner.contracts import PLAIN_REQUEST, LoadOptions, LoadOther, Model, Request
from captioner.errors import BadCheckpoint, BadInput, BadOutput, CaptionerError, MissingModel
from captioner.files.json import read_object, write_object
from captioner.pairs import sources
from captioner.pairs.fingerprint import picture_fingerprint
from captioner.pairs.layouts import LeftOut
from captioner.pairs.provenance import Seen, files_of, name_of, overlaps, trained_on
from captioner.pairs.readable import opened
from captioner.text.embedding import text_embedder, unit

FOLDS = 5
RESAMPLES = 2000
SAMPLES = 32
"""Candidates of an expected embedding, where a model samples them."""
MOST_LEVELS, MOST_MODELS = 8, 64
"""Of ensembles within ensembles, and of the models that they ask."""
NEGLIGIBLE = 0.002
"""A fitted weight below this is no reason to run a model."""


@dataclass(frozen=True)
class Member:
    """One model of an ensemble."""

    model: str
    """Zoo name, Hub id, or a path seen from the ensemble's file."""
    weight: float = 1.0
    expected: bool = False
    """A captioner gives its expected embedding: of all its candidates, and of what it predicts from the pixels."""
    norm: float = 1.0
    """The usual length of its vectors, where length counts."""


def parse(members: str, weights: str | None = None) -> list[Member]:
    """`"vit,mini+expected"` and `"0.75,0.25"`, as the command line gives them."""
    names = [name.strip() for name in members.split(",") if name.strip()]
    try:
        numbers = [float(number) for number in weights.split(",")] if weights else [1.0] * len(names)
    except ValueError as error:
        raise BadInput(f"Weights are numbers, comma-separated, not {weights!r}.") from error
    if len(numbers) != len(names):
        raise BadInput(f"{len(names)} members need as many weights, not {len(numbers)}.")
    return [
        Member(name.removesuffix("+expected"), weight, name.endswith("+expected"))
        for name, weight in zip(names, numbers, strict=True)
    ]


class Ensemble:
    """Pictures in, unit vectors out. by_norm: a member counts more for a picture of which it is surer."""

    def __init__(self, members: Sequence[Member], models: Sequence[Model], by_norm: bool) -> None:
        self.members = members
        self.models = models
        self.by_norm = by_norm

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed_images`, but shorter the less the members agree."""
        said = member_vectors(self.members, self.models, images, self.by_norm)
        return np.tensordot([member.weight for member in self.members], said, axes=1)

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        return unit(self.vectors(images)).astype(np.float32)


def member_vectors(
    members: Sequence[Member],
    models: Sequence[Model],
    images: Sequence[Image],
    by_norm: bool,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> np.ndarray:
    """What each member says of each picture `[members, n, d]`: unit vectors, or by_norm of about unit length.

    progress: is told the name of each member that has answered, and for how many pictures.
    """
    said = []
    for member, model in zip(members, models, strict=True):
        if member.expected:
            said.append(model.embed(images, with_candidates(model), batch_size=len(images), expected=True))
        elif by_norm:
            said.append(model.vectors(images) / member.norm)
        else:
            said.append(model.embed(images, batch_size=len(images)))
        progress(_name(member), len(images))
    sizes = {member.model: vectors.shape[1] for member, vectors in zip(members, said, strict=True)}
    if len(set(sizes.values())) > 1:
        raise BadInput(f"The members' embeddings differ in length: {sizes}. They must come from one embedder.")
    return np.stack(said)


def with_candidates(model: Model) -> Request:
    """What to ask for an expected embedding: all beams are candidates, or more samples than usual."""
    if (own := model.decoding) is None:
        return PLAIN_REQUEST  # it has no candidates, and will say so
    count = max(own.num_return_sequences, SAMPLES) if own.do_sample else own.num_beams
    return Request(replace(own, num_return_sequences=count))


def load(file: Path, options: LoadOptions, load_other: LoadOther) -> Ensemble:
    """An ensemble file and its members; those of weight 0 are left out."""
    _check_nesting(file.resolve())
    members, by_norm = _read(file)
    try:
        models = [load_other(_seen_from_here(member.model, file)) for member in members]
    except MissingModel as error:
        raise MissingModel(f"A member of {file} is missing; paths in it are seen from its folder. {error}") from error
    return Ensemble(members, models, by_norm)


def _read(file: Path) -> tuple[list[Member], bool]:
    """The members that count, their weights summing to 1, and whether length counts."""
    saved = read_object(file)
    try:
        members = [Member(**member) for member in saved["members"]]
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f'{file} should hold {{"kind": "ensemble", "members": […]}} ({error}).') from error
    for member in members:
        numbers = (member.weight, member.norm)
        if not isinstance(member.model, str) or not all(type(number) in (int, float) for number in numbers):
            raise BadCheckpoint(f"{file}: a member is a model's name, with a number as weight and as norm: {member}.")
        if not 0 < member.norm < np.inf:
            raise BadCheckpoint(f"{file}: the norm of {member.model!r} is {member.norm}; it must be above 0.")
    return [member for member in weighted(members) if member.weight > 0], bool(saved.get("by_norm"))


def _check_nesting(file: Path, outer: tuple[Path, ...] = ()) -> int:
    """How many models answer for this file. Ensembles may hold ensembles, but not themselves, nor without end."""
    if file in outer:
        raise BadInput(f"{file} is a member of itself. Take it out of {outer[-1]}.")
    if len(outer) == MOST_LEVELS:
        raise BadInput(f"{outer[0]} holds ensembles of ensembles, more than {MOST_LEVELS} deep. Name their members.")
    answering = 0
    for member in _read(file)[0]:
        inner = Path(_seen_from_here(member.model, file))
        is_ensemble = inner.suffix == ".json" and inner.exists()
        answering += _check_nesting(inner.resolve(), (*outer, file)) if is_ensemble else 1
        if answering > MOST_MODELS:
            raise BadInput(f"{(*outer, file)[0]} asks more than {MOST_MODELS} models for every picture. Name fewer.")
    return answering


def weighted(members: Sequence[Member]) -> list[Member]:
    """The same members, their weights summing to 1."""
    weights = np.array([member.weight for member in members], dtype=np.float64)
    if not len(weights) or not np.isfinite(weights).all() or weights.min() < 0:
        raise BadInput("An ensemble needs members with weights of 0 or more.")
    if weights.sum() == 0:
        raise BadInput("All weights are 0: give at least one member a weight above 0.")
    return [replace(m, weight=float(w)) for m, w in zip(members, weights / weights.sum(), strict=True)]


def _seen_from_here(model: str, file: Path) -> str:
    """A member's name as `pipeline.load` takes it: paths are kept relative to the ensemble's file."""
    from captioner import zoo

    beside = file.parent / model
    return str(beside) if model not in zoo.ENTRIES and beside.exists() else model


def check_new(file: Path) -> None:
    """Whether an ensemble can be written there: said before anything is loaded."""
    if file.suffix != ".json":
        raise BadOutput(f"{file}: an ensemble is a .json file. Name it {file.stem}.json.")
    if file.exists():
        raise BadOutput(f"{file} is already there. Name another file, or remove it.")
    if not file.parent.is_dir():
        raise BadOutput(f"{file} cannot be written: there is no folder {file.parent}. Make it first.")


def save(file: Path, members: Sequence[Member], by_norm: bool = False, report: dict | None = None) -> None:
    """Write an ensemble file; it must not be there yet."""
    from captioner import zoo

    check_new(file)
    rows = []
    for member in weighted(members):
        is_path = member.model not in zoo.ENTRIES and Path(member.model).expanduser().exists()
        seen = os.path.relpath(Path(member.model).expanduser(), file.parent) if is_path else member.model
        is_taken = is_path and seen in zoo.ENTRIES  # a folder called knn beside the file is not the zoo's knn
        rows.append(asdict(replace(member, model=os.path.join(".", seen) if is_taken else seen)))
    content = {"kind": "ensemble", "by_norm": by_norm, "members": rows, "fitted": report}
    try:
        write_object(file, content)
    except OSError as error:
        raise BadOutput(f"{file} cannot be written ({error.strerror}).") from error


@dataclass(frozen=True)
class Fitted:
    """What a fit found, and how much it is worth on prompts that it did not see."""

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
    progress: Callable[[str, int, int | None], None] = lambda step, done, total: None,
) -> Fitted:
    """Weights for these members from DATA (`captioner/pairs/`), saved as an ensemble file.

    load: `captioner.load`, which stands above this module.
    """
    options, out = options or LoadOptions(), Path(out).expanduser()
    check_new(out)
    records = sources.read([data])
    records.check()
    total = records.total()
    models = {name: load(name, options) for name in dict.fromkeys(member.model for member in members)}
    models = [models[member.model] for member in members]
    unreadable: list[LeftOut] = []
    said, seen = [], []
    for batch, images in opened(records, batch_size, unreadable):
        said.append(member_vectors(members, models, images, by_norm, lambda *done: progress(*done, total)))
        seen += [Seen(picture_fingerprint(i), (record.text,)) for record, i in zip(batch, images, strict=True)]
    prompts = [one.prompts[0] for one in seen]
    texts = list(dict.fromkeys(prompts))
    if len(texts) < 2 * FOLDS:
        raise BadInput(f"{data} has {len(texts)} readable prompts; weights need at least {2 * FOLDS} to be fitted on.")
    vectors = np.concatenate(said, axis=1)  # [members, n, d]
    if by_norm:
        norms = np.linalg.norm(vectors, axis=-1).mean(1)
        vectors = vectors / norms[:, None, None]
        members = [replace(m, norm=float(m.norm * norm)) for m, norm in zip(members, norms, strict=True)]
    row_of = {text: row for row, text in enumerate(texts)}
    groups = np.array([row_of[prompt] for prompt in prompts])
    truth = text_embedder(options.embedder)(texts)[groups]
    if truth.shape[1] != vectors.shape[2]:
        raise BadInput(f"The members give {vectors.shape[2]} numbers, the embedder {truth.shape[1]}: name theirs.")
    found = Fit(vectors, truth, groups)
    weights = found.weights()
    members = weighted([replace(member, weight=float(w)) for member, w in zip(members, weights, strict=True)])
    cosine, gain, interval = found.unseen()
    report = Fitted(
        weights=_by_name(members, [member.weight for member in members]),
        alone=_by_name(members, found.alone()),
        cosine=cosine,
        gain=gain,
        interval=interval,
        pictures=len(prompts),
        prompts=len(texts),
        unreadable=len(unreadable),
        warnings=tuple(_warnings(members, [name_of(source) for source in records.sources], seen)),
    )
    save(out, members, by_norm, asdict(report))
    return report


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


def _by_name(members: Sequence[Member], values: Sequence[float]) -> dict[str, float]:
    return {_name(member): float(value) for member, value in zip(members, values, strict=True)}


def _name(member: Member) -> str:
    return member.model + (" (expected)" if member.expected else "")


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
        everyone = np.arange(len(self.groups))
        return np.array([self._mean(vertex, everyone)[0] for vertex in np.eye(self.hits.shape[1])])

    def weights(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The best weights on these pictures: non-negative, their sum 1.

        Exponentiated gradient ascent keeps to the simplex by itself. The mean cosine is not concave, so it starts
        from the middle and from near every corner, and the best end wins.
        """
        rows = np.arange(len(self.groups)) if rows is None else rows
        count = self.hits.shape[1]
        starts = [np.full(count, 1 / count), *(0.8 * np.eye(count) + 0.2 / count)]
        ends = [self._climb(start, rows) for start in starts]
        best = max(ends, key=lambda weights: self._mean(weights, rows)[0])
        best = np.where(best < NEGLIGIBLE, 0, best)
        return best / best.sum()

    def _climb(self, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        step = 1.0
        height, slope = self._mean(weights, rows)
        for _ in range(500):
            tried = weights * np.exp(step * (slope - slope.max()))
            tried /= tried.sum()
            new_height, new_slope = self._mean(tried, rows)
            if new_height < height:
                step /= 2
            else:
                rose = new_height - height
                weights, height, slope, step = tried, new_height, new_slope, step * 1.5
                if rose < 1e-9:
                    break
        return weights

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

    def unseen(self, seed: int = 0) -> tuple[float, float, tuple[float, float]]:
        """Mean cosine, gain over the best member, and the gain's interval, all on prompts left out of the fit."""
        random = np.random.default_rng(seed)
        prompts = int(self.groups.max()) + 1
        fold_of = random.permutation(prompts) % FOLDS
        reached, best = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        for fold in range(FOLDS):
            out = fold_of[self.groups] == fold
            known = np.flatnonzero(~out)
            vertices = np.eye(self.hits.shape[1])
            champion = max(vertices, key=lambda vertex: self._mean(vertex, known)[0])
            reached[out] = self.cosines(self.weights(known))[out]
            best[out] = self.cosines(champion)[out]
        pictures = np.bincount(self.groups)
        gains = np.bincount(self.groups, reached - best) / pictures  # one a prompt
        drawn = gains[random.integers(0, prompts, (RESAMPLES, prompts))].mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        cosine = (np.bincount(self.groups, reached) / pictures).mean()
        return float(cosine), float(gains.mean()), (float(low), float(high))
