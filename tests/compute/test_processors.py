"""What depends on the processor, once for each kind that this machine can play.

Torch and oneDNN choose their kernels when they are imported, so every kind has a process of its own. Both settings can
only lower a machine; of the kind that it is, these tests run anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/compute/test_compute.py",
    "tests/models/parts/test_attention.py",
    "tests/models/test_blip.py::test_adapter_is_merged",
    "tests/models/test_blip.py::test_every_precision_sees_and_speaks",
    "tests/models/prefix/test_mini.py::test_lean_and_full_class_are_one_model",
    "tests/test_statistics.py",
)
LEVELS = ("DEFAULT", "AVX2", "AVX512")
KINDS = {  # ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA
    "oldest": ("default", "SSE41"),
    "avx2": ("avx2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE"),
}


def has(capability: str) -> bool:
    """Does torch name this capability, or a higher one, on this machine?"""
    return capability.upper() in LEVELS[: LEVELS.index(torch.backends.cpu.get_cpu_capability()) + 1]


def is_itself(capability: str) -> bool:
    """Would the settings of this kind lower nothing here? AVX2 has one step above it, which Linux names."""
    flags = Path("/proc/cpuinfo")
    is_highest = torch.backends.cpu.get_cpu_capability() == capability.upper() == "AVX2"
    return is_highest and flags.is_file() and "avx_vnni" not in flags.read_text(encoding="utf-8")


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in LEVELS, reason="another family of processors")
@pytest.mark.parametrize("kind", KINDS)
def test_on(kind: str) -> None:
    capability, instructions = KINDS[kind]
    if not has(capability):
        pytest.skip(f"this machine has no {capability}")
    if is_itself(capability):
        pytest.skip(f"this machine is one with {capability}, and has run these tests as such")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": instructions}
    command = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"processor: {capability.upper()}" in done.stdout  # it did run as this kind
