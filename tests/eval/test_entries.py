"""What models are called."""

from pathlib import Path

import pytest

from captioner.errors import BadInput
from eval.entries import read_entries


def labels(*entries: str) -> list[str]:
    return [entry.label for entry in read_entries(entries)]


def test_a_model_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a/vit", "b/vit", "odd=name"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "texts.csv").touch()
    assert labels("a/vit") == labels(str(tmp_path / "a/vit")) == ["vit"]
    assert labels("a/vit", "b/vit", "mini") == ["a/vit", "b/vit", "mini"]  # by their paths, else they are one
    assert labels("texts.csv", "mini+expected", "org/model", "odd=name") == [
        "texts", "mini expected", "org/model", "odd=name"
    ]  # fmt: skip
    assert labels("nearest:a/vit", "constant:a/vit") == ["nearest vit", "constant vit"]
    assert labels("x=a/vit", "y=a/vit") == ["x", "y"]
    with pytest.raises(BadInput, match="called 'x'"):
        read_entries(["x=a/vit", "x=b/vit"])
    for entry, lack in (("=a/vit", "the label"), ("x=", "the model")):
        with pytest.raises(BadInput, match=f"{entry}' lacks {lack}"):
            read_entries([entry])
