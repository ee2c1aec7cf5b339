"""Every subject of the suite gives rows that make sense, on little work. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.run.questions import Model
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


def test_a_folder_through_the_whole_run(tmp_path: Path) -> None:
    folder.photographs(tmp_path / "pictures", 3, ((200, 160),))
    rows = folder.share(Model("mini", LoadOptions()), "mini", tmp_path / "pictures", 1)
    assert [row.least for row in rows] == [0.95, 0.95]
    assert all(row.median > 0 for row in rows)


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
