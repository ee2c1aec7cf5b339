"""What every trainer promises, each through its real command on a tiny model of its family."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.checkpoint import checkpoint

from captioner.errors import BadInput
from training import blip, clip_prefix, direct, ofa, resnet_lstm
from training.checkpoints import newest_whole
from training.loop import with_advice
from training.trainer import compile_layers

PREFIX = ["--weights", "towers/clip", "--language-model", "towers/gpt2", "--prefix-length", "4"]
RESNET = ["--weights", "towers/resnet"]
LSTM = [*RESNET, "--hidden-size", "32"]
TRAINERS = {
    "blip": (blip, ["--base", "blip"]),
    "ofa": (ofa, ["--base", "ofa"]),
    "clip-prefix": (clip_prefix, PREFIX),
    "clip-prefix-mlp": (clip_prefix, [*PREFIX, "--mapper", "mlp"]),
    "resnet-lstm": (resnet_lstm, [*LSTM, "--vocabulary-size", "300"]),
    "resnet-lstm-words": (resnet_lstm, [*LSTM, "--vocabulary", "word", "--vocabulary-size", "8"]),
    "resnet-lstm-gpt2": (resnet_lstm, [*RESNET, "--gpt2", "--language-model", "towers/gpt2"]),
    "direct": (direct, ["--weights", "towers/vit", "--head", "linear"]),
    "direct-lora": (direct, ["--backbone", "clip", "--weights", "towers/clip", "--head", "linear", "--lora"]),
}
"""Name → module and options; a value that begins with a tiny checkpoint's name stands for its folder."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with texts of one to eight words: a mean of means is not their mean."""
    folder = tmp_path_factory.mktemp("uneven")
    random = np.random.default_rng(1)
    words = ["castle", "in", "the", "forest", "by", "a", "lake,", "rarely"]
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for number in range(8):
            colours = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((48, 48), Image.Resampling.NEAREST).save(folder / f"{number}.png")
            row = {"file_name": f"{number}.png", "text": " ".join(words[: number + 1])}
            metadata.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def train(
    tiny_checkpoint: Callable[[str], Path],
    shallow_ofa: Path,
    uneven: Path,
    tmp_path_factory: pytest.TempPathFactory,
):
    """`train("blip", "--max-steps", "2")` → the log, and the folder in which the run lies."""

    def run(name: str, *more: str) -> tuple[list[dict], Path]:
        module, options = TRAINERS[name]
        folder = tmp_path_factory.mktemp(name) / "out"
        where = ["--data", str(uneven), "--validation", str(uneven), "--out", str(folder)]
        steps = ["--samples", "0", "--log-every", "1", "--batch-size", "8", "--max-steps", "2", "--eval-every", "2"]
        with pytest.MonkeyPatch.context() as patch:  # each draw of a dropout would differ
            patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
            module.main([*where, *steps, *(placed(option) for option in options), *more])
        state = json.loads((newest_whole(folder) / "trainer_state.json").read_text())
        return [entry for entry in state["log_history"] if "loss" in entry], folder

    def placed(option: str) -> str:
        family, _, below = option.partition("/")
        if family == "ofa":
            return str(shallow_ofa)
        return str(tiny_checkpoint(family) / below) if family in ("blip", "towers") else option

    return run


@pytest.fixture(scope="module", params=TRAINERS)
def plain(train, request: pytest.FixtureRequest) -> tuple[str, list[dict]]:
    """Each trainer's name, and the log of its plain run, with which the others are compared."""
    return request.param, train(request.param)[0]


def same(one: list[dict], other: list[dict], tolerance: float = 1e-4) -> None:
    """The same losses and gradients at every step."""
    for value in ("loss", "grad_norm"):
        seen = [[entry[value] for entry in log] for log in (one, other)]
        torch.testing.assert_close(*seen, rtol=tolerance, atol=1e-6)


def test_one_large_batch_equals_many_small_ones(train, plain: tuple[str, list[dict]]) -> None:
    name, log = plain
    same(train(name, "--batch-size", "1", "--accumulate", "8")[0], log)


def test_gradient_checkpointing_changes_no_loss(
    train, plain: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, log = plain
    if name in ("resnet-lstm", "resnet-lstm-words"):
        with pytest.raises(BadInput, match="--gradient-checkpointing is for transformer layers"):
            train(name, "--gradient-checkpointing")
        return
    again = Mock(side_effect=checkpoint)
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", again)
    same(train(name, "--gradient-checkpointing")[0], log)
    assert again.called


def test_bf16_is_near_fp32(train, plain: tuple[str, list[dict]]) -> None:
    name, log = plain
    one_step = ["--max-steps", "1", "--eval-every", "1"]  # whose rate is 0: the second of `log` has the same loss
    whole, half = (
        [entry["loss"] for entry in of] for of in (log[:1], train(name, "--precision", "bf16", *one_step)[0])
    )
    assert whole != half
    np.testing.assert_allclose(whole, half, rtol=0.05)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "adamw-paged", "adamw-8bit-paged"])
def test_optimizers_of_bitsandbytes(train, optimizer: str) -> None:
    steps = ["--max-steps", "8", "--eval-every", "8", "--lr", "3e-3"]
    log, folder = train("resnet-lstm", "--optimizer", optimizer, *steps)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    kept = torch.load(newest_whole(folder) / "optimizer.pt", weights_only=True)["state"].values()
    kept = [state.get("__bnb_optimizer_quant_state__", state) for state in kept]
    assert any("qmap1" in state for state in kept) == ("8bit" in optimizer)


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--compile needs a C\+\+ compiler"), with_advice(tmp_path):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx")


def test_compiled_it_learns_the_same(train, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Mock(side_effect=partial(torch.compile, backend="aot_eager"))  # as far as without a C++ compiler
    monkeypatch.setattr("torch.compile", compiled)
    same(train("direct")[0], train("direct", "--compile")[0])
    assert compiled.call_count == 2  # the layers of the tower


def test_a_model_without_layers_of_transformers_is_compiled_as_a_whole() -> None:
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2))
    compile_layers(whole)
    assert whole._compiled_call_impl is not None
    assert whole[0]._compiled_call_impl is None
