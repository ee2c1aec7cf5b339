"""A folder of all kinds of pictures, sound and hostile, through the real commands: every good one has its row, every
bad one its sentence, and the run goes on to its end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.errors import printable
from captioner.images.find import EXTENSIONS
from tests.images.test_images import ROMM, chunk, encoded, png_of_size, two_colours
from tests.images.test_metadata import A1111, dense_graph, png, with_comment

SAFETY_NET = 300
"""Seconds until a command that hangs is ended. Nothing here is slow by construction."""

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
PLAIN = two_colours((64, 48))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def floats(*values: float) -> bytes:
    return encoded(Image.fromarray(np.array([values] * 2, dtype=np.float32)), "TIFF")


def heic() -> bytes:
    import pillow_heif

    into = io.BytesIO()
    pillow_heif.from_pillow(PLAIN).save(into)
    return into.getvalue()


def within_png(*chunks: bytes, late: bool = False) -> bytes:
    """A sound PNG with more chunks before (or after) its pixels."""
    whole = encoded(PLAIN)
    at = whole.index(b"IEND" if late else b"IDAT") - 4
    return whole[:at] + b"".join(chunks) + whole[at:]


def tiff_with_a_tag_of_the_wrong_length() -> bytes:
    data = bytearray(encoded(Image.new("L", (8, 8)), "TIFF"))
    at = data.find(struct.pack("<H", 262), struct.unpack("<I", data[4:8])[0])
    data[at + 2 : at + 8] = struct.pack("<HI", 3, 2)
    return bytes(data)


def icon_that_hides(inside: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def half(kind: str) -> bytes:
    whole = encoded(NOISE, kind)
    return whole[: len(whole) // 2]


def good() -> dict[str, bytes]:
    """Name → content of what must get a row."""
    frames = {"save_all": True, "append_images": [NOISE.resize(PLAIN.size)]}
    clear = PLAIN.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(PLAIN.size))
    return {
        "plain.png": encoded(PLAIN),
        "plain.jpg": encoded(PLAIN, "JPEG"),
        "UPPER.JPG": encoded(PLAIN, "JPEG"),
        "progressive.jpg": encoded(PLAIN, "JPEG", progressive=True),
        "grey.jpg": encoded(PLAIN.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(PLAIN.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(PLAIN, "JPEG", exif=exif(6)),
        "no such turn.jpg": encoded(PLAIN, "JPEG", exif=exif(99)),
        "broken exif.jpg": encoded(PLAIN, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
        "rubbish behind.jpg": encoded(PLAIN, "JPEG") + b"\0rubbish" * 1000,
        "wide gamut.jpg": encoded(PLAIN, "JPEG", icc_profile=ROMM),
        "broken profile.jpg": encoded(PLAIN, "JPEG", icc_profile=b"no profile" * 50),
        "foreign profile.jpg": encoded(PLAIN, "JPEG", icc_profile=ROMM[:16] + b"CMYK" + ROMM[20:]),
        "a1111.jpg": with_comment("JPEG", b"UNICODE\0" + A1111.encode("utf-16-be")),
        "alpha.png": encoded(clear),
        "palette.png": encoded(PLAIN.quantize(8), transparency=0),
        "grey alpha.png": encoded(PLAIN.convert("LA")),
        "one bit.png": encoded(PLAIN.convert("1")),
        "sixteen bits.png": encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
        "turned by text.png": encoded(PLAIN, exif=exif(8)),
        "animated.png": encoded(PLAIN, **frames),
        "a1111.png": png(parameters=A1111),
        "dense graph.png": png(prompt=json.dumps(dense_graph(2000))),
        "quadratic settings.png": png(parameters="Hashes:{" * 100_000),
        "deep graph.png": png(prompt='{"1":' * 50_000),
        "long text.png": within_png(chunk(b"tEXt", b"parameters\0" + b"x" * 5_000_000)),
        "text bomb.png": within_png(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 3_000_000)), late=True),
        "profile bomb.png": within_png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000)))),
        "private chunk.png": within_png(chunk(b"prVt", b"x" * 2_000_000)),
        "animated.gif": encoded(PLAIN, "GIF", **frames),
        "lossless.webp": encoded(PLAIN, "WEBP", lossless=True),
        "animated.webp": encoded(PLAIN, "WEBP", **frames),
        "plain.avif": encoded(PLAIN, "AVIF"),
        "plain.heic": heic(),
        "plain.bmp": encoded(PLAIN, "BMP"),
        "plain.tga": encoded(PLAIN, "TGA"),
        "plain.ppm": encoded(PLAIN, "PPM"),
        "plain.pcx": encoded(PLAIN, "PCX"),
        "plain.sgi": encoded(PLAIN, "SGI"),
        "plain.dds": encoded(PLAIN, "DDS"),
        "plain.jp2": encoded(PLAIN, "JPEG2000"),
        "plain.ico": encoded(PLAIN, "ICO"),
        "squeezed.tif": encoded(PLAIN, "TIFF", compression="tiff_lzw"),
        "pages.tiff": encoded(PLAIN, "TIFF", **frames),
        "floats.tif": floats(0, 0.5, 1),
        "odd floats.tif": floats(0, float("inf"), float("nan"), -3e38, 3e38),
        "wrong tag.tif": tiff_with_a_tag_of_the_wrong_length(),
        "one pixel.png": encoded(Image.new("RGB", (1, 1))),
        "longest strip.png": encoded(Image.new("1", (65_535, 66))),
        "a jpeg in truth.png": encoded(PLAIN, "JPEG"),
        "two\nlines.png": encoded(PLAIN),
        "\x1b]0;title\x07red.png": encoded(PLAIN),
        os.fsdecode(b"bytes \xff.png"): encoded(PLAIN),
        "ünï🐱.png": encoded(PLAIN),
        "-.png": encoded(PLAIN),
        "[1].png": encoded(PLAIN),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    """Name → content of what must get a sentence, and what that says."""
    cut = {f"cut.{kind.lower()}": (half(kind), "") for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")}
    return cut | {
        "empty.png": (b"", "is empty"),
        "head alone.png": (encoded(PLAIN)[:12], "cut off"),
        "text.png": (b"not a picture at all\n", "not a picture"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not a picture"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n", "not a picture"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "not a picture"),
        "document.png": (b"%PDF-1.7\n", "not a picture"),
        "film.heic": (b"\0\0\0\x20ftypisom" + bytes(100), ""),
        "noise.jpg": (np.random.default_rng(1).bytes(5000), "not a picture"),
        "strip.png": (png_of_size(90_000_000, 1), "is a strip"),
        "tall strip.png": (png_of_size(1, 90_000_000), "is a strip"),
        "hidden strip.ico": (icon_that_hides(encoded(Image.new("RGB", (3000, 1)))), "is a strip"),
        "bomb.png": (png_of_size(65_000, 65_000), "above the limit"),
        "just too large.png": (png_of_size(13_000, 13_000), "above the limit"),
        "nothing.png": (png_of_size(0, 0), ""),
        "many chunks.png": (png_of_size(8, 8)[:33] + chunk(b"teXt") * 100_001, "more than 100,000 parts"),
        "zeros.png": (png_of_size(8, 8)[:33] + bytes(10_000_000), ""),
        "wrong sum.png": (encoded(PLAIN).replace(b"IDAT", b"IDAT\xff"), ""),
        "rotten.jp2": (encoded(NOISE, "JPEG2000")[:200] + bytes(500), ""),
        "deflated rubbish.tif": (encoded(NOISE, "TIFF", compression="tiff_adobe_deflate")[:-3000] + bytes(3000), ""),
    }


@dataclass
class Folder:
    """The folder, and what is said of each of its files."""

    path: Path
    good: list[str]
    bad: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("hostile")
    rows, sentences = good(), bad()
    for name, content in (rows | {name: content for name, (content, _) in sentences.items()}).items():
        (path / name).write_bytes(content)
    said = {name: says for name, (_, says) in sentences.items()}
    for name, head, says in (
        ("sparse.png", png_of_size(8, 8), "larger than 500,000,000 bytes"),
        ("sparse.webp", b"RIFF\0\0\0\0WEBPVP8 ", "larger than 200,000,000 bytes"),
    ):
        (path / name).write_bytes(head)
        os.truncate(path / name, 20_000_000_000 if name.endswith("png") else 300_000_000)
        said[name] = says
    (path / "link.png").symlink_to("plain.png")
    for name, target, says in (
        ("gone.png", "nowhere.png", "is a broken link"),
        ("loop.png", "loop.png", "cannot be read"),
        ("endless.png", "/dev/zero", "is not a regular file"),
    ):
        (path / name).symlink_to(target)
        said[name] = says
    os.mkfifo(path / "pipe.png")
    with in_folder(path), socket.socket(socket.AF_UNIX) as listening:  # a socket's path may not be long
        listening.bind("socket.png")
    said |= {"pipe.png": "is not a regular file", "socket.png": "is not a regular file"}
    for name in ("folder.png", ".hidden"):
        (path / name).mkdir()
    (path / ".hidden.png").write_bytes(b"passed over")
    (path / "notes.txt").write_bytes(b"passed over")
    assert all(name.lower().endswith(EXTENSIONS) for name in (*rows, *said))
    return Folder(path, sorted([*rows, "link.png"], key=os.fsencode), said)


@contextlib.contextmanager
def in_folder(path: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 has not."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def captioner(quick_bin: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [quick_bin / "captioner", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SAFETY_NET, check=False)

    return run


def check_sentences(errors: dict[str, str], folder: Folder, expected: Callable[[str], str | None]) -> None:
    """Each is one line that begins with the picture's name and says what is expected of it."""
    for file, sentence in errors.items():
        name = os.path.basename(file)
        assert sentence.startswith(printable(str(folder.path / name))), sentence
        assert sentence.isprintable(), sentence
        assert (expected(name) or "") in sentence, sentence


def check_the_screen(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 1, result.stderr
    for word in ("Traceback", "Warning", "\x1b", "\x07"):
        assert word not in result.stdout + result.stderr


def test_generate_gives_each_picture_its_row_or_its_sentence(captioner, folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    short = ("--num-beams", "1", "--num-candidates", "1", "--max-new-tokens", "2")
    result = captioner("generate", str(folder.path), *short, "--out", str(out))
    check_the_screen(result)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [os.path.basename(row["file"]) for row in rows] == folder.good
    assert all(row["text"] and row["source"] == "model" for row in rows)
    lines = (tmp_path / "x.jsonl.errors.jsonl").read_text().splitlines()
    errors = {row["file"]: row["error"] for row in map(json.loads, lines)}
    assert len(errors) == len(lines)
    assert {os.path.basename(file) for file in errors} == folder.bad.keys()
    check_sentences(errors, folder, folder.bad.get)
    assert f"{len(folder.good)} done, {len(folder.bad)} failed" in result.stderr


def test_read_gives_each_picture_its_parameters_or_its_sentence(captioner, folder: Folder) -> None:
    result = captioner("read", str(folder.path), "--json")
    check_the_screen(result)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {os.path.basename(row["file"]): row["prompt"] for row in rows} == {
        "a1111.jpg": A1111.splitlines()[0],
        "a1111.png": A1111.splitlines()[0],
        "dense graph.png": "a fox",
    }
    names = {printable(str(folder.path / name)): name for name in (*folder.good, *folder.bad)}
    said = [line.removeprefix("captioner: ") for line in result.stderr.splitlines()]
    told = [next((name for shown, name in names.items() if line.startswith(f"{shown} ")), line) for line in said]
    assert len(told) == len(names) - len(rows)
    assert set(told) == set(names.values()) - {os.path.basename(row["file"]) for row in rows}
