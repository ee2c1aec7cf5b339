"""bf16 is taken where it was measured to write the same captions, of the weights that are there now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import captioner
from captioner.compute import agreement


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "has_bf16", lambda: True)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("share", "pictures", "agrees"), [(0.98, 50, True), (0.979, 500, False), (1.0, 49, False)])
def test_enough_of_enough_captions_must_agree(
    tiny_checkpoint: Callable[[str], Path], share: float, pictures: int, agrees: bool
) -> None:
    folder = tiny_checkpoint("blip")
    agreement.keep(folder, "bf16", share, pictures)
    assert agreement.bf16_agrees(folder) is agrees


@pytest.mark.usefixtures("native")
def test_other_weights_are_measured_anew(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    agreement.keep(tmp_path, "bf16", 1.0, 100)
    assert agreement.bf16_agrees(tmp_path)
    weights.write_bytes(b"other")
    assert not agreement.bf16_agrees(tmp_path)


@pytest.mark.usefixtures("native")
def test_a_damaged_note_says_nothing(tmp_path: Path) -> None:
    agreement.keep(tmp_path, "bf16", 1.0, 100)
    for damaged in ("{", "[]", '{"bf16": 1}', '{"bf16": {"share": "all", "pictures": 100}}'):
        agreement._file(tmp_path).write_text(damaged)
        assert not agreement.bf16_agrees(tmp_path)


def test_a_cpu_without_bf16_keeps_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "has_bf16", lambda: False)
    agreement.keep(tmp_path, "bf16", 1.0, 100)
    assert not agreement.bf16_agrees(tmp_path)


@pytest.mark.usefixtures("native")
def test_auto_takes_what_agrees_and_what_is_named_stays(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("blip")
    assert captioner.load(str(folder), device="cpu").precision == "fp32"
    agreement.keep(folder, "bf16", 1.0, 100)
    assert captioner.load(str(folder), device="cpu").precision == "bf16"
    assert captioner.load(str(folder), device="cpu", precision="fp32").precision == "fp32"
