"""`python -m eval report`: every model on the same pictures, one folder to read, to publish and to compute with.

Nothing measured is lost: answers are written down as they come (`answers.py`), so that the same command goes on after
a kill, and a model added later does not ask the others again.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.cache import cache_folder
from captioner.contracts import LoadOptions
from captioner.errors import BadInput, BadOutput, CaptionerError
from captioner.statistics import RESAMPLES, SEED
from eval import page, provenance, results
from eval.answers import Answer, Answered, Request, Settings, Track, answer_all, ask
from eval.data import Pairs, read_pairs
from eval.metrics import cosines
from eval.results import Results

if TYPE_CHECKING:
    from captioner.embedding import TextEmbedder

FILES = ("report.json", "per_image.parquet", "report.html", "report.md")
PACKAGES = ("captioner", "torch", "transformers", "sentence-transformers", "rapidfuzz", "numpy")


def report(
    data: Sequence[str],
    models: Sequence[str],
    out: Path,
    track: Track,
    *,
    settings: Settings | None = None,
    clip: str | None = None,
    limit: int | None = None,
    seed: int = SEED,
    resamples: int = RESAMPLES,
    gallery: int = 12,
    title: str = "Prompt recovery, side by side",
    figures_only: bool = False,
) -> dict:
    """Measure and write; returns what report.json holds.

    figures_only: no picture, prompt or answer is in the folder, so that a report on private data can be published.
    """
    from captioner.embedding import text_embedder

    settings = settings or Settings()
    requests = _requests(models)
    prepare(out, figures_only)
    pairs = read_pairs(data, limit, seed, named=not figures_only)
    refuse_other_data(out, pairs.fingerprint)
    embed_texts = text_embedder(settings.embedder)
    kept = cache_folder("answers", pairs.fingerprint[:16]) if figures_only else out / "answers"
    answered = [ask(request, pairs, kept, settings, embed_texts, track) for request in requests]
    measured = _measure(pairs, answered, embed_texts, _clip_values(clip, pairs, answered, kept, settings, track))
    written = {
        "title": title,
        "kind": "report",
        "figures_only": figures_only,
        **circumstances(seed, resamples),
        "settings": {**asdict(settings), "clip": clip},
        "data": {
            "specs": list(data),
            "names": list(pairs.names),
            "noun": "pictures",
            "pictures": len(pairs.items),
            "prompts": len(set(measured.groups)),
            "fingerprint": pairs.fingerprint,
            "notes": pairs.notes,
        },
    }
    finish(written, measured, [_row_of(one, pairs) for one in answered], out, pairs.image, gallery)
    return written


def finish(
    written: dict, measured: Results, models: list[dict], out: Path | None, picture: page.Picture | None, gallery: int
) -> None:
    """Summarise `measured` into `written`, and write the four files if there is a place for them."""
    figures = results.summary(measured, written["resamples"], written["seed"])
    by_model = figures.pop("figures")
    written |= _plain(figures)
    for model in models:
        model["figures"] = _plain(by_model.get(model["label"], {}))
    written["models"] = models
    if out is None:
        return
    write_text(out / "report.json", json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    bare = written.get("figures_only", False)
    (measured.without_texts() if bare else measured).save(out / "per_image.parquet")
    for name, content in page.render(written, measured, picture, gallery).items():
        write_text(out / name, content)


def write_text(file: Path, content: str) -> None:
    """Whole or not at all."""
    beside = file.with_name(f".{file.name}.part")
    beside.write_text(content, encoding="utf-8", errors="replace")
    os.replace(beside, file)


def _requests(models: Sequence[str]) -> list[Request]:
    requests = [Request.parse(entry) for entry in models]
    labels = [request.label for request in requests]
    if not requests:
        raise BadInput("No model: name at least one, e.g. --models mini.")
    if doubles := sorted({label for label in labels if labels.count(label) > 1}):
        raise BadInput(f"Two models are called {doubles[0]!r}: give one another label, e.g. --models second=NAME.")
    return requests


def prepare(out: Path, figures_only: bool = False) -> None:
    """The folder must be writable, and ours or empty, before the work starts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {file.name for file in out.iterdir() if not file.name.startswith(".")}
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadOutput(f"{out} cannot be written to ({error.strerror}). Choose another --out.") from error
    ours = {"answers", *FILES} if there & {"answers", "report.json"} else set()
    if figures_only:
        ours.discard("answers")  # they hold texts
    if strange := sorted(there - ours):
        raise BadOutput(f"{out} holds other files ({', '.join(strange[:3])}). Choose an empty folder for --out.")


def refuse_other_data(out: Path, fingerprint: str) -> None:
    """A finished report is brought up to date on the same data, never replaced by another one."""
    file = out / "report.json"
    if file.exists() and load_report(file)["data"].get("fingerprint") != fingerprint:
        raise BadOutput(f"{out} holds a report on other data. Choose another --out, or delete it.")


def load_report(file: Path) -> dict:
    """A report.json, or an error that says why it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read as a report ({error}).") from error
    if not isinstance(content, dict) or not {"data", "models", "metrics"} <= content.keys():
        raise BadInput(f"{file} is no report.json of `python -m eval`.")
    return content


# --- figures ---------------------------------------------------------------------------------------------------------


def _measure(pairs: Pairs, answered: list[Answered], embed_texts: TextEmbedder, clip_values: dict) -> Results:
    there = [one for one in answered if one.failure is None]
    truths = [item.truths for item in pairs.items]
    texts = {one.request.label: [answer.text for answer in one.answers] for one in there}
    values = {}
    if there:
        cosine = [_vector_cosines(one.answers, truths, embed_texts) for one in there]
        values = {"cosine": np.stack(cosine, axis=1), **results.text_values(texts, truths), **clip_values}
    return Results(
        ids=[item.id for item in pairs.items],
        truths=truths,
        image_hashes=[item.image_hash for item in pairs.items],
        models=list(texts),
        texts=texts,
        values=values,
    )


def _vector_cosines(answers: list[Answer], truths: list[tuple[str, ...]], embed_texts: TextEmbedder) -> np.ndarray:
    """Of several true texts the nearest counts."""
    counts = [len(of_item) for of_item in truths]
    predicted = np.repeat(np.stack([answer.vector for answer in answers]), counts, axis=0)  # [truths, d]
    each = cosines(predicted, embed_texts([truth for of_item in truths for truth in of_item]))
    return np.maximum.reduceat(each, np.cumsum([0, *counts[:-1]]))


def _clip_values(
    clip: str | None, pairs: Pairs, answered: list[Answered], folder: Path, settings: Settings, track: Track
) -> dict[str, np.ndarray]:
    there = [one for one in answered if one.failure is None]
    if clip is None or not there:
        return {}
    from eval.clip import Clip, clip_scores

    model = Clip(clip, LoadOptions(device=settings.device, precision=settings.precision))
    header = {"clip": clip, "data": pairs.fingerprint}
    file = folder / Request(f"clip {clip}", clip).file_name
    kept = answer_all(file, header, lambda: model, pairs, settings.batch_size, model.embed_texts, track)
    pictures = np.stack([answer.vector for answer in kept])
    columns = []
    for one in there:
        column = np.full(len(pictures), np.nan)
        if rows := [i for i, answer in enumerate(one.answers) if answer.text is not None]:
            column[rows] = clip_scores(pictures[rows], model.embed_texts([one.answers[i].text for i in rows]))
        columns.append(column)
    return {"clip_score": np.stack(columns, axis=1)}


# --- what stands around the figures ----------------------------------------------------------------------------------


def model_row(label: str, distinct: float | None = None, **known) -> dict:
    """What report.json says of one model besides its figures."""
    row = {
        "label": label,
        "name": label,
        "failure": None,
        "weights": None,
        "load_seconds": None,
        "images_per_second": None,
        "distinct": distinct,
        "trained_on": [],
        "warning": None,
    }
    return row | known


def distinct(texts: Sequence[str | None]) -> float | None:
    """Share of different texts."""
    there = [text for text in texts if text is not None]
    return len(set(there)) / len(there) if there else None


def _row_of(one: Answered, pairs: Pairs) -> dict:
    row = model_row(
        one.request.label,
        distinct([answer.text for answer in one.answers]),
        name=one.request.name,
        failure=one.failure,
        weights=one.weights,
        load_seconds=one.load_seconds,
        images_per_second=one.images_per_second,
    )
    if one.failure is not None or one.weights is None:
        return row
    try:
        learnt = provenance.trained_on(one.request.name)
    except CaptionerError as error:
        return row | {"warning": f"could not be compared with its training data: {error}"}
    return row | {"trained_on": list(learnt.sources), "warning": provenance.overlap_warning(learnt, pairs)}


def circumstances(seed: int, resamples: int) -> dict:
    """When, how and with what."""
    return {
        "command": shlex.join(["python", "-m", "eval", *sys.argv[1:]]),
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "resamples": resamples,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _plain(value):
    """NaN has no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
