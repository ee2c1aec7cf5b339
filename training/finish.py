"""What a finished run leaves beside its weights: a model card and its curves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner import zoo
from captioner.errors import counted
from captioner.files import atomic
from captioner.files.names import path_of, typed
from training.bases import hub_name
from training.words import without_folders

if TYPE_CHECKING:
    from transformers import TrainerState

    from training.job import Job

FEW = 30
"""Points of a curve that are drawn each: a line through one point is not seen."""
TAGS = {"generate": "image-to-text", "embed": "image-feature-extraction"}
"""Verb → what the Hub calls such a model."""
HUB_SETS = {"diffusiondb": "poloclub/diffusiondb"}
"""Layouts of --data that belong to one data set of the Hub."""


def write_curves(state: TrainerState, path: Path) -> None:
    """Training and validation loss, and the captions' cosine where it was measured, as one picture."""
    from matplotlib.figure import Figure  # not pyplot: that looks for a screen, and is set for the whole process

    figure = Figure(figsize=(8, 4.5))
    axis = figure.subplots()
    _draw(axis, state.log_history, "loss", "training loss", "tab:blue")
    _draw(axis, state.log_history, "eval_loss", "validation loss", "tab:orange")
    axis.set(xlabel="steps", ylabel="loss")
    axis.set_title(path.absolute().parent.name, y=1.015)  # a place that is looked for takes a sixth of the drawing
    handles, labels = axis.get_legend_handles_labels()
    if any("eval_cosine" in entry for entry in state.log_history):
        right = axis.twinx()
        _draw(right, state.log_history, "eval_cosine", "cosine of captions", "tab:green")
        right.set_ylabel("MiniLM cosine", color="tab:green")
        right.tick_params(axis="y", labelcolor="tab:green")
        handles, labels = (
            one + more for one, more in zip((handles, labels), right.get_legend_handles_labels(), strict=True)
        )
    if state.best_global_step:
        best = axis.axvline(state.best_global_step, color="grey", linestyle=":")
        handles, labels = [*handles, best], [*labels, f"best: step {state.best_global_step:,}"]
    if handles:
        figure.legend(handles, labels, loc="lower center", ncols=len(handles), frameon=False)
    figure.subplots_adjust(left=0.1, right=0.9, bottom=0.2, top=0.92)  # a layout that is found out draws all twice
    with atomic.replacing(path) as new:
        figure.savefig(new, dpi=110, format="png")


def _draw(axis: Any, history: Sequence[dict[str, Any]], key: str, label: str, color: str) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, color=color, marker="." if len(points) <= FEW else "")


def write_card(job: Job, state: TrainerState, out: Path) -> None:
    """README.md of the model: data, recipe, figures, the command. It may be published: no path of this machine."""
    best = best_evaluation(state)
    figures = [f"| {name} | {best[key]:.4f} |" for name, key in FIGURES.items() if key in best]
    sources = ", ".join(f"`{without_folders(source)}`" for source in job.recipe.data)
    recipe = "\n".join(f"- `{name}`: {_written(value)}" for name, value in asdict(job.recipe).items() if value != "")
    command = [Path(sys.executable).name, *(without_folders(word) for word in sys.orig_argv[1:])]
    pictures = 0 if job.validation_rows is None else len(job.validation_rows)
    measured = f"step {best['step']:,}, {counted(pictures, 'picture')}" if best else "none"
    atomic.write_text(
        out / "README.md",
        f"""---
{front_matter(job)}
---

# {out.absolute().name}

Trained with

    {shlex.join(command)}

on {job.train_rows} from {sources}
({state.global_step:,} steps). Use it, with the path to this folder:

    captioner {job.verb} --model {typed(out.absolute().name)} picture.png

## Figures

| on the validation split | best: {measured} |
| --- | --- |
{chr(10).join(figures) or "| none was held back | – |"}

![curves](curves.png)

## Recipe

{recipe}
""",
    )


FIGURES = {"loss": "eval_loss", "cosine of captions (MiniLM)": "eval_cosine"}


def best_evaluation(state: TrainerState) -> dict[str, Any]:
    """What was measured of the model that is kept; nothing where nothing was."""
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    return next((entry for entry in evaluations if entry["step"] == state.best_global_step), {})


def front_matter(job: Job) -> str:
    """What the Hub reads: library, task, base model, its licence, data sets. What is not known is left out."""
    from huggingface_hub import ModelCardData

    base = hub_name(job.base)
    on_the_hub = bool(base) and not path_of(base).exists()
    return ModelCardData(
        library_name="captioner",
        pipeline_tag=TAGS[job.verb],
        tags=["image-to-text", "prompt", "captioner"],
        base_model=base if on_the_hub else None,
        license=licence_of(base) if on_the_hub else None,
        datasets=list(dict.fromkeys(name for source in job.recipe.data if (name := _hub_set(source)))) or None,
    ).to_yaml()


def licence_of(identifier: str) -> str | None:
    """The licence that a Hub model's own card names, if the card was fetched with it."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    folder = zoo.cached_folder(identifier)
    if folder is None or not (folder / "README.md").is_file():
        return None
    try:
        named = (metadata_load(folder / "README.md") or {}).get("license")
    except (ValueError, YAMLError):  # a stranger's card
        print(f"The card of {identifier} cannot be read: name its licence in this model's yourself.", file=sys.stderr)
        return None
    return named if isinstance(named, str) else None


def _hub_set(source: str) -> str | None:
    kind, _, location = source.partition(":")
    return location.partition("@")[0] if kind == "hub" else HUB_SETS.get(kind)


def _written(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join(without_folders(str(one)) for one in values) or "none"
