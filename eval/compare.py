"""`python -m eval compare A.json B.json`: is B better or worse than A on the pictures that both have seen?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioner.errors import BadInput
from captioner.statistics import RESAMPLES, SEED, Difference, holm, paired_difference
from eval import store
from eval.metrics import TextMetric, in_order, metric_of
from eval.results import SIGNIFICANT, Results


@dataclass(frozen=True)
class Change:
    """One model and metric, from A to B."""

    a: str
    b: str
    metric: str
    difference: Difference
    p_holm: float
    """Corrected for all changes that are judged together."""

    @property
    def worse(self) -> bool:
        return self._significant and self._gain < 0

    @property
    def better(self) -> bool:
        return self._significant and self._gain > 0

    @property
    def _significant(self) -> bool:
        return self.p_holm < SIGNIFICANT

    @property
    def _gain(self) -> float:
        """The change for the better; 0 where a metric is neither good nor bad."""
        higher_is_better = metric_of(self.metric).higher_is_better
        sign = 0 if higher_is_better is None else 1 if higher_is_better else -1
        return sign * self.difference.interval.mean


def compare(
    file_a: Path,
    file_b: Path,
    wanted: Sequence[str] = (),
    model_a: str | None = None,
    model_b: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Change]:
    """All changes in the wanted metrics; by default in the cosine, or in all where there is none.

    The files are report.json, or the folders they are in.

    Models of the same name are compared, or the two that are named.
    """
    (about_a, a), (about_b, b) = map(store.load, (file_a, file_b))
    a_is_bare, b_is_bare = (about.get("figures_only", False) for about in (about_a, about_b))
    if a_is_bare or b_is_bare:
        a, b = a if a_is_bare else a.without_texts(), b if b_is_bare else b.without_texts()
    rows_a, rows_b = _same_pictures(a, b)
    if not rows_a:
        raise BadInput(f"{file_a} and {file_b} have no picture with the same prompt in common: nothing to compare.")
    groups = [a.groups[row] for row in rows_a]
    names = _metrics(a, b, wanted)
    for name in names:
        difference = _made_otherwise(name, about_a, about_b)
        if _weighs_words(name) and _weights_follow_from(a) != _weights_follow_from(b):
            difference = "word weights, which follow from all prompts of a report: make both on the same data."
        if difference is not None:
            raise BadInput(f"The figures {name} of {file_a} and {file_b} are of different {difference}")
    measured = []
    for one, other in _models(a, b, model_a, model_b):
        for name in names:
            before = a.values[name][rows_a, a.models.index(one)]
            after = b.values[name][rows_b, b.models.index(other)]
            if not np.isnan(after - before).all():
                delta = paired_difference(before, after, groups, resamples=resamples, seed=seed)
                measured.append((one, other, name, delta))
    if not measured:
        raise BadInput("No metric has values in both reports for these models.")
    corrected = holm([delta.p for *_, delta in measured])
    return [Change(*row, float(p)) for row, p in zip(measured, corrected, strict=True)]


MADE_WITH = {
    "cosine": "embedder",
    "subject_cosine": "embedder",
    "clip_text": "clip",
    "clip_picture": "clip",
    "clip_score": "clip",
    "promptstealer_semantic": "clip",
    "bert_score": "bert_score",
    "perplexity": "perplexity",
}
"""Metrics that compare only if this setting of both reports is the same."""
KINDS = {"embedder": "embedders", "clip": "CLIPs", "bert_score": "encoders", "perplexity": "language models"}


def _made_otherwise(metric: str, a: dict, b: dict) -> str | None:
    """What keeps this metric of two reports from being compared, as the end of a sentence; None: nothing."""
    if metric.startswith("modifier_") or metric == "promptstealer_modifier":
        if a.get("vocabulary") == b.get("vocabulary"):
            return None
        return "vocabularies: make both with one list, --modifiers FILE."
    setting = MADE_WITH.get(metric)
    if setting is None or _setting(a, setting) == _setting(b, setting):
        return None
    return f"{KINDS[setting]}: they do not compare."


def _weighs_words(name: str) -> bool:
    metric = metric_of(name)
    return isinstance(metric, TextMetric) and metric.weighs_words


def _weights_follow_from(results: Results) -> list[list[str]]:
    """The references of all items, in any order."""
    return sorted(map(sorted, results.truths))


def _setting(about: dict, name: str) -> object:
    settings = about.get("settings")
    return settings.get(name) if isinstance(settings, dict) else None


def _same_pictures(a: Results, b: Results) -> tuple[list[int], list[int]]:
    """Rows of both, paired by picture and prompt (by id where there are no pictures). Doubles count once."""
    rows = [{key: row for row, key in reversed(list(enumerate(_keys(results))))} for results in (a, b)]
    common = [key for key in rows[0] if key in rows[1]]
    return [rows[0][key] for key in common], [rows[1][key] for key in common]


def _keys(results: Results) -> list[tuple]:
    return [
        (image_hash or identifier, frozenset(truths))
        for image_hash, identifier, truths in zip(results.image_hashes, results.ids, results.truths, strict=True)
    ]


def _metrics(a: Results, b: Results, wanted: Sequence[str]) -> list[str]:
    common = [metric.name for metric in in_order(a.values) if metric.name in b.values]
    if unknown := [name for name in wanted if name not in common]:
        raise BadInput(f"No metric {unknown[0]!r} in both reports. They share: {', '.join(common)}.")
    return list(wanted) or (["cosine"] if "cosine" in common else common)


def _models(a: Results, b: Results, model_a: str | None, model_b: str | None) -> list[tuple[str, str]]:
    first, second = model_a or model_b, model_b or model_a  # one alone is called so in both
    for named, results, which in ((first, a, "first"), (second, b, "second")):
        if named is not None and named not in results.models:
            raise BadInput(f"The {which} report has no model {named!r}: it has {', '.join(results.models)}.")
    if first and second:
        return [(first, second)]
    if len(a.models) == len(b.models) == 1:
        return [(a.models[0], b.models[0])]
    if common := [(model, model) for model in a.models if model in b.models]:
        return common
    raise BadInput(
        f"The reports share no model ({', '.join(a.models)}; {', '.join(b.models)}): "
        "name the two with --model-a and --model-b."
    )
