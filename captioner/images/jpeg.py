"""What a JPEG says of its scans, before it is decoded.

Each scan makes the decoder go over all pixels once more, however few bytes it has, and nothing can stop it: half a
megabyte that claims 100 megapixels in 400 scans took more than a minute. Programs write ten; libtiff takes no more
than a hundred either.
"""

from __future__ import annotations

import re
from typing import IO

from captioner.errors import BadImage

MAX_SCANS = 100
MAX_PARTS = 20_000
"""What begins with a marker. The largest file has some thousands, of 64 kB each; to count millions takes as long as to
decode many scans."""
LARGEST = 200_000_000
"""Bytes of a file of several scans: all of it is looked through."""

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""Neither a byte of 255 among the pixels, nor a restart, nor what fills the space before a marker."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})
_END, _SCAN = 0xD9, 0xDA


def check_scans(stream: IO[bytes], name: str) -> None:
    """A JPEG that would take too long is a `BadImage`. The stream stays where it is."""
    where = stream.tell()
    try:
        if _has_several_scans(stream):
            stream.seek(0)
            if len(data := stream.read(LARGEST + 1)) > LARGEST:
                raise BadImage(f"{name} is larger than {LARGEST:,} bytes, too large for a JPEG of several scans.")
            if _takes_too_long(data):
                raise BadImage(f"{name} has more than {MAX_SCANS} scans or {MAX_PARTS:,} parts: save it anew.")
    finally:
        stream.seek(where)


def _has_several_scans(stream: IO[bytes]) -> bool:
    """Whether it is progressive, or its first scan leaves out some of its colours; what is unusual may be so."""
    stream.seek(2)
    colours = b""
    for _ in range(MAX_PARTS):
        head = stream.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in _WITHOUT_LENGTH:
            break
        content = stream.read(max(0, int.from_bytes(head[2:], "big") - 2))
        if head[1] in _PROGRESSIVE:
            return True
        if head[1] in _FRAMES:
            colours = content[5:6]
        elif head[1] == _SCAN:
            return content[:1] != colours
    return True


def _takes_too_long(data: bytes) -> bool:
    scans = parts = 0
    place = 2
    while (marker := _MARKER.search(data, place)) is not None and marker[1][0] != _END:
        scans += marker[1][0] == _SCAN
        parts += 1
        if scans > MAX_SCANS or parts > MAX_PARTS:
            return True
        place = marker.end()
        if marker[1][0] not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
    return False
