"""A report for readers: `report.html` and `report.md` from what `report.json` and the per-image values say.

The page is one file: style, script, charts and thumbnails are inside, nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from captioner.errors import BadImage
from eval import charts, explained, published
from eval.ngrams import words
from eval.results import Results

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = 10
"""The style sheet has so many; more are drawn around the colour wheel."""
THUMBNAIL = 384
SHOWN_SCORES = ("cosine", "levenshtein_ratio", "quick_ratio", "rouge_l", "keyword_f1", "clip_score")

Picture = Callable[[int], "Image"]
"""Opens the picture of one item."""


@dataclass(frozen=True)
class Card:
    """One picture of the gallery."""

    id: str
    kinds: list[str]
    truths: tuple[str, ...]
    answers: list[dict]
    """Of every model that says a text."""
    others: list[dict]
    """What only embeds, and who did not answer."""
    scores: dict
    image: str | None
    width: int
    height: int


def render(report: dict, results: Results, picture: Picture | None, gallery: int) -> dict[str, str]:
    """File name → content. picture: None where there are only texts; gallery: pictures of each kind."""
    models = [dict(model, colour=number) for number, model in enumerate(report["models"])]
    columns = [model for model in models if model["failure"] is None]
    measured = [m for m in report["metrics"] if any(model["figures"][m["name"]]["n"] for model in columns)]
    lead = measured[0] if measured else None
    ranked = _ranked(columns, lead)
    bare = report.get("figures_only", False)
    view = {
        "report": report | {"metrics": measured},
        "models": models,
        "columns": columns,
        "failed": [model for model in models if model["failure"] is not None],
        "lead": lead,
        "ranked": [model for model in ranked if model["figures"][lead["name"]]["n"]],
        "tables": _tables(ranked, measured),
        "extra_colours": {number: _hue(number) for number in range(COLOURS, len(models))},
        "differences": _by_metric(report, measured),
        "published": published.FIGURES,
        "notice": published.NOTICE,
        "figures_only": bare,
        "explained": explained.sentences(report),
        "decimals": explained.decimals,
        "cards": _cards(report, results, columns, lead, picture, gallery) if lead and not bare else [],
        "length_plot": _length_plot(results, columns, lead),
        "number": number,
        "small_number": small_number,
        "signed": signed,
        "p_value": p_value,
        "verdict": verdict,
        "is_best": lambda metric, model: is_best(report, metric, model),
        "breakable": breakable,
        "markdown": markdown,
        **_drawings(results, columns, measured),
    }
    return {name: _template(name).render(view) for name in ("report.html", "report.md")}


def _template(name: str):
    page = name.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=page,
        undefined=StrictUndefined,
        trim_blocks=page,
        lstrip_blocks=page,
    )
    return environment.get_template(f"{name}.j2")


def number(value: float | None) -> str:
    """Three decimals, fewer for large numbers; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def small_number(value: float | None) -> str:
    """As `number`, but variances keep two digits that matter."""
    return number(value) if value is None or value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def signed(value: float | None) -> str:
    """As `number`, with its sign."""
    return number(value) if value is None or value < 0 else f"+{number(value)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(metric: dict, row: dict) -> str:
    """In words, who is better."""
    if not row["significant"]:
        return "no clear difference"
    higher = row["b"] if row["mean"] > 0 else row["a"]
    return f"{higher} is {'better' if metric['higher_is_better'] else 'higher'}"


def is_best(report: dict, metric: str, model: dict) -> bool:
    """Is it to be shown as the best? A model with a warning, such as one that was trained on this data, never is."""
    return report["best"][metric] == model["label"] and not model["warning"]


def breakable(label: str) -> Markup:
    """A label that breaks after its punctuation, and only there."""
    return Markup("<wbr>").join(re.split(r"(?<=[-/_.:+=])(?=.)", label))


def markdown(text: object) -> str:
    """A text on one line, in which Markdown and HTML have nothing to say."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _hue(number: int) -> int:
    """The golden angle: every next colour is far from those before."""
    return round(number * 137.508) % 360


def _ranked(columns: list[dict], lead: dict | None) -> list[dict]:
    """The best mean first, last those that the leading metric says nothing of."""
    if lead is None:
        return []
    means = {model["label"]: model["figures"][lead["name"]]["mean"] for model in columns}
    return sorted(
        columns, key=lambda model: -math.inf if (mean := means[model["label"]]) is None else mean, reverse=True
    )


def _tables(models: list[dict], metrics: list[dict]) -> list[tuple[str, list[dict], list[dict]]]:
    """(heading, metrics, models): what tells of every model first, then what tells of texts alone."""

    def measured(model: dict, among: list[dict]) -> list[dict]:
        return [m for m in among if model["figures"][m["name"]]["n"]]

    answering = [model for model in models if measured(model, metrics)]
    common = [m for m in metrics if all(measured(model, [m]) for model in answering)]
    of_texts = [m for m in metrics if m not in common]
    speaking = [model for model in models if measured(model, of_texts)]
    if not common or not of_texts:
        return [("", metrics, models)]
    return [("", common, models), ("Of the texts", of_texts, speaking)]


def _by_metric(report: dict, metrics: list[dict]) -> list[tuple[dict, list[dict]]]:
    found = [(m, [d for d in report["differences"] if d["metric"] == m["name"]]) for m in metrics]
    return [(metric, rows) for metric, rows in found if rows]


def _drawings(results: Results, columns: list[dict], metrics: list[dict]) -> dict[str, Callable]:
    """The chart functions of the template; axes are shared by all models of a metric."""
    column = {model["label"]: results.models.index(model["label"]) for model in columns}
    axes, bins = {}, {}
    for metric in (m["name"] for m in metrics):
        ends = [model["figures"][metric][end] for model in columns for end in ("mean", "low", "high")]
        there = [end for end in ends if end is not None]
        low, high = min(0.0, *there), max(there)
        axes[metric] = (low, high if high > low else low + 1)
        bins[metric] = charts.bin_edges(results.values[metric])

    def whisker(metric: str, model: dict):
        f = model["figures"][metric]
        low, high = (f["mean"] if f[end] is None else f[end] for end in ("low", "high"))
        return charts.whisker(f["mean"], low, high, axes[metric], model["colour"])

    def histogram(metric: str, model: dict):
        edges, tallest = bins[metric]
        return charts.histogram(results.values[metric][:, column[model["label"]]], edges, tallest, model["colour"])

    return {
        "whisker": whisker,
        "histogram": histogram,
        "axis_label": lambda metric: f"{number(axes[metric][0])} to {number(axes[metric][1])}",
        "edges_label": lambda metric: f"{number(bins[metric][0][0])} to {number(bins[metric][0][-1])}",
    }


def _length_plot(results: Results, columns: list[dict], lead: dict | None):
    if lead is None:
        return ""
    lengths = np.array([len(words(truths[0])) if truths else 0 for truths in results.truths])
    rows = np.flatnonzero(lengths)
    labels = [model["label"] for model in columns]
    values = results.values[lead["name"]][:, [results.models.index(label) for label in labels]]
    return charts.by_length(lengths[rows], values[rows], labels, [model["colour"] for model in columns])


# --- gallery ---------------------------------------------------------------------------------------------------------


def choose(values: np.ndarray, each: int, seed: int) -> dict[int, list[str]]:
    """Item → why it is shown. values: one an item, the mean over the models; NaN is never best or worst."""
    there = np.flatnonzero(~np.isnan(values))
    order = there[np.argsort(values[there], kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(values))[:each]
    shown: dict[int, list[str]] = {}
    for kind, items in (("best", order[::-1][:each]), ("worst", order[:each]), ("random", drawn)):
        for item in items:
            shown.setdefault(int(item), []).append(kind)
    return shown


def _cards(report: dict, results: Results, columns: list[dict], lead: dict, picture: Picture | None, each: int):
    values = results.values[lead["name"]]
    counts = (~np.isnan(values)).sum(axis=1)
    means = np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)
    shown = choose(means, each, report["seed"])
    return [_card(item, kinds, report, results, columns, picture) for item, kinds in shown.items()]


def _card(item: int, kinds: list[str], report: dict, results: Results, columns: list[dict], picture) -> Card:
    image, width, height = _thumbnail(picture, item)
    order = [results.models.index(model["label"]) for model in columns]
    scores = {
        m["name"]: [_rounded(results.values[m["name"]][item, column]) for column in order] for m in report["metrics"]
    }
    lead = report["metrics"][0]["name"]
    answers = [
        {
            "model": model,
            "text": results.texts[model["label"]][item],
            "lead": scores[lead][column],
            "scores": " · ".join(
                f"{m['label']} {number(scores[m['name']][column])}"
                for m in report["metrics"]
                if m["name"] in SHOWN_SCORES and scores[m["name"]][column] is not None
            ),
        }
        for column, model in enumerate(columns)
    ]
    texts = [answer for answer in answers if answer["text"] is not None]
    others = [answer for answer in answers if answer["text"] is None]
    highest = max((answer["lead"] for answer in texts if answer["lead"] is not None), default=None)
    for answer in texts:
        answer["top"] = len(texts) > 1 and answer["lead"] == highest
    truths = results.truths[item]
    scores["truth"] = len(words(truths[0])) if truths else 0
    return Card(results.ids[item], kinds, truths, texts, others, scores, image, width, height)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _thumbnail(picture: Picture | None, item: int) -> tuple[str | None, int, int]:
    if picture is None:
        return None, 0, 0
    try:
        image = picture(item)
    except BadImage:
        return None, 0, 0  # it was there when the run began; the card stays, without it
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=78)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}", *image.size
