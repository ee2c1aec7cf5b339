"""`python -m eval score pairs.csv`: metrics for texts that come from anywhere."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioner.errors import BadInput, counted
from captioner.statistics import RESAMPLES, SEED
from captioner.text.embedding import text_embedder
from eval import anatomy, results, store, tables
from eval.metrics import Remembering, embedder_metrics
from eval.results import Results
from eval.schema import Begun, Report

NEEDED = ("truth", "prediction")
GALLERY = 12
"""Texts shown of each kind: best, worst, random."""


def score(
    table: Path,
    out: Path | None = None,
    *,
    cosine: bool = True,
    embedder: str | None = None,
    modifiers: Path | None = None,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> Report:
    """Measure a table with columns truth, prediction, optional model and id; `out`: a report without pictures."""
    if embedder is not None and not cosine:
        raise BadInput("--no-cosine embeds no text: leave it out, or --embedder.")
    with store.prepared(out) if out is not None else nullcontext():
        measured, notes = read_table(table)
        vocabulary = anatomy.from_file(modifiers) if modifiers is not None else _vocabulary(measured.truths)
        fingerprint = hashlib.sha256(table.read_bytes()).hexdigest()
        if out is not None:
            store.refuse_other_report(out, fingerprint, measured.models)
        embedded = _cosines(measured, embedder) if cosine else {}
        values = results.text_values(measured.texts, measured.truths, vocabulary)
        measured = replace(measured, values={**embedded, **values})
        begun: Begun = {
            "title": f"Texts of {table.name}, scored",
            "kind": "score",
            "figures_only": False,
            **store.circumstances(seed, resamples),
            "settings": {"embedder": embedder, "modifiers": None if modifiers is None else str(modifiers)},
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
        return store.finish(begun, measured, models, out, None, GALLERY)


def _cosines(measured: Results, embedder: str | None) -> dict[str, np.ndarray]:
    columns = embedder_metrics(Remembering(text_embedder(embedder)))
    return {
        metric.name: np.stack([metric(measured.texts[model], measured.truths) for model in measured.models], axis=1)
        for metric in columns
    }


def _vocabulary(truths: list[tuple[str, ...]]) -> anatomy.Vocabulary:
    return anatomy.from_corpus(truth for of_item in truths for truth in of_item)


def read_table(table: Path) -> tuple[Results, list[str]]:
    """The texts of a table, not measured yet, and what is odd about it."""
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
    notes = [f"{counted(doubles, 'row')} with the model and id of another; the first counts."] if doubles else []
    if empty := sum(not truth for truth in truths):
        notes.append(f"{counted(empty, 'row')} without a true text: only the length is measured.")
    texts = {model: [answers.get(item) for item in range(len(truths))] for model, answers in predictions.items()}
    references: list[tuple[str, ...]] = [(truth,) if truth else () for truth in truths]
    return Results(list(ids), references, [None] * len(truths), list(texts), texts, {}), notes


def _rows(table: Path) -> list[tables.Row]:
    try:
        return tables.read_rows(table, NEEDED)
    except BadInput as error:
        if "lacks the column truth;" not in str(error):
            raise
        raise BadInput(
            f"{error} To compare it with the prompts of its pictures: python -m eval report --data DIR --models {table}"
        ) from error
