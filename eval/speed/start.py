"""A cold start: a caption from nothing against the imports that it cannot do without, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from eval.speed.suite import Row

REPEATS = 5
HELP_SECONDS = 0.3
"""Of a processor's time, for `captioner --help`."""
IMPORTS = "import os; os.environ.setdefault('OMP_WAIT_POLICY', 'passive'); import torch, transformers"
"""Threads wait as captioner lets them."""


def measure(say: Callable[[str], object]) -> list[Row]:
    """By turns, in seconds of the processor and of the clock."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "cat.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(picture)
        captioner = [sys.executable, "-m", "captioner"]
        commands = {
            "imports": [sys.executable, "-c", IMPORTS],
            "caption": [*captioner, "generate", str(picture), "--model", "mini"],
            "help": [*captioner, "--help"],
        }
        compiled = compiled_in(Path(scratch))
        for command in commands.values():
            spent(command, compiled)  # files come from memory from now on, and compiled
        rounds = [{name: spent(command, compiled) for name, command in commands.items()} for _ in range(REPEATS)]
    rows = []
    for index, kind in enumerate(("processor", "clock")):
        seconds = {name: [one[name][index] for one in rounds] for name in commands}
        rows.append(
            Row(
                "captioner generate cat.jpg, cold",
                f"times the imports of torch and transformers, by the {kind}",
                [a / b for a, b in zip(seconds["caption"], seconds["imports"], strict=True)],
                most=1.25,
                details=seconds,
            )
        )
    helped = [one["help"][0] / HELP_SECONDS for one in rounds]
    rows.append(Row("captioner --help", f"of {HELP_SECONDS} s of a processor's time", helped, most=1.0))
    return rows


def compiled_in(folder: Path) -> dict[str, str]:
    """The environment of processes that keep there what they have compiled, also where Python is told to write nothing:
    it would compile this project anew each time, and read the packages as they were compiled when installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder)}


def spent(command: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds of the processors' and of the clock that a process takes."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = os.times()
    used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return used, time.perf_counter() - start
