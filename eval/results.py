"""One value an image, model and metric, and what follows from them: means, intervals, differences, who is best.

`score`, `report` and `compare` all work on `Results`; `per_image.parquet` is its file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, groupby
from pathlib import Path
from statistics import NormalDist
from typing import TypedDict

import numpy as np

from captioner.errors import BadInput
from captioner.files import atomic
from captioner.pairs.fingerprint import fingerprint
from captioner.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Interval,
    differences,
    holm,
    intervals,
    resampled_means,
)
from eval import metrics, ngrams
from eval.anatomy import EVERY_TERM, Vocabulary
from eval.metrics import TextMetric, in_order, metric_of
from eval.schema import DifferenceRow, Figures, MetricRow, Power

SIGNIFICANT = 0.05
POWER = 0.8
"""A difference counts as detectable if so large a share of repetitions would find it."""
KEYS = ("id", "image_sha256", "truths", "model", "text")
"""Columns of per_image.parquet beside one a metric."""
SOURCE = "source"
"""A column that reports made earlier lack."""


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    ids: list[str]
    truths: list[tuple[str, ...]]
    image_hashes: list[str | None]
    models: list[str]
    texts: dict[str, list[str | None]]
    """Per model, one an item; None where it says nothing."""
    values: dict[str, np.ndarray]
    """Per metric `[items, models]`; NaN where nothing can be measured."""
    sources: list[str] = field(default_factory=list)
    """Which of the data each item comes from; empty: nobody knows."""

    @cached_property
    def groups(self) -> list[str]:
        """Items of one prompt belong together when resampling."""
        return ["\n".join(truths) for truths in self.truths]

    def without_texts(self) -> Results:
        """The same figures, with fingerprints for prompts and numbers for names: nothing of the data can be read."""
        return replace(
            self,
            ids=[str(number) for number in range(len(self.ids))],
            truths=[tuple(map(fingerprint, truths)) for truths in self.truths],
            texts={model: [None] * len(self.ids) for model in self.models},
        )

    def save(self, file: Path) -> None:
        """One row an item and model."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [(item, column) for item in range(len(self.ids)) for column in range(len(self.models))]
        table = {
            "id": [self.ids[item] for item, _ in rows],
            "image_sha256": pa.array([self.image_hashes[item] for item, _ in rows], pa.string()),
            "truths": pa.array([list(self.truths[item]) for item, _ in rows], pa.list_(pa.string())),
            "model": [self.models[column] for _, column in rows],
            "text": pa.array([self.texts[self.models[column]][item] for item, column in rows], pa.string()),
        }
        if self.sources:
            table[SOURCE] = [self.sources[item] for item, _ in rows]
        table |= {
            name: pa.array(values.ravel(), pa.float64(), from_pandas=True) for name, values in self.values.items()
        }
        with atomic.replacing(file) as new:
            pq.write_table(pa.table(table), new)

    @classmethod
    def load(cls, file: Path) -> Results:
        """What `save` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise BadInput(f"{file} cannot be read: it belongs beside the report.json ({error}).") from error
        if missing := set(KEYS) - set(table.column_names):
            raise BadInput(f"{file} is no per_image.parquet of a report: it lacks {', '.join(sorted(missing))}.")
        columns = {name: table[name].to_pylist() for name in KEYS}
        models = list(dict.fromkeys(columns["model"]))
        first = range(0, len(columns["id"]), max(len(models), 1))
        sources = table[SOURCE].to_pylist() if SOURCE in table.column_names else []
        measured = [column for column in table.schema if column.name not in (*KEYS, SOURCE)]
        whole = (
            columns["model"] == models * len(first)
            and all(isinstance(name, str) for name in [*columns["id"], *models])
            and all(isinstance(truths, list) for truths in columns["truths"])
            and all(isinstance(truth, str) for truths in columns["truths"] for truth in truths)
            and all(isinstance(source, str) for source in sources)
            and all(pa.types.is_floating(column.type) or pa.types.is_integer(column.type) for column in measured)
        )
        if not whole:
            raise BadInput(f"{file} is damaged: it has not one row for every picture and model. Make the report anew.")
        return cls(
            ids=[columns["id"][row] for row in first],
            truths=[tuple(columns["truths"][row]) for row in first],
            image_hashes=[columns["image_sha256"][row] for row in first],
            models=models,
            texts={model: columns["text"][number :: len(models)] for number, model in enumerate(models)},
            values={
                column.name: table[column.name].to_numpy(zero_copy_only=False).astype(float).reshape(-1, len(models))
                for column in measured
            },
            sources=[sources[row] for row in first] if sources else [],
        )


def text_values(
    texts: Mapping[str, Sequence[str | None]],
    truths: Sequence[tuple[str, ...]],
    vocabulary: Vocabulary = EVERY_TERM,
    extra: Sequence[TextMetric] = (),
) -> dict[str, np.ndarray]:
    """Every metric that the texts alone give, `[items, models]` each. vocabulary: which terms are modifiers."""
    wanted = (*metrics.TEXT_METRICS, *metrics.modifier_metrics(vocabulary), *extra)
    # Model by model: metrics share what they count in the same texts.
    columns = [[metric(of_model, truths) for metric in wanted] for of_model in texts.values()]
    ngrams.forget()
    return {metric.name: np.stack(values, axis=1) for metric, *values in zip(wanted, *columns, strict=True)}


def row_means(values: np.ndarray) -> np.ndarray:
    """The mean of each row of `[n, columns]`, of what is there; NaN where nothing is."""
    counts = (~np.isnan(values)).sum(axis=1)
    return np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Paired:
    """Model b against model a in one metric."""

    metric: str
    a: str
    b: str
    difference: Difference
    p_holm: float
    """Corrected for all pairs of models in this metric."""

    @property
    def significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


class Summary(TypedDict):
    """What report.json says about the figures."""

    metrics: list[MetricRow]
    figures: dict[str, dict[str, Figures]]
    """By model and metric."""
    differences: list[DifferenceRow]
    best: dict[str, str | None]
    power: Power | None


def summary(results: Results, resamples: int = RESAMPLES, seed: int = SEED) -> Summary:
    """Means, intervals, differences, and who is best."""
    known = in_order(results.values)
    names = [metric.name for metric in known]
    figures: dict[str, dict[str, Figures]] = {model: {} for model in results.models}
    if not figures:
        return {"metrics": [], "figures": {}, "differences": [], "best": {}, "power": None}
    columns = np.concatenate([results.values[name] for name in names], axis=1)
    drawn = resampled_means(columns, results.groups, resamples, seed)
    spread = iter(intervals(columns, drawn))
    prompts = len(set(results.groups))
    for name in names:
        for number, model in enumerate(results.models):
            of_model = _figures(results.values[name][:, number], next(spread))
            if prompts < 2:  # one prompt tells nothing of how prompts differ
                of_model["low"] = of_model["high"] = None
            figures[model][name] = of_model
    paired = pairs(results, names, resamples, seed)
    compared = Counter(p.metric for p in paired)
    rows = [_difference_row(p, compared[p.metric]) for p in paired]
    return {
        "metrics": [
            {
                "name": m.name,
                "label": m.label,
                "higher_is_better": m.higher_is_better,
                "meaning": m.meaning,
                "group": m.group,
            }
            for m in known
        ],
        "figures": figures,
        "differences": rows,
        "power": _power(rows, prompts),
        "best": {name: best(name, figures, paired) for name in names},
    }


def _figures(column: np.ndarray, interval: Interval) -> Figures:
    present = column[~np.isnan(column)]
    if not len(present):
        return {"mean": None, "low": None, "high": None, "median": None, "variance": None, "max": None, "n": 0}
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "median": float(np.median(present)),
        "variance": float(present.var()),
        "max": float(present.max()),
        "n": len(present),
    }


def pairs(results: Results, names: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> list[Paired]:
    """Every two models in every metric that both have; all from the same draws."""
    compared, deltas = [], []
    for name in names:
        for a, b in combinations(range(len(results.models)), 2):
            delta = results.values[name][:, b] - results.values[name][:, a]
            if not np.isnan(delta).all():
                compared.append((name, results.models[a], results.models[b]))
                deltas.append(delta)
    if not deltas:
        return []
    measured = differences(np.stack(deltas, axis=1), results.groups, resamples=resamples, seed=seed)
    paired_rows = []
    for name, of_metric in groupby(zip(compared, measured, strict=True), key=lambda row: row[0][0]):
        rows = list(of_metric)
        corrected = holm([difference.p for _, difference in rows])
        paired_rows += [
            Paired(name, a, b, difference, float(p)) for ((_, a, b), difference), p in zip(rows, corrected, strict=True)
        ]
    return paired_rows


def best(metric: str, figures: Mapping[str, Mapping[str, Figures]], paired: list[Paired]) -> str | None:
    """The model that is significantly better than every other; None if there is no such model."""
    means = {model: mean for model, row in figures.items() if (mean := row[metric]["mean"]) is not None}
    higher_is_better = metric_of(metric).higher_is_better
    if higher_is_better is None or len(means) < 2:
        return None
    top = (max if higher_is_better else min)(means, key=means.__getitem__)
    of_top = [p for p in paired if p.metric == metric and top in (p.a, p.b)]
    ahead = [p.significant and (p.difference.interval.mean > 0) == ((top == p.b) == higher_is_better) for p in of_top]
    return top if len(ahead) == len(means) - 1 and all(ahead) else None


def _difference_row(pair: Paired, compared: int) -> DifferenceRow:
    interval = pair.difference.interval
    return {
        "metric": pair.metric,
        "a": pair.a,
        "b": pair.b,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "p": pair.difference.p,
        "p_holm": pair.p_holm,
        "n": pair.difference.items,
        "significant": pair.significant,
        "detectable": detectable(interval, compared),
    }


def detectable(interval: Interval, compared: int = 1) -> float | None:
    """The smallest true difference that a comparison as sure as this one finds in 80 % of repetitions.

    (z of the level + z of the power) × the standard error, which the interval tells. The level is that of the first of
    Holm's steps among so many comparisons, so that the answer holds for any pair. None: nothing differs at all, which
    says nothing of how sure a difference would be.
    """
    normal = NormalDist()
    error = (interval.high - interval.low) / (2 * normal.inv_cdf(0.5 + LEVEL / 2))
    if not error > 0:
        return None
    return (normal.inv_cdf(1 - SIGNIFICANT / (2 * max(compared, 1))) + normal.inv_cdf(POWER)) * error


def _power(rows: Sequence[DifferenceRow], prompts: int) -> Power | None:
    smallest: dict[str, float] = {}
    for row in rows:
        if row["detectable"] is not None:
            smallest[row["metric"]] = max(row["detectable"], smallest.get(row["metric"], 0.0))
    return {"level": SIGNIFICANT, "power": POWER, "prompts": prompts, "smallest": smallest} if smallest else None
