"""The command line of the trainers: light, complete, and every wrong setting is told by its name before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from captioner.errors import BadInput, MissingModel
from captioner.models.direct import DROPOUT
from captioner.models.parts.backbones import backbones
from training import blip, clip_prefix, direct, ofa, recipe, resnet_lstm
from training.__main__ import RECIPES

TRAINERS = {"blip": blip, "ofa": ofa, "clip_prefix": clip_prefix, "resnet_lstm": resnet_lstm, "direct": direct}


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_names_written_down_are_those_of_the_models() -> None:
    assert sorted(backbones.BACKBONES) == recipe.BACKBONES
    assert sorted(DROPOUT) == direct.HEADS
    towers = (backbones.ViT, backbones.CLIPVision)
    adaptable = {name for name, known in backbones.BACKBONES.items() if issubclass(known.make, towers)}
    assert adaptable == set(direct.ADAPTABLE_BACKBONES)


def test_training_alone_lists_the_recipes() -> None:
    command, narrow = [sys.executable, "-m", "training"], os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=narrow)
    assert done.returncode == 0
    assert set(RECIPES) == set(TRAINERS)
    for name, module in TRAINERS.items():
        assert f"python -m training.{name}" in done.stdout
        assert module.__doc__.splitlines()[0] in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_a_recipe_is_for_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        direct.main(["--help"])
    about = capsys.readouterr().out.partition("\n\n")[2].partition("\n\noptions:")[0]
    prose = [line for line in about.splitlines() if not line.startswith("    ")]
    assert max(map(len, prose)) <= 58
    assert " ".join(about.split()) == " ".join((direct.__doc__ or "").split())
    assert "    captioner embed --model runs/vit new.png\n" in about


@pytest.mark.parametrize("name", TRAINERS)
def test_help_and_mistakes_cost_no_torch(name: str) -> None:
    code = f"""
import sys
from training import {name}
for options in (["--help"], ["--nonsense"], ["--data", "no/such", "--out", "o"], []):
    try:
        {name}.main(options)
        status = "trained"
    except SystemExit as end:
        status = end.code
    except Exception as error:
        status = type(error).__name__
    print("ended with", status, "torch" in sys.modules)
"""
    shown = python(code).stdout
    ends = [line.removeprefix("ended with ") for line in shown.splitlines() if line.startswith("ended with ")]
    assert ends == ["0 False", "2 False", "BadInput False", "BadInput False"]
    assert "BATCH_SIZE" not in shown  # an option's name is no word for its value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "-1"], "--epochs -1.0: it must be above 0"),
        (["--epochs", "nan"], "--epochs nan"),
        (["--max-steps", "-2"], "--max-steps -2: it must be at least -1"),
        (["--max-steps", "0"], "--max-steps 0 trains nothing"),
        (["--batch-size", "0"], "--batch-size 0: it must be at least 1"),
        (["--accumulate", "0"], "--accumulate 0"),
        (["--lr", "0"], "--lr 0.0: it must be above 0"),
        (["--lr", "inf"], "--lr inf: it must be a finite number"),
        (["--warmup", "-1"], "--warmup -1.0"),
        (["--weight-decay", "-1"], "--weight-decay -1.0"),
        (["--unfreeze", "-1"], "--unfreeze -1"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--early-stopping", "-1"], "--early-stopping -1"),
        (["--eval-every", "-1"], "--eval-every -1"),
        (["--save-every", "-1"], "--save-every -1"),
        (["--keep", "0"], "--keep 0"),
        (["--samples", "-1"], "--samples -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--workers", "500"], "--workers 500: it must be at most 64"),
        (["--seed", str(2**32)], "--seed 4294967296: it must be at most 4294967295"),
        (["--workers", "-2"], "--workers -2"),
        (["--log-every", "0"], "--log-every 0"),
        (["--lora-rank", "0"], "--lora-rank 0"),
        (["--lora-alpha", "0"], "--lora-alpha 0"),
        (["--unfreeze", "1"], "name that with --freeze"),
        (["--unfreeze", "1", "--freeze", "vision", "--lora"], "leave out --unfreeze"),
    ],
)
def test_what_cannot_be_is_refused_by_name(pairs: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        blip.main(["--data", str(pairs), "--out", str(tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_the_ranges_of_the_other_recipes(pairs: Path, tmp_path: Path) -> None:
    where = ["--data", str(pairs), "--out", str(tmp_path / "run")]
    for module, option, value in (
        (direct, "--layer-decay", "1.5"),
        (direct, "--layer-decay", "0"),
        (clip_prefix, "--prefix-length", "0"),
        (resnet_lstm, "--vocabulary-size", "0"),
        (resnet_lstm, "--hidden-size", "-3"),
    ):
        with pytest.raises(BadInput, match=option):
            module.main([*where, option, value])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("direct", ["--layer-decay", "0.9", "--freeze", "backbone"], "--layer-decay would change nothing: no block"),
        (
            "direct",
            ["--gradient-checkpointing", "--freeze", "backbone"],
            "--gradient-checkpointing would change nothing",
        ),
        ("direct", ["--samples", "4", "--max-tokens", "20"], "--samples and --max-tokens would change nothing"),
        ("resnet_lstm", ["--gpt2", "--vocabulary", "word"], "--vocabulary would change nothing: GPT-2 has"),
        ("resnet_lstm", ["--gpt2", "--vocabulary-size", "9"], "--vocabulary-size would change nothing"),
        ("resnet_lstm", ["--gpt2", "--hidden-size", "9"], "--hidden-size would change nothing"),
        ("resnet_lstm", ["--language-model", "x"], "--language-model would change nothing: add --gpt2"),
    ],
)
def test_options_that_would_change_nothing(
    pairs: Path, tmp_path: Path, name: str, options: list[str], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        TRAINERS[name].main(["--data", str(pairs), "--out", str(tmp_path / "run"), *options])


@pytest.mark.parametrize(
    ("name", "refused"),
    [("direct", ["--samples", "--max-tokens", "--stream", "--qlora"]), ("clip_prefix", ["--qlora"])],
)
def test_help_names_no_option_that_its_trainer_refuses(
    capsys: pytest.CaptureFixture[str], name: str, refused: list[str]
) -> None:
    for trainer in ("blip", name):
        with pytest.raises(SystemExit):
            TRAINERS[trainer].main(["--help"])
        shown = capsys.readouterr().out
        assert [option for option in refused if f"  {option}" in shown] == (refused if trainer == "blip" else [])


@pytest.mark.parametrize(
    ("option", "setting"),
    [(["--max-tokens", "20"], {"max_tokens": 20}), (["--text-column", "title"], {"text_column": "title"})],
)
def test_a_run_that_was_begun_with_what_changes_nothing_goes_on(
    pairs: Path, tmp_path: Path, option: list[str], setting: dict[str, object]
) -> None:
    """As versions before took it: left out, it would be another setting than the run was begun with."""
    data, out = tmp_path / "sidecars", tmp_path / "run"
    for folder in (data, out):
        folder.mkdir()
    shutil.copy(next(pairs.glob("*.png")), data / "a.png")
    (data / "a.txt").write_text("a cat")
    where = ["--data", str(data), "--out", str(out), "--weights", "not/there", "--resume"]
    with pytest.raises(BadInput, match="would change nothing"):  # nothing has begun here
        direct.main([*where, *option])
    begun = asdict(direct.DirectRecipe(weights="not/there")) | setting
    (out / "recipe.json").write_text(json.dumps(begun))
    with pytest.raises(BadInput, match="was begun with"):
        direct.main(where)
    with pytest.raises(MissingModel):  # it is taken
        direct.main([*where, *option])


def test_layer_decay_beside_a_frozen_backbone_wants_blocks_that_learn(pairs: Path, tmp_path: Path) -> None:
    options = ["--layer-decay", "0.9", "--freeze", "backbone", "--unfreeze", "2", "--weights", "not/there"]
    with pytest.raises(MissingModel):  # it is taken
        direct.main(["--data", str(pairs), "--out", str(tmp_path / "run"), *options])


def test_columns_of_data_that_has_none(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sidecars"
    folder.mkdir()
    shutil.copy(next(pairs.glob("*.png")), folder / "a.png")
    (folder / "a.txt").write_text("a cat")
    options = ["--out", str(tmp_path / "run"), "--image-column", "picture"]
    for data in (str(folder), f"coco:{folder}"):
        with pytest.raises(BadInput, match=r"^image_column would change nothing: .*sidecars has no table"):
            blip.main(["--data", data, *options])
    for beside in ("--data", "--validation"):
        with pytest.raises(BadInput, match="line 1 has no picture column 'picture'"):
            blip.main(["--data", str(folder), beside, str(pairs), *options])


@pytest.mark.parametrize(
    ("options", "lora"),
    [
        ([], False),
        (["--lora-rank", "8"], True),
        (["--lora-alpha", "4"], True),
        (["--lora-targets", "query"], True),
        (["--qlora", "8bit"], True),
        (["--lora"], True),
    ],
)
def test_a_setting_of_the_adapter_asks_for_one(pairs: Path, tmp_path: Path, options: list[str], lora: bool) -> None:
    parsed = recipe.parse(blip.BlipRecipe, "", ["--data", str(pairs), "--out", str(tmp_path / "run"), *options])
    assert parsed.lora is lora


def test_a_prefix_longer_than_what_the_language_model_reads(tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    towers = tiny_checkpoint("towers")
    parts = ["--weights", str(towers / "clip"), "--language-model", str(towers / "gpt2"), "--prefix-length", "5000"]
    with pytest.raises(BadInput, match="--prefix-length 5000: the language model reads"):
        clip_prefix.main(["--data", str(pairs), "--out", str(tmp_path / "run"), *parts])


@pytest.mark.parametrize("name", ["blip", "ofa"])
def test_the_data_are_read_before_a_base_is_looked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BadInput):
        TRAINERS[name].main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--base", "not/there"])


@pytest.mark.parametrize(
    ("name", "options", "way"),
    [
        ("blip", ["--base", "not/there"], "hf download not/there --local-dir FOLDER"),
        ("ofa", ["--base", "not/there"], "--base FOLDER"),
        ("direct", ["--weights", "not/there"], "--weights FOLDER"),
        ("clip_prefix", ["--weights", "towers/clip", "--language-model", "not/there"], "--language-model FOLDER"),
    ],
)
def test_without_a_base_the_ways_out_are_named(
    tiny_checkpoint, pairs: Path, tmp_path: Path, name: str, options: list[str], way: str
) -> None:
    options = [str(tiny_checkpoint("towers") / "clip") if option == "towers/clip" else option for option in options]
    with pytest.raises(MissingModel, match=way) as error:
        TRAINERS[name].main(["--data", str(pairs), "--out", str(tmp_path / "run"), *options])
    assert "training.direct --backbone efficientnet-lite2" in str(error.value)
    assert not (tmp_path / "run").exists()
