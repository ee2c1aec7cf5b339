"""Seconds, bytes and operations: what every measurement here is made of."""

from __future__ import annotations

import math
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from captioner import memory
from captioner.files.atomic import refuse_no_file
from captioner.files.json import write_object
from captioner.sinks.checks import check_place, explained

CPU = torch.device("cpu")


def check_file(out: Path | None) -> None:
    """The place of the figures, if they have any, must be writable before anything is measured."""
    if out is not None:
        check_place(out.parent)
        refuse_no_file(out)


def write_figures(out: Path | None, figures: dict[str, Any]) -> None:
    """As JSON, where that is wanted."""
    if out is not None:
        with explained(out):
            write_object(out, figures)


def timed(action: Callable[[], object], repeats: int = 1) -> list[float]:
    """Seconds of every run of an action."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return taken


def by_turns(*actions: Callable[[], object], repeats: int) -> tuple[list[float], ...]:
    """Seconds of several actions in turn (A B A B …): what else the machine does meets all alike."""
    rounds = [[timed(action)[0] for action in actions] for _ in range(repeats)]
    return tuple(list(seconds) for seconds in zip(*rounds, strict=True))


def spread(values: list[float], pictures: int = 1) -> dict[str, Any]:
    """Lowest, median and highest, of each picture's share, and that of every turn."""
    each = [value / pictures for value in values]
    return {"min": min(each), "median": statistics.median(each), "max": max(each), "turns": each}


def wait(device: torch.device) -> None:
    """GPUs answer before they have finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(action: Callable[[], object], device: torch.device = CPU) -> int:
    """Bytes that the action needs above what was held before: on a GPU of its memory, elsewhere of the process, looked
    at every few milliseconds."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - held
    process, done, most = psutil.Process(), threading.Event(), 0
    memory.give_back()  # what an earlier action freed would be used again unseen
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return max(most, process.memory_info().rss - before)


def flops(action: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, packed ones included."""

    def packed(x_shape, weight_shape, *_args, out_shape=None, **_kwargs) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: packed})
    with counter, torch.inference_mode(False), torch.no_grad():  # nothing is recorded, nor left to other threads
        action()
    return counter.get_total_flops()


def machine() -> dict:
    """What the figures depend on; how malloc treats freed pages alone can double transformers' speed."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
    }


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
