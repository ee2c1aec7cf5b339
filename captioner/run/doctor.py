"""What a bug report should say of this installation: versions, devices, precisions, caches, what is missing.

Nothing is loaded but what is asked about, nothing is fetched, and no path outside the two caches is named.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from captioner import __version__, zoo
from captioner.errors import EXTRAS, MissingModel, absent
from captioner.files.cache import cache_folder, unwritable
from captioner.files.names import home

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "huggingface-hub")
"""The packages that faults come from."""
TOLD = (
    "CAPTIONER_CACHE",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
"""Variables that change what happens."""

Findings = dict[str, dict[str, str]]


def examine() -> Findings:
    """Chapter → what was looked at → what was found, in plain words."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "models": _models(),
        "caches": _caches(),
        "extras": _extras(),
        "environment": {name: os.environ[name] for name in TOLD if name in os.environ} or {"": "nothing set"},
    }


def _versions() -> dict[str, str]:
    ours = {"captioner": __version__, "python": sys.version.split()[0], "system": platform.platform()}
    import torch

    return ours | {package: _version(package) for package in PACKAGES} | {"torch": torch.__version__}  # +cpu, +cu130 …


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _machine() -> dict[str, str]:
    import psutil
    import torch

    from captioner import compute

    memory = psutil.virtual_memory()
    chosen = compute.device("auto")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "device": f"{chosen} (what auto takes)",
        "gpu": ", ".join(gpus) or ("mps" if torch.backends.mps.is_available() else "none"),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "precision": f"{compute.precision('auto', chosen)} (what auto takes where nothing was measured)",
        "bf16 on the cpu": "native" if compute.has_bf16() else "emulated: slower than fp32",
        "quantised on the cpu": ", ".join(torch.backends.quantized.supported_engines),
    }


def _models() -> dict[str, str]:
    try:
        default = zoo.default()
    except MissingModel:
        default = "none"
    ready = [listed.name for listed in zoo.listing() if listed.where is not None]
    return {"default": default, "ready here": ", ".join(ready) or "none"}


def _caches() -> dict[str, str]:
    from huggingface_hub import constants

    return {
        "captioner": _folder(cache_folder(), "CAPTIONER_CACHE"),
        "Hugging Face": _folder(Path(constants.HF_HUB_CACHE), "HF_HOME"),
    }


def _folder(folder: Path, variable: str) -> str:
    """Where it is, with the home folder left out, and how much it holds; what to do if it takes nothing."""
    shown = str(Path("~") / folder.relative_to(home())) if folder.is_relative_to(home()) else str(folder)
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    size = f"{sum(file.stat().st_size for file in files) / 1e6:,.0f} MB" if folder.is_dir() else "not there yet"
    problem = unwritable(folder)
    return f"{shown}, {size}{f', NOT WRITABLE ({problem}): set {variable} to a folder of yours' if problem else ''}"


def _extras() -> dict[str, str]:
    missing = {extra: absent(extra) for extra in EXTRAS.values()}
    return {
        extra: f'misses {", ".join(packages)}: pip install "captioner[{extra}]"' if packages else "complete"
        for extra, packages in missing.items()
    }


def as_text(findings: Findings) -> str:
    """Aligned lines under a heading each, to paste into a report."""
    lines = []
    for chapter, rows in findings.items():
        width = max(map(len, rows))
        lines += [f"{chapter}:", *(f"  {name:<{width}}  {found}".rstrip() for name, found in rows.items()), ""]
    return "\n".join(lines).rstrip()
