"""The folder of a run: whose it is, what it was begun with, and that one run at a time writes to it. Light."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import BadInput
from captioner.files import atomic, json
from captioner.files.lock import LOCK, locked
from captioner.files.names import nearest_existing
from captioner.run.flags import flag

if TYPE_CHECKING:
    from training.recipe import Recipe

RECIPE = "recipe.json"
DATA = "training_data.json"
MAY_DIFFER = {
    "out", "resume", "device", "workers", "compile", "gradient_checkpointing", "cache_features",  # the same numbers
    "eval_every", "save_every", "keep", "log_every", "samples", "push_to_hub",  # what is looked at and kept
    "epochs", "max_steps",  # a run may be made longer
    "batch_size", "accumulate",  # compared by how many pictures a step has, whatever the processes
    "data", "validation",  # compared by what they hold, since folders move
}  # fmt: skip
"""Settings that a run may go on with although it was begun with others."""


def goes_on(recipe: Recipe) -> bool:
    """Whether there is a run to go on with; `check_folder` says whether its settings are the same."""
    return recipe.resume and (Path(recipe.out) / RECIPE).is_file()


def check_folder(recipe: Recipe) -> None:
    """A new folder, an empty one, or with --resume that of a run with the same settings."""
    out = Path(recipe.out)
    nearest = nearest_existing(out.absolute())
    if not nearest.is_dir():
        raise BadInput(f"{nearest} is a file. Name a folder with --out.")
    if not os.access(nearest, os.W_OK):
        raise BadInput(f"{out} cannot be written: you may not write to {nearest}. Name another --out.")
    if not contents(out):
        return
    if not recipe.resume:
        raise BadInput(f"{out} is not empty. Go on with --resume, or name another --out.")
    if not (out / RECIPE).is_file():
        raise BadInput(f"{out} holds no run to go on with: it has no {RECIPE}. Name another --out.")
    begun_with = json.read_object(out / RECIPE, BadInput, "Name another --out.")
    if begun_with.keys() - {field.name for field in fields(recipe)}:
        raise BadInput(f"The run in {out} was begun by another command than this one. Name another --out.")
    differences = [
        f"{flag(name)} {_shown(begun_with[name])} (now {_shown(value)})"
        for name, value in asdict(recipe).items()
        if name not in MAY_DIFFER and name in begun_with and begun_with[name] != value
    ]
    if recipe.stream and begun_with.get("data") != recipe.data:  # a stream is not read through to compare it
        differences.append(f"--data {_shown(begun_with.get('data'))} (now {_shown(recipe.data)})")
    if differences:
        raise BadInput(
            f"The run in {out} was begun with {', '.join(differences)}. "
            "Go on with --resume and the same settings, or name another --out."
        )


def check_data(recipe: Recipe, data: dict[str, Any]) -> None:
    """A run goes on with the pairs that it was begun with."""
    file = Path(recipe.out) / DATA
    if not (recipe.resume and file.is_file()):
        return
    begun_with = json.read_object(file, BadInput, "Name another --out.")
    step = data.get("pictures_a_step")
    if (before := begun_with.get("pictures_a_step", step)) != step:
        raise BadInput(
            f"The run in {recipe.out} was begun with {before} pictures a step and now there are {step} "
            "(--batch-size × --accumulate × processes). Go on with as many, or name another --out."
        )
    for part, count in (("training", "pairs"), ("validation", "validation_pairs")):
        if begun_with.get(f"{part}_digest", data[f"{part}_digest"]) != data[f"{part}_digest"]:
            raise BadInput(
                f"The {part} data have changed since the run in {recipe.out} was begun: {data[count]:,} pairs now, "
                f"{begun_with[count]:,} then. Go on with the same data and version of captioner, or name another --out."
            )


def contents(folder: Path) -> list[str]:
    """What lies in a folder, but for what a killed run left of its lock and its temporary files."""
    if not folder.is_dir():
        return []
    return [name for name in os.listdir(folder) if name != LOCK and not atomic.is_temporary(name)]


@contextmanager
def folder_of_run(recipe: Recipe) -> Iterator[Path]:
    """The folder, made and locked. One in which nothing came about is not left behind."""
    out = Path(recipe.out)
    with locked(out, "cannot be written ({}). Name another --out."):
        check_folder(recipe)  # again: another run may have ended there meanwhile
        yield out


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) and value else str(value if value != "" else "''")
