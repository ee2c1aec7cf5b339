"""The speed report has every figure, its parts agree, and it compares equal work. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from captioner.compute import has_avx512
from captioner.errors import BadInput, BadOutput
from eval.speed import model
from eval.speed.clock import flops, peak


def test_ours_against_theirs_on_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = model.speed("blip-tiny-random", [2], ["fp32", "int8"], repeats=2, out=tmp_path / "speed.json")
    assert [(row["precision"], row["batch"]) for row in result["rows"]] == [("fp32", 2), ("int8", 2)]
    for row in result["rows"]:
        for phase in ("encode", "decode", "total", "theirs", "ratio"):
            assert 0 < row[phase]["min"] <= row[phase]["median"] <= row[phase]["max"]
        assert row["encode"]["min"] + row["decode"]["min"] <= row["total"]["min"] * (1 + 1e-9)
        assert row["ratio"]["max"] <= row["theirs"]["max"] / row["total"]["min"] * (1 + 1e-9)
        assert row["ceiling_gflops"] > 0
        assert row["load_seconds"] > 0
        assert (row["share_of_ceiling"] is None) == (row["precision"] == "int8")
    assert 0 < result["caption"]["min"] <= result["caption"]["median"] <= result["caption"]["max"]
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    [fp32, *_] = result["rows"]
    rows = model.ratios(fp32 | {"batch": 8}, result)
    assert [(row.least, row.most) for row in rows] == [(6 if has_avx512() else 3.5, None), (0.65, None), (None, 1)]
    assert rows[0].ratios == fp32["ratio"]["turns"]
    assert len(model.ratios(fp32 | {"precision": "bf16"}, result)) == 4
    model.print_table(result)
    said = capsys.readouterr().out
    assert "blip-tiny-random" in said
    assert "picture to prompt" in said
    assert "theirs: the same work by transformers" in " ".join(said.split())


@torch.inference_mode()
def test_operations_are_counted_packed_or_not() -> None:
    from captioner import compute
    from captioner.contracts import LoadOptions

    layers, x = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)), torch.randn(3, 5, 8)
    expected = 2 * 15 * (8 * 16 + 16 * 4)
    assert flops(lambda: layers(x)) == expected
    packed = compute.prepare(layers, LoadOptions(device="cpu"))
    assert flops(lambda: packed(x)) == expected


def test_peak_memory_is_seen() -> None:
    grown = peak(lambda: torch.ones(50_000_000).sum())
    assert 150e6 < grown < 400e6


def test_memory_that_was_freed_before_counts_again() -> None:
    for _ in range(2):
        assert peak(lambda: [b"x" * 100_000 for _ in range(1000)]) > 80e6


def test_a_folder_can_be_measured(tiny_checkpoint: Callable[[str], Path]) -> None:
    result = model.speed(str(tiny_checkpoint("blip")), [2], ["fp32"], repeats=1)
    assert [row["same_ids"] for row in result["rows"]] == [1]


def test_where_it_cannot_write_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "random_blip", lambda *_: pytest.fail("a model was made"))
    for out in (tmp_path / "none" / "x.json", tmp_path):
        with pytest.raises(BadOutput, match="folder"):
            model.speed("blip-tiny-random", [1], ["fp32"], out=out)
    with pytest.raises(BadInput, match="no precision 'fp33'"):
        model.speed("blip-tiny-random", [1], ["fp32", "fp33"])


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one"):
        model.speed("blip-tiny-random", [0], ["fp32"])
