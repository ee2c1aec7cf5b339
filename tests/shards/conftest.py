"""Pictures in every container that a plan takes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from captioner.shards import plan

COUNT, BAD = 11, 4
"""Pictures, one of which is none."""


def picture(number: int) -> bytes:
    if number == BAD:
        return b"no picture"
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 20 * number, 7)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, a parquet file and a tar of the same, and a list of their names."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "pictures").mkdir()
    contents = [picture(number) for number in range(COUNT)]
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, content in enumerate(contents):
            (folder / "pictures" / f"{number:02}.png").write_bytes(content)
            for name, data in ((f"x/{number:02}.png", content), (f"x/{number:02}.txt", b"a text")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    cells = [{"bytes": content, "path": None} for content in contents]
    table = pyarrow.table({"image": cells, "other": list(range(COUNT))})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=4)
    names = [str(folder / "pictures" / f"{number:02}.png") for number in range(COUNT)]
    (folder / "list.txt").write_text("\n".join(names))
    return folder


@pytest.fixture
def planned(inputs: Path, tmp_path: Path) -> Callable[..., plan.Plan]:
    """`planned("a.tar")` → a plan of shards of three."""

    def make(name: str = "pictures", shard_size: int = 3) -> plan.Plan:
        return plan.make(tmp_path / "run", [str(inputs / name)], shard_size)

    return make
