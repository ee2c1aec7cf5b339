"""Both loops learn the same from the same, and everything is counted. Nothing here is timed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eval.speed import training
from eval.speed.training import Work


def test_our_loop_beside_one_by_hand() -> None:
    said: list[str] = []
    work = Work(4, "fp32", first=1, blocks=2, of_steps=2)
    [row] = training.compare("blip-tiny-random", work, [False], said.append, distinct=1)  # whatever their order
    assert len(row.ratios) == 2
    assert row.median > 0
    assert "4 at a time" in row.subject
    assert [line.split(":")[0].strip() for line in said] == ["by hand", row.subject]
    counts = row.details
    assert math.isfinite(counts["last_loss"])
    assert math.isfinite(counts["last_loss_by_hand"])
    assert counts["first_loss"] == pytest.approx(counts["first_loss_by_hand"], rel=1e-5)
    assert counts["last_loss_by_hand"] != counts["first_loss_by_hand"]
    for of in ("", "_by_hand"):
        assert all(rate > 0 for rate in counts[f"pictures_a_second{of}"])
        assert counts[f"peak_bytes{of}"] > 0


def test_blocks_of_steps() -> None:
    work, run = Work(4, "fp32", first=2, blocks=2, of_steps=3), training.Run()
    for step in range(1, work.steps + 1):
        run.step_done(step, work, torch.device("cpu"))
    assert work.steps == 8
    assert len(run.ends) == 3
    run.ends = [10.0, 12.0, 16.0]
    assert run.rates(work) == [6.0, 3.0]


def test_pixels_are_those_of_the_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    training.random_blip(folder, "blip-tiny-random")
    training.pairs(tmp_path / "pictures", 4)
    work = Work(4, "fp32", first=1, blocks=1)
    rows = training.made(folder, tmp_path / "pictures", tmp_path / "out", work, compiles=False).train_rows
    assert len(rows) == 8
    for index in (0, 3, 7):
        kept, read = rows[index], super(training.InMemory, rows).__getitem__(index)
        assert kept["text"] == read["text"]
        assert torch.equal(kept["pixel_values"], read["pixel_values"])
