"""What the tests of several trainers learn on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.models.ofa.config import RESNET_DEPTHS
from tests.tiny import ofa


@pytest.fixture
def few_pairs(pairs: Path, tmp_path: Path) -> Path:
    """The first four pairs: as good a task to overfit, in a quarter of the time."""
    folder = tmp_path / "few"
    folder.mkdir()
    lines = (pairs / "metadata.jsonl").read_text().splitlines(keepends=True)[:4]
    (folder / "metadata.jsonl").write_text("".join(lines))
    for line in lines:
        name = json.loads(line)["file_name"]
        shutil.copy(pairs / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def shallow_ofa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny OFA to train: its tower has one block a stage, of the real width, where the published have three to 36."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_DEPTHS, "resnet14", (1, 1, 1))
        folder = tmp_path_factory.mktemp("ofa")
        ofa.make(folder, resnet_type="resnet14")
        yield folder
