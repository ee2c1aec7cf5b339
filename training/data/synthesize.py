"""`python -m training.data synthesize`: prompts → pictures by a Stable Diffusion pipeline, as an image folder.

What is drawn follows from the settings alone: prompt N has seed + N, whatever the batch, so a run that was stopped goes
on to the same pictures. A picture counts as drawn when its line stands in metadata.jsonl.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner.errors import BadInput, BadOutput, MissingExtra, MissingModel
from captioner.files.atomic import replacing, write_text
from captioner.files.json import read_object, write_object
from captioner.sinks import check_place
from training.data.cleaning import terms
from training.data.options import Synthesis
from training.data.prepare import read_prompts
from training.data.progress import track

PLAN = "synthesis.json"
BY_NATURE = ("prompts", "recombine", "model", "steps", "size", "save_size", "guidance", "seed")
"""Settings that decide what is drawn: a folder is gone on with only if they are the same."""


def synthesize(options: Synthesis) -> None:
    """Draw what is not there yet."""
    out = Path(options.out)
    prompts = planned(read_prompts(Path(options.prompts).expanduser()), options)
    drawn = _drawn(out, options)
    missing = [number for number in range(len(prompts)) if _name(number) not in drawn]
    if missing:
        check_place(next(folder for folder in (out, *out.absolute().parents) if folder.exists()))
        pipeline = load_pipeline(options)  # before anything is written: it may be missing
        try:
            _begin(out, options)
            flagged = _draw_all(pipeline, prompts, missing, options, out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Stopped. What was drawn is kept: the same command goes on from there.") from None
        except OSError as error:
            reason = f"{out} cannot be written ({error.strerror})"
            raise BadOutput(f"{reason}. What was drawn is kept: the same command goes on from there.") from error
        if flagged:
            print(f"{flagged} pictures were blacked out by the pipeline's safety checker: left out.", file=sys.stderr)
    print(f"{out}: {len(_lines(out)):,} pictures; train on them with --data {out}")


# --- prompts ---------------------------------------------------------------------------------------------------------


def planned(prompts: Sequence[str], options: Synthesis) -> list[str]:
    """Which prompts are drawn, in order. More of them begins with the same ones."""
    if options.recombine:
        return recombined(prompts, options.count, options.seed)
    different = list(dict.fromkeys(prompts))
    if options.count > len(different):
        raise BadInput(
            f"{options.prompts} has {len(different):,} different prompts, fewer than --count {options.count:,}. "
            f"Ask for fewer, or make new ones with --recombine."
        )
    random.Random(options.seed).shuffle(different)
    return different[: options.count]


def recombined(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """New prompts: the first term of one, and as many terms as another has, drawn by how often they occur."""
    split = [found for prompt in prompts if (found := terms(prompt))]
    if not split:
        raise BadInput("The prompts hold nothing to recombine.")
    frequency = Counter(term for found in split for term in found[1:])
    vocabulary, weights = list(frequency), list(frequency.values())
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        subject, like = chance.choice(split)[0], chance.choice(split)
        added = chance.choices(vocabulary, weights, k=len(like) - 1) if vocabulary else []
        made.append(", ".join(dict.fromkeys([subject, *added])))
    return made


# --- the folder ------------------------------------------------------------------------------------------------------


def _name(number: int) -> str:
    return f"{number:06}.png"


def _drawn(out: Path, options: Synthesis) -> set[str]:
    """Names of the pictures that are there; a folder of other settings is refused."""
    plan = out / PLAN
    if not plan.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadOutput(f"{out} holds something else. Name another --out.")
        return set()
    settings, before = _settings(options), read_object(plan, BadOutput, "Name another --out.")
    if before != settings:
        other = ", ".join(sorted(name for name in settings if before.get(name) != settings[name]))
        raise BadOutput(f"{out} was begun with other settings ({other}). Name another --out, or use the same.")
    return {line["file_name"] for line in _lines(out)}


def _begin(out: Path, options: Synthesis) -> None:
    """Make the folder, or bring it in order: without a last line that a kill has cut."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / PLAN).exists():
        write_object(out / PLAN, _settings(options))
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(out))
    write_text(out / "metadata.jsonl", lines)


def _settings(options: Synthesis) -> dict[str, Any]:
    return {name: value for name, value in asdict(options).items() if name in BY_NATURE}


def _lines(out: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl that are whole and whose pictures are there."""
    file = out / "metadata.jsonl"
    if not file.exists():
        return []
    lines = [_json(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line for line in lines if isinstance(line, dict) and (out / str(line.get("file_name", ""))).is_file()]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


# --- drawing ---------------------------------------------------------------------------------------------------------


def load_pipeline(options: Synthesis) -> Any:
    """The pipeline on its device; only safetensors are read."""
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtra("Drawing needs diffusers: pip install 'captioner[synth]'") from error
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    precision = options.precision if options.precision != "auto" else "fp16" if device == "cuda" else "fp32"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if not Path(options.model).is_dir():
        print(
            f"Loading {options.model}; what is not in the cache is fetched from the Hub (gigabytes) …", file=sys.stderr
        )
    try:
        pipeline = DiffusionPipeline.from_pretrained(options.model, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingModel(f"No pipeline {options.model!r}: name a folder or a Hub id ({reason})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def _draw_all(pipeline: Any, prompts: Sequence[str], missing: Sequence[int], options: Synthesis, out: Path) -> int:
    """Draw the missing numbers, each picture on disk before its line; returns how many the safety checker refused."""
    flagged = 0
    with (out / "metadata.jsonl").open("a", encoding="utf-8") as lines:
        for numbers in _batches(missing, options.batch_size):
            pictures, refused = _draw(
                pipeline, [prompts[n] for n in numbers], [options.seed + n for n in numbers], options
            )
            for number, picture, bad in zip(numbers, pictures, refused, strict=True):
                if bad:
                    flagged += 1
                    continue
                with replacing(out / _name(number)) as file:
                    picture.resize((options.save_size, options.save_size), Image.Resampling.LANCZOS).save(file, "PNG")
                line = {"file_name": _name(number), "text": prompts[number], "seed": options.seed + number}
                lines.write(json.dumps({**line, "model": options.model}, ensure_ascii=False) + "\n")
            lines.flush()
    return flagged


def _draw(
    pipeline: Any, prompts: list[str], seeds: list[int], options: Synthesis
) -> tuple[list[Image.Image], list[bool]]:
    drawn = pipeline(
        prompts,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.size,
        width=options.size,
        # On the CPU the same seed gives the same noise for every device.
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    )
    return drawn.images, drawn.get("nsfw_content_detected") or [False] * len(prompts)


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    starts = range(0, len(numbers), size)
    for start in track(starts, "drawing"):
        yield numbers[start : start + size]
