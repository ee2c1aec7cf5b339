"""Figures and labels as readers see them, in the page, in Markdown and in the terminal."""

from __future__ import annotations

import re

from markupsafe import Markup


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


def decimals(value: float | None) -> str:
    """As papers print them: shares with four decimals, hundredths with one; a dash for what was not measured."""
    return "–" if value is None else f"{value:.4f}" if abs(value) < 2 else f"{value:.1f}"


def as_published(value: float | None) -> str:
    """With the digits that its source prints."""
    return "–" if value is None else str(value)


def verdict(metric: dict, row: dict) -> str:
    """In words, who is better."""
    if not row["significant"]:
        return "no clear difference"
    higher, lower = (row["b"], row["a"]) if row["mean"] > 0 else (row["a"], row["b"])
    if metric["higher_is_better"] is None:
        return f"{higher} is higher"
    return f"{higher if metric['higher_is_better'] else lower} is better"


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
