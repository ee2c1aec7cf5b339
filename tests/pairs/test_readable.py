"""Pictures of records in batches: full ones whatever cannot be read, and smaller ones where pictures are large."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from captioner.errors import BadImage
from captioner.pairs import readable
from captioner.pairs.layouts import Record


def records(folder: Path, sizes: list[int]) -> list[Record]:
    """A square picture of each size; 0 is one that cannot be read."""
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.new("RGB", (size, size)).save(path) if size else path.write_bytes(b"no picture")
    return [
        Record(str(folder / f"{number}.png"), f"text {number}", str(number), f"{number}.png")
        for number in range(len(sizes))
    ]


def test_batches_are_full_whatever_cannot_be_read(tmp_path: Path) -> None:
    left_out = []
    batches = list(readable.opened(records(tmp_path, [4, 0, 4, 4, 0, 4, 4]), 2, left_out))
    assert [[image.width for image in images] for _, images in batches] == [[4, 4], [4, 4], [4]]
    assert [record.text for batch, _ in batches for record in batch] == [f"text {n}" for n in (0, 2, 3, 5, 6)]
    assert [one.name for one in left_out] == ["1.png", "4.png"]
    assert list(readable.opened(records(tmp_path, [0]), 2, [])) == []


def test_large_pictures_come_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "HELD_BYTES", 2 * 40 * 40 * 4)
    batches = list(readable.opened(records(tmp_path, [4] * 9 + [40] * 5), 8, []))
    assert [len(images) for _, images in batches] == [8, 3, 2, 1]


def test_the_content_of_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 20_000_000_000)
    for name, reason in (("pipe.png", "regular file"), ("sparse.png", "larger than"), ("gone.png", "does not exist")):
        with pytest.raises(BadImage, match=reason):
            readable.content(str(tmp_path / name))


@pytest.mark.parametrize("what", ["encrypted", "method", "cut off", "lzma"])
def test_a_member_of_a_zip_that_cannot_be_unpacked_is_a_bad_picture(tmp_path: Path, what: str) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA if what == "lzma" else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 8)
    content = bytearray(file.read_bytes())
    listed = content.find(b"PK\x01\x02")
    if what == "encrypted":
        content[6] |= 1
        content[listed + 8] |= 1
    elif what == "method":
        content[8] = content[listed + 10] = 99
    elif what == "cut off":
        content[listed + 20 : listed + 28] = struct.pack("<II", 10**6, 10**6)
    else:
        content[50:70] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.png in .*a\.zip cannot be read"):
        readable.content(f"zip://a.png::{file}")
