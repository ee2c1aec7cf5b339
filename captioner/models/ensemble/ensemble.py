"""Several models as one: the weighted sum of their unit vectors.

An ensemble is one small JSON file that names its members and their weights; captioners take part by the embedding of
what they say. `fit.py` finds the weights that reach the highest cosine on pictures with known prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image

from captioner import zoo
from captioner.contracts import PLAIN_REQUEST, LoadOptions, LoadOther, Model, Request
from captioner.errors import BadCheckpoint, BadInput, BadOutput, MissingModel
from captioner.files.json import read_object, write_object
from captioner.files.names import path_of, seen_from
from captioner.sinks.checks import check_place, explained
from captioner.text.embedding import unit

SAMPLES = 32
"""Candidates of an expected embedding, where a model samples them."""
MOST_LEVELS, MOST_MODELS = 8, 64
"""Of ensembles within ensembles, and of the models that they ask."""


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
    if not names:
        raise BadInput("An ensemble has members: none is named.")
    try:
        numbers = [float(number) for number in weights.split(",")] if weights else [1.0] * len(names)
    except ValueError as error:
        raise BadInput(f"Weights are numbers, comma-separated, not {weights!r}.") from error
    if len(numbers) != len(names):
        raise BadInput(f"Each member needs a weight: there are {len(names)} and {len(numbers)}.")
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
        return weighted_sum(self.members, member_vectors(self.members, self.models, images, self.by_norm))

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        return unit(self.vectors(images))


def member_vectors(
    members: Sequence[Member],
    models: Sequence[Model],
    images: Sequence[Image],
    by_norm: bool,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> np.ndarray:
    """The answer of each member to each picture `[members, n, d]`: unit vectors, or by_norm of about unit length.

    progress: is told the name of each member that has answered, and for how many pictures.
    """
    answers = []
    for member, model in zip(members, models, strict=True):
        if member.expected:
            answers.append(model.embed(images, with_candidates(model), batch_size=len(images), expected=True))
        else:
            answers.append(model.vectors(images))
        progress(label(member), len(images))
    return scaled(members, answers, by_norm)


def scaled(members: Sequence[Member], answers: Sequence[np.ndarray], by_norm: bool) -> np.ndarray:
    """What the members gave, `[n, d]` each, to be summed up `[members, n, d]`: of length 1, or by_norm about that."""
    sizes = {member.model: vectors.shape[1] for member, vectors in zip(members, answers, strict=True)}
    if len(set(sizes.values())) > 1:
        raise BadInput(f"The members' embeddings differ in length: {sizes}. They must come from one embedder.")
    return np.stack(
        [
            vectors / member.norm if by_norm and not member.expected else unit(vectors)
            for member, vectors in zip(members, answers, strict=True)
        ]
    )


def weighted_sum(members: Sequence[Member], vectors: np.ndarray) -> np.ndarray:
    """The ensemble's own vectors `[n, d]` from its members' `[members, n, d]`; not of length 1."""
    return np.tensordot([member.weight for member in members], vectors, axes=1)


def with_candidates(model: Model) -> Request:
    """What to ask for an expected embedding: all beams are candidates, or more samples than usual."""
    if (decoding := model.decoding) is None:
        return PLAIN_REQUEST  # it has no candidates, and will say so
    count = max(decoding.num_return_sequences, SAMPLES) if decoding.do_sample else decoding.num_beams
    return Request(replace(decoding, num_return_sequences=count))


def read(file: Path) -> tuple[list[Member], bool]:
    """The members of an ensemble file that count, named as others load them, and whether length counts."""
    _check_nesting(file.resolve())
    members, by_norm = _read(file)
    return [replace(member, model=_seen_from_here(member.model, file)) for member in members], by_norm


def files_of(name: str) -> list[Path]:
    """A model's folder or file; those of all members that count, too, if it is an ensemble."""
    if (place := zoo.resolve(name).folder) is None:
        return []
    members = [] if place.is_dir() else read(place)[0]
    return [place, *(part for member in members for part in files_of(member.model))]


def load(file: Path, options: LoadOptions, load_other: LoadOther) -> Ensemble:
    """An ensemble file and its members; those of weight 0 are left out."""
    members, by_norm = read(file)
    try:
        models = [load_other(member.model) for member in members]
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
    if not len(weights) or not np.isfinite(weights).all() or np.min(weights) < 0:
        raise BadInput("An ensemble needs members with weights of 0 or more.")
    if weights.sum() == 0:
        raise BadInput("All weights are 0: give at least one member a weight above 0.")
    return [replace(m, weight=float(w)) for m, w in zip(members, weights / weights.sum(), strict=True)]


def _seen_from_here(model: str, file: Path) -> str:
    """A member's name as `pipeline.load` takes it: paths are kept relative to the ensemble's file."""
    beside = file.parent / model
    return str(beside) if model not in zoo.ENTRIES and beside.exists() else model


def check_new(file: Path) -> None:
    """Whether an ensemble can be written there: said before anything is loaded."""
    if file.suffix != ".json":
        raise BadOutput(f"{file}: an ensemble is a .json file. Name it {file.stem}.json.")
    if file.exists():
        raise BadOutput(f"{file} is already there. Name another file, or remove it.")
    check_place(file.parent)


def save(file: Path, members: Sequence[Member], by_norm: bool = False, report: dict | None = None) -> None:
    """Write an ensemble file; it must not be there yet."""
    check_new(file)
    rows = []
    for member in weighted(members):
        is_path = member.model not in zoo.ENTRIES and path_of(member.model).exists()
        name = seen_from(file.parent, path_of(member.model)) if is_path else member.model
        is_taken = is_path and name in zoo.ENTRIES  # a folder called knn beside the file is not the zoo's knn
        rows.append(asdict(replace(member, model=os.path.join(".", name) if is_taken else name)))
    content = {"kind": "ensemble", "by_norm": by_norm, "members": rows, "fitted": report}
    with explained(file):
        write_object(file, content)


def label(member: Member) -> str:
    """What a member is called in reports."""
    return member.model + (" (expected)" if member.expected else "")
