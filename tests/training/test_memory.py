"""Pictures stay where they are until a batch needs them: a data set may be larger than the memory."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from training.batches import Pairs
from training.data.sources import ROW, load_pairs

COUNT, SIDE = 600, 256  # 197 kB each, uncompressed
MOST = 0.35 * COUNT * SIDE * SIDE * 3


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{number}.bmp")
        (folder / f"{number}.txt").write_text(f"noise number {number}")
    return folder


def in_parquet(folder: Path, out: Path) -> Path:
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": None}, "text": file.stem, "id": file.stem, "source": "large"}
        for file in folder.glob("*.bmp")
    ]
    for start in range(0, COUNT, 50):
        table = datasets.Dataset.from_list(rows[start : start + 50], features=ROW).with_format("arrow")[:]
        parquet.write_table(table, out / f"train-{start}.parquet", row_group_size=10)
    return out / "train-*.parquet"


def in_memory() -> int:
    """Bytes that no file stands behind: pages of a mapped file are given back when memory is short."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    ]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts such pages")
@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_pictures_are_not_kept_in_memory(
    large: Path, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = large if layout == "folder" else in_parquet(large, tmp_path)
    before = in_memory()
    pairs = Pairs(load_pairs([place]), lambda images: np.asarray(images[0].resize((8, 8)))[None])
    peak = max(in_memory() for number in range(len(pairs)) if pairs[number])
    assert len(pairs) == COUNT
    assert peak - before < MOST
