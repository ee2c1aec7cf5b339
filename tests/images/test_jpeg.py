"""JPEGs of more scans than any program writes."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import BadImage
from captioner.images import jpeg, open_image

START, SCAN, END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def written(**settings: object) -> bytes:
    """A small picture as Pillow writes it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **settings)
    return stream.getvalue()


def with_scans(count: int) -> bytes:
    """A progressive one whose last scan comes so often that there are so many."""
    data = written(progressive=True)
    last = data[data.rindex(SCAN) : -2]
    return data[:-2] + last * (count - data.count(SCAN)) + END


def test_many_scans_are_refused_before_they_are_decoded() -> None:
    assert open_image(with_scans(jpeg.MAX_SCANS)).size == (40, 40)
    for side in (None, 4):
        with pytest.raises(BadImage, match="the data has more than 100 scans"):
            open_image(with_scans(jpeg.MAX_SCANS + 1), side=side)
    with pytest.raises(BadImage, match="the picture has more than 100 scans"):
        open_image(Image.open(io.BytesIO(with_scans(jpeg.MAX_SCANS + 1))))


@pytest.mark.parametrize("progressive", [True, False])
def test_many_parts_are_refused_too(progressive: bool) -> None:
    data = written(progressive=progressive)
    frame = data.index(b"\xff\xc2" if progressive else SCAN)
    comments = b"\xff\xfe\x00\x02" * (jpeg.MAX_PARTS + 1)
    with pytest.raises(BadImage, match="more than 100 scans or 20,000 parts"):
        open_image(data[:-2] + comments + END if progressive else data[:frame] + comments + data[frame:])


def test_a_file_that_cannot_be_looked_through_is_damaged(tmp_path: Path) -> None:
    """Its file has been closed, as if its disk had a bad sector."""
    (tmp_path / "a.jpg").write_bytes(written(progressive=True))
    with (tmp_path / "a.jpg").open("rb") as stream:
        image = Image.open(stream)
    with pytest.raises(BadImage, match="damaged"):
        open_image(image)


def test_scans_of_one_colour_each_are_counted() -> None:
    """They need not be progressive: without a colour in the first scan, others are waited for."""
    data = written(progressive=False)
    frame = data.index(b"\xff\xc0")
    scan = data.index(SCAN)
    of_one_colour = SCAN + b"\x00\x08\x01" + data[scan + 5 : scan + 7] + b"\x00\x3f\x00"
    several = data[:scan] + of_one_colour * (jpeg.MAX_SCANS + 1) + END
    assert data[frame + 9] == 3
    with pytest.raises(BadImage, match="scans"):
        open_image(several)


def test_what_only_looks_like_a_scan_does_not_count() -> None:
    of_camera = b"\xff\xe5" + (2 + 4000).to_bytes(2, "big") + SCAN * 2000
    for data in (written(), written(progressive=True)):
        assert open_image(data[:2] + of_camera + data[2:]).size == (40, 40)
        assert open_image(data + SCAN * 5000).size == (40, 40)  # a film after the picture, as phones write it
        assert open_image(data[:2] + b"\xff" * 9 + data[2:]).size == (40, 40)


def test_any_bytes_are_looked_through() -> None:
    generator = random.Random(0)
    for number in range(2000):
        data = bytearray(written(progressive=number % 2 == 0)[: generator.randrange(4, 2000)])
        for _ in range(generator.randrange(20)):
            told = generator.choice((0xFF, 0xD8, 0xDA, 0xC2, 0, generator.randrange(256)))
            data[generator.randrange(len(data))] = told
        stream = io.BytesIO(bytes(data))
        stream.seek(3)
        with suppress(BadImage):
            jpeg.check_scans(stream, "it")
        assert stream.tell() == 3
