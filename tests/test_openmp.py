"""How torch's threads wait: said to the library that runs them, and to nobody else."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from captioner import openmp

LOAD = """
import os, sys
from captioner import openmp
openmp._others_running = lambda: int(sys.argv[1])
before = dict(os.environ)
import captioner
captioner.load("mini")
assert os.environ == before
"""


def heard(load: int, **environment: str) -> str:
    """How threads wait, as the library tells, after a program on such a machine has loaded a model."""
    kept = {name: value for name, value in os.environ.items() if name not in openmp.NAMES}
    command = [sys.executable, "-c", LOAD, str(load)]
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return " ".join(re.findall(r"(?:OMP_WAIT_POLICY|GOMP_SPINCOUNT) = '(\w+)'", done.stderr))


@pytest.mark.skipif(sys.platform != "linux", reason="another library runs torch's threads there")
def test_a_program_that_loads_a_model_is_not_slowed_down_by_threads_that_spin() -> None:
    """Five pictures by mini took 64 s on a machine that others used, and take 12."""
    assert heard(load=10_000) == "PASSIVE 0"
    assert heard(load=10_000, GOMP_SPINCOUNT="9") == "PASSIVE 9"


def test_nothing_is_set_for_a_torch_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in openmp.NAMES:
        monkeypatch.delenv(name, raising=False)
    importlib.import_module("torch")
    before = dict(os.environ)
    with openmp.set_meanwhile():
        assert os.environ == before


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="only Linux tells what runs now")
def test_a_process_that_computes_is_seen_at_once() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline()
        assert openmp._others_running() >= 1
    finally:
        busy.kill()
        busy.communicate()
