"""The scripts under examples/: what they draw, and what they say when something is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def contact_sheet(*arguments: str) -> subprocess.CompletedProcess:
    command = (sys.executable, str(EXAMPLES / "contact_sheet.py"), *arguments)
    return subprocess.run(command, capture_output=True, text=True)


def test_a_contact_sheet_has_rows_and_columns(tmp_path: Path) -> None:
    pictures = [str(file) for file in sorted((EXAMPLES / "pictures").glob("*.jpg"))[:3]]
    sizes = []
    for columns in ("3", "2"):
        out = tmp_path / "new" / f"{columns}.png"
        done = contact_sheet(*pictures, "--columns", columns, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        with Image.open(out) as sheet:
            sizes.append(sheet.size)
    assert sizes[0][0] > sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


def test_a_long_word_is_broken_and_a_caption_stays_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from contact_sheet import TEXT, wrapped

    lines = wrapped("a cat " + "w" * 60 + " sits on a mat, highly detailed", 200)
    assert "".join(lines).replace(" ", "") == "acat" + "w" * 60 + "sitsonamat,highlydetailed"
    assert max(map(TEXT.getlength, lines)) <= 200
    assert lines[0] == "a cat"


def test_without_pictures_a_contact_sheet_says_so(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nope.png"):
        done = contact_sheet(str(name), "--out", str(tmp_path / "sheet.png"))
        assert done.returncode == 1
        assert "There is no picture to draw" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("script", ["train_mini.sh", "train_siblings.sh"])
def test_without_arguments_a_script_says_what_it_needs(script: str) -> None:
    done = subprocess.run(["bash", str(EXAMPLES / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs DATA WORK OUT: the data folder" in done.stderr
