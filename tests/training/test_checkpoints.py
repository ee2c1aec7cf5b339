"""Which checkpoints are kept, without a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.checkpoints import WHOLE, drop_old_checkpoints, newest_whole, seal


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-of-mine").mkdir()
    drop_old_checkpoints(tmp_path, keep=1, best=str(tmp_path / "checkpoint-2"))
    names = sorted(folder.name for folder in tmp_path.iterdir())
    assert names == ["checkpoint-11", "checkpoint-2", "checkpoint-of-mine"]
    assert newest_whole(tmp_path).name == "checkpoint-11"


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.unlink(),
    ],
    ids=["empty", "cut", "gone"],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], object]
) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(bytes(100))
        seal(folder, step)
    assert newest_whole(tmp_path).name == "checkpoint-2"
    harm(tmp_path / "checkpoint-2" / "trainer_state.json")
    assert newest_whole(tmp_path, warn=True).name == "checkpoint-1"
    assert capsys.readouterr().err == "checkpoint-2 is damaged: passed over\n"
    (tmp_path / "checkpoint-2" / WHOLE).write_text(json.dumps({"step": 2}))  # as an earlier version sealed it
    assert newest_whole(tmp_path).name == "checkpoint-2"
