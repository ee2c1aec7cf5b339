"""The loop's promises, through the real command on a tiny BLIP: overfit and say it back, exact accumulation, kills."""

import io
import json
import os
import pickle
import pickletools
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainerState

import captioner
from captioner.contracts import Request
from captioner.decoding import Decoding
from captioner.errors import BadInput, BadOutput
from training import blip, progress
from training.batches import Pairs
from training.checkpoints import WHOLE, is_whole, newest_whole
from training.progress import show
from training.trainer import DivergedError, LoopTrainer

GREEDY = Request(decoding=Decoding(num_beams=1, max_new_tokens=16))


@pytest.fixture
def train(tiny_checkpoint, pairs: Path, tmp_path: Path):
    """`train("out", "--max-steps", "2")` runs training.blip in this process; returns the folder."""

    def run(out: str, *options: str, data: Path = pairs) -> Path:
        folder = tmp_path / out
        blip.main([*command(tiny_checkpoint("blip"), data, folder), *options])
        return folder

    return run


@pytest.fixture(scope="module")
def one_step(tiny_checkpoint, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of one step, which no test may change, and what it printed."""
    out = tmp_path_factory.mktemp("one_step") / "run"
    with redirect_stdout(io.StringIO()) as printed:
        blip.main([*command(tiny_checkpoint("blip"), pairs, out), "--max-steps", "1"])
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def one_pair(tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> tuple[Path, str, str]:
    """A run on one picture, whose prompt looks like markup, without TensorBoard: its folder, what it printed on
    standard output and what on standard error."""
    folder = tmp_path_factory.mktemp("one_pair")
    data = folder / "data"
    data.mkdir()
    shutil.copy(pairs / "0.png", data)
    row = {"file_name": "0.png", "text": "a fox [/b] \x1b[31m[INST]"}
    (data / "metadata.jsonl").write_text(json.dumps(row))
    options = [*command(tiny_checkpoint("blip"), data, folder / "run"), "--max-steps", "1", "--samples", "4"]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as printed,
        redirect_stderr(io.StringIO()) as said,
    ):
        patch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
        blip.main(options)
    return folder / "run", printed.getvalue(), said.getvalue()


def command(base: Path, data: Path, out: Path) -> list[str]:
    where = ["--base", str(base), "--data", str(data), "--validation", str(data), "--out", str(out)]
    return [*where, "--batch-size", "8", "--samples", "0", "--log-every", "1"]


def losses(folder: Path) -> list[float]:
    """The training loss of every step."""
    state = json.loads((newest_whole(folder) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def validated(folder: Path) -> list[float]:
    """The validation loss after each evaluation."""
    state = json.loads((newest_whole(folder) / "trainer_state.json").read_text())
    return [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]


def of_many_lengths(pairs: Path, folder: Path) -> Path:
    """The pairs, their texts once to four times as long."""
    shutil.copytree(pairs, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    longer = [row | {"text": " and ".join([row["text"]] * (1 + number % 4))} for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, longer)))
    return folder


def test_overfits_and_says_the_prompts_back(train, few_pairs: Path) -> None:
    options = ["--epochs", "140", "--lr", "4e-3", "--eval-every", "140", "--samples", "4", "--max-tokens", "12"]
    out = train("run", *options, data=few_pairs)
    rows = [json.loads(line) for line in (few_pairs / "metadata.jsonl").read_text().splitlines()]
    said = captioner.load(str(out)).generate([few_pairs / row["file_name"] for row in rows], GREEDY)
    assert [prompt.text for prompt in said] == [row["text"] for row in rows]
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


def test_what_a_worker_process_refuses_is_said_in_its_words(train, pairs: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pairs, tmp_path / "data")
    for number in range(4):
        (data / f"{number}.png").write_bytes(b"cut")
    with pytest.raises(BadInput, match=r"^1 of \d+ pictures cannot be read, more than 5%: .* the download\.$"):
        train("run", "--workers", "1", data=data)


def test_a_worker_is_sent_nothing_of_the_trainer(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """To unpickle it, a process that is no fork would import transformers' Trainer, peft and bitsandbytes."""
    loaders = []

    def stop(trainer: LoopTrainer, **_) -> None:
        loaders.append(trainer.get_train_dataloader().base_dataloader)
        raise BadInput("Enough.")

    monkeypatch.setattr(LoopTrainer, "train", stop)
    with pytest.raises(BadInput, match="Enough"):
        train("run", "--max-steps", "1", "--workers", "2")
    [loader] = loaders
    sent = pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn), protocol=2)
    modules = {name.split()[0] for code, name, _ in pickletools.genops(sent) if code.name == "GLOBAL"}
    assert "training.batches" in modules
    assert not [name for name in modules if name.startswith(("transformers.trainer", "peft", "bitsandbytes"))]


def test_after_a_validation_every_part_learns_again_also_within_a_wrapper(
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes the step is given a wrapper, which no validation told to stop learning."""

    class Wrapper(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs):
            return self.model(**inputs)

    honest, learning = LoopTrainer.training_step, []

    def wrapped(self, model, *more):
        loss = honest(self, Wrapper(model), *more)
        learning.append(all(part.training for part in self.job.model.modules()))
        return loss

    monkeypatch.setattr(LoopTrainer, "training_step", wrapped)
    train("run", "--max-steps", "3", "--eval-every", "1")
    assert learning == [True] * 3


def test_a_half_written_checkpoint_is_passed_over(
    train, one_step: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = shutil.copytree(one_step[0], tmp_path / "run")
    shutil.copytree(out / "checkpoint-1", out / "checkpoint-2", ignore=shutil.ignore_patterns(WHOLE))
    train("run", "--max-steps", "2", "--resume")
    heard = capsys.readouterr()
    assert "checkpoint-2 was cut off" in heard.err
    assert "going on from checkpoint-1" in heard.out


def test_a_full_disk_leaves_the_checkpoint_before(train, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file as really_save

    def fills_up(tensors, filename, metadata=None):
        if "checkpoint-2" in str(filename):
            raise OSError(28, "No space left on device")
        really_save(tensors, filename, metadata)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fills_up)
    with pytest.raises(BadOutput, match="checkpoint-1 is whole"):
        train("run", "--max-steps", "3", "--eval-every", "1")


@pytest.mark.parametrize(
    "looks", [["--eval-every", "1"], ["--log-every", "100", "--save-every", "2"]], ids=["at-once", "a-step-later"]
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_pairs(
    train, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[str]
) -> None:
    honest = Pairs.__getitem__

    def one_is_rotten(rows: Pairs, index: int) -> dict:
        item = honest(rows, index)
        if rows.augment and item["text"] == "a golden castle in the forest":  # of the training rows alone
            item["pixel_values"] *= float("nan")
        return item

    monkeypatch.setattr(Pairs, "__getitem__", one_is_rotten)
    with pytest.raises(DivergedError, match="nan at step 3") as stopped:
        train("run", "--batch-size", "4", "--epochs", "2", "--augment", *looks)
    assert str(pairs / "15.png") in str(stopped.value)
    assert str(stopped.value).count(".png") == 4
    assert "checkpoint-2 is whole" in str(stopped.value)
    saved = {folder.name for folder in (tmp_path / "run").glob("checkpoint-*")}
    assert saved == ({"checkpoint-2"} if "--save-every" in looks else {"checkpoint-1", "checkpoint-2"})


def test_a_validation_loss_that_is_no_number_stops_the_run(
    train, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Pairs.__getitem__

    def one_is_rotten(rows: Pairs, index: int) -> dict:
        item = honest(rows, index)
        if not rows.augment and index == 31:
            item["pixel_values"] *= float("nan")
        return item

    monkeypatch.setattr(Pairs, "__getitem__", one_is_rotten)
    others = shutil.copytree(pairs, tmp_path / "others")
    with pytest.raises(DivergedError, match=r"loss is nan of the validation after step 2\b.*others/15\.png"):
        train("run", "--batch-size", "4", "--eval-every", "2", "--augment", "--validation", str(others))
    assert newest_whole(tmp_path / "run") is None


def spoil_second_step(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.nn.Parameter], object]) -> None:
    """When the second step has its gradients, do this to the model's first weights."""
    honest = LoopTrainer.training_step

    def spoils(self, model, *more):
        loss = honest(self, model, *more)
        if self.state.global_step == 1:
            spoil(next(model.parameters()))
        return loss

    monkeypatch.setattr(LoopTrainer, "training_step", spoils)


def test_a_gradient_that_is_no_number_stops_the_run(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_second_step(monkeypatch, lambda weights: weights.grad.fill_(float("inf")))
    with pytest.raises(DivergedError, match=r"gradient is inf at step 2, in the batch of .*checkpoint-1 is whole"):
        train("run", "--max-steps", "3", "--save-every", "1", "--log-every", "100")
    assert newest_whole(tmp_path / "run").name == "checkpoint-1"


def test_a_terminal_has_its_cursor_again_when_a_run_is_stopped(train, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True))
    spoil_second_step(monkeypatch, lambda weights: weights.grad.fill_(float("inf")))
    with pytest.raises(DivergedError):
        train("run", "--max-steps", "3")
    hidden, shown = (screen.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert -1 < hidden < shown


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resumed_after_its_last_step_a_run_learns_nothing_more(
    train, schedule: str, capsys: pytest.CaptureFixture
) -> None:
    """Five steps do not end with an epoch, which has two."""
    steps = ["--max-steps", "5", "--eval-every", "5", "--schedule", schedule, "--lr", "1e-3"]
    out = train("run", *steps)
    before, card = weights(out), (out / "README.md").read_text()
    (out / "model.safetensors").unlink()  # as if killed before the end
    train("run", *steps, "--resume")
    assert weights(out) == before
    assert sorted(folder.name for folder in out.glob("checkpoint-*")) == ["checkpoint-5"]
    assert "(5 steps)" in card
    assert "(5 steps)" in (out / "README.md").read_text()
    assert capsys.readouterr().out.count("Done (best: step 5)") == 2


def test_resumed_after_its_last_step_it_takes_the_best_checkpoint(train) -> None:
    options = ["--max-steps", "4", "--eval-every", "1", "--schedule", "constant", "--lr", "0.3", "--warmup", "0"]
    out = train("run", *options)
    state = json.loads((out / "checkpoint-4/trainer_state.json").read_text())
    assert state["best_global_step"] < 4
    before = weights(out)
    train("run", *options, "--resume")
    assert weights(out) == before


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_best_checkpoint_that_is_not_whole_is_told_and_the_last_step_kept(
    train, harm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """At the end of a run, and where one goes on after its last step."""

    def harm_best(state: TrainerState) -> None:
        assert state.best_global_step < 3
        best = Path(state.best_model_checkpoint)
        shutil.rmtree(best) if harm == "gone" else os.truncate(best / "model.safetensors", 1000)

    options = ["--max-steps", "3", "--eval-every", "1", "--schedule", "constant", "--lr", "0.3", "--warmup", "0"]
    load = LoopTrainer._load_best_model
    monkeypatch.setattr(LoopTrainer, "_load_best_model", lambda trainer: harm_best(trainer.state) or load(trainer))
    out = train("run", *options)
    (out / "model.safetensors").unlink()  # as if killed before the end
    train("run", *options, "--resume")
    assert weights(out) == weights(out / "checkpoint-3")
    told = capsys.readouterr()
    assert told.err.count(f"the best one, is {harm}: the model is that of the last step") == 2
    assert told.out.count("Done (the last step, 3)") == 2


def test_a_run_that_stopped_early_stays_stopped(train) -> None:
    options = ["--max-steps", "50", "--eval-every", "1", "--lr", "0.3", "--warmup", "0", "--early-stopping", "2"]
    out = train("run", *options, "--schedule", "constant")
    last, before = newest_whole(out).name, weights(out)
    assert last != "checkpoint-50"
    train("run", *options, "--schedule", "constant", "--resume")
    assert (newest_whole(out).name, weights(out)) == (last, before)


def test_a_resumed_run_waits_no_longer_for_a_better_checkpoint(train) -> None:
    """How long early stopping has waited is part of a checkpoint."""
    options = ["--max-steps", "50", "--eval-every", "1", "--lr", "0.3", "--warmup", "0", "--early-stopping", "3"]
    out = train("run", *options, "--schedule", "constant", "--keep", "9")
    last, before = newest_whole(out), weights(out)
    shutil.rmtree(last)
    train("run", *options, "--schedule", "constant", "--keep", "9", "--resume")
    assert newest_whole(out) == last
    assert weights(out) == before


def test_a_run_may_be_made_longer(
    train, one_step: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(one_step[0], tmp_path / "run")
    epochs: list[int] = []
    monkeypatch.setattr(Pairs, "begin_epoch", lambda rows, epoch: epochs.append(epoch))
    train("run", "--max-steps", "3", "--resume")
    assert len(losses(out)) == 3
    assert epochs == [0, 1]  # two steps each


def test_resumed_with_other_settings_or_data_it_refuses(
    train, one_step: tuple[Path, str], pairs: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(one_step[0], tmp_path / "run")
    before = weights(out)
    with pytest.raises(BadInput, match=r"--lr 0.0001 \(now 0.01\)"):
        train("run", "--max-steps", "2", "--lr", "0.01", "--resume")
    with pytest.raises(BadInput, match="--lora False"):
        train("run", "--max-steps", "2", "--lora-rank", "4", "--resume")
    fewer = shutil.copytree(pairs, tmp_path / "fewer")
    lines = (fewer / "metadata.jsonl").read_text().splitlines()
    (fewer / "metadata.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(BadInput, match=r"training data have changed .* 15 pairs now, 16 then"):
        train("run", "--max-steps", "2", "--resume", data=fewer)
    assert weights(out) == before


def test_checkpoints_may_come_oftener_than_evaluations(train, capsys: pytest.CaptureFixture) -> None:
    out = train("run", "--epochs", "2", "--save-every", "1", "--keep", "9")  # two steps an epoch
    assert {folder.name for folder in out.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 3, 4)}
    told = capsys.readouterr().err
    assert told.count("validation loss") == 2
    assert "damaged" not in told
    assert all(map(is_whole, out.glob("checkpoint-*")))  # those that end an epoch were written twice


def test_the_validation_loss_does_not_depend_on_the_batches(train, pairs: Path, tmp_path: Path) -> None:
    """Texts differ in length, so a mean of the batches' means would."""
    data = of_many_lengths(pairs, tmp_path / "data")
    options = ["--max-steps", "1", "--lr", "1e-12"]
    one, three = (train(f"run-{size}", *options, "--batch-size", size, data=data) for size in ("1", "3"))
    assert validated(one) == pytest.approx(validated(three), rel=1e-5)


def test_the_best_checkpoint_is_the_model_however_seldom_checkpoints_are_asked_for(train) -> None:
    options = ["--max-steps", "4", "--eval-every", "1", "--schedule", "constant", "--lr", "0.3", "--warmup", "0"]
    out = train("run", *options, "--save-every", "4", "--keep", "1")
    best = json.loads((out / "checkpoint-4/trainer_state.json").read_text())["best_global_step"]
    assert best < 4
    assert weights(out) == weights(out / f"checkpoint-{best}") != weights(out / "checkpoint-4")


def test_a_checkpoint_between_evaluations_goes_on_bit_for_bit(train) -> None:
    options = ["--epochs", "2", "--save-every", "1", "--keep", "9"]
    out = train("run", *options)
    before, unbroken = weights(out), losses(out)
    for step in (2, 3, 4):
        shutil.rmtree(out / f"checkpoint-{step}")
    train("run", *options, "--resume")
    assert losses(out) == unbroken
    assert weights(out) == before


def test_what_looks_like_markup_in_a_prompt_is_text(one_pair: tuple[Path, str, str]) -> None:
    _, _, said = one_pair
    assert "[/b]" in said
    assert "\x1b" not in said


def test_long_prompts_are_cut_in_the_table(capsys: pytest.CaptureFixture) -> None:
    show([("truth " * 200, "says " * 200, 0.5)], step=1)
    said = capsys.readouterr().err
    assert said.count("truth") < 30
    assert "…" in said
    assert "after 1 step\n" in said.replace(" \n", "\n").replace("  ", "")


def test_no_tensorboard_is_no_reason_to_stop(one_pair: tuple[Path, str, str]) -> None:
    out, printed, _ = one_pair
    assert printed.count("TensorBoard is not installed") == 1
    assert not (out / "logs").exists()
    assert (out / "model.safetensors").exists()


def test_with_tensorboard_its_log_lies_in_the_folder(one_step: tuple[Path, str]) -> None:
    out, _ = one_step
    assert list((out / "logs").glob("events.*"))


def test_the_validation_on_training_pictures_is_said(one_step: tuple[Path, str]) -> None:
    _, printed = one_step
    assert "16 of the 16 prompts to validate on are trained on, too" in printed


def test_pictures_a_second_are_those_that_were_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Not as many as a whole batch has: an epoch may end before that."""
    moments = iter([10.0, 12.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    watch, state = progress.Watch(lambda: 3), TrainerState(max_steps=4)
    watch.on_train_begin(None, state, None)
    state.global_step = 1
    watch.on_step_end(None, state, None)
    watch.on_log(None, state, None, {"loss": 0.5})
    assert capsys.readouterr().err == "step 1/4  loss 0.5000  1.5 images/s  6 s left\n"


def test_counts_are_grammatical(one_pair: tuple[Path, str, str]) -> None:
    _, printed, _ = one_pair
    assert "1 pair to train on, 1 to validate on" in printed
    assert "8 pictures × 1 batch × 1 process a step" in printed


def test_layers_that_the_model_does_not_have_are_named(train, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--lora-targets foo: .* dense, .*query"):
        train("run", "--lora-targets", "foo")
    assert not (tmp_path / "run").exists()


def full(tensors, filename, metadata=None):
    """safetensors on a full disk, with the error that it really raises."""
    Path(filename).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_leaves_no_broken_checkpoint(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(BadOutput, match=r"checkpoint-1 cannot be written .* no earlier one"):
        train("run", "--max-steps", "1")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_disk_that_is_full_at_the_end_leaves_no_broken_model(
    train, one_step: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    def full_at_the_end(tensors, filename, metadata=None):
        (save_file if "checkpoint-" in str(filename) else full)(tensors, filename, metadata)

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full_at_the_end)
        with pytest.raises(BadOutput, match=r"finished model cannot be written .* with --resume"):
            train("run", "--max-steps", "1")
    assert not (tmp_path / "run/model.safetensors").exists()
    assert weights(train("run", "--max-steps", "1", "--resume")) == weights(one_step[0])


def test_weights_that_are_no_numbers_are_not_saved(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_second_step(monkeypatch, lambda weights: weights.data.fill_(float("nan")))
    with pytest.raises(
        DivergedError, match=r"values that are no numbers in 1 tensor of weights .* checkpoint-1 is whole"
    ):
        train("run", "--max-steps", "2", "--save-every", "1", "--schedule", "constant")
    assert not (tmp_path / "run/model.safetensors").exists()
    assert newest_whole(tmp_path / "run").name == "checkpoint-1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
