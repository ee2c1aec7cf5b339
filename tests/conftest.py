"""What every test shares: no network, few threads, tiny checkpoints made once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is expected was computed by a CPU. CUDA_VISIBLE_DEVICES=0 before the command adds what only a GPU can be asked.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_CACHE"] = "hub"  # of the folder that a command runs in: no test sees the user's models

import gc
import importlib
import itertools
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.preloaded import can_fork, preloaded

# A shell that starts the tests in the background has them ignore Ctrl-C, and so the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What takes longest, first: two processes that take one file after the other then end at nearly the same time.
LONGEST = (
    "test_readme.py",
    "test_repository.py",
    "training/test_loop.py",
    "test_examples.py",
    "shards/test_cluster.py",
    "training/test_models.py",
    "training/test_every.py",
    "models/test_hub_families.py",
    "cli/test_main.py",
    "web/test_review_page.py",
    "compute/test_quantized.py",
    "web/test_page.py",
    "models/test_hostile_checkpoints.py",
    "eval/speed/test_model.py",
    "eval/test_report.py",
    "compute/test_processors.py",
    "training/test_processes.py",
    "run/test_progress.py",
    "eval/speed/test_suite.py",
)

SUBJECTS, LOOKS = ("cat", "dog", "dragon", "castle"), ("red", "blue", "green", "golden")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_checkpoint("blip")` → a folder with a tiny random BLIP in the real file format."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            from captioner.quiet import without_bars

            folder = tmp_path_factory.mktemp(family.replace("-", "_"))
            with without_bars():  # transformers' "Writing model shards" says nothing about the test
                importlib.import_module(f"tests.tiny.{family.replace('-', '_')}").make(folder)
            made[family] = folder
        return made[family]

    return get


@pytest.fixture(scope="session")
def quick_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `python` and a `captioner` that start at once, where there can be such."""
    if not can_fork():
        return Path(sys.executable).parent
    folder, is_worker = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    return preloaded(folder.parent, os.getppid()) if is_worker else preloaded(folder, os.getpid())


@pytest.fixture(scope="session")
def quick_python(quick_bin: Path) -> str:
    return str(quick_bin / "python")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 16 pictures with a prompt each: coarse random colours, easy to tell apart."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for number, (subject, look) in enumerate(itertools.product(SUBJECTS, LOOKS)):
            colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((48, 48), Image.Resampling.NEAREST).save(folder / f"{number}.png")
            row = {"file_name": f"{number}.png", "text": f"a {look} {subject} in the forest"}
            metadata.write(json.dumps(row) + "\n")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist's order, files of many tests first, begins the longest late


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those of many tests."""
    folder = Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(LONGEST)}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), -counts[item.path]))


def pytest_report_header() -> str:
    """The machine's kind: numbers and the choice of kernels depend on it."""
    import torch

    supported = {
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "vnni": torch.cpu._is_vnni_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    kinds = [torch.backends.cpu.get_cpu_capability(), *(name for name, is_there in supported.items() if is_there)]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "none")
    return f"processor: {', '.join(kinds)}; oneDNN limit {limit}; {torch.get_num_threads()} of {os.cpu_count()} threads"


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What was imported and shared so far stays to the end: to collect garbage need not walk through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """The random numbers of a test do not depend on which tests ran before it."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():  # torch.manual_seed, where it is not, keeps a record of who called it
            torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test does touches the user's cache."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
