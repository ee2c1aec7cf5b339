"""Every subject of the suite gives rows that make sense, on little work. Nothing here is timed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.run import questions
from eval import __main__ as command_line
from eval import speed
from eval.speed import folder, start, suite, text
from eval.speed.suite import Row


def test_rows_are_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [Row("a thing", "times faster", [2.0, 4.0, 3.0], least=2.5), Row("another", "of a second", [0.5], most=1)]
    monkeypatch.setattr(start, "measure", lambda say: rows)
    result = suite.suite(["start"], tmp_path / "speed.json", lambda line: None)
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    assert [(row["median"], row["target"]) for row in result["rows"]] == [(3.0, "≥ 2.50"), (0.5, "≤ 1.00")]
    suite.print_table(result)
    assert "3.00 (2.00–4.00)" in capsys.readouterr().out
    with pytest.raises(BadInput, match="nothing to measure called 'flight'"):
        suite.suite(["flight"], None, print)


def test_the_help_names_every_part(capsys: pytest.CaptureFixture) -> None:
    assert all(hasattr(importlib.import_module(f"eval.speed.{name}"), "measure") for name in speed.SUBJECTS)
    with pytest.raises(SystemExit):
        command_line.app(["speed", "--help"], prog_name=command_line.NAME)
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert f"comma-separated: {', '.join(speed.SUBJECTS)}." in shown


def test_a_folder_through_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model alone is asked about the same pictures, in batches of the same size."""
    monkeypatch.setattr(folder, "DISTINCT", 2)
    monkeypatch.setattr(questions, "BATCH", 2)
    folder.photographs(tmp_path / "pictures", 3, ((200, 160), (160, 200)))
    asked: list[list[np.ndarray]] = []
    model = questions.Model("mini", LoadOptions(device="cpu"))
    speaker = model.loaded.speaker
    read = speaker.read_images

    def noted(images: list[Image.Image], *rest: Any) -> object:
        asked.append([np.asarray(image.resize((8, 8)), dtype=float) for image in images])
        return read(images, *rest)

    monkeypatch.setattr(speaker, "read_images", noted)
    rows = folder.share(model, "mini", tmp_path / "pictures", 1)
    assert [row.least for row in rows] == [0.95, 0.95]
    assert all(row.median > 0 for row in rows)
    assert rows[0].details["pictures_at_a_time"] == 2
    assert [len(batch) for batch in asked] == [2, 2, 1, 2, 1]  # warming up, alone, through the whole run
    for alone, whole in zip(chain(*asked[1:3]), chain(*asked[3:]), strict=True):
        assert np.abs(alone - whole).mean() < 4  # resized twice and once
    assert np.abs(asked[1][0] - asked[1][1]).mean() > 16
    assert np.array_equal(asked[1][0], asked[2][0])  # the third is the first again


@pytest.mark.parametrize(("on_gpu", "counts"), [(False, [(160, 3), (16, 1)]), (True, [(1920, 3), (1920, 3)])])
def test_a_gpu_is_given_more_pictures(
    on_gpu: bool, counts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def shared(model: questions.Model, name: str, pictures: Path, repeats: int) -> list[Row]:
        files = list(pictures.iterdir())
        assert len({file.stat().st_ino for file in files}) == folder.DISTINCT
        seen.append((len(files), repeats))
        return []

    small = partial(folder.photographs, sides=((40, 30),))
    monkeypatch.setattr(folder, "photographs", small)
    monkeypatch.setattr(folder, "random_blip", lambda where, name: where)
    monkeypatch.setattr(folder, "share", shared)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    folder.measure(print)
    assert seen == counts


def test_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = text.every_metric(30)
    assert all(row.median > 0 for row in rows)
    assert "16" in rows[-1].subject or "17" in rows[-1].subject
    assert 0 < text.minilm(4).median < 2
    assert 0 < text.models_in_a_report(2).median <= 1


def test_what_a_process_takes() -> None:
    used, waited = start.spent(["true"])
    assert 0 <= used < 1
    assert waited > 0


def test_what_a_process_compiles_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    start.spent([sys.executable, "-c", "import captioner.errors"], start.compiled_in(tmp_path))
    assert [*tmp_path.rglob("captioner/errors.*.pyc")]
