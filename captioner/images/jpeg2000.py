"""What a JPEG2000 says of its parts, before it is decoded.

The decoder makes a record of every tile, precinct and block that a header names, whatever the file holds of them and at
whatever size it is decoded: of 108 bytes that name blocks of one pixel it took 1.7 GB for one megapixel, and 208 that
name 60,000 layers kept it busy for 94 s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from captioner.errors import BadImage

MOST_BYTES = 500_000_000
"""For records of parts. A picture of 100 megapixels in blocks of 32×32 needs half of it."""
MOST_PIECES = 10_000_000
"""Blocks of all tiles; or packets, of which there is one for each layer, size, channel and precinct. Programs write
thousands."""
MOST_PARTS = 50_000
"""What begins with a marker, outside the pixels."""
MOST_CODINGS = 100
"""Ways in which tiles and channels are coded. Programs use one; to count the blocks of 20,000 took 44 s."""
BLOCK_BYTES = 560
TILE_BYTES = 9_000
CHANNEL_BYTES = 1_100
"""Measured of OpenJPEG 2.5: of a block that is a precinct of its own, of a tile, and of each of its channels."""

_START = b"\xff\x4f\xff\x51"
_SIZE, _CODING, _CHANNEL_CODING, _TILE, _PIXELS = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_KNOWN = frozenset(
    {*range(0xFF50, 0xFF65), 0xFF74, 0xFF75, 0xFF77, 0xFF78, _TILE} - {0xFF54, 0xFF56, 0xFF5A, 0xFF5B, 0xFF62}
)
"""To the decoder."""


class Coding(NamedTuple):
    """How the pixels of a tile, or of one of its channels, are coded."""

    levels: int
    """How often its sides are halved."""
    block: tuple[int, int]
    """Width and height, as powers of 2."""
    precincts: bytes
    """Width and height for each size, the smallest first, four bits each; none: one precinct."""

    @classmethod
    def read(cls, content: bytes, has_precincts: int) -> Coding:
        levels, width, height = content[0], content[1] + 2, content[2] + 2
        return cls(levels, (width, height), content[5 : 6 + levels] if has_precincts & 1 else b"")


@dataclass(frozen=True)
class Parts:
    """What its parts come to."""

    levels: int
    """How often its sides can be halved as it is decoded."""
    bytes: int
    """What the decoder holds of them, beside pixels."""


def look_through(stream: IO[bytes], name: str) -> Parts:
    """The parts of a JPEG2000; too many are a `BadImage`. The stream stays where it is."""
    where = stream.tell()
    try:
        _find_codestream(stream)
        area = begins = tile = (0, 0)
        tiles = channels = 0
        layers = 1
        codings: set[Coding] = set()
        for marker, content in _segments(stream, name):
            if marker == _SIZE:
                _, *numbers, channels = struct.unpack_from(">H8IH", content)
                far, begins, tile, first = zip(numbers[::2], numbers[1::2], strict=True)
                area = (far[0] - begins[0], far[1] - begins[1])
                ends = (first[0] + tile[0], first[1] + tile[1])
                if tiles or not all(a <= b < min(c, d) for a, b, c, d in zip(first, begins, ends, far, strict=True)):
                    raise ValueError("the first tile does not hold where it begins")
                tiles = _cells(far[0] - first[0], tile[0]) * _cells(far[1] - first[1], tile[1])
            elif marker == _CODING:
                layers = max(layers, int.from_bytes(content[2:4], "big"))
                codings.add(Coding.read(content[5:], content[0]))
            elif marker == _CHANNEL_CODING:
                codings.add(Coding.read(content[2 if channels < 257 else 3 :], content[1 if channels < 257 else 2]))
    finally:
        stream.seek(where)
    if len(codings) > MOST_CODINGS:
        raise BadImage(f"{name} is coded in more than {MOST_CODINGS} ways: save it anew.")
    sides = (min(tile[0], area[0]), min(tile[1], area[1]))
    counts = [_counted(coding, sides) for coding in codings]
    blocks = channels * max((count for count, _ in counts), default=0)
    packets = channels * layers * max((count for _, count in counts), default=0)
    size = blocks * BLOCK_BYTES + 2 * packets + tiles * (TILE_BYTES + channels * CHANNEL_BYTES)
    if size > MOST_BYTES or tiles * max(blocks, packets) > MOST_PIECES:
        raise BadImage(f"{name} is cut into too many tiles, layers or blocks: save it anew.")
    levels = min((coding.levels for coding in codings), default=0)
    if begins != (0, 0):  # Pillow looks for a reduced picture where the whole one begins
        levels = 0
    while levels and not all(_keeps_pixels(side, cell, levels) for side, cell in zip(area, tile, strict=True)):
        levels -= 1
    return Parts(levels, size)


def reduce(image: Jpeg2KImageFile, parts: Parts, least: int) -> None:
    """Have it decoded at the smallest size that leaves so many pixels a side, as `draft` does for a JPEG.

    Pillow's own way rounds the halves of odd sides down, where the decoder rounds them up and then fails.
    """
    halvings = min(parts.levels, (min(image.size) // least).bit_length() - 1)
    if halvings < 1 or image.palette is not None:  # a mean of two colours' numbers is a third colour's
        return
    tile = image.tile[0]
    assert isinstance(tile.args, tuple)
    codec, _, *more = tile.args
    width, height = (-(-side >> halvings) for side in image.size)
    image._size = (width, height)
    image.tile = [tile._replace(extents=(0, 0, width, height), args=(codec, halvings, *more))]


def _counted(coding: Coding, sides: tuple[int, int]) -> tuple[int, int]:
    """The most blocks of one channel of a tile, and its most precincts, at all sizes together."""
    blocks = precincts = 0
    for level in range(coding.levels + 1):
        powers = (15, 15) if not coding.precincts else (coding.precincts[level] & 15, coding.precincts[level] >> 4)
        size = [-(-side >> (coding.levels - level)) for side in sides]
        precincts += _cells(size[0], 1 << powers[0], 1) * _cells(size[1], 1 << powers[1], 1)
        if level > 0:  # three bands of half the size
            size, powers = [-(-side >> 1) for side in size], (max(0, powers[0] - 1), max(0, powers[1] - 1))
        each = [
            _cells(side, 1 << min(power, block), 1)
            for side, power, block in zip(size, powers, coding.block, strict=True)
        ]
        blocks += each[0] * each[1] * (3 if level > 0 else 1)
    return blocks, precincts


def _keeps_pixels(side: int, cell: int, halvings: int) -> bool:
    """Whether each tile of a side keeps a pixel when it is halved so often: Pillow takes one of none for damage."""
    last = (side - 1) // cell * cell
    return last == 0 or (cell >> halvings > 0 and -(-last >> halvings) < -(-side >> halvings))


def _cells(side: int, cell: int, more: int = 0) -> int:
    """How many cells a side takes; more, where it may begin within one."""
    return -(-side // max(1, cell)) + more


def _find_codestream(stream: IO[bytes]) -> None:
    """Go to the first marker after its start."""
    stream.seek(0)
    if stream.read(4) == _START:
        stream.seek(2)
        return
    stream.seek(0)
    for _ in range(MOST_PARTS):
        length, kind = struct.unpack(">I4s", stream.read(8))
        header = 8
        if length == 1:
            length, header = int.from_bytes(stream.read(8), "big"), 16
        if kind == b"jp2c":
            stream.seek(2, 1)
            return
        if length < header:
            break
        stream.seek(length - header, 1)
    raise ValueError("no codestream")


def _segments(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Marker and content of what stands before the pixels of the picture, and of each part of a tile.

    Where the decoder would find them: what stands elsewhere it does not obey, and what it obeys must not be missed.
    """
    in_tile = False
    end: int | None = None
    for _ in range(MOST_PARTS):
        begin = stream.tell()
        marker = int.from_bytes(stream.read(2), "big")
        if marker in _KNOWN:
            content = stream.read(max(0, int.from_bytes(stream.read(2), "big") - 2))
            if marker == _TILE:
                length = int.from_bytes(content[2:6], "big")
                in_tile, end = True, begin + length if length else None
            yield marker, content
        elif not in_tile:  # two bytes at a time are passed over, an end and pixels among them
            if stream.tell() < begin + 2:
                return
        elif marker == _PIXELS and end is not None:  # otherwise they go to the end of the file
            if end == begin + 1:  # the decoder would take one byte of what comes next
                raise ValueError("a part of a tile ends within a marker")
            stream.seek(max(end, begin + 2))
            if int.from_bytes(stream.read(2), "big") != _TILE:
                return
            stream.seek(-2, 1)
        else:
            return
    raise BadImage(f"{name} has more than {MOST_PARTS:,} parts: save it anew.")
