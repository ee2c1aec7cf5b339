"""What a finished run leaves beside its weights: a model card and its curves."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerState

    from training.loop import Job


def write_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss, and the captions' cosine where it was measured, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    for key, label in (("loss", "training loss"), ("eval_loss", "validation loss")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axis.plot(*zip(*points, strict=True), label=label)
    axis.set(xlabel="steps", ylabel="loss")
    cosines = [(entry["step"], entry["eval_cosine"]) for entry in history if "eval_cosine" in entry]
    if cosines:
        right = axis.twinx()
        right.plot(*zip(*cosines, strict=True), color="tab:green", label="cosine of captions")
        right.set_ylabel("MiniLM cosine")
        right.legend(loc="lower right")
    axis.legend(loc="upper right")
    beside = path.with_suffix(".part.png")
    figure.savefig(beside, dpi=110, bbox_inches="tight")
    plt.close(figure)
    os.replace(beside, path)


def write_card(job: Job, state: TrainerState, out: Path) -> None:
    """README.md of the model: data, recipe, figures, the command."""
    from training.loop import write_atomically

    # What the evaluation compares with, so that nobody publishes a score on training pictures by accident.
    learnt_from = {
        "sources": job.recipe.data,
        "fingerprints": sorted(job.train_rows.fingerprints()),
    }
    write_atomically(out / "training_data.json", json.dumps(learnt_from))
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    best = next((entry for entry in evaluations if entry["step"] == state.best_global_step), {})
    figures = [f"| {name} | {best[key]:.4f} |" for name, key in FIGURES.items() if key in best]
    changed = "\n".join(f"- `{name}`: {value}" for name, value in asdict(job.recipe).items() if value not in ("", []))
    write_atomically(
        out / "README.md",
        f"""---
library_name: captioner
tags: [image-to-text, prompt, captioner]
---

# {out.name}

Trained with

    {" ".join([Path(sys.executable).name, *sys.orig_argv[1:]])}

on {job.train_rows} from {", ".join(f"`{source}`" for source in job.recipe.data)}
({state.global_step:,} steps). Use it:

    captioner {job.verb} --model {out.name} picture.png

## Figures

| on the validation split | best |
| --- | --- |
{chr(10).join(figures) or "| none was held back | – |"}

![curves](curves.png)

## Recipe

{changed}
""",
    )


FIGURES = {"loss": "eval_loss", "cosine of captions (MiniLM)": "eval_cosine"}
