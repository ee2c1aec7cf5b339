"""Opening pictures of every kind, sane or hostile; fetching them; finding them."""

from __future__ import annotations

import io
import os
import shutil
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from captioner.errors import BadImage, BadInput
from captioner.images import Source, fetch_image, find_images, is_there, open_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    into = io.BytesIO()
    image.save(into, kind, **settings)
    return into.getvalue()


def two_colours(size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def near(pixel: tuple[int, ...], wanted: tuple[int, ...], by: int = 12) -> bool:
    return len(pixel) == len(wanted) and all(abs(a - b) <= by for a, b in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "PPM", "TGA", "JPEG2000"]
)
def test_every_format_opens_with_its_colours(kind: str) -> None:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    opened = open_image(encoded(two_colours((64, 32)), kind))
    assert (opened.mode, opened.size) == ("RGB", (64, 32))
    assert near(opened.getpixel((8, 16)), RED, 40)
    assert near(opened.getpixel((56, 16)), BLUE, 40)


def test_heif_opens_without_anybody_registering_it(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.from_pillow(two_colours((64, 32))).save(tmp_path / "a.heic")
    code = "import sys; from captioner.images import open_image; print(open_image(sys.argv[1]).size)"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.heic"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(64, 32)"


def test_paths_bytes_pictures_and_arrays_give_the_same(tmp_path: Path) -> None:
    picture = two_colours()
    file = tmp_path / "a.png"
    picture.save(file)
    for source in (str(file), file, file.read_bytes(), picture, np.asarray(picture), np.asarray(picture) / 255):
        assert open_image(source).tobytes() == picture.tobytes()


def test_what_is_read_like_a_file_is_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    two_colours().save(file)
    content = file.read_bytes()
    with file.open("rb") as opened, io.BytesIO(content) as stream:
        stream.seek(7)
        for source in (opened, stream, bytearray(content), memoryview(content)):
            assert open_image(source).tobytes() == two_colours().tobytes()
    for closed in (opened, stream):
        with pytest.raises(BadImage, match="open file cannot be read"):
            open_image(closed)
    with file.open() as text, pytest.raises(BadInput, match="mode 'rb'"):
        open_image(text)
    with file.open("ab") as written, pytest.raises(BadImage, match="open file cannot be read"):
        open_image(written)


def test_an_open_file_of_another_kind_is_read_from_its_beginning_to_its_end() -> None:
    into = io.BytesIO()
    two_colours((300, 300)).save(into, "BMP")
    content = into.getvalue()
    reader, writer = os.pipe()
    with tempfile.NamedTemporaryFile() as kept, os.fdopen(reader, "rb", buffering=0) as pipe:
        kept.write(content)
        sender = threading.Thread(target=lambda: os.fdopen(writer, "wb").write(content))
        sender.start()
        for source in (kept, pipe):  # neither is of the classes of `io` that seek; a pipe gives what is in it
            assert open_image(source).tobytes() == two_colours((300, 300)).tobytes()
        sender.join()


def test_a_path_of_bytes_and_an_address() -> None:
    class Named:
        def __fspath__(self) -> bytes:
            return b"nowhere.png"

    with pytest.raises(BadImage, match=r"^nowhere\.png does not exist"):
        open_image(Named())
    for more in ("", f"?signature={'x' * 300}"):
        with pytest.raises(BadImage, match="is an address, not a file: fetch it"):
            open_image(f"https://example.org/a.png{more}")


def test_a_picture_in_memory_is_copied_unless_it_is_only_looked_at() -> None:
    picture = two_colours()
    copied, seen = open_image(picture), open_image(picture, copied=False)
    picture.putpixel((0, 0), (1, 2, 3))
    assert copied.getpixel((0, 0)) != (1, 2, 3) == seen.getpixel((0, 0))
    picture.info["comment"] = "mine"
    assert open_image(picture, copied=False).info == {}
    assert picture.info == {"comment": "mine"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (3, 2), 255)
    image = Image.new(mode, (3, 2), 65535 if mode in ("I", "I;16") else 1.0) if mode[0] in "IF" else image.convert(mode)
    assert open_image(image).mode == "RGB"
    assert open_image(image).getpixel((1, 1)) == WHITE


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for source in (encoded(Image.fromarray(wide)), encoded(Image.fromarray(wide), "TIFF"), wide):
        opened = open_image(source)
        assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_numbers_beyond_their_range_are_stretched() -> None:
    opened = open_image(Image.fromarray(np.array([[-10.0, 0.0, 30.0]], dtype=np.float32)))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 64, 255]


def test_alpha_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    for data in (encoded(clear), encoded(clear, "WEBP", lossless=True), encoded(palette, transparency=0)):
        opened = open_image(data)
        assert (opened.getpixel((0, 0)), opened.getpixel((1, 0))) == (WHITE, RED)
    assert open_image(encoded(Image.new("RGB", (1, 1), RED), transparency=RED)).getpixel((0, 0)) == WHITE


def test_cmyk_jpeg_keeps_its_colours() -> None:
    opened = open_image(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95))
    assert near(opened.getpixel((8, 8)), RED)


@pytest.mark.parametrize(
    ("size", "opened"),
    [((79, 200), (79, 200)), ((80, 200), (40, 100)), ((159, 200), (80, 100)), ((160, 320), (40, 80))],
)
def test_a_jpeg_much_larger_than_needed_is_decoded_smaller(size: tuple[int, int], opened: tuple[int, int]) -> None:
    for mode in ("RGB", "L", "CMYK"):
        data = encoded(two_colours(size).convert(mode), "JPEG", quality=95)
        picture = open_image(data, side=20)
        assert (picture.mode, picture.size) == ("RGB", opened)
        assert open_image(data).size == size
        if size != opened:
            smaller = open_image(data).resize(opened, Image.Resampling.BOX)
            assert np.abs(np.asarray(picture, dtype=int) - np.asarray(smaller, dtype=int)).mean() < 3
    assert open_image(encoded(two_colours(size)), side=20).size == size  # no other kind has its sizes within


def test_a_jpeg_decoded_smaller_is_upright_and_under_the_limit() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(two_colours((160, 320)), "JPEG", exif=exif, progressive=True)
    admitted: list[int] = []
    assert open_image(data, side=20, admit=admitted.append).size == (80, 40)
    assert admitted[0] >= 160 * 320 * 6  # the decoder of a progressive one holds it whole
    with pytest.raises(BadImage, match="above the limit"):
        open_image(data, side=20, max_pixels=160 * 320 - 1)


def test_the_room_that_a_model_resizes_in_is_asked_for() -> None:
    """A strip is small, and what becomes of it is not: sixteen squares."""
    admitted: list[int] = []
    for size in ((10, 1000), (1000, 10), (10, 160), (2000, 1500)):
        open_image(encoded(two_colours(size)), side=384, admit=admitted.append)
    strip, lying, shorter, usual = admitted
    assert strip == lying > shorter > 4 * 384 * 16 * 384
    assert strip - shorter == 4 * 10 * 1000  # which is cut off it, into a picture of its own
    assert usual == 2000 * 1500 * 8  # less than decoding takes
    open_image(encoded(two_colours((10, 1000))), admit=admitted.append)
    assert admitted[-1] == 10 * 1000 * 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE, WHITE)]
    settings = {"lossless": True} if kind == "WEBP" else {}
    opened = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings))
    assert near(opened.getpixel((2, 2)), RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_once(orientation: int) -> None:
    from PIL import ImageOps

    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright, exif=exif)
    opened = open_image(data)
    assert opened.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").tobytes()
    assert open_image(opened).tobytes() == opened.tobytes()


def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = encoded(two_colours(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert open_image(data).tobytes() == two_colours().tobytes()


@pytest.mark.parametrize("size", [(1, 1), (65_535, 66), (66, 65_535), (1000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert open_image(encoded(Image.new("RGB", size, RED))).size == size


# --- what is refused, in one line ------------------------------------------------------------------------------------


def refused(source, **settings) -> str:
    with pytest.raises(BadImage) as caught:
        open_image(source, **settings)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    file = tmp_path / "cut"
    for length in (12, len(whole) // 2):
        file.write_bytes(whole[:length])
        assert refused(file).startswith(str(file))


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture at all")
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a picture" in refused(text)
    assert "empty" in refused(tmp_path / "empty.png")
    assert "empty" in refused(b"")
    assert "broken link" in refused(tmp_path / "link.png")
    assert "cannot be read" in refused(tmp_path / "loop.png")
    assert "regular file" in refused(tmp_path / "pipe.png")
    assert "folder" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "gone.png")
    assert "not a file name" in refused("a\0b.png")
    assert refused("") == "An empty text names no picture: give its path."
    assert "not a picture" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that only claims to be that large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [10_001, 13_000, 65_000])
def test_a_bomb_is_refused_by_its_header(width: int) -> None:
    assert "raise max_pixels" in refused(png_of_size(width, width))


def test_the_limit_is_the_callers() -> None:
    assert open_image(two_colours((10, 10)), max_pixels=100).size == (10, 10)
    assert "10×10" in refused(encoded(two_colours((10, 10))), max_pixels=99)
    limit = Image.MAX_IMAGE_PIXELS
    assert "damaged" in refused(png_of_size(20_000, 20_000), max_pixels=500_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(90_000_000, 1), (1, 90_000_000), (65_536, 100), (1001, 1)])
def test_a_strip_is_refused_before_anything_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    file = tmp_path / "strip.png"
    file.write_bytes(png_of_size(*size))
    assert refused(file).startswith(f"{file} is a strip of {size[0]}×{size[1]} pixels")


def test_a_strip_in_memory_is_refused_too() -> None:
    assert "strip" in refused(Image.new("1", (100_000, 1)))
    assert "strip" in refused(np.zeros((1, 2000), np.uint8))


def test_a_size_that_shows_only_when_decoded_is_checked_too() -> None:
    """An icon of 16×16 by its own account holds a PNG of any size."""
    inside = encoded(Image.new("RGB", (2000, 1)))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    assert "strip" in refused(struct.pack("<HHH", 0, 1, 1) + entry + inside)


@pytest.mark.parametrize("size", [(65_535, 66), (66, 65_535), (1, 1000)])
@pytest.mark.parametrize("shortest", [None, 224])
def test_the_longest_strip_that_opens_is_preprocessed(size: tuple[int, int], shortest: int | None) -> None:
    from captioner.models.parts.backbones.preprocess import Preprocess

    pixels = Preprocess(224, shortest)([open_image(encoded(Image.new("RGB", size, WHITE)))])
    assert pixels.shape == (1, 3, 224, 224)


def test_the_limit_is_about_what_would_be_decoded() -> None:
    """A picture that --max-pixels let in is not refused a second time further on."""
    content = io.BytesIO(encoded(two_colours((10, 10))))
    let_in = open_image(content.getvalue(), max_pixels=100)
    assert open_image(let_in, max_pixels=99).size == (10, 10)
    assert "10×10" in refused(Image.open(content), max_pixels=99)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("late", [False, True])
def test_fifty_megabytes_of_text_are_passed_over(kind: bytes, late: bool) -> None:
    text = b"x" * 50_000_000
    prefix = {b"tEXt": b"parameters\0", b"zTXt": b"parameters\0\0", b"iTXt": b"parameters\0\1\0\0\0"}[kind]
    bomb = chunk(kind, prefix + (text if kind == b"tEXt" else zlib.compress(text, 1)))
    whole = encoded(two_colours())
    at = whole.index(b"IEND" if late else b"IDAT") - 4
    opened = open_image(whole[:at] + bomb * 2 + whole[at:])
    assert opened.tobytes() == two_colours().tobytes()
    assert not opened.info


def test_orientation_in_a_png_text_still_counts() -> None:
    info = PngImagePlugin.PngInfo()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    assert open_image(encoded(two_colours((8, 4)), pnginfo=info)).size == (4, 8)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(5),
        np.zeros((0, 4, 3)),
        np.full((4, 4), np.nan),
        np.full((4, 4), 200.0),
        np.full((4, 4), 300),
        np.full((4, 4), "a"),
        np.full((4, 4), 1j),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    refused(array)


def test_arrays_of_every_kind() -> None:
    assert open_image(np.ones((2, 2), bool)).getpixel((0, 0)) == WHITE
    assert open_image(np.full((2, 2, 1), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == WHITE
    assert open_image(np.full((2, 2, 3), 255, np.int64)).getpixel((0, 0)) == WHITE
    assert open_image(np.full((2, 2), 65535, ">u2")).getpixel((0, 0)) == WHITE  # either order of bytes


def test_damaged_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "TGA"):
        whole = np.frombuffer(encoded(two_colours((16, 16)), kind), np.uint8)
        for _ in range(60):
            spoilt = whole.copy()
            spoilt[random.integers(0, len(whole), 4)] = random.integers(0, 256, 4)
            try:
                open_image(spoilt.tobytes(), max_pixels=1_000_000)
            except BadImage as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_no_memory_is_not_called_damage() -> None:
    """A real shortage: the process may have no more memory than it has already."""
    code = (
        "import io, resource, sys\n"
        "from PIL import Image\n"
        "from captioner.images import open_image\n"
        "into = io.BytesIO(); Image.new('RGB', (5000, 5000)).save(into, 'PNG', compress_level=1)\n"
        "open_image(encoded := into.getvalue(), max_pixels=10**8).close()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, used + 50_000_000))\n"
        "try: open_image(encoded)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "BadImage the data (5000×5000 pixels) needs more memory than there is.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_no_picture_takes_more_memory_than_its_header_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((2000, 1600))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "progressive.jpg", progressive=True, exif=exif)
    picture.save(tmp_path / "wide.jpg", icc_profile=ROMM, exif=exif)
    picture.convert("L").save(tmp_path / "grey.jpg", exif=exif)
    picture.convert("RGBA").save(tmp_path / "alpha.png", compress_level=1)
    picture.convert("P").save(tmp_path / "palette.png", compress_level=1, transparency=0)
    picture.save(tmp_path / "lossy.webp", method=0)
    Image.fromarray(np.asarray(picture)[..., 0].astype(np.float32)).save(tmp_path / "floats.tif")
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from PIL import Image, ImageCms\n"
        "from captioner.images.open import bytes_to_open, identified, open_image\n"
        "def status(field): return int(re.search(field + r':\\s*(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    with identified(file, 'it') as image: told = bytes_to_open(image)\n"
        "    open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak begins anew
        "    before = status('VmRSS')\n"
        "    open_image(file)\n"
        "    print(file.name, told, status('VmHWM') - before)\n"
    )
    environment = {**os.environ, "PILLOW_BLOCK_SIZE": "64m"}
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, env=environment
    )
    for line in run.stdout.splitlines():
        name, told, taken = line.split()
        assert int(taken) <= int(told) + 4_000_000, name  # code that is loaded for a format
    assert len(run.stdout.splitlines()) == 7


def test_a_file_has_a_size_limit_even_where_it_is_sparse(tmp_path: Path) -> None:
    file = tmp_path / "sparse.png"
    for head, size, limit in (
        (png_of_size(8, 8), 20_000_000_000, "500,000,000"),
        (b"RIFF\0\0\0\0WEBPVP8 ", 300_000_000, "200,000,000"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", 300_000_000, "200,000,000"),
    ):
        file.write_bytes(head)
        os.truncate(file, size)
        assert f"is larger than {limit} bytes" in refused(file)


@pytest.mark.parametrize("size", [24, 300_000_000, 600_000_000])
def test_a_video_is_told_to_need_a_frame_however_large(tmp_path: Path, size: int) -> None:
    clip = tmp_path / "clip.MP4"
    clip.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isom")
    os.truncate(clip, size)
    assert refused(clip) == (
        f"{clip} is a video, not a picture: take a frame out first, as ffmpeg -i clip.mp4 -frames:v 1 clip.png does."
    )
    clip.write_bytes(encoded(two_colours()))  # what is named itself is tried, however it is called
    assert open_image(clip).size == (8, 4)


def test_chunks_without_end_are_not_walked_through() -> None:
    head = png_of_size(8, 8)[:33]
    assert "more than 100,000 parts" in refused(head + chunk(b"teXt") * 100_001)
    assert "or is cut off" in refused(head + bytes(50_000_000))  # what an aborted download leaves
    assert open_image(encoded(two_colours()) + bytes(2_000_000)).size == (8, 4)


def test_a_large_private_chunk_is_passed_over_in_place() -> None:
    from captioner.images import png

    whole = encoded(two_colours())
    at, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    private = chunk(b"prVt", b"x" * 2_000_000)
    stuffed = whole[:at] + private + whole[at:end] + private + whole[end:]
    assert open_image(stuffed).tobytes() == two_colours().tobytes()
    light = png.lighter(io.BytesIO(stuffed), "it", 0)
    assert light.read() == whole
    assert light.seek(0, os.SEEK_END) == len(whole)
    for position in (0, len(whole) - 5, at - 2, at + 1, 3):
        light.seek(position)
        assert light.read(7) == whole[position : position + 7]


def test_odd_floats_are_neither_black_nor_noisy() -> None:
    grey = np.array([[0.0, np.inf, 0.5, np.nan, -np.inf, 1.0]], dtype=np.float32)
    with np.errstate(all="raise"):
        opened = open_image(encoded(Image.fromarray(grey), "TIFF"))
    assert [opened.getpixel((x, 0))[0] for x in range(6)] == [0, 255, 128, 0, 0, 255]
    huge = np.array([[-3e38, 0.0, 3e38]], dtype=np.float32)
    with np.errstate(over="raise", invalid="raise"):
        opened = open_image(encoded(Image.fromarray(huge), "TIFF"))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    assert open_image(Image.fromarray(np.full((2, 2), np.nan, np.float32))).getpixel((0, 0)) == (0, 0, 0)


# --- colour profiles -------------------------------------------------------------------------------------------------


def matrix_profile(primaries: list[tuple[float, float]], gamma: float = 2.2) -> bytes:
    """An ICC profile of a display with these primaries (x, y of red, green, blue) and the white of D50."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T  # [3, 3]: a column for each primary
    xyz = xyz * np.linalg.solve(xyz, [0.9642, 1.0, 0.8249])

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1.0, 0.8249))),
        **{
            name: b"XYZ \0\0\0\0" + b"".join(map(number, column))
            for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz.T, strict=True)
        },
        **{name: b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


ROMM = matrix_profile([(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)], 1.8)
"""The primaries of ProPhoto: the widest in use."""


def srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def in_wide_gamut(colour: tuple[int, int, int]) -> Image.Image:
    """A picture that a managed viewer shows in this sRGB colour, with the wide profile."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(ROMM))
    return ImageCms.profileToProfile(Image.new("RGB", (8, 8), colour), ImageCms.createProfile("sRGB"), profile)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_wide_gamut_is_brought_to_srgb(kind: str) -> None:
    colour = (200, 90, 40)
    wide = in_wide_gamut(colour)
    assert not near(wide.getpixel((0, 0)), colour, 20)
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    opened = open_image(encoded(wide, kind, icc_profile=ROMM, **settings))
    assert near(opened.getpixel((4, 4)), colour, 4)
    assert open_image(opened).tobytes() == opened.tobytes()


def test_alpha_and_palette_go_through_the_profile_too() -> None:
    colour = (200, 90, 40)
    wide = in_wide_gamut(colour)
    clear = wide.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    opened = open_image(encoded(clear, icc_profile=ROMM))
    assert opened.getpixel((0, 0)) == WHITE
    assert near(opened.getpixel((4, 4)), colour, 4)
    assert near(open_image(encoded(wide.quantize(4), icc_profile=ROMM)).getpixel((4, 4)), colour, 4)


def test_srgb_under_any_name_leaves_the_pixels_as_they_are() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert open_image(encoded(noise, icc_profile=srgb())).tobytes() == noise.tobytes()
    assert open_image(encoded(noise.convert("RGBA"), icc_profile=srgb())).tobytes() == noise.tobytes()


@pytest.mark.parametrize(
    "profile",
    [b"", b"x", b"no profile at all" * 20, ROMM[:200], ROMM[:16] + b"CMYK" + ROMM[20:], bytes(9_000_000)],
    ids=["empty", "one byte", "text", "cut", "of another space", "huge"],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_profile_that_makes_no_sense_is_ignored(kind: str, profile: bytes) -> None:
    assert open_image(encoded(two_colours(), kind, icc_profile=profile)).tobytes() == two_colours().tobytes()


def test_damaged_profiles_never_spoil_a_picture() -> None:
    random = np.random.default_rng(2)
    for _ in range(100):
        spoilt = np.frombuffer(ROMM, np.uint8).copy()
        spoilt[random.integers(0, len(spoilt), 6)] = random.integers(0, 256, 6)
        assert open_image(encoded(two_colours(), "TIFF", icc_profile=spoilt.tobytes())).size == (8, 4)


def test_a_profile_that_inflates_without_end_or_by_an_unknown_method_is_left_out() -> None:
    whole = encoded(two_colours())
    bomb = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(50_000_000)))
    unknown = chunk(b"iCCP", b"p\0\1" + zlib.compress(ROMM))
    for profile in (bomb, unknown):
        assert open_image(whole[:33] + profile + whole[33:]).tobytes() == two_colours().tobytes()


def press_profile() -> bytes:
    """An ICC profile of a press whose cyan is L* 50, a* -40, b* 0, and whose other inks only darken."""
    table = b""
    for ink in range(16):  # cyan varies slowest
        cyan, darker = ink >> 3, bin(ink & 7).count("1")
        table += bytes([round((100 - 50 * cyan) / (1 + darker) * 2.55), 128 - 40 * cyan, 128])
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *np.eye(3, dtype=int).flatten() * 65536)
    lut += ramp * 4 + table + ramp * 3
    head = struct.pack(">I4sI4s4s4s", 128 + 16 + len(lut), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


def test_inks_go_through_their_profile() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    plain = open_image(encoded(cyan, "JPEG", quality=100)).getpixel((8, 8))
    printed = open_image(encoded(cyan, "JPEG", quality=100, icc_profile=press_profile())).getpixel((8, 8))
    assert near(plain, (0, 255, 255), 4)
    assert near(printed, (0, 137, 119), 6)  # L* 50, a* -40, b* 0 as sRGB: (-, 137, 119)


def test_grey_goes_through_its_profile() -> None:
    tags = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"  # linear light
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    head = struct.pack(">I4sI4s4s4s", 128 + 28 + 16 + 20, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    profile = head.ljust(128, b"\0") + struct.pack(">I4sII4sII", 2, b"kTRC", 156, 14, b"wtpt", 172, 20) + tags + white
    grey = Image.new("L", (4, 4), 55)
    for image in (grey, Image.merge("LA", (grey, Image.new("L", (4, 4), 255)))):
        assert near(open_image(encoded(image, icc_profile=profile)).getpixel((0, 0)), (128, 128, 128), 3)


# --- from an address -------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """One path for each way to answer."""

    def do_GET(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the other side has had enough, as it should
            getattr(self, "answer_" + self.path.partition("?")[0].strip("/"))()

    def log_message(self, *_) -> None:
        pass

    def start(self, kind: str = "image/png", length: int | None = None, code: int = 200, location: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def drip(self, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.server.closing.is_set():
            self.wfile.write(b"x")
            self.wfile.flush()
            self.server.closing.wait(0.02)

    def answer_good(self) -> None:
        data = encoded(two_colours())
        self.start(length=len(data))
        self.wfile.write(data)

    def answer_asked(self) -> None:
        self.start()
        self.wfile.write(self.path.partition("?")[2].encode())

    def answer_slow(self) -> None:
        self.start()
        self.drip()

    def answer_slow_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        self.drip()

    def answer_silent(self) -> None:
        self.server.closing.wait(30)

    def answer_endless(self) -> None:
        self.start()
        while not self.server.closing.is_set():
            self.wfile.write(b"x" * 65536)

    def answer_short(self) -> None:
        self.start(length=1000)
        self.wfile.write(b"x" * 10)

    def answer_page(self) -> None:
        self.start("text/html; charset=utf-8", 2)
        self.wfile.write(b"hi")

    def answer_missing(self) -> None:
        self.start(length=0, code=404)

    def answer_moved(self) -> None:
        self.start(length=0, code=302, location="/good")

    def answer_moved_raw(self) -> None:
        """As many servers write it: an address in UTF-8, not escaped."""
        self.start(length=0, code=302, location="/asked?写 真".encode().decode("latin-1"))

    def answer_round(self) -> None:
        self.start(length=0, code=302, location="/round")

    def answer_to_file(self) -> None:
        self.start(length=0, code=302, location="file:///etc/hostname")

    def answer_to_ftp(self) -> None:
        self.start(length=0, code=302, location="ftp://127.0.0.1/a.png")

    def answer_mangled(self) -> None:
        self.start(length=0, code=302, location="http://[bad]/x.jpg")

    def answer_locked(self) -> None:
        if self.headers["Authorization"] == "Basic YW46b3BlbiBzZXNhbWU=":
            self.answer_good()
        else:
            self.start(length=0, code=401)

    def answer_moved_away(self) -> None:
        """To another name of the same server."""
        self.start(length=0, code=302, location=f"http://localhost:{self.server.server_address[1]}/shows_secrets")

    def answer_shows_secrets(self) -> None:
        self.start(length=0, code=410 if self.headers["Authorization"] is None else 418)

    def answer_moved_endless(self) -> None:
        self.start(code=302, location="/good")
        while not self.server.closing.is_set():
            self.wfile.write(b"x" * 65536)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.closing = threading.Event()
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.closing.set()
        running.shutdown()


def test_a_picture_is_fetched(server: str) -> None:
    for path in ("good", "moved", "moved_endless"):
        assert open_image(fetch_image(f"{server}/{path}")).tobytes() == two_colours().tobytes()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("slow", "within 0.3 seconds"),
        ("slow_headers", "within 0.3 seconds"),
        ("silent", "within 0.3 seconds"),
        ("endless", "larger than 1,000,000 bytes"),
        ("short", "broke off after 10 bytes"),
        ("page", "text/html"),
        ("missing", "404"),
        ("round", "more than 5 times"),
        ("to_file", "302|not an http"),
        ("to_ftp", "not an http"),
        ("mangled", "cannot be fetched"),
    ],
)
def test_bad_answers(server: str, path: str, reason: str) -> None:
    timeout = 0.3 if "within" in reason else 20
    with pytest.raises(BadImage, match=reason) as caught:
        fetch_image(f"{server}/{path}", max_bytes=1_000_000, timeout=timeout)
    assert str(caught.value).startswith(f"{server}/{path}")


BAD_ADDRESSES = ["file:///etc/hostname", "ftp://127.0.0.1/a", "http://127.0.0.1:x/", "http://"]
MANGLED = ["http://[::1/x.jpg", "http://[bad]/x.jpg", "http://ex\u2100ample.com/x.jpg", "http://a b/x.jpg", "http://\n"]


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "http://127.0.0.1:x/", "http://", *MANGLED]
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(BadImage):
        fetch_image(url)


def test_user_and_password_are_sent_to_their_server_alone_and_never_shown(server: str) -> None:
    address = server.replace("http://", "http://an:open%20sesame@")
    (source,) = find_images([f"{address}/locked"])
    assert source.open().size == (8, 4)
    assert source.name == f"{server}/locked"
    with pytest.raises(BadImage, match="answers 410") as caught:
        fetch_image(f"{address}/moved_away")
    assert "sesame" not in str(caught.value)
    with pytest.raises(BadImage, match="cannot be fetched") as caught:
        fetch_image("http://an:open%20sesame@[bad]/locked")
    assert "sesame" not in str(caught.value)


def test_letters_that_an_address_may_not_hold_are_escaped(server: str) -> None:
    with pytest.raises(BadImage, match="answers 404"):
        fetch_image(f"{server}/missing?name=ü b.png")
    for query in ("写真\u30001.png", "\U0001f469\u200d\U0001f3a8", "caf\udce9"):  # no terminal shows these as they are
        escaped = quote(query, errors="surrogateescape")
        assert fetch_image(f"{server}/asked?{query}") == escaped.encode()
    assert fetch_image(f"{server}/moved_raw") == quote("写 真").encode()


def test_nobody_there() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as unused:
        port = unused.server_address[1]
    with pytest.raises(BadImage, match="cannot be fetched"):
        fetch_image(f"http://127.0.0.1:{port}/a.png")
    with pytest.raises(BadImage, match=r"cannot be fetched \(the name of its server is not known; no network\?\)"):
        fetch_image("http://nowhere.invalid/a.png")


# --- finding them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "deep/c.webp",
        "deep/deeper/d.png",
        "[1].png",
        ".git/e.png",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(two_colours()))
    return tmp_path


def names(tree: Path, *inputs: str | Path, recursive: bool = False) -> list[str]:
    found = find_images([os.fspath(i) for i in inputs], recursive=recursive)
    return [os.path.relpath(s.path, tree) if s.path else f"! {s.problem}" for s in found]


def test_folders_in_a_stable_order(tree: Path) -> None:
    assert names(tree, tree) == ["[1].png", "a.JPG", "b.png"]
    assert names(tree, tree, recursive=True) == ["[1].png", "a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.png"]


def test_folders_of_a_drive_that_numbers_no_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of some clouds on Windows: every folder but the first was taken for one that had been seen."""
    stat = os.stat
    with monkeypatch.context() as cloud:
        cloud.setattr(os, "stat", lambda *a, **k: os.stat_result((*(s := stat(*a, **k))[:1], 0, *s[2:])))
        found = names(tree, tree, recursive=True)
    assert found == ["[1].png", "a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.png"]


def test_the_masks_of_a_picture_are_no_pictures(tree: Path) -> None:
    mask = tree / "a-masklabel.PNG"
    for file in (mask, tree / "b-condlabel.png"):
        file.write_bytes(encoded(two_colours()))
    assert names(tree, tree) == names(tree, tree / "*.*") == ["[1].png", "a.JPG", "b.png"]
    assert names(tree, mask) == ["a-masklabel.PNG"]


def test_subfolders_in_the_order_of_their_names_but_for_those_named_before(tree: Path) -> None:
    for name in ("d", "b", "e", "a", "c"):  # whichever way a system lists them
        (tree / "deep" / name).mkdir()
        if name != "e":
            (tree / "deep" / name / f"{name}.png").write_bytes(encoded(two_colours()))
    found = names(tree, tree / "deep" / "b", tree / "deep", recursive=True)
    assert [os.path.basename(name) for name in found] == ["b.png", "c.webp", "a.png", "c.png", "d.png", "d.png"]


def test_each_once_and_in_the_order_named(tree: Path) -> None:
    twice = names(tree, tree / "b.png", tree / "deep" / ".." / "b.png", tree, tree / "*.png")
    assert twice == ["b.png", "[1].png", "a.JPG"]


def test_globs(tree: Path) -> None:
    assert names(tree, tree / "[1].png") == ["[1].png"]
    assert names(tree, tree / "[ab].*") == ["a.JPG", "b.png"]
    assert names(tree, tree / "*.txt") == ["notes.txt"]
    assert names(tree, tree / "*") == ["[1].png", "a.JPG", "b.png", "deep/c.webp"]


def test_what_is_named_itself_is_tried_whatever_its_extension(tree: Path) -> None:
    (source,) = find_images([str(tree / "notes.txt")])
    assert source.open().size == (8, 4)


def test_problems_are_items(tree: Path) -> None:
    (tree / "empty").mkdir()
    (tree / "gone.png").symlink_to("nowhere")
    found = list(find_images([str(tree / n) for n in ("no.png", "x*.png", "empty", "gone.png", "b.png")]))
    assert [s.problem is None for s in found] == [False, False, False, True, True]
    for source, reason in zip(found, ("does not exist", "matches nothing", "no pictures", "broken link"), strict=False):
        with pytest.raises(BadImage, match=reason) as caught:
            source.open()
        assert str(caught.value).startswith(source.name)


def test_links_that_loop(tree: Path) -> None:
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "deep" / "again").symlink_to(tree / "deep")
    (tree / "deep" / "deeper" / "itself.png").symlink_to("itself.png")
    assert names(tree, tree / "deep" / "deeper") == ["deep/deeper/d.png", "deep/deeper/itself.png"]
    (tree / "deep" / "deeper" / "itself.png").unlink()
    assert names(tree, tree, recursive=True) == ["[1].png", "a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.png"]
    assert names(tree, tree / "deep" / "up", recursive=True)[-1] == "deep/up/deep/deeper/d.png"


def test_a_link_to_a_folder_is_followed_where_it_is_named_itself(tree: Path) -> None:
    folder = tree / "deep"
    (folder / "far").symlink_to(tree / "other")
    (folder / "same.png").symlink_to("c.webp")
    (tree / "other").mkdir()
    (tree / "other" / "e.png").write_bytes(encoded(two_colours()))
    below = ["deep/c.webp", "deep/same.png", "deep/deeper/d.png"]
    assert names(tree, folder, recursive=True) == below
    assert names(tree, folder, folder / "far", recursive=True) == [*below, "deep/far/e.png"]
    assert names(tree, folder / "far", tree / "other", tree / "other" / "e.png") == ["deep/far/e.png"]
    assert names(tree, tree / "other" / "e.png", folder / "far") == ["other/e.png"]
    (tree / "links").mkdir()
    (tree / "links" / "far").symlink_to(tree / "other")
    for recursive in (False, True):
        [problem] = names(tree, tree / "links", recursive=recursive)
        assert problem == f"! {tree / 'links'} holds no pictures. Links to folders are not followed: name them."


def test_names_that_are_no_plain_text(tmp_path: Path) -> None:
    for name in (b"two\nlines.png", b"bytes \xff.png", "ünï🐱.png".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(encoded(two_colours()))
    found = list(find_images([str(tmp_path)]))
    assert [os.path.basename(s.name) for s in found] == ["bytes \\xff.png", "two\\nlines.png", "ünï🐱.png"]
    for source in found:
        assert source.name.encode()
        assert source.open().size == (8, 4)


def test_a_folder_too_deep_for_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures were missing without a word."""
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") if hasattr(os, "pathconf") else 0
    if not 0 < longest < 100_000:
        pytest.skip("no longest path")
    monkeypatch.chdir(tmp_path)
    for number in range(longest // 200 + 1):
        os.mkdir("e" * 199)
        os.chdir("e" * 199)
        Image.new("RGB", (2, 2)).save(f"{number}.png")
    os.chdir(tmp_path)
    *found, problem = find_images([str(tmp_path)], recursive=True)
    assert all(source.problem is None for source in found)
    assert len(found) == len({source.path.name for source in found}) > longest // 200 - 5
    assert problem.problem.endswith("cannot be read (File name too long).")
    shutil.rmtree("e" * 199)


def test_a_folder_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        (top / "closed").mkdir()
        (top / "open").mkdir()
        for file in (top / "z.png", top / "open" / "a.png"):
            file.write_bytes(encoded(two_colours()))
        (top / "closed").chmod(0)
        top.chmod(0o755)
        code = (
            "import os, sys\n"
            "from captioner.images import find_images\n"
            "if os.geteuid() == 0: os.setuid(65534)\n"  # root may read everything
            "for s in find_images([sys.argv[1]], recursive=True): print(s.problem or s.name)"
        )
        run = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
        (top / "closed").chmod(0o755)
    closed = f"{name}/closed cannot be read (Permission denied)."
    assert run.stdout.splitlines() == [f"{name}/z.png", closed, f"{name}/open/a.png"]


def test_standard_input_and_addresses(server: str) -> None:
    code = (
        "from captioner.images import find_images\n"
        f"for s in find_images(['-', '{server}/good', '-', '{server}/good', '{server}/missing']):\n"
        "    try: print(s.name, s.open().size)\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], input=encoded(two_colours()), capture_output=True, check=True)
    assert run.stdout.decode().splitlines() == [
        "- (8, 4)",
        f"{server}/good (8, 4)",
        f"BadImage {server}/missing answers 404 Not Found.",
    ]


def test_errors_of_bytes_carry_the_sources_name() -> None:
    with pytest.raises(BadImage, match=r"^Standard input is empty"):
        Source("-", data=b"").open()


def test_a_source_is_opened_with_the_callers_limit(tree: Path) -> None:
    opens: Callable[[int], Image.Image] = Source("b", path=tree / "b.png").open
    assert opens(32).size == (8, 4)
    with pytest.raises(BadImage, match="above the limit"):
        opens(31)


def test_a_file_address_is_a_file(tree: Path) -> None:
    named = tree / "a b#ü.png"
    named.write_bytes(encoded(two_colours()))
    for address in (named.as_uri(), named.as_uri().replace("file://", "FILE://localhost")):
        assert names(tree, address) == ["a b#ü.png"]
    assert "another machine" in names(tree, "file://elsewhere/a.png")[0]
    assert "names no file" in names(tree, (tree / "gone.png").as_uri())[0]
    assert "is not an address" in names(tree, "file://[x/a.png")[0]


def test_a_list_of_pictures(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (tree / "list.txt").write_bytes(b"\xef\xbb\xbfb.png\r\n\ndeep\n*.JPG\ngone.png\nbad\0name.png\n@list.txt\n-\n")
    found = names(tree, "@list.txt", "a.JPG")
    assert found[:3] == ["b.png", "deep/c.webp", "a.JPG"]
    assert found[3:] == [
        "! gone.png does not exist.",
        "! bad\\x00name.png is not a file name.",
        "! @list.txt is a list within a list: write its lines into this one.",
        "! - is standard input, which a list cannot name.",
    ]
    assert names(tree, "gone/**/*.png")[0].endswith(
        "matches nothing. ** is read as *: name the folder, and set recursive to look into its subfolders."
    )
    (tree / "empty.txt").touch()
    assert names(tree, "@empty.txt") == ["! empty.txt is an empty list: name one picture a line."]
    assert names(tree, "gone*.png") == ["! gone*.png matches nothing."]
    assert names(tree, "@nowhere") == ["! @nowhere does not exist, neither does a list nowhere."]
    assert names(tree, "@deep") == ["! deep cannot be read as a list of pictures (Is a directory)."]
    assert names(tree, "", "@", "1list.txt") == [
        "! '' names nothing.",
        "! @ does not exist.",
        "! 1list.txt does not exist.",
    ]
    assert names(tree, "x" * 300) == [f"! {'x' * 300} cannot be read (File name too long)."]
    (tree / "@b.png").write_bytes(encoded(two_colours()))
    assert names(tree, "@b.png") == ["@b.png"]


def test_a_list_on_standard_input(tree: Path) -> None:
    code = "from captioner.images import find_images\nfor s in find_images(['@-']): print(s.problem or s.name)"
    run = subprocess.run(
        [sys.executable, "-c", code], input=b"b.png\nbytes \xff.png\n", capture_output=True, check=True, cwd=tree
    )
    assert run.stdout.decode().splitlines() == ["b.png", "bytes \\xff.png does not exist."]


def test_videos_in_a_folder_are_told(tree: Path) -> None:
    frame = "take a frame out first, as ffmpeg -i clip.mp4 -frames:v 1 clip.png does"
    (tree / "clips" / "more").mkdir(parents=True)
    for name in ("clips/a.mp4", "clips/B.MOV", "clips/notes.txt", "clips/.c.mp4", "clips/more/d.webm"):
        (tree / name).touch()
    videos: set[str] = set()

    def found(*inputs: Path, recursive: bool = False) -> list[str]:
        sources = list(find_images([*map(str, inputs)], recursive=recursive, videos=videos))
        return [source.problem or os.path.relpath(source.name, tree) for source in sources]

    told = f"{tree}/clips holds no pictures, but {{}}: {frame}."
    assert found(tree / "clips") == [told.format("2 videos")]
    assert found(tree / "clips", recursive=True) == [told.format("3 videos")]
    assert found(tree / "deep") == ["deep/c.webp"]
    assert not videos
    (tree / "clips" / "a.png").touch()  # its frame
    assert found(tree / "clips", recursive=True) == ["clips/a.png"]
    assert videos == {f"{tree}/clips/B.MOV", f"{tree}/clips/more/d.webm"}
    videos.clear()
    assert found(tree / "clips" / "*") == ["clips/a.png", f"{tree}/clips/more holds no pictures, but 1 video: {frame}."]
    assert videos == {f"{tree}/clips/B.MOV"}
    assert found(tree / "clips" / "*.MOV") == ["clips/B.MOV"]  # which is named itself
    videos.clear()
    (tree / "folder.mp4").mkdir()
    (tree / "folder.mp4" / "a.png").touch()
    assert found(tree / "*.mp4") == ["folder.mp4/a.png"]
    assert not videos


def test_what_is_there_to_be_looked_at(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for text in ("b.png", "deep", "http://host/a.png", "FILE:///a.png", "@notes.txt", "@-", "-", "*.png"):
        assert is_there(text)
    for text in ("a red car", "@mention of a car", "gone.png", "1b.png", "gone/*.png", "what is [this]?"):
        assert not is_there(text)


def test_the_hint_to_look_into_subfolders_stands_only_where_there_are_pictures(tree: Path) -> None:
    (tree / "none" / "below").mkdir(parents=True)
    (tree / "none" / "below" / ".hidden").mkdir()
    (tree / "some" / "below").mkdir(parents=True)
    for name in ("none/below/notes.txt", "none/below/.a.png", "none/below/.hidden/a.png", "some/below/notes.txt"):
        (tree / name).touch()
    (tree / "some" / "below" / "a.png").touch()
    assert names(tree, tree / "none") == [f"! {tree}/none holds no pictures."]
    assert names(tree, tree / "some") == [
        f"! {tree}/some holds no pictures. Set recursive to look into its subfolders."
    ]
