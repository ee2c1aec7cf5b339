"""JPEG2000: decoded as small as needed, and refused where its parts would take more than its pixels."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import BadImage
from captioner.images import jpeg2000, open_image
from tests.images.test_images import encoded, two_colours

PHOTO = Path(__file__).parents[2] / "examples/pictures/coffee.jpg"


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def bare(
    size: tuple[int, int],
    tile: tuple[int, int] | None = None,
    *,
    layers: int = 1,
    block: int = 64,
    precinct: int | None = None,
    within: bytes = b"",
    before: bytes = b"",
    begins: tuple[int, int] = (0, 0),
    first: tuple[int, int] = (0, 0),
) -> bytes:
    """The headers of one with three channels at six sizes, and nothing of its pixels. within: of each tile's header."""
    tile = tile or size
    far = (size[0] + begins[0], size[1] + begins[1])
    numbers = [number for pair in (far, begins, tile, first) for number in pair]
    power = block.bit_length() - 3
    coding = struct.pack(">BBHBBBBBB", precinct is not None, 0, layers, 1, 5, power, power, 0, 1)
    coding += b"" if precinct is None else bytes([precinct * 17]) * 6
    data = b"\xff\x4f" + segment(0xFF51, struct.pack(">H8IH", 0, *numbers, 3) + b"\x07\x01\x01" * 3)
    data += before + segment(0xFF52, coding) + segment(0xFF5C, b"\x40" * 17)
    parts = (
        struct.pack(">HHHIBB", 0xFF90, 10, number, 14 + len(within), 0, 1) + within + b"\xff\x93"
        for number in range(-(-far[0] // tile[0]) * -(-far[1] // tile[1]))
    )
    return data + b"".join(parts) + b"\xff\xd9"


def boxed(codestream: bytes) -> bytes:
    """A .jp2 of a codestream."""
    head = encoded(two_colours((100, 100)), "JPEG2000")
    return head[: head.index(b"jp2c") - 4] + struct.pack(">I4s", 0, b"jp2c") + codestream


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {}),
        ("L", {"irreversible": True}),
        ("RGBA", {"tile_size": (64, 64)}),
        ("LA", {"no_jp2": True}),
        ("I;16", {}),
    ],
)
@pytest.mark.parametrize(
    ("size", "opened"),
    [((79, 200), (79, 200)), ((81, 203), (41, 102)), ((165, 321), (42, 81)), ((1001, 333), (126, 42))],
)
def test_one_much_larger_than_needed_is_decoded_smaller(
    size: tuple[int, int], opened: tuple[int, int], mode: str, settings: dict
) -> None:
    with Image.open(PHOTO) as photo:
        picture = photo.resize(size)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L"), dtype=np.uint16) * 257)
    data = encoded(picture.convert(mode), "JPEG2000", **settings)
    smaller = open_image(data, side=20)
    assert (smaller.mode, smaller.size) == ("RGB", opened)
    whole = open_image(data)
    assert whole.size == size
    wanted = np.asarray(whole.resize((20, 20), Image.Resampling.BICUBIC), dtype=int)
    got = np.asarray(smaller.resize((20, 20), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(got - wanted).mean() < 5


def test_as_small_as_it_can_be_and_no_smaller() -> None:
    data = encoded(two_colours((640, 640)), "JPEG2000", num_resolutions=2)
    assert open_image(data, side=10).size == (320, 320)
    assert open_image(encoded(two_colours((640, 640)), "JPEG2000", num_resolutions=1), side=10).size == (640, 640)


@pytest.mark.parametrize(
    ("size", "tile", "opened"),
    [
        ((503, 503), 500, (126, 126)),
        ((1003, 500), 500, (126, 63)),
        ((1000, 1000), 250, (32, 32)),
        ((57, 57), 9, (29, 29)),
    ],
)
def test_no_tile_is_halved_to_nothing(size: tuple[int, int], tile: int, opened: tuple[int, int]) -> None:
    data = encoded(two_colours(size), "JPEG2000", tile_size=(tile, tile))
    assert open_image(data, side=10).size == opened


def test_the_pixels_of_the_last_part_may_go_to_the_end_of_the_file(tmp_path: Path) -> None:
    data = encoded(two_colours((320, 320)), "JPEG2000")
    length = data.index(b"\xff\x90\0\x0a") + 6
    (tmp_path / "a.jp2").write_bytes(data[:length] + bytes(4) + data[length + 4 :])
    assert open_image(tmp_path / "a.jp2", side=20).size == (40, 40)


def test_numbers_of_colours_have_no_mean() -> None:
    picture = encoded(two_colours((320, 320)).convert("L"), "JPEG2000")
    at = picture.index(b"colr") - 4
    palette = b"\0\x02\x03\x07\x07\x07" + bytes([0, 0, 0, 9, 9, 9])
    box = struct.pack(">I4s", 8 + len(palette), b"pclr") + palette
    header = picture.index(b"jp2h") - 4
    length = int.from_bytes(picture[header : header + 4], "big") + len(box)
    colour = picture[at : at + 15].replace(struct.pack(">I", 17), struct.pack(">I", 16))
    data = picture[:header] + struct.pack(">I", length) + picture[header + 4 : at] + colour + box + picture[at + 15 :]
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
    assert open_image(data, side=10).size == (320, 320)


def test_the_limit_is_of_the_whole_picture_and_memory_of_the_smaller() -> None:
    data = encoded(two_colours((400, 400)), "JPEG2000")
    admitted: list[int] = []
    open_image(data, admit=admitted.append)
    open_image(data, admit=admitted.append, side=20)
    assert admitted[0] > 400 * 400 * 32 > 8 * admitted[1] > 8 * 100 * 100 * 32 / 2
    with pytest.raises(BadImage, match="above the limit"):
        open_image(data, side=20, max_pixels=400 * 400 - 1)


HEAVY = segment(0xFF52, struct.pack(">BBHBBBBBB", 1, 0, 1, 1, 5, 4, 4, 0, 1) + b"\x11" * 6)
"""Blocks of one pixel."""


@pytest.mark.parametrize(
    "data",
    [
        bare((1000, 1000), precinct=1),  # the decoder took 1.7 GB of these 108 bytes
        bare((1000, 1000), precinct=4, layers=60_000),  # … and 94 s of these
        boxed(bare((1000, 1000), precinct=1)),
        bare((4000, 4000), block=4),
        bare((220, 220), (1, 1))[:200],
        bare((1000, 1000), within=HEAVY),
        bare((1000, 1000), within=segment(0xFF53, struct.pack(">BBBBBBB", 0, 1, 5, 4, 4, 0, 1) + b"\x11" * 6)),
        bare((1000, 1000), precinct=1, before=b"\xff\x30\0\2"),  # which is passed over
        bare((1000, 1000), before=segment(0xFF54, HEAVY)),  # the decoder does not know its length, and looks into it
        bare((1000, 1000), before=b"\xff\x30\xff\xd9" + HEAVY),
        bare((1000, 1000), before=b"\xff\x30\xff\x93" + HEAVY),
    ],
)
def test_one_whose_parts_would_take_more_than_its_pixels_is_refused(data: bytes) -> None:
    for side in (None, 20):
        with pytest.raises(BadImage, match="the data is cut into too many tiles, layers or blocks: save it anew"):
            open_image(data, side=side)


def test_one_that_pillow_has_opened_is_looked_through_too() -> None:
    image = Image.open(io.BytesIO(bare((1000, 1000), precinct=1)))
    with pytest.raises(BadImage, match="the picture is cut into too many"):
        open_image(image)


def test_parts_without_number_are_refused() -> None:
    comments = segment(0xFF64, b"\0\x01") * (jpeg2000.MOST_PARTS + 1)
    with pytest.raises(BadImage, match="more than 50,000 parts"):
        open_image(bare((100, 100), before=comments))


def test_what_comes_after_a_part_that_ends_within_a_marker() -> None:
    """The decoder takes a byte more for such a part's, and so finds the next one where others do not."""
    data = bare((1000, 2000), (1000, 1000), within=HEAVY)
    first = data.index(b"\xff\x90")
    second = data.index(b"\xff\x90", first + 2)
    comment = segment(0xFF64, b"\0\1")
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 13 + len(comment), 0, 1) + comment + b"\xff\x93\0"
    with pytest.raises(BadImage, match="ends within a marker"):
        open_image(data[:first] + part + data[second:])


def test_ways_without_number_are_refused() -> None:
    ways = b"".join(
        segment(0xFF52, struct.pack(">BBHBBBBBB", 0, 0, 1, 1, levels, 4, 4, 0, 1))
        for levels in range(jpeg2000.MOST_CODINGS + 1)
    )
    with pytest.raises(BadImage, match="coded in more than 100 ways"):
        open_image(bare((100, 100), before=ways))


@pytest.mark.parametrize("data", [boxed(b"")[:-8], boxed(bare((100, 100)))[:60], bare((100, 100))[:40]])
def test_one_that_is_cut_off_is_damaged(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"damaged|not a picture|cut off"):
        open_image(data)


@pytest.mark.parametrize(
    "data",
    [
        bare((1000, 1000), first=(2**31, 0)),  # fewer tiles than none: such a picture would make room for others
        bare((1000, 1000), (100, 100), begins=(200, 0)),
        bare((1000, 1000), before=segment(0xFF51, struct.pack(">H8IH", 0, 9, 9, 0, 0, 9, 9, 0, 0, 3) + b"\7\1\1" * 3)),
    ],
)
def test_tiles_that_do_not_begin_where_it_does(data: bytes) -> None:
    admitted: list[int] = []
    with pytest.raises(BadImage, match="damaged"):
        open_image(data, admit=admitted.append)
    assert not admitted


def test_what_begins_elsewhere_is_decoded_whole() -> None:
    assert jpeg2000.look_through(io.BytesIO(bare((1000, 1000))), "it").levels == 5
    assert jpeg2000.look_through(io.BytesIO(bare((1000, 1000), begins=(3, 0))), "it").levels == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a moment")
def test_decoding_takes_no_more_memory_than_told(tmp_path: Path) -> None:
    with Image.open(PHOTO) as photo:
        picture = photo.resize((900, 700))
    for name, mode, settings in (
        ("plain", "RGB", {}),
        ("alpha", "RGBA", {}),
        ("tiles", "RGB", {"tile_size": (32, 32)}),
        ("blocks", "RGB", {"codeblock_size": (4, 4)}),
    ):
        picture.convert(mode).save(tmp_path / f"{name}.jp2", **settings)
    (tmp_path / "precincts.jp2").write_bytes(bare((700, 700), precinct=3))
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from captioner.errors import BadImage\n"
        "from captioner.images import open_image\n"
        "def status(field): return int(re.search(field + r':\\s*(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for side in (None, 200):\n"
        "        told = []\n"
        "        open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak begins anew
        "        before = status('VmRSS')\n"
        "        try: open_image(file, side=side, admit=told.append)\n"
        "        except BadImage: pass\n"
        "        print(file.name, told[0], status('VmHWM') - before)\n"
    )
    environment = {**os.environ, "PILLOW_BLOCK_SIZE": "64m"}
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, env=environment
    )
    for line in run.stdout.splitlines():
        name, told, taken = re.split(" ", line)
        assert int(taken) <= int(told) + 4_000_000, line
    assert len(run.stdout.splitlines()) == 10
