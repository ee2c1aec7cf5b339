"""A PNG without what could make opening it long or large, and what is left of it read in place, without a copy.

Pillow reads every chunk into memory, refuses the whole picture when there is too much text in it, and decodes the
pixels before it comes to the texts behind them.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

from captioner.errors import BadImage

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
"""A picture of 100 million pixels that do not compress has half as many of 8 KiB."""
MAX_CHUNK = 1 << 20
"""Bytes of a chunk that is not pixels; also of a colour profile when it is inflated, as Pillow has it."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PIXELS = (b"IDAT", b"fdAT")
_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def lighter(stream: BinaryIO, name: str, max_text: int) -> BinaryIO:
    """The PNG without long texts, oversized chunks and unsound profiles; with `max_text`, without its pixels too.

    max_text: 0 to see the pixels; otherwise texts up to this length are left in, wherever they stand.
    """
    size = stream.seek(0, os.SEEK_END)
    parts: list[tuple[int, int]] = []
    start, position = 0, len(SIGNATURE)  # what is wanted goes on from `start`
    for _ in range(MAX_CHUNKS):
        stream.seek(position)
        length, kind, keyword = struct.unpack(">I4s21s", stream.read(29).ljust(29))
        if not kind.isalpha():
            break  # its end, or no PNG from here on; Pillow says so
        end = min(position + 12 + length, size)
        if _unwanted(stream, position, length, kind, keyword, max_text):
            parts.append((start, position))
            start = end
        position = end
    else:
        raise BadImage(f"{name} has more than {MAX_CHUNKS:,} parts (PNG chunks): no picture needs so many.")
    return io.BufferedReader(_Parts(stream, [*parts, (start, size)])) if parts else stream


def _unwanted(stream: BinaryIO, position: int, length: int, kind: bytes, keyword: bytes, max_text: int) -> bool:
    if kind in _TEXTS:
        return length > (MAX_CHUNK if keyword.startswith(_ORIENTATION) else max_text)
    if kind in _PIXELS:
        return max_text > 0
    if kind == b"iCCP" and length <= MAX_CHUNK:
        stream.seek(position + 8)
        return not _inflates(stream.read(length))
    return length > MAX_CHUNK


def _inflates(profile: bytes) -> bool:
    """Whether Pillow will take this colour profile: name, 0, method 0, then the profile, compressed."""
    _, _, rest = profile.partition(b"\0")
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(rest[1:], MAX_CHUNK)
    except zlib.error:
        return False
    return rest[:1] == b"\0" and not inflating.unconsumed_tail


class _Parts(io.RawIOBase):
    """Some parts of a stream, one after the other, as if the rest were not there."""

    def __init__(self, stream: BinaryIO, parts: list[tuple[int, int]]) -> None:
        self.stream = stream
        self.parts = parts
        self.size = sum(end - start for start, end in parts)
        self.position = 0
        self.part = 0
        """The index of the part that `position` lies in, which begins at `begin`."""
        self.begin = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        if self.position < self.begin:
            self.part = self.begin = 0
        return self.position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        while self.part < len(self.parts):
            start, end = self.parts[self.part]
            offset = self.position - self.begin
            if offset < end - start:
                self.stream.seek(start + offset)
                data = self.stream.read(min(len(view), end - start - offset))
                view[: len(data)] = data
                self.position += len(data)
                return len(data)
            self.begin += end - start
            self.part += 1
        return 0
