"""`python -m eval report`: every model on the same pictures, one folder to read, to publish and to compute with.

Nothing measured is lost: answers are written down as they come (`answers.py`), so that the same command goes on after
a kill, and a model added later does not ask the others again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from captioner import compute
from captioner.errors import BadInput, CaptionerError
from captioner.files.cache import cache_to_write
from captioner.pairs.layouts import ReadOptions
from captioner.statistics import RESAMPLES, SEED
from eval import anatomy, measure, protocols, provenance, store
from eval.answers import Track
from eval.asking import Answered, Asker, Settings, check
from eval.data import Pairs, read_pairs
from eval.entries import read_entries
from eval.likeness import add_likeness
from eval.measure import Instruments, Measures
from eval.redraw import Redrawn
from eval.results import Results
from eval.schema import Begun, DataRow, ModelRow, ModifierRows, NearDuplicates, Report, Runs


def report(
    data: Sequence[str],
    models: Sequence[str],
    out: Path,
    track: Track,
    *,
    settings: Settings | None = None,
    measures: Measures | None = None,
    reading: ReadOptions | None = None,
    trained_on: Sequence[str] = (),
    limit: int | None = None,
    seed: int = SEED,
    resamples: int = RESAMPLES,
    gallery: int = 12,
    title: str = "Prompt recovery, side by side",
    figures_only: bool = False,
    redrawn: Path | None = None,
) -> Report:
    """Measure and write; returns what report.json holds. Whatever could stop it is looked at before a model is asked.

    trained_on: `LABEL=DATA`, what a model was trained on where it does not say so itself.
    redrawn: a folder of `python -m eval redraw`, or pictures drawn elsewhere.
    figures_only: no picture, prompt or answer is in the folder, so that a report on private data can be published.
    """
    settings, measures, reading = settings or Settings(), measures or Measures(), reading or ReadOptions()
    wanted = read_entries(models)
    labels = [entry.label for entry in wanted]
    training_data = provenance.parse_trained_on(trained_on, labels)
    protocol = measure.prepare(measures, settings)
    compute.precision(settings.precision, compute.device(settings.device))
    for entry in wanted:
        check(entry, settings)
    with store.prepared(out, figures_only):
        if redrawn is not None and not redrawn.is_dir():
            raise BadInput(f"There is no folder {redrawn} of pictures that were drawn again.")
        instruments = measure.open_instruments(measures, protocol, settings)
        pairs = read_pairs(data, limit, seed, named=not figures_only, reading=reading)
        store.refuse_other_report(out, pairs.fingerprint, labels)
        instruments.learn(pairs.corpus, data, reading.split)
        folder = cache_to_write("answers", pairs.fingerprint[:16]) if figures_only else out / "answers"
        seeds = range(seed, seed + measures.seeds) if measures.seeds > 1 else ()
        asker = Asker(wanted, pairs, folder, settings, instruments.embed_texts, track)
        answered = [asker.ask(entry, seeds) for entry in wanted]
        notes = [*pairs.notes, *asker.notes]
        pictures = None
        if instruments.clip is not None and instruments.clip_name is not None:
            clip = (instruments.clip_name, instruments.clip)
            pictures = measure.picture_vectors(*clip, pairs, folder, settings.batch_size, track, notes)
        measured, runs = measure.measure(pairs, answered, instruments, pictures)
        again = Redrawn.find(redrawn, measured) if redrawn is not None else None
        row_of_redrawn = None
        if again is not None:
            row_of_redrawn = add_likeness(measured, again, pairs.image, instruments.clip, track)
            notes += again.notes
        rows = _rows(answered, pairs, measured, runs, training_data, instruments, figures_only)
        counted = [(row["label"], row["near_duplicates"]) for row in rows]
        notes += [provenance.near_duplicates_note(label, of_model) for label, of_model in counted if of_model]
        texts = {one.entry.label: [[answer.text for answer in run] for run in one.runs] for one in answered}
        begun: Begun = {
            "title": title,
            "kind": "report",
            "figures_only": figures_only,
            **store.circumstances(seed, resamples),
            "settings": {**asdict(settings), **_plain_settings(measures), "clip": instruments.clip_name},
            "data": _data_row(data, pairs, measured, notes),
            "vocabulary": store.vocabulary_row(instruments.vocabulary),
            "protocol": protocols.table(protocol, measured, texts) if protocol is not None else None,
            "redrawn": row_of_redrawn,
        }
        written = store.finish(
            begun, measured, rows, out, pairs.image, gallery, again.picture if again is not None else None
        )
        if protocol is not None and protocol.name == "kaggle" and not figures_only:
            protocols.write_submissions(out, {one.entry.label: one.answers for one in answered if not one.failure})
        return written


def _plain_settings(measures: Measures) -> dict[str, object]:
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(measures).items()
    }


# --- what stands around the figures ----------------------------------------------------------------------------------


def _data_row(data: Sequence[str], pairs: Pairs, measured: Results, notes: list[str]) -> DataRow:
    return {
        "specs": list(data),
        "names": list(pairs.names),
        "noun": "pictures",
        "pictures": len(pairs.items),
        "prompts": len(set(measured.groups)),
        "fingerprint": pairs.fingerprint,
        "notes": notes,
    }


def _rows(
    answered: Sequence[Answered],
    pairs: Pairs,
    measured: Results,
    runs: dict[str, Runs],
    training_data: dict[str, list[str]],
    instruments: Instruments,
    figures_only: bool,
) -> list[ModelRow]:
    """What report.json says of each model beside its figures."""
    rows = [_row_of(one, pairs) for one in answered]
    for row in rows:
        row["runs"] = runs.get(row["label"])
        row["near_duplicates"] = _near_duplicates(row, pairs, training_data, instruments)
        if row["label"] in training_data and row["near_duplicates"] is not None and not row["warning"]:
            row["warning"] = provenance.told_overlap_warning(row["near_duplicates"])
        if figures_only:
            row["traceback"] = None
        else:
            row["modifiers"] = _modifiers(measured, row["label"], instruments.vocabulary)
    return rows


def _row_of(one: Answered, pairs: Pairs) -> ModelRow:
    row = store.model_row(one.entry.label, store.distinct([answer.text for answer in one.answers]))
    row["name"] = one.entry.name
    row["failure"] = one.failure
    row["traceback"] = one.traceback
    row["weights"] = one.weights
    row["load_seconds"] = one.load_seconds
    row["images_per_second"] = one.images_per_second
    row["precision"] = one.precision
    row["warning"] = one.warning
    if one.failure is not None or one.weights is None:
        return row
    try:
        learnt = provenance.trained_on(one.entry.name)
    except CaptionerError as error:
        row["warning"] = _sentences(one.warning, f"could not be compared with its training data: {error}")
        return row
    row["trained_on"] = list(learnt.sources)
    row["warning"] = _sentences(one.warning, provenance.overlap_warning(learnt, pairs))
    return row


def _near_duplicates(
    row: ModelRow, pairs: Pairs, training_data: dict[str, list[str]], instruments: Instruments
) -> NearDuplicates | None:
    """Counted where the model's training prompts are known: those of its index, or of the data it is said to be
    trained on."""
    if row["failure"] is not None:
        return None
    name, specs = row["name"] if row["weights"] else None, training_data.get(row["label"], [])
    training = provenance.training_blocks(name, specs, instruments.embedder, instruments.embed_texts.embed)
    return provenance.near_duplicates(training, [item.truths for item in pairs.items], instruments.embed_texts)


def _modifiers(measured: Results, label: str, vocabulary: anatomy.Vocabulary) -> ModifierRows:
    if label not in measured.texts:
        return {"missed": [], "invented": []}
    missed, invented = anatomy.tally(measured.texts[label], measured.truths, vocabulary)
    return store.modifier_rows(missed, invented)


def _sentences(*parts: str | None) -> str | None:
    """What stands after the model's name, as one text."""
    return " It ".join(filter(None, parts)) or None
