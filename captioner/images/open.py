"""Open any picture safely: files, open ones, bytes, arrays → upright RGB.

Every failure is a `BadImage` with one clear line. Pictures are untrusted: their size is checked in the header, before
anything is decoded, and only formats that Pillow decodes itself are tried (never PostScript, which runs programs).
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeGuard, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from captioner.errors import BadImage, BadInput, one_line, printable
from captioner.files.names import is_url
from captioner.images import jpeg, jpeg2000, png
from captioner.images.colour import WIDE, to_rgb

MAX_PIXELS = 100_000_000

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "PCX", "PSD", "QOI", "SGI", "DDS"),
)

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".flv")
"""How videos are named. None is decoded."""
FRAME_FIRST = "take a frame out first, as ffmpeg -i clip.mp4 -frames:v 1 clip.png does"

MAX_FILE_BYTES = 500_000_000
"""Of a file. More than any picture of `MAX_PIXELS` needs."""
MAX_WHOLE_BYTES = 200_000_000
"""Of a file of those kinds that are read into memory whole before anything is known of them."""
READ_BYTES = 1_000_000
"""Of a JPEG at a time. After each piece its thread waits for Python, which others may be busy with: by Pillow's usual
64 kB, four threads opened half as many photographs of 4 megapixels beside such a one."""
MAX_SIDE = 65_535
MAX_ASPECT = 1_000
"""A strip that is longer is no picture, and resizing one takes memory by its length alone."""
LONGEST = 16
"""Of a picture longer than this, measured in its shorter sides, a model reads the middle."""


def at_once(size: int) -> None:
    """Admits any number of bytes."""


class Readable(Protocol):
    """An open file, or what is read like one."""

    def read(self, size: int = ..., /) -> bytes:
        """So many bytes at most."""


def is_readable(source: object) -> TypeGuard[Readable]:
    """Since Python 3.12 `isinstance` does not see what a wrapper, as a temporary file is one, passes on."""
    return callable(getattr(source, "read", None))


AnyImage = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image | np.ndarray | Mapping[str, Any]
)
"""What a picture may come as."""


def open_image(
    source: AnyImage,
    *,
    max_pixels: int = MAX_PIXELS,
    admit: Callable[[int], object] = at_once,
    side: int | None = None,
    copied: bool = True,
) -> Image.Image:
    """Any picture as upright RGB: first frame, alpha laid on white, 16 bits scaled to 8, colours brought to sRGB.

    Arrays are `[h, w]`, `[h, w, 1]`, `[h, w, 3]` or `[h, w, 4]` of uint8, uint16, bool, or floats in 0..1.
    An open file is read from its beginning. What `datasets` gives of an undecoded picture is its bytes, or its path.
    max_pixels guards against what would be decoded: a picture that lies decoded in memory is no danger any more.
    admit: called before a file is decoded with the bytes that this will take at most; it may make the caller wait.
    side: pixels a side that the picture will be made of. A JPEG or JPEG2000 that has at least four times as many both
    ways is decoded at a half, a quarter … of its size, the least that leaves twice as many; None: at its own.
    copied: a picture in memory that is upright RGB already is copied. Whoever only looks at it needs no copy.
    """
    if isinstance(source, Mapping):
        source = next((source[name] for name in ("bytes", "path") if source.get(name) is not None), source)
    if isinstance(source, ImageFile.ImageFile) and source.tile:
        return decoded(source, "the picture", max_pixels, copied=copied)
    if isinstance(source, Image.Image):
        return _finish(source, "the picture", sys.maxsize, copied)
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), "the array", max_pixels)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        if not path:  # which to the system is the folder one is in
            raise BadImage("An empty text names no picture: give its path.")
        return open_named(path, printable(path), max_pixels, admit, side)
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    elif is_readable(source):
        source = _read_whole(source)
    if not isinstance(source, bytes):
        kind = type(source).__name__
        raise BadInput(f"{kind} is no picture: give a path, a PIL image, an array, bytes or an open file.")
    return open_named(source, "the data", max_pixels, admit, side)


def _read_whole(stream: Readable) -> bytes:
    """All of an open file, from its beginning where it can go back, as `Image.open` reads one."""
    text = BadInput("A picture is read as bytes: open its file with mode 'rb'.")
    pieces: list[bytes] = []
    size = 0
    try:
        with suppress(AttributeError, OSError):  # a pipe, or what the network sends
            cast("BinaryIO", stream).seek(0)
        while size <= MAX_FILE_BYTES and (piece := stream.read(MAX_FILE_BYTES + 1 - size)):
            if not isinstance(piece, bytes):
                raise text
            pieces.append(piece)  # a pipe gives less than is asked for
            size += len(piece)
    except UnicodeDecodeError as error:
        raise text from error
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise BadImage(f"The open file cannot be read ({one_line(error)}).") from error
    if size > MAX_FILE_BYTES:
        raise BadImage(f"The open file is larger than {MAX_FILE_BYTES:,} bytes, too large for a picture.")
    return b"".join(pieces)


def open_named(
    source: str | Path | bytes,
    name: str,
    max_pixels: int,
    admit: Callable[[int], object] = at_once,
    side: int | None = None,
) -> Image.Image:
    """As `open_image`, with a name for the messages."""
    with identified(source, name) as image:
        return decoded(image, name, max_pixels, admit, side)


def decoded(
    image: Image.Image,
    name: str,
    max_pixels: int,
    admit: Callable[[int], object] = at_once,
    side: int | None = None,
    copied: bool = False,
) -> Image.Image:
    """A picture of which only the header has been read, as `open_image`."""
    _check_size(image, name, max_pixels)
    parts = 0
    with _explained(image, name):
        whole = bytes_to_open(image)
        if isinstance(image, JpegImageFile):
            image.decodermaxblock = READ_BYTES
            if side is not None:
                image.draft(None, (2 * side, 2 * side))
        elif isinstance(image, Jpeg2KImageFile) and image.fp is not None:
            seen = jpeg2000.look_through(image.fp, name)
            parts = seen.bytes
            if side is not None:
                jpeg2000.reduce(image, seen, 2 * side)
        # Of a progressive JPEG the decoder holds every pixel, whatever size it gives it.
        needed = parts + (whole if image.info.get("progressive") else bytes_to_open(image))
        if side is not None:
            needed = max(needed, bytes_of(image) + _bytes_to_resize(image, side))
    admit(needed)
    with _explained(image, name):
        if isinstance(image, JpegImageFile) and image.fp is not None:
            jpeg.check_scans(image.fp, name)
        image.load()
    return _finish(image, name, max_pixels, copied)


@contextmanager
def identified(source: str | Path | bytes, name: str, max_text: int = 0) -> Iterator[Image.Image]:
    """A picture of which only the header has been read.

    `max_text`: for reading the texts inside, not the pixels. Of a PNG, texts up to this length are kept, wherever they
    stand, and the pixels are left out.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(Path(source), name) as stream:
        try:
            image = _identify(stream, name, max_text)
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            empty = stream.seek(0, os.SEEK_END) == 0
            unknown = "is not a picture of a kind that can be read, or is cut off"
            raise _no_picture(name, "is empty (0 bytes)" if empty else unknown) from error
        except Image.DecompressionBombError as error:
            raise BadImage(f"{name} is far too large: {one_line(error)}.") from error
        except MemoryError as error:
            raise BadImage(f"{name} needs more memory than there is.") from error
        except Exception as error:  # a decoder that meets hostile bytes may raise anything
            raise BadImage(f"{name} is damaged ({one_line(error)}).") from error
        yield image


def _no_picture(name: str, reason: str) -> BadImage:
    """What is wrong with a file, or what to do with a video."""
    if name.lower().endswith(VIDEOS):
        reason = f"is a video, not a picture: {FRAME_FIRST}"
    return BadImage(f"{name} {reason}.")


_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}
"""Where a kind of picture is not called as its files are."""


def ending_of(source: str | Path | bytes, name: str) -> str:
    """What the name of such a picture's file ends with; .png of what is no picture any more."""
    try:
        with identified(source, name) as image:
            kind = image.format or ""
    except BadImage:
        return ".png"
    return _ENDINGS.get(kind, f".{kind.lower()}")


def open_file(path: Path, name: str) -> BinaryIO:
    """A regular file of a picture's size; anything else is a `BadImage`."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise BadImage(f"{name} is a folder, not a picture.")
        if not stat.S_ISREG(kind):  # opening a named pipe would wait for ever
            raise BadImage(f"{name} is not a regular file. A pipe can be read as standard input.")
        stream = path.open("rb")
    except OSError as error:
        if is_url(name):  # which a system may refuse for its length or its letters
            reason = "is an address, not a file: fetch it, and give the bytes"
        elif isinstance(error, FileNotFoundError):
            reason = "is a broken link" if path.is_symlink() else "does not exist"
        else:
            reason = f"cannot be read ({error.strerror})"
        raise BadImage(f"{name} {reason}.") from error
    except ValueError as error:  # a NUL inside the name
        raise BadImage(f"{name} is not a file name.") from error
    if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
        stream.close()
        raise _no_picture(name, f"is larger than {MAX_FILE_BYTES:,} bytes, too large for a picture")
    return stream


def _identify(stream: BinaryIO, name: str, max_text: int) -> Image.Image:
    """As `Image.open`, whose own limit of pixels is the process's and not the caller's."""
    head = stream.read(16)
    is_media = head[4:8] == b"ftyp"  # HEIC, AVIF, and films
    if (is_media or head[8:12] == b"WEBP") and stream.seek(0, os.SEEK_END) > MAX_WHOLE_BYTES:
        raise _no_picture(name, f"is larger than {MAX_WHOLE_BYTES:,} bytes, too large for its kind of picture")
    if head.startswith(png.SIGNATURE):
        stream = png.lighter(stream, name, max_text)
    for reader, accepts in _readers(is_media):
        stream.seek(0)
        try:
            accepted = accepts is None or accepts(head)
            if accepted and not isinstance(accepted, str):  # a text says what is missing for this format
                return reader(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # not this format after all
    raise UnidentifiedImageError


def _readers(
    is_media: bool,
) -> Iterator[tuple[Callable[[BinaryIO, str], Image.Image], Callable[[bytes], object] | None]]:
    """What reads each format, and what tells from the first 16 bytes whether it can."""
    Image.preinit()
    for kind in FORMATS:
        if kind not in Image.OPEN:
            Image.init()
        yield Image.OPEN[kind]
    if is_media:
        from pillow_heif import HeifImageFile

        yield HeifImageFile, None


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(
            f"{name} has {width}×{height} pixels, above the limit of {max_pixels:,}. Make it smaller, or, if you trust "
            "it, raise max_pixels."
        )
    if width * height == 0:
        raise BadImage(f"{name} has no pixels ({width}×{height}).")
    if max(width, height) > min(MAX_SIDE, MAX_ASPECT * min(width, height)):
        raise BadImage(
            f"{name} is a strip of {width}×{height} pixels: no side may be longer than {MAX_SIDE:,}, "
            f"nor {MAX_ASPECT:,} times the other. Cut it into pieces."
        )


_DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "HEIF": 8, "JPEG2000": 24, "TIFF": 4, "PSD": 4}
"""What decoders hold of a pixel beside the picture itself."""


def bytes_to_open(image: Image.Image) -> int:
    """The most that decoding a picture and making it upright RGB takes, all copies counted. Only the header is read."""
    if image.mode in ("I", "F") or image.has_transparency_data:
        copies = 24
    elif image.info.get("icc_profile") or image.mode != "RGB":
        copies = 12
    else:
        copies = 8
    decoder = 6 if image.info.get("progressive") else _DECODER_BYTES.get(image.format or "", 0)
    return image.width * image.height * (copies + decoder)


def _bytes_to_resize(image: Image.Image, side: int) -> int:
    """The most that a model takes to bring the shorter side to so many pixels: what is cut out of a strip, that
    resized one way, and both ways."""
    short, long = sorted(image.size)
    cut_out = 0
    if long > LONGEST * short:
        cut_out = long = LONGEST * short
    return 4 * (cut_out * short + long * side + long * side * side // short)


def bytes_of(image: Image.Image) -> int:
    """What an opened picture takes: Pillow gives each RGB pixel four bytes."""
    return image.width * image.height * 4


def _finish(image: Image.Image, name: str, max_pixels: int, copied: bool = True) -> Image.Image:
    """What is decoded, upright. copied: others have the picture. A copy takes a third as long as decoding."""
    _check_size(image, name, max_pixels)  # some kinds learn their size only as they are decoded
    with _explained(image, name):
        upright = _upright(to_rgb(image), image)
        if upright is image:
            upright = Image.Image.copy(image) if copied else image._new(image.im)  # without the file around it
    upright.info = {}  # no EXIF that would turn it a second time, no profile, no megabytes of text
    return upright


@contextmanager
def _explained(image: Image.Image, name: str) -> Iterator[None]:
    """Whatever a decoder raises as a `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage(f"{name} ({image.width}×{image.height} pixels) needs more memory than there is.") from error
    except Exception as error:  # a decoder that meets hostile bytes may raise anything
        raise BadImage(f"{name} is damaged or of an unknown kind ({one_line(error)}).") from error


_TURNS: dict[object, Image.Transpose] = {
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
    if array.dtype.newbyteorder("=") == np.uint16:
        return Image.fromarray(WIDE[array])
    if array.dtype.kind not in "fbui":
        raise BadImage(f"The array holds {array.dtype}, which is no kind of pixel: give whole numbers or floats.")
    top = 1 if array.dtype.kind in "fb" else 255
    if not ((array >= 0) & (array <= top)).all():  # NaN fails too
        raise BadImage(f"The array ({array.dtype}) has values outside 0..{top}: integers go to 255, floats to 1.")
    return Image.fromarray(np.rint(array * (255 / top)).astype(np.uint8))
