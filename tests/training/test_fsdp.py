"""examples/fsdp.py by real processes: begun by two, gone on with by one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp.py"
LAUNCHER = """
import importlib.util, os, socket, sys
spec = importlib.util.spec_from_file_location("fsdp", sys.argv[1])
fsdp = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fsdp)  # once, before all forks, since that takes seconds
for run in sys.argv[4:]:
    processes, out = run.split("=")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    children = []
    for rank in range(int(processes)):
        children.append(os.fork())
        if not children[-1]:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            settings = ["--step", "4", "--steps", "4", "--save-every", "2", "--lr", "1e-3"]
            fsdp.main(["--base", sys.argv[2], "--data", sys.argv[3], "--out", out, *settings])
            os._exit(0)
    if any([os.waitpid(child, 0)[1] for child in children]):
        sys.exit(1)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="more processes than GPUs")
def test_a_spread_run_goes_on_on_another_number_of_processes(
    tiny_checkpoint: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    whole, later = tmp_path / "whole", tmp_path / "later"
    (later / "checkpoints").mkdir(parents=True)
    (later / "checkpoints" / "2").symlink_to(whole / "checkpoints" / "2")
    words = [str(EXAMPLE), str(tiny_checkpoint("blip")), str(pairs), f"2={whole}", f"1={later}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", LAUNCHER, *words],  # it forks
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    unbroken, resumed = (
        [float(loss) for loss in re.findall(r"loss (\S+)", text)] for text in done.stdout.split("Done.")[:2]
    )
    assert (len(unbroken), len(resumed)) == (4, 2)
    assert resumed == pytest.approx(unbroken[2:], abs=1e-5)
    assert done.stderr == ""
    saved, base = (load_file(folder / "model.safetensors") for folder in (later, tiny_checkpoint("blip")))
    assert {name: weight.shape for name, weight in saved.items()} == {name: w.shape for name, w in base.items()}
