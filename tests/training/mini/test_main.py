"""The command line of mini's stages."""

from pathlib import Path

import pytest

from captioner.errors import BadInput
from training.mini.__main__ import main


@pytest.mark.parametrize("stage", ["pairs", "export", "measure"])
def test_a_stage_that_writes_elsewhere_asks_for_the_folder(stage: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"Stage `{stage}` needs a folder: --out"):
        main([stage, "--data", str(tmp_path), "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_a_number_below_1_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["language", "--data", str(tmp_path), "--work", str(tmp_path), "--steps", "0"])
    assert "--steps: 0: it must be at least 1" in capsys.readouterr().err
