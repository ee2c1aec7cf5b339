"""`python -m eval score pairs.csv`: metrics for texts that come from anywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioner.errors import BadInput
from captioner.statistics import RESAMPLES, SEED
from eval import anatomy, metrics, results, store, tables
from eval.results import Results
from eval.schema import Begun, Report

NEEDED = ("truth", "prediction")


def score(
    table: Path,
    out: Path | None = None,
    *,
    cosine: bool = True,
    seed: int = SEED,
    resamples: int = RESAMPLES,
    gallery: int = 12,
) -> Report:
    """Measure a table with columns truth, prediction, optional model and id; `out`: a report without pictures."""
    if out is not None:
        store.prepare(out)
    measured, notes = read_table(table)
    fingerprint = hashlib.sha256(table.read_bytes()).hexdigest()
    if out is not None:
        store.refuse_other_report(out, fingerprint, measured.models)
    if cosine:
        embedded = {
            metric.name: np.stack([metric(measured.texts[model], measured.truths) for model in measured.models], axis=1)
            for metric in (metrics.cosine, metrics.subject_cosine)
        }
        measured = replace(measured, values={**embedded, **measured.values})
    vocabulary = _vocabulary(measured.truths)
    begun: Begun = {
        "title": f"Texts of {table.name}, scored",
        "kind": "score",
        "figures_only": False,
        **store.circumstances(seed, resamples),
        "settings": {},
        "data": {
            "specs": [str(table)],
            "names": [table.name],
            "noun": "true texts",
            "pictures": len(measured.ids),
            "prompts": len(set(measured.groups)),
            "fingerprint": fingerprint,
            "notes": notes,
        },
        "vocabulary": store.vocabulary_row(vocabulary),
        "protocol": None,
        "redrawn": None,
    }
    models = [store.model_row(model, store.distinct(measured.texts[model])) for model in measured.models]
    for model in models:
        tallies = anatomy.tally(measured.texts[model["label"]], measured.truths, vocabulary)
        model["modifiers"] = store.modifier_rows(*tallies)
    return store.finish(begun, measured, models, out, None, gallery)


def _vocabulary(truths: list[tuple[str, ...]]) -> anatomy.Vocabulary:
    return anatomy.from_corpus(truth for of_item in truths for truth in of_item)


def read_table(table: Path) -> tuple[Results, list[str]]:
    """The texts of a table, values of the text metrics, and what is odd about it."""
    ids: dict[str, int] = {}
    truths: list[str] = []
    predictions: dict[str, dict[int, str | None]] = {}
    doubles = 0
    count: dict[str, int] = {}
    for row in _rows(table):
        model = row.get("model") or "prediction"
        index = count[model] = count.get(model, -1) + 1
        # Without ids, the n-th row of each model belongs to the n-th text.
        identifier = row.get("id") or str(index)
        item = ids.setdefault(identifier, len(ids))
        truth = (row["truth"] or "").strip()
        if item == len(truths):
            truths.append(truth)
        if truths[item] != truth:
            raise BadInput(f"{table}: the rows of id {identifier!r} do not have the same truth. Models must share it.")
        doubles += item in predictions.setdefault(model, {})
        predictions[model].setdefault(item, row["prediction"])
    notes = [f"{doubles:,} rows repeat a model and id; the first counts."] if doubles else []
    if empty := sum(not truth for truth in truths):
        notes.append(f"{empty:,} rows without a true text: only their length is measured.")
    texts = {model: [answers.get(item) for item in range(len(truths))] for model, answers in predictions.items()}
    references: list[tuple[str, ...]] = [(truth,) if truth else () for truth in truths]
    values = results.text_values(texts, references, _vocabulary(references))
    return Results(list(ids), references, [None] * len(truths), list(texts), texts, values), notes


def _rows(table: Path) -> list[tables.Row]:
    try:
        return tables.read_rows(table, NEEDED)
    except BadInput as error:
        if "lacks the column truth;" not in str(error):
            raise
        raise BadInput(
            f"{error} To compare it with the prompts of its pictures: python -m eval report --data DIR --models {table}"
        ) from error
