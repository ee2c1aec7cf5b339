"""The folder of a run: one run at a time, never a stranger's, and resumed with what it was begun with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.errors import BadInput, BadOutput
from captioner.files import atomic
from captioner.files.json import write_object
from captioner.files.lock import LOCK
from training.recipe import LoraRecipe
from training.resuming import DATA, RECIPE, check_data, check_folder, folder_of_run


@pytest.fixture
def begun(tmp_path: Path) -> LoraRecipe:
    """A run with a checkpoint, to be gone on with."""
    recipe = LoraRecipe(data=["cats"], out=str(tmp_path / "run"), resume=True)
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    write_object(tmp_path / "run" / RECIPE, vars(replace(recipe, resume=False)))
    return recipe


def test_the_same_settings_go_on(begun: LoraRecipe) -> None:
    check_folder(begun)
    check_folder(replace(begun, device="cpu", workers=2, keep=5, log_every=1, epochs=9.0, max_steps=40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.01, "warmup": 2}, r"--lr 0.0001 \(now 0.01\), --warmup 0.1 \(now 2\)"),
        ({"lora": True, "lora_rank": 4}, r"--lora False \(now True\), --lora-rank 8 \(now 4\)"),
        ({"seed": 1}, "--seed 0"),
        ({"augment": True}, "--augment False"),
        ({"stream": True, "data": ["dogs"]}, r"--data cats \(now dogs\)"),
    ],
)
def test_other_settings_are_refused_by_name(begun: LoraRecipe, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        check_folder(replace(begun, **changes))
    assert "the same settings, or name another --out" in str(error.value)


def test_a_run_of_an_older_version_goes_on(begun: LoraRecipe) -> None:
    """It has no word about settings that came later."""
    file = Path(begun.out) / RECIPE
    settings = json.loads(file.read_text())
    del settings["by_prompt"]
    write_object(file, settings)
    check_folder(begun)


def test_the_run_of_another_command_is_refused(begun: LoraRecipe) -> None:
    file = Path(begun.out) / RECIPE
    write_object(file, {**json.loads(file.read_text()), "mapper": "mlp"})
    with pytest.raises(BadInput, match="by another command"):
        check_folder(begun)


def test_a_strangers_folder_is_left_alone(begun: LoraRecipe) -> None:
    (Path(begun.out) / RECIPE).unlink()
    (Path(begun.out) / "README.md").write_text("mine")
    with pytest.raises(BadInput, match="holds no run to go on with"):
        check_folder(begun)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(BadInput, match="is a file"):
            check_folder(LoraRecipe(out=str(tmp_path / "file"), resume=resume))
    with pytest.raises(BadInput, match="file is a file"):
        check_folder(LoraRecipe(out=str(tmp_path / "file" / "below")))


def test_an_empty_or_absent_folder_is_begun_with_resume_too(tmp_path: Path) -> None:
    """So a command may always be given with --resume."""
    for name in ("absent", "empty"):
        check_folder(LoraRecipe(out=str(tmp_path / name), resume=True))
        (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "empty" / LOCK).touch()  # a kill left it
    check_folder(LoraRecipe(out=str(tmp_path / "empty")))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    recipe = LoraRecipe(out=str(tmp_path / "run"))
    with folder_of_run(recipe) as out:
        (out / RECIPE).touch()
        with pytest.raises(BadOutput, match="is being written by another run"), folder_of_run(recipe):
            pass
        assert (out / LOCK).exists()
    assert not (out / LOCK).exists()
    with pytest.raises(BadInput, match="not empty"), folder_of_run(recipe):
        pass


def test_nothing_is_left_of_a_run_that_did_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_of_run(LoraRecipe(out=str(tmp_path / "run"))):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "away").symlink_to(tmp_path / "gone" / "far")  # nothing can be made where that leads
    with (
        pytest.raises(BadOutput, match=r"away/run cannot be written \(.*Name another --out"),
        folder_of_run(LoraRecipe(out=str(tmp_path / "away" / "run"))),
    ):
        pytest.fail("it has begun")


def test_leftovers_of_a_kill_are_no_contents(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with atomic.replacing(out / "model.safetensors", keep=True) as half:
        shutil.copy(half, tmp_path / half.name)
    shutil.move(tmp_path / half.name, out / half.name)
    check_folder(LoraRecipe(out=str(out)))


def test_other_data_are_refused(begun: LoraRecipe) -> None:
    data = {"pairs": 51, "training_digest": "a", "validation_pairs": 5, "validation_digest": "b"}
    check_data(begun, data)  # of an older run nothing is known
    write_object(Path(begun.out) / DATA, data)
    check_data(begun, data)
    with pytest.raises(BadInput, match=r"training data have changed since .* 46 pairs now, 51 then"):
        check_data(begun, {**data, "pairs": 46, "training_digest": "c"})
    with pytest.raises(BadInput, match="validation data have changed"):
        check_data(begun, {**data, "validation_digest": "c"})
