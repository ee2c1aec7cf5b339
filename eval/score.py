"""`python -m eval score pairs.csv`: metrics for texts that come from anywhere."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from captioner.errors import BadInput
from captioner.statistics import RESAMPLES, SEED
from eval import metrics, report, results
from eval.results import Results

NEEDED = {"truth", "prediction"}


def score(
    table: Path,
    out: Path | None = None,
    *,
    cosine: bool = True,
    seed: int = SEED,
    resamples: int = RESAMPLES,
    gallery: int = 12,
) -> dict:
    """Measure a table with columns truth, prediction, optional model and id; `out`: a report without pictures."""
    measured, notes = read_table(table)
    fingerprint = hashlib.sha256(table.read_bytes()).hexdigest()
    if out is not None:
        report.prepare(out)
        report.refuse_other_data(out, fingerprint)
    if cosine:
        columns = [metrics.cosine(measured.texts[model], measured.truths) for model in measured.models]
        measured = Results(**vars(measured) | {"values": {"cosine": np.stack(columns, axis=1), **measured.values}})
    written = {
        "title": f"Texts of {table.name}, scored",
        "kind": "score",
        **report.circumstances(seed, resamples),
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
    }
    models = [report.model_row(model, report.distinct(measured.texts[model])) for model in measured.models]
    report.finish(written, measured, models, out, None, gallery)
    return written


def read_table(table: Path) -> tuple[Results, list[str]]:
    """The texts of a CSV, values of the text metrics, and what is odd about it."""
    rows = _rows(table)
    ids, truths = {}, []
    said: dict[str, dict[int, str]] = {}
    doubles = 0
    count: dict[str, int] = {}
    for row in rows:
        model = row.get("model") or "prediction"
        place = count[model] = count.get(model, -1) + 1
        # Without ids, the n-th row of each model belongs to the n-th text.
        identifier = row.get("id") or str(place)
        item = ids.setdefault(identifier, len(ids))
        if item == len(truths):
            truths.append((row["truth"] or "").strip())
        if truths[item] != (row["truth"] or "").strip():
            raise BadInput(f"{table}: the rows of id {identifier!r} do not have the same truth. Models must share it.")
        doubles += item in said.setdefault(model, {})
        said[model].setdefault(item, row["prediction"])
    notes = [f"{doubles:,} rows repeat a model and id; the first counts."] if doubles else []
    if empty := sum(not truth for truth in truths):
        notes.append(f"{empty:,} rows without a true text: only their length is measured.")
    texts = {model: [answers.get(item) for item in range(len(truths))] for model, answers in said.items()}
    references = [(truth,) if truth else () for truth in truths]
    values = results.text_values(texts, references)
    return Results(list(ids), references, [None] * len(truths), list(texts), texts, values), notes


def _rows(table: Path) -> list[dict]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            rows, there = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} cannot be read as UTF-8 CSV ({error}).") from error
    if missing := NEEDED - there:
        raise BadInput(f"{table} lacks the column {', '.join(sorted(missing))}; it has {', '.join(sorted(there))}.")
    if not rows:
        raise BadInput(f"{table} has no rows.")
    return rows
