"""A report for readers: `report.html` and `report.md` from what `report.json` and the per-image values say.

The page is one file: style, script, charts and thumbnails are inside, nothing is fetched. Figures are computed here,
the page's script only shows others of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from eval import charts, explained, parts, published
from eval.gallery import Gallery, OpenPicture, OpenRedrawn
from eval.parts import EVERYTHING, Parts
from eval.results import Results
from eval.schema import Report
from eval.wording import (
    as_published,
    breakable,
    decimals,
    is_best,
    markdown,
    number,
    p_value,
    signed,
    small_number,
    verdict,
)

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = 10
"""The style sheet has so many; more are drawn around the colour wheel."""
WIDEST = 8
"""Columns of the first table, if there are more of its kind."""
WORDS = {
    "model": "One way of turning a picture into its prompt, or into the prompt's embedding.",
    "mean": "Mean over the pictures.",
    "interval": "95 % bootstrap interval of the mean: prompts are drawn anew, pictures of one prompt together.",
    "median": "Half of the pictures are above, half below.",
    "variance": "Mean squared distance from the mean, over the pictures.",
    "max": "The best or highest value of one picture.",
    "n": "Pictures that have a value.",
    "best": "Its paired difference from every other model is significant (p < 0.05 after Holm’s correction), and there "
    "is no warning about it.",
    "difference": "Mean over the pictures that both answered of the second model’s value minus the first’s.",
    "p": "How likely so large a difference would be if there were none: two-sided, from paired bootstrap resamples, "
    "corrected by Holm’s method for all pairs of models of the measure.",
    "detectable": "The smallest true difference that so many prompts would show in 4 of 5 repetitions.",
    "speed": "Pictures a second: time of the model alone, pictures already decoded.",
    "distinct": "The number of different texts over that of all texts: 100 % where no two are the same.",
    "part": "Pictures of one source, or with true prompts of such a length.",
}
"""Words of the page beside the metrics, and what they mean."""
SINCE = {"redrawn": None, "power": None, "protocol": None, "vocabulary": None}
MODEL_SINCE: dict[str, Any] = {"runs": None, "near_duplicates": None, "modifiers": {"missed": [], "invented": []}}
"""What reports made earlier lack."""


@dataclass(frozen=True)
class Verdict:
    """The answer that the page begins with: which model, by how much, how sure."""

    best: dict
    metric: dict
    next: dict | None
    """The one that comes nearest to it; None: there is no other."""
    lead: dict | None
    """By how much: mean, low, high and p_holm of best minus next, the way round that more is better."""
    is_sure: bool
    ahead_of: int
    """How many it is significantly better than …"""
    others: int
    """… of so many."""
    equals: list[dict]
    """Which may be as good."""
    left_out: list[dict]
    """Higher ones with a warning."""


def render(
    report: dict, results: Results, picture: OpenPicture | None, gallery: int, redrawn: OpenRedrawn | None = None
) -> dict[str, str]:
    """File name → content. picture: None where there are only texts; gallery: pictures of each kind."""
    report = {**SINCE, **report, "models": [{**MODEL_SINCE, **model} for model in report["models"]]}
    whole = cast(Report, report)
    models = [dict(model, colour=index) for index, model in enumerate(report["models"])]
    columns = [model for model in models if model["failure"] is None]
    measured = [
        {"group": "", **metric}
        for metric in report["metrics"]
        if any(model["figures"][metric["name"]]["n"] for model in columns)
    ]
    lead = measured[0] if measured else None
    ranked = _ranked(columns, lead)
    bare = report.get("figures_only", False)
    of_data = Parts.of(results)
    shown = Gallery(results, columns, measured, of_data, picture, redrawn)
    view = {
        "report": report | {"metrics": measured},
        "models": models,
        "columns": columns,
        "failed": [model for model in models if model["failure"] is not None],
        "lead": lead,
        "ranked": [model for model in ranked if lead and model["figures"][lead["name"]]["n"]],
        "answer": answer(report, ranked, lead) if lead else None,
        "groups": _groups(measured),
        "tables": _tables(ranked, measured),
        "extra_colours": {index: _hue(index) for index in range(COLOURS, len(models))},
        "differences": _by_metric(report, measured),
        "published": published.FIGURES,
        "notice": published.NOTICE,
        "figures_only": bare,
        "explained": explained.sentences(whole),
        "beneath": [*explained.power(whole), *explained.runs(whole)],
        "decimals": decimals,
        "as_published": as_published,
        "parts": of_data,
        "cards": shown.cards(gallery, report["seed"]) if lead and not bare else [],
        "length_plot": _length_plot(results, columns, lead),
        "definitions": WORDS | {metric["name"]: _sentence(metric["meaning"]) for metric in measured},
        "words": WORDS,
        "axis": lambda metric: axis_of(_figures_of(columns, metric)),
        "histogram": _histograms(results, measured),
        "number": number,
        "small_number": small_number,
        "signed": signed,
        "p_value": p_value,
        "verdict": verdict,
        "is_best": lambda metric, model: is_best(report, metric, model),
        "breakable": breakable,
        "markdown": markdown,
        "sentence": _sentence,
    }
    if lead:
        best = view["answer"]
        view["data"] = page_data(report, results, columns, measured, of_data) | {
            "first": [columns.index(model) for model in (best.best, best.next or best.best)] if best else [0, 0]
        }
    return {name: _template(name).render(view) for name in ("report.html", "report.md")}


@cache
def _template(name: str) -> Template:
    page = name.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=page,
        undefined=StrictUndefined,
        trim_blocks=page,
        lstrip_blocks=page,
    )
    return environment.get_template(f"{name}.j2")


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def _hue(index: int) -> int:
    """The golden angle: every next colour is far from those before."""
    return round(index * 137.508) % 360


# --- the answer ------------------------------------------------------------------------------------------------------


def answer(report: dict, ranked: list[dict], metric: dict) -> Verdict | None:
    """By the leading metric, among the models without a warning; with nothing but warnings, among all."""
    name = metric["name"]
    measured = [model for model in ranked if model["figures"][name]["n"]]
    clean = [model for model in measured if not model["warning"]] or measured
    if not clean:
        return None
    best, *others = clean
    rows = {model["label"]: _ahead(report, metric, best, model) for model in others}
    ahead = [model for model in others if (row := rows[model["label"]]) and row["significant"] and row["mean"] > 0]
    runner_up = others[0] if others else None
    return Verdict(
        best=best,
        metric=metric,
        next=runner_up,
        lead=rows[runner_up["label"]] if runner_up else None,
        is_sure=bool(others) and len(ahead) == len(others),
        ahead_of=len(ahead),
        others=len(others),
        equals=[model for model in others if model not in ahead],
        left_out=measured[: measured.index(best)],
    )


def _ahead(report: dict, metric: dict, best: dict, other: dict) -> dict | None:
    """The paired difference of two models, turned so that above 0 the first is better."""
    for row in report["differences"]:
        if row["metric"] == metric["name"] and {row["a"], row["b"]} == {best["label"], other["label"]}:
            sign = (1 if row["b"] == best["label"] else -1) * (-1 if metric["higher_is_better"] is False else 1)
            ends = [end if end is None else sign * end for end in (row["low"], row["high"])]
            low, high = ends if sign > 0 else ends[::-1]
            return {**row, "mean": sign * row["mean"], "low": low, "high": high}
    return None


def _ranked(columns: list[dict], lead: dict | None) -> list[dict]:
    """The best mean first, last those that the leading metric says nothing of."""
    if lead is None:
        return []
    sign = -1 if lead["higher_is_better"] is False else 1
    means = {model["label"]: model["figures"][lead["name"]]["mean"] for model in columns}
    return sorted(
        columns, key=lambda model: -math.inf if (mean := means[model["label"]]) is None else sign * mean, reverse=True
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _groups(metrics: list[dict]) -> list[tuple[str, list[dict]]]:
    """Heading → metrics, in the order of their first one."""
    names = dict.fromkeys(metric["group"] for metric in metrics)
    return [(name, [metric for metric in metrics if metric["group"] == name]) for name in names]


def _tables(models: list[dict], metrics: list[dict]) -> list[tuple[str, list[dict], list[dict]]]:
    """(heading, metrics, models): what tells of every model, what tells of texts alone, then group by group."""

    def measured(model: dict, among: list[dict]) -> list[dict]:
        return [metric for metric in among if model["figures"][metric["name"]]["n"]]

    answering = [model for model in models if measured(model, metrics)]
    tables = []
    for group, among in _groups(metrics):
        common = [metric for metric in among if not group and all(measured(model, [metric]) for model in answering)]
        if len(common) > WIDEST:  # every model says texts: the leading metric alone comes first
            common = common[:1]
        rest = [metric for metric in among if metric not in common]
        if common and rest:
            tables.append((group, common, models))
            tables.append((group or "Of the texts", rest, [model for model in models if measured(model, rest)]))
        else:
            speaking = [model for model in models if measured(model, among)]
            tables.append((group, among, speaking if group else models))
    return tables


def _by_metric(report: dict, metrics: list[dict]) -> list[tuple[dict, list[dict]]]:
    rows = [(metric, [d for d in report["differences"] if d["metric"] == metric["name"]]) for metric in metrics]
    return [(metric, of_metric) for metric, of_metric in rows if of_metric]


# --- what the page's script shows ------------------------------------------------------------------------------------


def page_data(report: dict, results: Results, columns: list[dict], metrics: list[dict], of_data: Parts) -> dict:
    """The figures of every part of the data and of every two models, for the page's script."""
    labels, names = [model["label"] for model in columns], [metric["name"] for metric in metrics]
    index = {label: position for position, label in enumerate(labels)}
    everything = [[_figure(model["figures"][name]) for name in names] for model in columns]
    by_part = {(EVERYTHING, EVERYTHING): (len(results.ids), everything)}
    for source, length in of_data.combinations:
        rows = of_data.rows(source, length)
        by_part[source, length] = (len(rows), parts.figures(results, rows, labels, names, report["seed"]))
    return {
        "metrics": [
            {"name": metric["name"], "label": metric["label"], "better": _sign(metric)} for metric in metrics
        ],
        "models": [{"label": model["label"], "colour": model["colour"]} for model in columns],
        "sources": of_data.sources,
        "lengths": of_data.lengths,
        "parts": {
            f"{source} {length}": {
                "pictures": pictures,
                "figures": figures,
                "axes": [_axis_row([of_model[m] for of_model in figures]) for m in range(len(names))],
            }
            for (source, length), (pictures, figures) in by_part.items()
        },
        "differences": [
            [
                names.index(row["metric"]), index[row["a"]], index[row["b"]],
                *(parts.short(row[key]) for key in ("mean", "low", "high", "p_holm")), row["n"],
            ]
            for row in report["differences"]
            if row["metric"] in names
        ],
        "differences_of_parts": parts.pair_differences(results, of_data, labels, names[0], report["seed"]),
    }  # fmt: skip


def _sign(metric: dict) -> int:
    """1: higher is better; -1: lower is; 0: neither."""
    return 0 if metric["higher_is_better"] is None else 1 if metric["higher_is_better"] else -1


def _figure(figures: dict) -> parts.Figure:
    mean, low, high = (parts.short(figures[key]) for key in ("mean", "low", "high"))
    return mean, low, high, figures["n"]


def _figures_of(columns: list[dict], metric: str) -> list[parts.Figure]:
    return [_figure(model["figures"][metric]) for model in columns]


def axis_of(figures: list[parts.Figure]) -> charts.Axis:
    """One axis for all models of a metric."""
    return charts.Axis.of([end for figure in figures for end in figure[:3] if end is not None])


def _axis_row(figures: list[parts.Figure]) -> list[float]:
    """Low end, high end, and the ticks between them."""
    axis = axis_of(figures)
    return [parts.short(value) or 0.0 for value in (axis.low, axis.high, *axis.ticks)]


# --- drawings --------------------------------------------------------------------------------------------------------


def _histograms(results: Results, metrics: list[dict]) -> Callable[[str, dict], dict[str, Any]]:
    """The drawing of one model in one metric, and the ends of its axis, which all models share."""
    bins = {metric["name"]: charts.bin_edges(results.values[metric["name"]]) for metric in metrics}

    def histogram(metric: str, model: dict) -> dict[str, Any]:
        edges, tallest = bins[metric]
        values = results.values[metric][:, results.models.index(model["label"])]
        return {
            "ends": f"{number(edges[0])} to {number(edges[-1])}",
            "drawing": charts.histogram(values, edges, tallest, model["colour"]),
        }

    return histogram


def _length_plot(results: Results, columns: list[dict], lead: dict | None) -> Markup:
    if lead is None:
        return Markup("")
    lengths = parts.prompt_lengths(results)
    rows = np.flatnonzero(lengths)
    labels = [model["label"] for model in columns]
    values = results.values[lead["name"]][:, [results.models.index(label) for label in labels]]
    prompts = [results.groups[row] for row in rows]
    return charts.by_length(lengths[rows], values[rows], prompts, labels, [model["colour"] for model in columns])
