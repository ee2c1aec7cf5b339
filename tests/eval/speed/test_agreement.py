"""How captions change with the precision: equal ones, their cosine, and the loss against the true prompts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from captioner.compute import agreement as kept
from captioner.errors import BadInput, BadOutput
from eval.data import Pairs, read_pairs
from eval.speed import agreement


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    with open(tmp_path / "prompts.csv", "w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("imgId", "prompt"))
        for index, colour in enumerate(("red", "green", "blue")):
            Image.new("RGB", (48, 48), colour).save(tmp_path / f"{index}.png")
            rows.writerow((index, f"a {colour} square"))
    return read_pairs([str(tmp_path)])


def test_float64_agrees_with_fp32_and_int8_is_kept_too(
    tiny_checkpoint: Callable[[str], Path], pairs: Pairs, capsys: pytest.CaptureFixture
) -> None:
    folder = tiny_checkpoint("blip")
    float64, int8 = agreement.measure(str(folder), ["fp32", "float64", "int8"], pairs, "cpu")
    assert (float64.precision, float64.pictures, float64.same) == ("float64", 3, 1.0)
    assert float64.cosine == pytest.approx(1, abs=1e-6)
    assert float64.loss.mean == pytest.approx(0, abs=1e-6)
    assert int8.to_dict()["same"] == int8.same <= 1
    assert kept._known(folder)["int8"] == {"share": int8.same, "pictures": 3}
    agreement.print_table([float64, int8])
    assert "100.0%" in capsys.readouterr().out


def test_nothing_to_compare_is_refused(pairs: Pairs) -> None:
    with pytest.raises(BadInput, match="fp32,bf16"):
        agreement.measure("mini", ["fp32"], pairs)


def test_a_cache_that_takes_nothing_is_told_before_a_picture_is_captioned(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(agreement, "_captions", lambda *_: pytest.fail("a picture was captioned"))
    with pytest.raises(BadOutput, match="CAPTIONER_CACHE"):
        agreement.measure("mini", ["fp32", "bf16"], pairs, "cpu")
