"""Every operation of a caption belongs to one phase; the picture of them is an SVG. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from captioner.errors import BadInput
from eval.speed import profile


def test_phases_hold_all_operations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flame, out = tmp_path / "flame.svg", tmp_path / "profile.json"
    profile.show("blip-tiny-random", [2], ["fp32"], flame, out, "cpu")
    written = json.loads(out.read_text())["profiles"]
    assert [(one["precision"], one["batch"]) for one in written] == [("fp32", 2)]
    phases = written[0]["phases"]
    assert [row["phase"] for row in phases] == list(profile.PHASES)
    assert all(row["seconds"] > 0 for row in phases)
    floors = {row["phase"] for row in phases if row["floor"]}
    assert floors == {"encode", "project", "text: products", "text: attention", "text: head"}
    drawn = ElementTree.parse(flame).getroot()
    titles = [title.text or "" for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("encode: ") for title in titles)
    assert "floor ms" in capsys.readouterr().out


def test_an_operation_is_told_by_what_it_happened_in() -> None:
    assert profile._phase(("encode", "aten::bmm")) == "encode"
    assert profile._phase(("search", "aten::topk")) == "search"
    assert profile._phase(("search", "step", "aten::softmax", "aten::_softmax")) == "text: attention"
    assert profile._phase(("search", "step", "head", "mkldnn::_linear_pointwise")) == "text: head"
    assert profile._phase(("search", "step", "aten::linear", "aten::addmm")) == "text: products"
    assert profile._phase(("search", "step", "aten::add")) == "text: other"
    assert profile._phase(("aten::empty",)) is None


def test_what_has_no_phases_is_refused(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(BadInput, match="writes no text"):
        profile.show(str(tiny_checkpoint("direct")), [1], ["fp32"], tmp_path / "flame.svg", None, "cpu")
    assert not (tmp_path / "flame.svg").exists()
