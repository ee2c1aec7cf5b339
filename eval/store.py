"""A report's folder: report.json, per_image.parquet, report.html and report.md.

It is looked at before the work starts, written file by file whole or not at all, and read again by `compare`.
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
from pathlib import Path
from typing import Any

from captioner.errors import BadInput, BadOutput
from captioner.files import atomic
from captioner.files.json import read_object
from eval import page, results
from eval.results import Results

FILES = ("report.json", "per_image.parquet", "report.html", "report.md")
PACKAGES = ("captioner", "torch", "transformers", "sentence-transformers", "rapidfuzz", "numpy")


# --- before the work -------------------------------------------------------------------------------------------------


def prepare(out: Path, figures_only: bool = False) -> None:
    """The folder must be writable, and ours or empty, before the work starts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = {file.name for file in out.iterdir() if not file.name.startswith(".")}
        with atomic.replacing(out / "report.json", keep=True):
            pass  # a file can be made here, and is dropped again
    except OSError as error:
        raise BadOutput(f"{out} cannot be written to ({error.strerror}). Choose another --out.") from error
    ours = {"answers", *FILES} if present & {"answers", "report.json"} else set()
    if figures_only:
        ours.discard("answers")  # they hold texts
    if strange := sorted(present - ours):
        raise BadOutput(f"{out} holds other files ({', '.join(strange[:3])}). Choose an empty folder for --out.")


def refuse_other_report(out: Path, fingerprint: str, labels: Sequence[str]) -> None:
    """A finished report is brought up to date and may grow, but is never replaced by one that says less."""
    if not (out / "report.json").exists():
        return
    earlier = load_report(out / "report.json")
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
    written: dict, measured: Results, models: list[dict], out: Path | None, picture: page.Picture | None, gallery: int
) -> None:
    """Summarise `measured` into `written`, and write the four files if there is a place for them."""
    figures = results.summary(measured, written["resamples"], written["seed"])
    by_model = figures.pop("figures")
    written |= plain(figures)
    for metric in written["metrics"]:
        if metric["name"] == "cosine" and (embedder := written["settings"].get("embedder")):
            metric["label"] = f"{Path(embedder).name} cosine"
            metric["meaning"] = f"cosine of the {embedder} sentence embeddings of both texts"
    for model in models:
        model["figures"] = plain(by_model.get(model["label"], {}))
    written["models"] = models
    if out is None:
        return
    # report.json comes last: who finds it finds a whole report beside it.
    bare = written.get("figures_only", False)
    (measured.without_texts() if bare else measured).save(out / "per_image.parquet")
    for name, content in page.render(written, measured, picture, gallery).items():
        atomic.write_bytes(out / name, content.encode("utf-8", "replace"))
    text = json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic.write_bytes(out / "report.json", text.encode("utf-8", "replace"))


def model_row(label: str, distinct: float | None = None, **known: Any) -> dict:
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
    present = [text for text in texts if text is not None]
    return len(set(present)) / len(present) if present else None


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


def plain(value: Any) -> Any:
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- reading ---------------------------------------------------------------------------------------------------------


def load_report(file: Path) -> dict:
    """A report.json, named itself or by its folder, or an error that says why it is none."""
    file = report_file(file)
    content = read_object(file, BadInput, "Name a report.json of `python -m eval`, or the folder it is in.")
    parts = {"data": dict, "models": list, "metrics": list}
    rows = content.get("models")
    whole = all(isinstance(content.get(key), kind) for key, kind in parts.items())
    if not whole or not all(isinstance(row, dict) and isinstance(row.get("label"), str) for row in rows):
        raise BadInput(f"{file} is no report.json of `python -m eval`.")
    return content


def report_file(path: Path) -> Path:
    """The report.json of a folder; any other path as it is."""
    return path / "report.json" if path.is_dir() else path
