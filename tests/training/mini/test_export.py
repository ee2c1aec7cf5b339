"""Stage `export`: a folder that `captioner` loads, whole or not there, put in the place of an earlier one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner import pipeline
from captioner.errors import BadOutput
from captioner.models.prefix.layers import JointHead
from captioner.pairs.fingerprint import fingerprint
from training.mini import export, language
from training.mini.saving import save_state

RANK, PROTOTYPES = 4, 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the earlier stages leave, of weights that have learnt nothing."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = language.train_tokenizer(["a red fox, oil painting", "a castle by the sea"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    model = language.new_model(tokenizer, {"rank": RANK, "prototypes": PROTOTYPES}, gist=True)
    save_state(folder / "head.pt", JointHead(model.backbone.width, 384, RANK, PROTOTYPES).state_dict())
    save_state(folder / "gist.pt", model.gist.state_dict())
    parts = torch.nn.ModuleList([model.mapper, model.gpt])
    save_state(folder / "reward.pt", {"parts": parts.state_dict()})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "data/pairs").mkdir(parents=True)
    table = pa.table({"text": ["a red fox", "a castle"], "source": ["made", "made"]})
    parquet.write_table(table, tmp_path / "data/pairs/made.parquet")
    return tmp_path / "data"


def test_an_export_speaks_and_takes_the_place_of_an_earlier_one(work: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mini"
    for _ in range(2):
        export.export(data, work, out)
    assert {file.name for file in out.iterdir()} == export.FILES
    assert [folder.name for folder in out.parent.iterdir()] == ["mini"]
    assert json.loads((out / "training_data.json").read_text())["sources"] == ["made"]
    [prompt] = pipeline.load(str(out), device="cpu").generate([Image.new("RGB", (32, 32), "red")])
    assert prompt.embedding.shape == (384,)


def test_a_held_back_export_has_not_met_the_validation_prompts(work: Path, data: Path, tmp_path: Path) -> None:
    (work / "pair-texts.json").write_text(json.dumps({"text": ["a castle", "a red fox"]}))
    np.save(work / "validation.npy", np.array([True, False]))
    shutil.copy(work / "head.pt", work / "head-without-validation.pt")
    export.export(data, work, tmp_path / "mini", held_back=True)
    learnt = json.loads((tmp_path / "mini/training_data.json").read_text())
    assert learnt["fingerprints"] == [fingerprint("a red fox")]


def test_a_folder_with_something_else_is_left_alone(work: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    with pytest.raises(BadOutput, match="already there"):
        export.export(data, work, tmp_path / "notes")
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["mine.txt"]
