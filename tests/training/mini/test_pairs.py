"""Stage `pairs`: which pictures are to train on, which to validate on, and with which texts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from captioner.errors import BadOutput
from training.mini import sources
from training.mini.__main__ import main
from training.mini.pairs import pairs

FILES = {
    "drawn": [("A Castle, 8K", "sd-prompt"), ("a fox, (sharp:1.2)", "sd-prompt"), ("held-out near copy", "sd-prompt")],
    "more": [("a castle", "sd-prompt"), ("a hen", "clipart")],
    "flickr8k": [(f"a man {n}", "caption") for n in range(400)],
}
HELD_BACK = {"a castle", "a hen", "a man 0"}


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The data, and what the stages `texts` and `split` have left in the work folder."""
    data, work, picture = tmp_path / "data", tmp_path / "work", {"bytes": jpeg(), "path": "a.jpg"}
    (data / "pairs").mkdir(parents=True)
    work.mkdir()
    for name, rows in FILES.items():
        columns = {"image": [picture] * len(rows), "text": [text for text, _ in rows], "source": [name] * len(rows)}
        parquet.write_table(pa.table(columns | {"kind": [kind for _, kind in rows]}), data / f"pairs/{name}.parquet")
    texts = sorted({sources.clean(text) for rows in FILES.values() for text, _ in rows} - {"held-out near copy"})
    (work / "pair-texts.json").write_text(json.dumps({"text": texts}))
    np.save(work / "validation.npy", np.array([text in HELD_BACK for text in texts]))
    return data, work


def read(file: Path) -> list[dict]:
    return parquet.read_table(file).to_pylist()


def test_a_prompt_trains_or_validates_never_both(folders, tmp_path):
    pairs(*folders, tmp_path / "out", seed=7)
    validation = read(tmp_path / "out/validation.parquet")
    assert [row["text"] for row in validation] == ["a castle", "a castle"]  # no clip art, no photograph
    assert {row["source"] for row in validation} == {"drawn", "more"}
    assert [row["text"] for row in read(tmp_path / "out/train/drawn.parquet")] == ["a fox, sharp"]
    assert read(tmp_path / "out/train/more.parquet") == []
    assert Image.open(io.BytesIO(validation[0]["image"]["bytes"])).size == (8, 8)


def test_photographs_are_thinned(folders, tmp_path):
    pairs(*folders, tmp_path / "out", seed=7)
    texts = {row["text"] for row in read(tmp_path / "out/train/flickr8k.parquet")}
    assert 20 < len(texts) < 60  # a tenth
    assert "a man 0" not in texts
    data, work = map(str, folders)
    main(["pairs", "--data", data, "--work", work, "--out", str(tmp_path / "again")])
    assert read(tmp_path / "again/train/flickr8k.parquet") == read(tmp_path / "out/train/flickr8k.parquet")
    with pytest.raises(BadOutput, match="already there"):
        pairs(*folders, tmp_path / "out", seed=7)
