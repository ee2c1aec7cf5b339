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
import os
from captioner import openmp
openmp._others_running = lambda: 10_000
before = dict(os.environ)
import captioner
captioner.load("mini")
assert os.environ == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another library runs torch's threads there")
def test_a_program_that_loads_a_model_is_not_slowed_down_by_threads_that_spin() -> None:
    """Five pictures by mini, one at a time, beside three busy processes on two cores, took 14 s or more: now 4 or 5."""
    kept = {name: value for name, value in os.environ.items() if name not in openmp.NAMES}
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    heard = re.findall(r"(?:OMP_WAIT_POLICY|GOMP_SPINCOUNT) = '(\w+)'", done.stderr)
    assert heard == ["PASSIVE", "0"]


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
