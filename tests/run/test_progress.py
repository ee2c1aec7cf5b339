"""What is seen of a run: on a terminal, and where nobody can be told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def on_terminal(quick_python: str) -> Callable[..., tuple[str, str]]:
    """Standard output of a command, and what a terminal shows of standard error."""
    pty = pytest.importorskip("pty")

    def run(*words: object, status: int = 0) -> tuple[str, str]:
        master, slave = pty.openpty()
        command = [quick_python, "-m", "captioner", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True)
        os.close(slave)
        seen = b""
        try:
            while chunk := os.read(master, 4096):
                seen += chunk
        except OSError:  # the other end is closed
            pass
        os.close(master)
        out, _ = process.communicate()
        assert process.returncode == status, seen
        return out, seen.decode()

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_one_picture_says_what_is_loaded_and_takes_it_back(photos: Path, on_terminal) -> None:
    out, seen = on_terminal("generate", photos / "0.png", "-m", "mini", "--quality", "fast")
    note = "loading mini …"
    assert out.strip()
    assert seen == f"{note}\r{' ' * len(note)}\r"
    assert on_terminal("generate", photos / "0.png", "-m", "mini", "--quality", "fast", "--quiet")[1] == ""


def test_the_bar_says_it_too(photos: Path, on_terminal) -> None:
    _, seen = on_terminal("generate", photos, "-m", "mini", "--out", photos / "a.jsonl")
    assert "loading mini …" in seen
    assert "3 done" in seen


def test_a_name_is_shown_as_it_is(photos: Path, on_terminal) -> None:
    (photos / ":cat:.png").write_bytes(b"")
    out, seen = on_terminal("generate", photos, "--metadata", "only", "--out", photos / "a.jsonl", status=1)
    assert out == ""
    assert f"{photos}/:cat:.png is empty (0 bytes)." in seen


def test_messages_that_nobody_hears_end_nothing(photos: Path, quick_python: str) -> None:
    (photos / "bad.png").write_bytes(b"")
    words = ["generate", str(photos), "-m", "mini", "--out", str(photos / "a.jsonl")]
    with open("/dev/full", "wb", buffering=0) as full:
        done = subprocess.run([quick_python, "-m", "captioner", *words], stderr=full)
    assert done.returncode == 1  # for the bad picture
    assert len((photos / "a.jsonl").read_text().splitlines()) == 3
