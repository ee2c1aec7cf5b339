"""A folder of large JPEGs: how much of a model's own speed is left when files are read, decoded and resized beside it.

The model alone is asked about the same pictures, opened and resized beforehand, in batches of the size that the run
takes. Decoding takes a processor's time as well, and a small model leaves none of it idle: the second figure says how
busy the cores are kept, which is all that reading beside the model can do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from captioner.contracts import LoadOptions, Request
from captioner.decoding import DecodingChanges
from captioner.images import open_image
from captioner.images.ahead import READERS
from captioner.run.batch import run_inputs
from captioner.run.questions import Model, Prompts
from captioner.sinks import groups
from captioner.sinks.open import open_out
from captioner.text.finish import Finish
from eval.speed.clock import by_turns, timed
from eval.speed.model import random_blip
from eval.speed.suite import Row

DISTINCT = 16
SIDES = ((2304, 1728), (1728, 2304), (2000, 2000))
"""4 megapixels."""
PICTURES = 160
PICTURES_OF_BLIP = 16
PICTURES_ON_GPU = 1920
"""By either model: there a few would be done in the time that it takes to begin."""
REPEATS = 3


def measure(say: Callable[[str], object]) -> list[Row]:
    """mini, and BLIP of the base size with random weights."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        photographs(folder, PICTURES_ON_GPU if on_gpu else PICTURES)
        rows = share(Model("mini", LoadOptions()), "mini", folder, REPEATS)
        few = Path(scratch) / "few"
        photographs(few, PICTURES_ON_GPU if on_gpu else PICTURES_OF_BLIP)
        blip = Path(scratch) / "blip"
        blip.mkdir()
        name = str(random_blip(blip, "blip-base-random"))
        return rows + share(Model(name, LoadOptions()), "BLIP base", few, REPEATS if on_gpu else 1)


def photographs(folder: Path, count: int, sides: tuple[tuple[int, int], ...] = SIDES) -> None:
    """JPEGs with detail at every scale, as photographs have it (a byte for four or five pixels); some many times."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(min(count, DISTINCT)):
        width, height = sides[number % len(sides)]
        picture = np.full((height, width, 3), 128, dtype=np.float32)
        for cells in (3, 9, 27, 81, 243):
            coarse = random.normal(0, 1, (cells, cells, 3)).astype(np.float32)
            picture += 90 / cells**0.5 * np.stack([_enlarged(coarse[..., c], width, height) for c in range(3)], -1)
        picture += random.normal(0, 6, (height, width, 1))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=85)
    for number in range(DISTINCT, count):
        os.link(folder / f"{number % DISTINCT:04}.jpg", folder / f"{number:04}.jpg")


def _enlarged(values: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def share(model: Model, name: str, folder: Path, repeats: int) -> list[Row]:
    """The model's own time over that of the whole run."""
    files = sorted(folder.iterdir())
    request = Request(DecodingChanges())
    answers = Prompts(model, request, Finish(), "ignore", 10**8)
    distinct = [open_image(file).resize((512, 512)) for file in files[:DISTINCT]]
    opened = [distinct[number % DISTINCT] for number in range(len(files))]
    size = answers.batch_size()
    batches = list(groups(opened, size))
    model.loaded.generate(batches[0], request, Finish(), len(batches[0]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else torch.get_num_threads()
    busy: list[float] = []

    def alone() -> None:
        for batch in batches:
            model.loaded.generate(batch, request, Finish(), len(batch))

    def whole() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "rows.jsonl"
            start, used = time.perf_counter(), time.process_time()
            run_inputs([str(folder)], answers, lambda many: open_out(out, settings=answers.settings), quiet=True)
            busy.append((time.process_time() - used) / (time.perf_counter() - start) / cores)

    alone_seconds, whole_seconds = by_turns(alone, whole, repeats=repeats)
    (reading,) = timed(lambda: [open_image(file) for file in files[:DISTINCT]])
    subject = f"{name}, {len(files)} JPEGs of 4 megapixels"
    details = {
        "pictures_a_second": [len(files) / seconds for seconds in whole_seconds],
        "pictures_a_second_of_the_model_alone": [len(files) / seconds for seconds in alone_seconds],
        "milliseconds_to_open_a_picture": 1000 * reading / min(len(files), DISTINCT),
        "threads_that_read": READERS,
        "pictures_at_a_time": size,
    }
    ratios = [a / b for a, b in zip(alone_seconds, whole_seconds, strict=True)]
    return [
        Row(subject, "share of the model's own pictures a second", ratios, least=0.95, details=details),
        Row(subject, f"share of {cores} cores' time in use", busy, least=0.95),
    ]
