"""The command line of mini's stages."""

import re
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


def test_every_option_says_what_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.partition("positional arguments:")[2].splitlines()
    entries = [line for line in listed if line.startswith("  ") and not line.startswith("   ")]
    assert len(entries) == 11
    assert all(len(re.split(r"  +", line.strip())) == 2 for line in entries)
