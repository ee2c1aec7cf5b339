"""The loop's promises, through the real command on a tiny BLIP: overfit and say it back, exact accumulation, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import captioner
from captioner.decoding import Decoding
from captioner.errors import BadInput, BadOutput
from training import blip
from training.batches import Pairs
from training.loop import WHOLE, DivergedError, drop_old_checkpoints, newest_whole

GREEDY = Decoding(num_beams=1, max_new_tokens=16)


@pytest.fixture
def train(tiny_checkpoint, pairs: Path, tmp_path: Path):
    """`train("out", "--max-steps", "2")` runs training.blip in this process; returns the folder."""

    def run(out: str, *options: str) -> Path:
        folder = tmp_path / out
        blip.main([*command(tiny_checkpoint("blip"), pairs, folder), *options])
        return folder

    return run


def command(base: Path, data: Path, out: Path) -> list[str]:
    where = ["--base", str(base), "--data", str(data), "--validation", str(data), "--out", str(out)]
    return [*where, "--batch-size", "8", "--samples", "0", "--log-every", "1"]


def losses(folder: Path) -> list[float]:
    """The training loss of every step."""
    state = json.loads((newest_whole(folder) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_overfits_and_says_the_prompts_back(train, pairs: Path) -> None:
    out = train("run", "--epochs", "150", "--lr", "4e-3", "--eval-every", "300", "--samples", "4", "--max-tokens", "12")
    rows = [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]
    said = captioner.load(str(out)).generate([pairs / row["file_name"] for row in rows], GREEDY)
    right = [prompt.text == row["text"] for prompt, row in zip(said, rows, strict=True)]
    assert sum(right) >= 15
    assert losses(out)[-1] < 0.1
    for name in ("README.md", "curves.png", "recipe.json", "training_data.json", "model.safetensors"):
        assert (out / name).stat().st_size > 0
    assert "captioner generate --model" in (out / "README.md").read_text()


def test_one_large_batch_equals_many_small_ones(train) -> None:
    one = train("one", "--max-steps", "3", "--weight-decay", "0")
    many = train("many", "--max-steps", "3", "--weight-decay", "0", "--batch-size", "1", "--accumulate", "8")
    torch.testing.assert_close(losses(one), losses(many), rtol=1e-4, atol=1e-5)


def test_worker_processes_change_nothing_even_with_augmentation(train) -> None:
    alone = train("alone", "--max-steps", "3", "--augment")
    helped = train("helped", "--max-steps", "3", "--augment", "--workers", "2")
    assert losses(alone) == losses(helped)


def test_killed_and_resumed_is_bit_for_bit_the_unbroken_run(
    train, tiny_checkpoint, pairs: Path, tmp_path: Path
) -> None:
    steps = ["--max-steps", "12", "--eval-every", "3", "--augment"]
    unbroken = train("unbroken", *steps)
    out = tmp_path / "killed"
    arguments = [*command(tiny_checkpoint("blip"), pairs, out), *steps]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.blip", *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and newest_whole(out) is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = train("killed", *steps, "--resume")
    assert losses(resumed) == losses(unbroken)
    assert (resumed / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


def test_a_half_written_checkpoint_is_passed_over(train, capsys: pytest.CaptureFixture) -> None:
    out = train("run", "--max-steps", "2", "--eval-every", "1")
    (out / "checkpoint-2" / WHOLE).unlink()
    train("run", "--max-steps", "3", "--eval-every", "1", "--resume")
    heard = capsys.readouterr()
    assert "checkpoint-2 was cut off" in heard.err
    assert "going on from checkpoint-1" in heard.out


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    drop_old_checkpoints(tmp_path, keep=1, best=str(tmp_path / "checkpoint-2"))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-2"]


def test_a_full_disk_leaves_the_checkpoint_before(train, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file as really_save

    def fills_up(tensors, filename, metadata=None):
        if "checkpoint-2" in str(filename):
            raise OSError(28, "No space left on device")
        really_save(tensors, filename, metadata)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fills_up)
    with pytest.raises(BadOutput, match="checkpoint-1 is whole"):
        train("run", "--max-steps", "3", "--eval-every", "1")


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_pairs(
    train, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Pairs.__getitem__

    def one_is_rotten(rows: Pairs, index: int) -> dict:
        item = honest(rows, index)
        if rows.augment and item["text"] == "a golden castle in the forest":  # of the training rows alone
            item["pixel_values"] *= float("nan")
        return item

    monkeypatch.setattr(Pairs, "__getitem__", one_is_rotten)
    with pytest.raises(DivergedError, match="nan at step 3") as stopped:
        train("run", "--batch-size", "4", "--eval-every", "1", "--augment")
    assert str(pairs / "15.png") in str(stopped.value)
    assert str(stopped.value).count(".png") == 4
    assert "checkpoint-2 is whole" in str(stopped.value)
    assert newest_whole(tmp_path / "run").name == "checkpoint-2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-every", "3", "--eval-every", "2"], "multiple of --eval-every"),
        (["--select-by", "cosine", "--samples", "0"], "--samples 32"),
        (["--unfreeze", "9", "--freeze", "vision"], "has 2 blocks"),
        (["--data", "no/such/place"], "no/such/place"),
        (["--precision", "fp16", "--device", "cpu"], "needs a GPU. On a CPU use bf16"),
    ],
)
def test_contradictions_are_said(train, options: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        train("run", *options)


def test_an_output_folder_in_use_is_left_alone(train, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(BadInput, match="not empty"):
        train("mine")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun needs POSIX")
def test_two_processes_give_the_losses_of_one(train, tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    one = train("one", "--max-steps", "3")
    out = tmp_path / "two"
    arguments = [*command(tiny_checkpoint("blip"), pairs, out), "--max-steps", "3", "--batch-size", "4"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "training.blip", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes a step" in done.stdout
    torch.testing.assert_close(losses(out), losses(one), rtol=1e-4, atol=1e-5)
