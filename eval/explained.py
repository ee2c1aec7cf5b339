"""What stands under the figures of a report, in sentences: on the page, in report.md and in the terminal alike."""

from __future__ import annotations

from eval.schema import Report, TallyRow

SHOWN = 6
"""Modifiers that are named of each model."""
POWER_OF = ("cosine", "levenshtein_ratio", "modifier_f1")
"""Of these metrics the smallest difference is told; of all others report.json tells it."""


def sentences(report: Report) -> list[str]:
    """Everything that a reader should know before comparing two figures."""
    return [*power(report), *runs(report), *modifiers(report)]


def power(report: Report) -> list[str]:
    """The smallest difference that so many prompts could show."""
    measured = report["power"]
    if measured is None:
        return []
    labels = {metric["name"]: metric["label"] for metric in report["metrics"]}
    sizes = [f"{measured['smallest'][name]:.3f} in {labels[name]}" for name in POWER_OF if name in measured["smallest"]]
    if not sizes:
        return []
    return [
        f"With {measured['prompts']:,} prompts a true difference between any two models would be found in "
        f"{measured['power']:.0%} of repetitions if it were at least {', '.join(sizes)}; smaller ones may be there, "
        "unseen."
    ]


def runs(report: Report) -> list[str]:
    """How far apart the runs of a sampled model lie, and from which run its texts are, of which there is no mean."""
    lines = []
    lead = report["metrics"][0] if report["metrics"] else None
    for model in report["models"]:
        if model["runs"] is None or lead is None or lead["name"] not in model["runs"]["spread"]:
            continue
        spread = model["runs"]["spread"][lead["name"]]
        lines.append(
            f"{model['label']}: mean of {len(model['runs']['names'])} runs, whose {lead['label']} goes from "
            f"{spread['low']:.3f} to {spread['high']:.3f} (standard deviation {spread['deviation']:.4f}). "
            "Its texts, the modifiers counted in them and a submission are of the first run, "
            f"{model['runs']['names'][0]}."
        )
    return lines


def modifiers(report: Report) -> list[str]:
    """The modifiers that each model misses and invents most."""
    lines = []
    for model in report["models"]:
        for what, rows in (("misses", model["modifiers"]["missed"]), ("invents", model["modifiers"]["invented"])):
            if rows:
                lines.append(f"{model['label']} {what} most: {', '.join(map(_tally, rows[:SHOWN]))}.")
    return lines


def _tally(row: TallyRow) -> str:
    return f"{row['modifier']} ({row['count']:,} of {row['of']:,})"
