"""Which checkpoints are kept, without a run."""

from pathlib import Path

from training.checkpoints import WHOLE, drop_old_checkpoints, newest_whole


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    (tmp_path / "checkpoint-of-mine").mkdir()
    drop_old_checkpoints(tmp_path, keep=1, best=str(tmp_path / "checkpoint-2"))
    names = sorted(folder.name for folder in tmp_path.iterdir())
    assert names == ["checkpoint-11", "checkpoint-2", "checkpoint-of-mine"]
    assert newest_whole(tmp_path).name == "checkpoint-11"
