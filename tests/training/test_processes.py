"""Training in processes of its own: killed and resumed, stopped by Ctrl-C, on two machines, spread over two and resumed
by one."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captioner.errors import BadInput
from tests.training.test_loop import command, losses, of_many_lengths, validated, weights
from training import blip
from training.checkpoints import newest_whole

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp.py"
LAUNCHER = """
import importlib.util, os, socket, sys, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # it forks
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


def test_killed_and_resumed_is_bit_for_bit_the_unbroken_run(
    quick_python: str, tiny_checkpoint, pairs: Path, tmp_path: Path
) -> None:
    steps = ["--max-steps", "12", "--eval-every", "3", "--augment"]
    unbroken, out = tmp_path / "unbroken", tmp_path / "killed"
    blip.main([*command(tiny_checkpoint("blip"), pairs, unbroken), *steps])
    arguments = [*command(tiny_checkpoint("blip"), pairs, out), *steps]
    process = subprocess.Popen(
        [quick_python, "-m", "training.blip", *arguments],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
    )
    while process.poll() is None and newest_whole(out) is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # nobody can write there any more
    assert process.returncode == -signal.SIGKILL
    blip.main([*arguments, "--resume"])
    assert losses(out) == losses(unbroken)
    assert weights(out) == weights(unbroken)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what a process has loaded")
@pytest.mark.parametrize("when", ["imports", "training"])
def test_ctrl_c_is_one_line(when: str, quick_python: str, tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*command(tiny_checkpoint("blip"), pairs, out), "--epochs", "1000"]
    process = subprocess.Popen(
        [sys.executable if when == "imports" else quick_python, "-m", "training.blip", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    if when == "imports":
        while "torch" not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8"):
            time.sleep(0.01)
    else:
        while newest_whole(out) is None:
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert "Stopped." in last
    if when == "training":
        assert re.search(r"with --resume goes on from checkpoint-\d+\.$", last)
    else:
        assert not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun needs POSIX")
def test_two_machines_give_the_losses_of_one_which_then_goes_on(
    quick_python: str, tiny_checkpoint, pairs: Path, tmp_path: Path
) -> None:
    """Two launchers that meet over the network, one process each; the run is then resumed by one process. Of the 17
    pairs to validate on, one process has a batch more."""
    one, out, pairs = tmp_path / "one", tmp_path / "two", of_many_lengths(pairs, tmp_path / "data")
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(pairs / "0.png", more)
    (more / "0.txt").write_text("ink on paper, 1900s, by nobody, 35 mm, f/8, ww2")  # other words than all the rest
    always = ["--schedule", "constant", "--validation", str(more)]
    five = ["--max-steps", "5", *always]
    blip.main([*command(tiny_checkpoint("blip"), pairs, one), *five])
    steps = ["--max-steps", "3", *always]
    arguments = [*command(tiny_checkpoint("blip"), pairs, out), *steps, "--batch-size", "4"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    launcher = [quick_python, "-m", "torch.distributed.run", *meeting]
    nodes = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(rank), "--no-python", quick_python, "-m", "training.blip", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "2 processes a step" in said[0][0]
    torch.testing.assert_close(losses(out), losses(one)[:3], rtol=1e-4, atol=1e-5)
    assert validated(out)[0] == pytest.approx(validated(one)[0], rel=1e-4)
    with pytest.raises(BadInput, match="begun with 8 pictures a step and now there are 4"):
        blip.main([*command(tiny_checkpoint("blip"), pairs, out), *five, "--resume", "--batch-size", "4"])
    blip.main([*command(tiny_checkpoint("blip"), pairs, out), *five, "--resume"])
    torch.testing.assert_close(losses(out), losses(one), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="more processes than GPUs")
def test_a_spread_run_goes_on_on_another_number_of_processes(
    quick_python: str, tiny_checkpoint: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    whole, later = tmp_path / "whole", tmp_path / "later"
    (later / "checkpoints").mkdir(parents=True)
    (later / "checkpoints" / "2").symlink_to(whole / "checkpoints" / "2")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER)
    words = [str(launcher), str(EXAMPLE), str(tiny_checkpoint("blip")), str(pairs), f"2={whole}", f"1={later}"]
    done = subprocess.run(
        [quick_python, *words],
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
