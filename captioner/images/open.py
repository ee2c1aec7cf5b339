"""Open any picture safely: files, bytes, arrays → upright RGB.

Every failure is a `BadImage` with one clear line. Pictures are untrusted: their size is checked in the header, before
anything is decoded, and only formats that Pillow decodes itself are tried (never PostScript, which runs programs).
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from captioner.errors import BadImage

MAX_PIXELS = 100_000_000

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "PCX", "PSD", "QOI", "SGI", "DDS"),
)
# Pillow's remarks on corrupt EXIF and large sizes would only be noise: we check the size as soon as the header is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(source: str | Path | bytes | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Any picture as upright RGB: first frame, alpha laid on white, 16 bits scaled to 8.

    Arrays are `[h, w]`, `[h, w, 1]`, `[h, w, 3]` or `[h, w, 4]` of uint8, uint16, bool, or floats in 0..1.
    max_pixels guards against what would be decoded: a picture that lies decoded in memory is no danger any more.
    """
    if isinstance(source, Image.Image):
        is_decoded = not (isinstance(source, ImageFile.ImageFile) and source.tile)
        return _finish(source, "the picture", sys.maxsize if is_decoded else max_pixels)
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), "the array", max_pixels)
    name = "the data" if isinstance(source, bytes) else printable(os.fspath(source))
    return open_named(source, name, max_pixels)


def open_named(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
    # Pillow refuses twice its own limit by itself. Who allows more here has asked for it to be lifted.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    with identified(source, name) as image:
        return _finish(image, name, max_pixels)


@contextmanager
def identified(source: str | Path | bytes, name: str, max_text: int = 0) -> Iterator[Image.Image]:
    """A picture of which only the header has been read.

    `max_text`: for reading the texts inside, not the pixels. Of a PNG, texts up to this length are kept, wherever they
    stand, and the pixels are left out.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(Path(source), name) as stream:
        try:
            image = _identify(stream, max_text)
        except UnidentifiedImageError as error:
            empty = stream.seek(0, os.SEEK_END) == 0
            reason = "is empty (0 bytes)" if empty else "is not a picture of a kind that can be read, or is cut off"
            raise BadImage(f"{name} {reason}.") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImage(f"{name} is far too large: {one_line(error)}. See --max-pixels.") from error
        except Exception as error:  # a decoder that meets hostile bytes may raise anything
            raise BadImage(f"{name} is damaged ({one_line(error)}).") from error
        yield image


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise BadImage(f"{name} is a folder, not a picture.")
        if not stat.S_ISREG(kind):  # opening a named pipe would wait for ever
            raise BadImage(f"{name} is not a regular file. To read a pipe, name `-` for standard input.")
        return path.open("rb")
    except FileNotFoundError as error:
        reason = "is a broken link" if path.is_symlink() else "does not exist"
        raise BadImage(f"{name} {reason}.") from error
    except OSError as error:
        raise BadImage(f"{name} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL inside the name
        raise BadImage(f"{name} is not a file name.") from error


def _identify(stream: BinaryIO, max_text: int) -> Image.Image:
    head = stream.read(16)
    formats = FORMATS
    if head[4:8] == b"ftyp":
        import pillow_heif

        pillow_heif.register_heif_opener()
        formats = (*FORMATS, "HEIF")
    if head.startswith(_PNG):
        stream = _lighter_png(stream, max_text)
    stream.seek(0)
    return Image.open(stream, formats=formats)


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def _lighter_png(stream: BinaryIO, max_text: int) -> BinaryIO:
    """A PNG without its long texts and its colour profile; with `max_text`, without its pixels too.

    Pillow reads all texts into memory, refuses the whole picture when there is too much of them, and decodes the pixels
    before it comes to the texts behind them.
    """
    kept = io.BytesIO()
    size = stream.seek(0, os.SEEK_END)
    start, position, kind = 0, len(_PNG), b""  # the bytes from `start` are still to be copied
    while position + 8 <= size and kind != b"IEND":
        stream.seek(position)
        length, kind, keyword = struct.unpack(">I4s21s", stream.read(29).ljust(29))
        end = min(position + 12 + length, size)
        allowed = 1 << 20 if keyword.startswith(_PNG_ORIENTATION) else max_text
        unwanted = (
            length > allowed if kind in (b"tEXt", b"zTXt", b"iTXt") else kind == (b"IDAT" if max_text else b"iCCP")
        )
        if unwanted:
            _copy(stream, kept, start, position)
            start = end
        position = end
    if start == 0:
        return stream
    _copy(stream, kept, start, size)
    return kept


def _copy(stream: BinaryIO, into: BinaryIO, start: int, end: int) -> None:
    stream.seek(start)
    into.write(stream.read(end - start))


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(
            f"{name} has {width}×{height} pixels, above the limit of {max_pixels:,}. "
            f"If you trust it, allow more with --max-pixels."
        )
    if width * height == 0:
        raise BadImage(f"{name} has no pixels ({width}×{height}).")
    try:
        image.load()
        upright = _upright(_rgb(image), image)
    except Exception as error:  # a decoder that meets hostile bytes may raise anything
        raise BadImage(f"{name} is damaged or of an unknown kind ({one_line(error)}).") from error
    upright.info = {}  # no EXIF that would turn it a second time, no megabytes of text
    return upright


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_WIDE[np.asarray(image).astype(np.uint16)]).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_narrow(np.asarray(image), 1 if image.mode == "F" else 65535)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


_WIDE = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""16 bits → 8 bits."""


def _narrow(grey: np.ndarray, top: int) -> np.ndarray:
    """Numbers → 8 bits: 0..top where they lie in it, otherwise (depth maps and the like) from their least to most."""
    grey = np.nan_to_num(grey.astype(np.float32))
    low, high = min(grey.min(), 0), grey.max()
    if low < 0 or high > top:
        low, top = grey.min(), max(high, grey.min() + 1)
    return np.rint((grey - low) / (top - low) * 255).astype(np.uint8)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → how to undo it."""


def _upright(pixels: Image.Image, original: Image.Image) -> Image.Image:
    try:
        orientation = original.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF says nothing of the orientation, and the pixels are still good
        orientation = None
    turn = _TURNS.get(orientation)
    return pixels if turn is None else pixels.transpose(turn)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [h, w]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise BadImage(f"The array has shape {array.shape}; a picture is [h, w], [h, w, 3] or [h, w, 4].")
    if array.size == 0:
        raise BadImage(f"The array has no pixels (shape {array.shape}).")
    if array.dtype == np.uint16:
        return Image.fromarray(_WIDE[array])
    top = 1 if array.dtype.kind in "fb" else 255
    if array.dtype.kind not in "fbui" or not ((array >= 0) & (array <= top)).all():  # NaN fails too
        raise BadImage(f"The array ({array.dtype}) has values outside 0..{top}: integers go to 255, floats to 1.")
    return Image.fromarray(np.rint(array * (255 / top)).astype(np.uint8))


def one_line(error: Exception | str) -> str:
    """Another library's own words."""
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


def printable(name: str) -> str:
    """A name on one line: control characters and bytes that are no text are escaped."""
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
