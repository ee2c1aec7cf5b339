"""Texts → pictures by a text-to-image pipeline of diffusers, into a folder that a stopped run goes on with.

What a picture looks like follows from its text, its seed and the settings, never from its batch. A picture counts as
drawn when its line stands in metadata.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner.errors import BadInput, BadOutput, MissingExtra, MissingModel, counted, one_line
from captioner.files.atomic import replacing, write_text
from captioner.files.json import read_object, write_object
from captioner.files.names import nearest_existing
from captioner.quiet import silenced
from captioner.sinks import check_place
from training.data.progress import track

LINES = "metadata.jsonl"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEPT = "What was drawn is kept: the same command goes on from there."


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    model: str
    """A folder or a Hub id of a text-to-image pipeline."""
    steps: int = 50
    size: int = 512
    """Pixels a side that are drawn."""
    save_size: int = 512
    """Pixels a side that are kept."""
    guidance: float = 7.5
    batch_size: int = 1
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size % 8 or self.size < 8:
            raise BadInput(f"A picture cannot be {self.size} pixels a side: the size must be a multiple of 8.")
        if self.precision not in ("auto", *DTYPES):
            raise BadInput(f"There is no precision {self.precision!r} for drawing: auto, {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    file_name: str
    """Below the folder, e.g. 000001.png."""
    text: str
    seed: int
    about: dict[str, str] = field(default_factory=dict)
    """What else its line in metadata.jsonl says."""

    @property
    def line(self) -> dict[str, Any]:
        return {"file_name": self.file_name, "text": self.text, "seed": self.seed, **self.about}


def draw_missing(out: Path, plan: str, settings: dict[str, Any], jobs: Sequence[Job], drawing: Drawing) -> int:
    """Draw what is not in the folder yet; returns how many pictures the pipeline's safety checker blacked out.

    plan: the file of `out` that keeps `settings`, all that decides what is drawn. A folder of others is refused.
    """
    missing = missing_jobs(out, plan, settings, jobs)
    if not missing:
        return 0
    check_place(nearest_existing(out))
    pipeline = load_pipeline(drawing)  # before anything is written: it may be missing
    try:
        _begin(out, plan, settings)
        _tell_of_cut(pipeline, missing)
        with silenced():
            return _draw_all(pipeline, missing, drawing, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. {KEPT}") from None
    except OSError as error:
        raise BadOutput(f"{out} cannot be written ({error.strerror}). {KEPT}") from error


# --- the folder ------------------------------------------------------------------------------------------------------


def missing_jobs(out: Path, plan: str, settings: dict[str, Any], jobs: Sequence[Job]) -> list[Job]:
    """Those that are not drawn yet; a folder of other settings is refused."""
    if not (out / plan).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadOutput(f"{out} holds something else. Name another --out.")
        return list(jobs)
    before = read_object(out / plan, BadOutput, "Name another --out.")
    if before != settings:
        other = ", ".join(sorted(name for name in settings if before.get(name) != settings[name]))
        raise BadOutput(f"{out} was begun with other settings ({other}). Name another --out, or use the same.")
    drawn = {(line["file_name"], line.get("text"), line.get("seed")) for line in drawn_lines(out)}
    return [job for job in jobs if (job.file_name, job.text, job.seed) not in drawn]


def drawn_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl that are whole and whose pictures are there; of a picture drawn anew the last."""
    file = out / LINES
    if not file.exists():
        return []
    # Not `splitlines`: what JSON leaves as it is, U+2028 for one, ends a line there.
    lines = [_json(line) for line in file.read_text(encoding="utf-8", errors="replace").split("\n")]
    named = {str(line["file_name"]): line for line in lines if isinstance(line, dict) and "file_name" in line}
    return [line for name, line in named.items() if (out / name).is_file()]


def _begin(out: Path, plan: str, settings: dict[str, Any]) -> None:
    """Make the folder, or bring it in order: without a last line that a kill has cut."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / plan).exists():
        write_object(out / plan, settings)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in drawn_lines(out))
    write_text(out / LINES, lines)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


# --- the pipeline ----------------------------------------------------------------------------------------------------


def load_pipeline(drawing: Drawing) -> Any:
    """The pipeline on its device; only safetensors are read."""
    try:
        with silenced():
            from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtra('Drawing needs diffusers: pip install "captioner[synth]"') from error
    device = drawing.device if drawing.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    precision = drawing.precision if drawing.precision != "auto" else "fp16" if device == "cuda" else "fp32"
    folder = drawing.model
    try:
        if not Path(folder).is_dir():
            print(f"Loading {folder}; what is not in the cache is fetched from the Hub (gigabytes) …", file=sys.stderr)
            folder = DiffusionPipeline.download(folder, use_safetensors=True)  # with a bar for what is fetched
        with silenced():
            pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise MissingModel(f"No pipeline {drawing.model!r}: name a folder or a Hub id ({one_line(error)})") from error
    pipeline.set_progress_bar_config(disable=True)
    with silenced():
        return pipeline.to(device, DTYPES[precision])


def _tell_of_cut(pipeline: Any, jobs: Sequence[Job]) -> None:
    """What the pipeline itself would say of every single text that is longer than it reads."""
    tokenizers = [
        part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None
    ]
    if not tokenizers:
        return
    widest = max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
    with silenced():
        cut = sum(len(ids) > widest.model_max_length for ids in widest([job.text for job in jobs]).input_ids)
    if cut:
        print(
            f"{cut:,} of {counted(len(jobs), 'text')} longer than the {widest.model_max_length} tokens that the "
            "pipeline reads: drawn from the beginning.",
            file=sys.stderr,
        )


def _draw_all(pipeline: Any, jobs: Sequence[Job], drawing: Drawing, out: Path) -> int:
    """Each picture is on disk before its line; returns how many the safety checker refused."""
    flagged = 0
    starts = range(0, len(jobs), drawing.batch_size)
    with (out / LINES).open("a", encoding="utf-8") as lines:
        for start in track(starts, "drawing"):
            batch = jobs[start : start + drawing.batch_size]
            pictures, refused = _draw(pipeline, batch, drawing)
            for job, picture, bad in zip(batch, pictures, refused, strict=True):
                if bad:
                    flagged += 1
                    continue
                file = out / job.file_name
                file.parent.mkdir(parents=True, exist_ok=True)
                size = (drawing.save_size, drawing.save_size)
                with replacing(file) as new:
                    picture.resize(size, Image.Resampling.LANCZOS).save(new, "PNG")
                lines.write(json.dumps(job.line, ensure_ascii=False) + "\n")
            lines.flush()
    return flagged


def _draw(pipeline: Any, jobs: Sequence[Job], drawing: Drawing) -> tuple[list[Image.Image], list[bool]]:
    drawn = pipeline(
        [job.text for job in jobs],
        num_inference_steps=drawing.steps,
        guidance_scale=drawing.guidance,
        height=drawing.size,
        width=drawing.size,
        # On the CPU the same seed gives the same noise for every device.
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
    )
    return drawn.images, drawn.get("nsfw_content_detected") or [False] * len(jobs)
