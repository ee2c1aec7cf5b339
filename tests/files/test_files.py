"""Files are written whole or not at all, follow no planted link, and have the mode bits that the user's umask gives."""

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from captioner.compute.agreement import bf16_agrees
from captioner.errors import BadCheckpoint, BadInput, BadOutput
from captioner.files import atomic, lock
from captioner.files.cache import cache_to_write
from captioner.files.json import read_object, write_object
from captioner.zoo import BUNDLED


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="full"), atomic.replacing(target) as new:
        raise OSError(f"{new} is full")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_mode_bits_are_the_umasks_or_the_old_files(tmp_path: Path, umask: int) -> None:
    target = tmp_path / "a.txt"
    atomic.write_text(target, "new")
    assert target.stat().st_mode & 0o777 == umask
    target.chmod(0o600)
    atomic.write_text(target, "newer")
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_library_that_renames_its_own_file_does_not_choose_the_mode(tmp_path: Path, umask: int) -> None:
    with atomic.replacing(tmp_path / "a") as new:
        own = tmp_path / "own"
        own.touch(0o600)
        os.replace(own, new)
    assert (tmp_path / "a").stat().st_mode & 0o777 == umask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    """As root `eval speed --out /dev/full` made a file of the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, what in {"pipe": "no file", "folder": "a folder", "link": "no file"}.items():
        for write in (lambda to: atomic.write_bytes(to, b"new"), lambda to: atomic.write_all({to: b"new"})):
            with pytest.raises(BadOutput, match=f"{name} is {what}: name a file"):
                write(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(outside)
    atomic.write_text(tmp_path / "in" / "a", "new")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "in" / "a").is_symlink()
    (tmp_path / "in" / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        os.close(atomic.create(tmp_path / "in" / "b"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["replacing", "replacing_folder"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, kind: str) -> None:
    write = f"""
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from captioner.files import atomic
with atomic.{kind}(Path(sys.argv[1])) as new:
    (new / "part" if new.is_dir() else new).write_text("half")
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", write, str(tmp_path / "out")]
    assert subprocess.run([*command, "kill"]).returncode == -signal.SIGKILL
    [left] = os.listdir(tmp_path)
    assert atomic.is_temporary(left)
    assert subprocess.run([*command, "end"]).returncode == 0
    assert os.listdir(tmp_path) == ["out"]


def test_what_others_left_stays(tmp_path: Path) -> None:
    """Another file's is cleared with it; of another machine's processes nothing is known here."""
    names = {".captioner-00000000-99999999-ab.tmp", ".captioner-notes"}  # no system has that many processes
    for name in names:
        (tmp_path / name).touch()
    atomic.write_text(tmp_path / "a.txt", "new")
    assert set(os.listdir(tmp_path)) == names | {"a.txt"}


def test_files_of_a_new_folder_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    other = tmp_path / "other"
    other.touch(mode=0o600)
    with atomic.replacing_folder(tmp_path / "out") as new:
        save_file({"a": np.zeros(2)}, new / "model.safetensors")  # 0600 by itself
        (new / "link").symlink_to(other)
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == umask
    assert other.stat().st_mode & 0o777 == 0o600


def test_a_folder_appears_whole_and_never_over_a_full_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic.replacing_folder(out) as new:
        (new / "a").write_text("a")
        assert not any(out.iterdir())
    assert (out / "a").read_text() == "a"
    with pytest.raises(OSError, match="not empty"), atomic.replacing_folder(out) as new:
        (new / "b").write_text("b")
    assert os.listdir(out) == ["a"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "ab", buffering=0) as first, open(tmp_path / "lock", "ab", buffering=0) as second:
        lock.lock(first, "runs/a")
        with pytest.raises(BadOutput, match="runs/a is being written by another run"):
            lock.lock(second, "runs/a")


def locking(descriptor: int, mode: int, length: int) -> None:
    """Windows' `msvcrt.locking` by Linux' locks of an open file: bytes from where the file stands on."""
    import fcntl

    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_CUR, 0, length, 0)
    fcntl.fcntl(descriptor, 37, wanted)  # F_OFD_SETLK


@pytest.mark.skipif(sys.platform != "linux", reason="stands on locks of Linux")
def test_a_second_writer_is_refused_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    file = tmp_path / "journal"
    with open(file, "ab", buffering=0) as first:
        with monkeypatch.context() as windows:
            windows.setattr(sys, "platform", "win32")
            lock.lock(first, "journal")
            first.write(b"a row\n")
            with open(file, "ab", buffering=0) as second, pytest.raises(BadOutput, match="by another run"):
                lock.lock(second, "journal")  # the file is longer than when the first locked it
        first.write(b"another\n")
    assert file.read_bytes() == b"a row\nanother\n"


def test_a_file_that_its_writer_removed_is_not_written_to(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "ab", buffering=0) as first, open(tmp_path / "lock", "ab", buffering=0) as second:
        lock.lock(first, "runs/a")
        (tmp_path / "lock").unlink()
        first.close()
        with pytest.raises(BadOutput, match="runs/a is being written by another run"):
            lock.lock(second, "runs/a")


def test_objects_come_back(tmp_path: Path) -> None:
    write_object(tmp_path / "a.json", {"ü": [1, None]})
    assert read_object(tmp_path / "a.json") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[1]", "should hold a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["cut", "bytes", "list", "deep"],
)
def test_a_broken_object_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=says):
        read_object(file)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no a\.json\. Make it\."):
        read_object(tmp_path / "a.json", BadInput, "Make it.")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "/dev/zero"):
        with pytest.raises(BadCheckpoint, match="no regular file"):
            read_object(tmp_path / name)
    with pytest.raises(BadCheckpoint, match="Is a directory"):
        read_object(tmp_path)
    with open(tmp_path / "large.json", "wb") as sparse:
        sparse.truncate(10**12)
    with pytest.raises(BadCheckpoint, match="larger than"):
        read_object(tmp_path / "large.json")


def test_a_disk_without_hard_links_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT does

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BadOutput, match="without hard links"):
        atomic.write_first(tmp_path / "plan.json", b"{}")
    assert os.listdir(tmp_path) == []


def test_a_disk_without_mode_bits_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT does, of a disk that root has mounted

    monkeypatch.setattr(os, "chmod", refuse)
    atomic.write_text(tmp_path / "a.txt", "new")
    atomic.write_all({tmp_path / "b.txt": b"new"})
    with atomic.replacing_folder(tmp_path / "c") as new:
        (new / "c.txt").touch()
    assert os.listdir(tmp_path / "c") == ["c.txt"]
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text() == "new"


def test_a_cache_that_takes_nothing_keeps_nobody_from_captioning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("captioner.compute.agreement.has_bf16", lambda: True)
    assert not bf16_agrees(BUNDLED / "mini")  # nothing is known of it
    with pytest.raises(BadOutput, match=r"file/sidecars: Not a directory\). Set CAPTIONER_CACHE"):
        cache_to_write("sidecars")


def test_all_is_flushed_but_a_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushed = os.fsync, []

    def of_files_alone(descriptor: int) -> None:
        flushed.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        if flushed[-1] == "folder":
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    atomic.write_text(tmp_path / "a.txt", "new")
    atomic.write_all({tmp_path / "b.txt": b"new"})
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text() == "new"
    assert flushed == ["file", "folder"] * 2
