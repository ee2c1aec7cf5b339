"""Small SVG drawings for the report: they take their colours from the page, so that they follow light, dark and print.

matplotlib cannot do that, and would make each of the hundred small histograms ten times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from captioner.statistics import bootstrap_interval
from eval.parts import length_bins

BINS = 24


@dataclass(frozen=True)
class Axis:
    """What a row of means and intervals is drawn along."""

    low: float
    high: float
    ticks: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Axis:
        """Round ends around these; from 0 where that is near."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if 0 < low < 0.5 * high:
            low = 0.0
        if high <= low:
            high = low + (abs(low) or 1.0) / 10
        ticks = _ticks(low, high)
        step = ticks[1] - ticks[0]
        low, high = np.floor(low / step) * step, np.ceil(high / step) * step
        return cls(float(low), float(high), (np.arange(round((high - low) / step) + 1) * step + low).tolist())

    def percent(self, value: float) -> float:
        """Where a value is, from the left."""
        return 100 * (value - self.low) / (self.high - self.low)


def histogram(values: np.ndarray, edges: np.ndarray, tallest: int, colour: int) -> Markup:
    """Counts per bin as bars; edges and tallest are shared, so that models compare."""
    counts, _ = np.histogram(values[~np.isnan(values)], bins=edges)
    width = 160 / len(counts)
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{36 - height:.2f}" width="{width - 1:.2f}" height="{height:.2f}"/>'
        for i, height in enumerate(34 * counts / tallest)
        if height
    )
    label = f"{edges[0]:.3g} to {edges[-1]:.3g}"
    return Markup(
        f'<svg class="histogram c{colour}" viewBox="0 0 160 37" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram, {label}"><g class="fill">{bars}</g>'
        f'<line class="axis" x1="0" x2="160" y1="36.5" y2="36.5"/></svg>'
    )


def bin_edges(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Bins for all models of one metric `[items, models]`, and the tallest bar's count."""
    present = values[~np.isnan(values)]
    low, high = (min(0.0, present.min()), present.max()) if len(present) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    tallest = max(np.histogram(column[~np.isnan(column)], bins=edges)[0].max() for column in values.T)
    return edges, max(int(tallest), 1)


def by_length(
    lengths: np.ndarray, values: np.ndarray, prompts: Sequence[str], models: Sequence[str], colours: Sequence[int]
) -> Markup:
    """Mean of a metric against the true prompt's length in words, one line a model, with 95 % intervals, for which
    pictures of one prompt are drawn together."""
    bins = length_bins(lengths, most=7)
    if len(bins) < 2:
        return Markup("")
    groups = np.asarray(prompts)
    series = [
        [bootstrap_interval(values[rows, column], groups[rows], resamples=1000) for _, rows in bins]
        for column in range(len(models))
    ]
    points = np.array([[(i.mean, i.low, i.high) for i in line] for line in series])
    low, high = min(0.0, np.nanmin(points)), max(np.nanmax(points) * 1.05, 0.01)
    parts = [
        f'<line class="grid" x1="44" x2="632" y1="{_y(t, low, high):.1f}" y2="{_y(t, low, high):.1f}"/>'
        f'<text x="38" y="{_y(t, low, high) + 4:.1f}" text-anchor="end">{t:.2f}</text>'
        for t in _ticks(low, high)
    ]
    step = 588 / len(bins)
    for index, (label, rows) in enumerate(bins):
        x = 44 + (index + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="272" text-anchor="middle">{label}</text>')
        parts.append(f'<text class="small" x="{x:.1f}" y="286" text-anchor="middle">n={len(rows)}</text>')
    for column, line in enumerate(points):
        shift = (column - (len(models) - 1) / 2) * min(7, step / (len(models) + 2))
        xs = [44 + (number + 0.5) * step + shift for number in range(len(bins))]
        parts.append(_line(xs, line, low, high, colours[column]))
    return Markup(
        '<svg class="plot" viewBox="0 0 640 308" role="img" aria-label="mean against prompt length">'
        + "".join(parts)
        + '<text x="338" y="304" text-anchor="middle">words in the true prompt</text></svg>'
    )


def _ticks(low: float, high: float) -> np.ndarray:
    """Round values, four to nine of them."""
    power = 10.0 ** np.floor(np.log10((high - low) / 4))
    step = max(power * digit for digit in (1, 2, 5) if power * digit <= (high - low) / 4)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step + 0.0  # no -0


def _line(xs: list[float], line: np.ndarray, low: float, high: float, colour: int) -> str:
    present = [(x, *point) for x, point in zip(xs, line, strict=True) if not np.isnan(point[0])]
    path = " ".join(f"{x:.1f},{_y(mean, low, high):.1f}" for x, mean, _, _ in present)
    marks = "".join(
        f'<line class="mark thin" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(a, low, high):.1f}" y2="{_y(b, low, high):.1f}"/>'
        f'<circle class="fill" cx="{x:.1f}" cy="{_y(mean, low, high):.1f}" r="3.2"/>'
        for x, mean, a, b in present
    )
    return f'<g class="c{colour}"><polyline class="mark line" points="{path}"/>{marks}</g>'


def _y(value: float, low: float, high: float) -> float:
    return 252 - (value - low) / (high - low) * 240
