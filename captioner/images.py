"""Open anything safely: files, bytes, arrays, addresses → upright RGB pictures; inputs → the pictures they name.

Every failure is a `BadImage` with one clear line. Pictures are untrusted: their size is checked in the header, before
anything is decoded, and only formats that Pillow decodes itself are tried (never PostScript, which runs programs).
"""

from __future__ import annotations

import glob
import http.client
import io
import os
import re
import stat
import struct
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from captioner import __version__
from captioner.errors import BadImage

MAX_PIXELS = 100_000_000
MAX_BYTES = 50_000_000
"""The most that is taken from one http answer."""
MAX_STDIN_BYTES = 500_000_000
MAX_REDIRECTS = 5

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "PCX", "PSD", "QOI", "SGI", "DDS"),
)
EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".avifs", ".heic", ".heics", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tga", ".ico", ".pcx", ".psd", ".qoi", ".sgi", ".dds"),
)
"""What counts as a picture when a folder or a glob is expanded. A file that is named itself is always tried."""

# Pillow's remarks on corrupt EXIF and large sizes would only be noise: we check the size as soon as the header is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


# --- one picture -----------------------------------------------------------------------------------------------------


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
    return _open(source, name, max_pixels)


def _open(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
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
            raise BadImage(f"{name} is far too large: {_one_line(error)}. See --max-pixels.") from error
        except Exception as error:  # a decoder that meets hostile bytes may raise anything
            raise BadImage(f"{name} is damaged ({_one_line(error)}).") from error
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
        raise BadImage(f"{name} is damaged or of an unknown kind ({_one_line(error)}).") from error
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


def _one_line(error: Exception | str) -> str:
    """Another library's own words."""
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


def printable(name: str) -> str:
    """A name on one line: control characters and bytes that are no text are escaped."""
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


# --- from an address -------------------------------------------------------------------------------------------------


def fetch_image(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = 20.0) -> bytes:
    """The bytes behind an http(s) address. `timeout` is for the whole transfer, name look-up and redirects included."""
    answer: Future[bytes] = Future()
    deadline = time.monotonic() + timeout

    def work() -> None:
        try:
            answer.set_result(_download(url, max_bytes, deadline))
        except Exception as error:  # raised again by answer.result()
            answer.set_exception(error)

    # A socket's own timeout starts anew with every byte, so the wait is bounded from outside. What is left behind
    # when it ends is one idle thread that gives up by itself.
    threading.Thread(target=work, daemon=True, name="fetch-image").start()
    try:
        return answer.result(timeout)
    except (TimeoutError, WaitTimeout) as error:  # one class since Python 3.11
        raise BadImage(f"{printable(url)} did not answer in full within {timeout:g} seconds.") from error


class _ByHand(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to us: the standard handler reads the whole (perhaps endless) body before it follows one."""

    def redirect_request(self, *_) -> None:
        return None


def _download(url: str, max_bytes: int, deadline: float) -> bytes:
    name = printable(url)
    opener = urllib.request.build_opener(_ByHand)
    for _ in range(MAX_REDIRECTS + 1):
        if not is_url(url):
            raise BadImage(f"{name} leads to {printable(url)}, which is not an http or https address.")
        request = urllib.request.Request(url, headers={"User-Agent": f"captioner/{__version__}", "Accept": "image/*"})
        try:
            with opener.open(request, timeout=max(deadline - time.monotonic(), 0.01)) as response:
                return _read_answer(response, name, max_bytes, deadline)
        except urllib.error.HTTPError as error:
            error.close()
            if not (300 <= error.code < 400 and error.headers["Location"]):
                raise BadImage(f"{name} answers {error.code} {_one_line(error.reason)}.") from error
            url = urllib.parse.urljoin(url, error.headers["Location"])
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise BadImage(f"{name} cannot be fetched ({_one_line(cause)}).") from error
    raise BadImage(f"{name} redirects more than {MAX_REDIRECTS} times.")


def _read_answer(response: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float) -> bytes:
    kind = response.headers.get_content_type() if response.headers["Content-Type"] else "image/*"
    if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        raise BadImage(f"{name} answers with {printable(kind)}, not a picture.")
    received = bytearray()
    while piece := response.read1(1 << 16):  # at most one wait on the network each
        received += piece
        if len(received) > max_bytes:
            raise BadImage(f"{name} is larger than {max_bytes:,} bytes.")
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # what the server promised and did not send
        raise BadImage(f"{name} broke off after {len(received):,} bytes.")
    return bytes(received)


def is_url(text: str) -> bool:
    """Whether it is an http(s) address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


# --- from what a user names to pictures ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One picture that a user named, or what was wrong with the name (`problem`)."""

    name: str
    """On one line, for reports: control characters are escaped."""
    path: Path | None = None
    url: str | None = None
    data: bytes | None = None
    """Read from standard input."""
    problem: str | None = None

    def content(self) -> Path | bytes:
        """The file, or the bytes read or fetched; `open_image` and `read_parameters` take either."""
        if self.problem is not None:
            raise BadImage(self.problem)
        if self.url is not None:
            return fetch_image(self.url)
        return self.path if self.data is None else self.data

    def open(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The picture, upright RGB. Whatever is wrong is a `BadImage` that begins with the name."""
        return _open(self.content(), self.name, max_pixels)


def find_images(inputs: Sequence[str], *, recursive: bool = False) -> Iterator[Source]:
    """The pictures that files, folders, globs, http(s) addresses and "-" (standard input) name, each once.

    In the order of the inputs; folders and globs sorted by name, a folder's files before its subfolders. Hidden files
    and files without a picture's extension are passed over there. An input that names nothing, and a folder that
    cannot be read, come out as a `Source` with a problem.
    """
    seen: set[str] = set()
    for source in _all_sources(inputs, recursive):
        key = source.url or (source.name if source.path is None else os.path.abspath(source.path))
        if source.problem is not None or key not in seen:
            seen.add(key)
            yield source


def _all_sources(inputs: Sequence[str], recursive: bool) -> Iterator[Source]:
    folders: set[tuple[int, int]] = set()
    for text in map(os.fspath, inputs):
        if text == "-":
            yield _from_stdin()
        elif is_url(text):
            yield Source(printable(text), url=text)
        elif os.path.isdir(text):
            yield from _in_folder(text, recursive, folders)
        elif os.path.lexists(text):  # before globs: "[1].png" is a good file name
            yield _file(text)
        elif glob.has_magic(text):
            yield from _matching(text, recursive, folders)
        else:
            yield _problem(text, "does not exist")


def _matching(pattern: str, recursive: bool, folders: set[tuple[int, int]]) -> Iterator[Source]:
    """A glob. `**` means no more than `*`: through subfolders, links between which may loop, leads `--recursive`."""
    found = sorted(glob.glob(pattern), key=os.fsencode)
    if not found:
        yield _problem(pattern, "matches nothing")
    # "photos/*" should pass over notes.txt, but "*.data" means just those.
    for match in [m for m in found if os.path.isdir(m) or _looks_like_image(m)] or found:
        if os.path.isdir(match):
            yield from _in_folder(match, recursive, folders)
        else:
            yield _file(match)


def _in_folder(top: str, recursive: bool, folders: set[tuple[int, int]]) -> Iterator[Source]:
    """`folders`: device and inode of those already seen, so that links which loop are followed once."""
    waiting = [top]
    anything = False
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in folders:
                anything = True
                continue
            folders.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                names = sorted((e.name for e in entries if not e.name.startswith(".")), key=os.fsencode)
        except OSError as error:
            anything = True
            yield _problem(folder, f"cannot be read ({error.strerror})")
            continue
        paths = [os.path.join(folder, name) for name in names]
        subfolders = [path for path in paths if os.path.isdir(path)]
        if recursive:
            waiting.extend(reversed(subfolders))
        for path in paths:
            if _looks_like_image(path) and not os.path.isdir(path):
                anything = True
                yield _file(path)
    if not anything:
        hint = "" if recursive else " Use --recursive to look into its subfolders."
        yield _problem(top, f"holds no pictures.{hint}")


def _looks_like_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def _file(path: str) -> Source:
    return Source(printable(path), path=Path(path))


def _problem(text: str, what: str) -> Source:
    name = printable(text)
    return Source(name, problem=f"{name} {what}{'' if what.endswith('.') else '.'}")


def _from_stdin() -> Source:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        return Source("-", problem=f"Standard input holds more than {MAX_STDIN_BYTES:,} bytes.")
    return Source("-", data=data)
