"""Which rows a trainer learns from, and which it validates on."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Image

from training.blip import BlipRecipe
from training.captioners import load_rows
from training.data.sources import load_pairs


@pytest.mark.parametrize(("spec", "times"), [("{}", 1), ("{}@2", 2), ("parquet:{}", 1)])
def test_a_prepared_folder_validates_on_its_own_part(pairs: Path, tmp_path: Path, spec: str, times: int) -> None:
    rows = load_pairs([pairs]).cast_column("image", Image(decode=False))
    folder = tmp_path / "prepared"
    folder.mkdir()
    rows.select(range(12)).to_parquet(folder / "train-00000.parquet")
    rows.select(range(12, 16)).to_parquet(folder / "validation-00000.parquet")
    training, validation = load_rows(BlipRecipe(data=[spec.format(folder)]))
    assert len(training) == times * 12
    assert validation["text"][:] == rows["text"][12:]
