"""A report's folder: report.json, per_image.parquet, report.html and report.md.

It is looked at before the work starts, written file by file whole or not at all, and read again by `compare`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import BadInput, BadOutput
from captioner.files import atomic
from captioner.files.json import read_object
from captioner.files.lock import locked
from captioner.sinks.checks import explained
from captioner.sinks.row import without_nan
from eval import anatomy, page, results, schema
from eval.anatomy import EVERY_TERM, Tally
from eval.gallery import OpenPicture, OpenRedrawn
from eval.results import Results
from eval.schema import Begun, Circumstances, MetricRow, ModelRow, Report

PER_IMAGE = "per_image.parquet"
FILES = ("report.json", PER_IMAGE, "report.html", "report.md")
AGAIN = "Put it right, and give the same command again."
SUBMISSIONS = "submissions"
"""The folder of what the protocol `kaggle` writes."""
PACKAGES = ("captioner", "torch", "transformers", "sentence-transformers", "rapidfuzz", "numpy")


# --- before the work -------------------------------------------------------------------------------------------------


@contextmanager
def prepared(out: Path, figures_only: bool = False) -> Iterator[None]:
    """The folder must be writable, and ours or empty, before the work starts. It is ours alone until the work ends."""
    with locked(out, "cannot be written to ({}). Choose another --out."):
        _refuse_others(out, figures_only)
        yield


def _refuse_others(out: Path, figures_only: bool) -> None:
    present = {file.name for file in out.iterdir() if not file.name.startswith(".")}
    ours = {"answers", SUBMISSIONS, *FILES} if present & {"answers", "report.json"} else set()
    if figures_only:
        ours -= {"answers", SUBMISSIONS}  # they hold texts
    if strange := sorted(present - ours):
        raise BadOutput(f"{out} holds other files ({', '.join(strange[:3])}). Choose an empty folder for --out.")


def refuse_other_report(out: Path, fingerprint: str, labels: Sequence[str]) -> None:
    """A finished report is brought up to date and may grow, but is never replaced by one that says less."""
    if not (out / "report.json").exists():
        return
    try:
        earlier = load_report(out / "report.json")
    except BadInput as error:
        raise BadOutput(
            f"{out / 'report.json'} is damaged. Delete that file to make the report anew (what the models said is "
            "kept), or choose another --out."
        ) from error
    if earlier["data"].get("fingerprint") != fingerprint:
        raise BadOutput(f"{out} holds a report on other data. Choose another --out, or delete it.")
    measured = [model["label"] for model in earlier["models"] if model.get("failure") is None]
    if missing := [label for label in measured if label not in labels]:
        raise BadOutput(
            f"{out} holds a report that also has {', '.join(missing)}: name every model again "
            "(what they answered is kept), or choose another --out."
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def finish(
    begun: Begun,
    measured: Results,
    models: list[ModelRow],
    out: Path | None,
    picture: OpenPicture | None,
    gallery: int,
    redrawn: OpenRedrawn | None = None,
) -> Report:
    """The whole report: `begun` with the figures of `measured`; the four files are written if there is a place."""
    summary = results.summary(measured, begun["resamples"], begun["seed"])
    for model in models:
        model["figures"] = summary["figures"].get(model["label"], {})
    written: Report = without_nan(
        {
            **begun,
            "metrics": [_described(metric, begun) for metric in summary["metrics"]],
            **{key: summary[key] for key in ("differences", "best", "power")},
            "models": models,
        }
    )
    if out is None:
        return written
    # report.json comes last: who finds it finds a whole report beside it.
    with explained(out / PER_IMAGE, AGAIN):
        (measured.without_texts() if begun["figures_only"] else measured).save(out / PER_IMAGE)
    write_pages(out, dict(written), measured, picture, gallery, redrawn)
    _write(out / "report.json", json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return written


def write_pages(
    out: Path,
    report: dict,
    measured: Results,
    picture: OpenPicture | None,
    gallery: int,
    redrawn: OpenRedrawn | None = None,
) -> None:
    """report.html and report.md."""
    for name, content in page.render(report, measured, picture, gallery, redrawn).items():
        _write(out / name, content)


def _write(file: Path, text: str) -> None:
    with explained(file, AGAIN):
        atomic.write_bytes(file, text.encode("utf-8", "replace"))


def _described(metric: MetricRow, begun: Begun) -> MetricRow:
    """With the embedder and the vocabulary of this report."""
    embedder = begun["settings"].get("embedder")
    if metric["name"] == "cosine" and embedder:
        metric["label"] = f"{Path(embedder).name} cosine"
        metric["meaning"] = f"cosine of the {embedder} sentence embeddings of both texts"
    metric["meaning"] = metric["meaning"].replace(EVERY_TERM.rule, begun["vocabulary"]["rule"])
    return metric


def vocabulary_row(vocabulary: anatomy.Vocabulary) -> schema.Vocabulary:
    """What report.json says of the modifiers."""
    return {"rule": vocabulary.rule, "terms": None if vocabulary.terms is None else len(vocabulary.terms)}


def modifier_rows(missed: Sequence[Tally], invented: Sequence[Tally]) -> schema.ModifierRows:
    """The modifiers that a model misses and invents."""
    rows: list[list[schema.TallyRow]] = [
        [{"modifier": tally.modifier, "count": tally.count, "of": tally.of} for tally in tallies]
        for tallies in (missed, invented)
    ]
    return {"missed": rows[0], "invented": rows[1]}


def model_row(label: str, distinct: float | None = None) -> ModelRow:
    """What report.json says of one model, before anything is known of it."""
    return {
        "label": label,
        "name": label,
        "failure": None,
        "traceback": None,
        "weights": None,
        "load_seconds": None,
        "images_per_second": None,
        "precision": None,
        "distinct": distinct,
        "trained_on": [],
        "warning": None,
        "near_duplicates": None,
        "modifiers": {"missed": [], "invented": []},
        "runs": None,
        "figures": {},
    }


def distinct(texts: Sequence[str | None]) -> float | None:
    """The number of different texts over that of all texts."""
    present = [text for text in texts if text is not None]
    return len(set(present)) / len(present) if present else None


def circumstances(seed: int, resamples: int) -> Circumstances:
    """When, how and with what."""
    return {
        "command": shlex.join(["python", "-m", "eval", *sys.argv[1:]]),
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "resamples": resamples,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> tuple[dict, Results]:
    """A report.json, and the values beside it."""
    return load_report(path), Results.load(report_file(path).parent / PER_IMAGE)


def load_report(file: Path) -> dict:
    """A report.json, named itself or by its folder, or an error that says why it is none."""
    file, remedy = report_file(file), "Name a report.json of `python -m eval`, or the folder it is in."
    if not file.exists():
        raise BadInput(f"There is no report at {file}. {remedy}")
    content = read_object(file, BadInput, remedy)
    parts = {"data": dict, "models": list, "metrics": list}
    whole = all(isinstance(content.get(key), kind) for key, kind in parts.items())
    if not whole or not all(isinstance(row, dict) and isinstance(row.get("label"), str) for row in content["models"]):
        raise BadInput(f"{file} is no report.json of `python -m eval`.")
    return content


def report_file(path: Path) -> Path:
    """The report.json of a folder; any other path as it is."""
    return path / "report.json" if path.is_dir() else path
