"""`python -m eval report`: every model on the same pictures, one folder to read, to publish and to compute with.

Nothing measured is lost: answers are written down as they come (`answers.py`), so that the same command goes on after
a kill, and a model added later does not ask the others again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.contracts import LoadOptions
from captioner.errors import CaptionerError
from captioner.files.cache import cache_folder
from captioner.statistics import RESAMPLES, SEED
from eval import provenance, results, store
from eval.answers import Answer, Answered, Request, Settings, Track, answer_all, ask, requests
from eval.data import Pairs, read_pairs
from eval.metrics import cosines
from eval.results import Results

if TYPE_CHECKING:
    from captioner.text.embedding import TextEmbedder
    from eval.clip import Clip


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
    """Measure and write; returns what report.json holds. Whatever could stop it is looked at before a model is asked.

    figures_only: no picture, prompt or answer is in the folder, so that a report on private data can be published.
    """
    from captioner import compute
    from captioner.text.embedding import text_embedder

    settings = settings or Settings()
    wanted = requests(models)
    options = LoadOptions(device=settings.device, precision=settings.precision)
    compute.precision(settings.precision, compute.device(settings.device))
    store.prepare(out, figures_only)
    pairs = read_pairs(data, limit, seed, named=not figures_only)
    store.refuse_other_report(out, pairs.fingerprint, [request.label for request in wanted])
    embed_texts = text_embedder(settings.embedder)
    clip_model = _load_clip(clip, options) if clip is not None else None
    folder = cache_folder("answers", pairs.fingerprint[:16]) if figures_only else out / "answers"
    answered = [ask(request, pairs, folder, settings, embed_texts, track) for request in wanted]
    notes = [*pairs.notes, *(note for one in answered for note in one.notes)]
    clip_values = {}
    if clip_model is not None:
        clip_values = _clip_values(clip, clip_model, pairs, answered, folder, settings.batch_size, track, notes)
    measured = _measure(pairs, answered, embed_texts, clip_values)
    written = {
        "title": title,
        "kind": "report",
        "figures_only": figures_only,
        **store.circumstances(seed, resamples),
        "settings": {**asdict(settings), "clip": clip},
        "data": {
            "specs": list(data),
            "names": list(pairs.names),
            "noun": "pictures",
            "pictures": len(pairs.items),
            "prompts": len(set(measured.groups)),
            "fingerprint": pairs.fingerprint,
            "notes": notes,
        },
    }
    store.finish(written, measured, [_row_of(one, pairs) for one in answered], out, pairs.image, gallery)
    return written


# --- figures ---------------------------------------------------------------------------------------------------------


def _measure(pairs: Pairs, answered: list[Answered], embed_texts: TextEmbedder, clip_values: dict) -> Results:
    answering = [one for one in answered if one.failure is None]
    truths = [item.truths for item in pairs.items]
    texts = {one.request.label: [answer.text for answer in one.answers] for one in answering}
    values = {}
    if answering:
        cosine = [_vector_cosines(one.answers, truths, embed_texts) for one in answering]
        values = {"cosine": np.stack(cosine, axis=1), **results.text_values(texts, truths), **clip_values}
    return Results(
        ids=[item.id for item in pairs.items],
        truths=truths,
        image_hashes=[item.image_hash for item in pairs.items],
        models=list(texts),
        texts=texts,
        values=values,
        sources=[item.source for item in pairs.items],
    )


def _vector_cosines(answers: list[Answer], truths: list[tuple[str, ...]], embed_texts: TextEmbedder) -> np.ndarray:
    """Of several true texts the nearest counts."""
    counts = [len(of_item) for of_item in truths]
    predicted = np.repeat(np.stack([answer.vector for answer in answers]), counts, axis=0)  # [truths, d]
    values = cosines(predicted, embed_texts([truth for of_item in truths for truth in of_item]))
    return np.maximum.reduceat(values, np.cumsum([0, *counts[:-1]]))


def _load_clip(name: str, options: LoadOptions) -> Clip:
    from eval.clip import Clip

    return Clip(name, options)


def _clip_values(
    name: str,
    model: Clip,
    pairs: Pairs,
    answered: list[Answered],
    folder: Path,
    batch_size: int,
    track: Track,
    notes: list[str],
) -> dict[str, np.ndarray]:
    from captioner.pipeline import DirectEmbedder
    from eval.clip import clip_scores

    answering = [one for one in answered if one.failure is None]
    if not answering:
        return {}
    request = Request(f"clip {name}", name)
    header = {"clip": name, "data": pairs.fingerprint}
    file = folder / request.file_name
    embedder = DirectEmbedder(name, model)
    answers = answer_all(
        file, header, lambda: embedder, pairs, batch_size, model.embed_texts, track, request.label, notes
    )
    pictures = np.stack([answer.vector for answer in answers])
    columns = []
    for one in answering:
        column = np.full(len(pictures), np.nan)
        if rows := [i for i, answer in enumerate(one.answers) if answer.text is not None]:
            column[rows] = clip_scores(pictures[rows], model.embed_texts([one.answers[i].text for i in rows]))
        columns.append(column)
    return {"clip_score": np.stack(columns, axis=1)}


# --- what stands around the figures ----------------------------------------------------------------------------------


def _row_of(one: Answered, pairs: Pairs) -> dict:
    row = store.model_row(
        one.request.label,
        store.distinct([answer.text for answer in one.answers]),
        name=one.request.name,
        failure=one.failure,
        weights=one.weights,
        load_seconds=one.load_seconds,
        images_per_second=one.images_per_second,
        warning=one.warning,
    )
    if one.failure is not None or one.weights is None:
        return row
    try:
        learnt = provenance.trained_on(one.request.name)
    except CaptionerError as error:
        return row | {"warning": _sentences(one.warning, f"could not be compared with its training data: {error}")}
    warning = _sentences(one.warning, provenance.overlap_warning(learnt, pairs))
    return row | {"trained_on": list(learnt.sources), "warning": warning}


def _sentences(*parts: str | None) -> str | None:
    """What stands after the model's name, as one text."""
    return " It ".join(filter(None, parts)) or None
