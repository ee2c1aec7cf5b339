"""Write a file or a folder whole, or not at all: the only place that makes temporary names and renames them.

The new content is made beside its target under a name that nobody can guess, created so that no planted link is
followed, with the mode bits that the user's umask gives, flushed to the disk, and renamed over the target. A process
that is killed in between leaves the target as it was; what it had begun is taken away by the next one that writes
there.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def replacing(target: Path, keep: bool = False) -> Iterator[Path]:
    """A new file that takes the target's place when it is whole (with `keep` it does not, and is dropped).

    A target that is there keeps its mode bits.
    """
    clear_leftovers(target)
    temporary = _beside(target)
    mode = _create(temporary)
    try:
        yield temporary
        # Some libraries write to a file of their own and rename it, with other mode bits.
        os.chmod(temporary, _mode_of(target, mode))
        flush(temporary)
        if not keep:
            os.replace(temporary, target)
            flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes the target when it is whole. The target must not be there yet, or be empty."""
    clear_leftovers(target)
    temporary = _beside(target)
    temporary.mkdir()
    mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                if not file.is_symlink():
                    os.chmod(file, mode)  # safetensors shuts everybody else out of its files
                flush(file)
        if target.is_dir():
            target.rmdir()  # empty, or this says so; Windows does not rename over a folder
        os.replace(temporary, target)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """A whole UTF-8 text file at once."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, content: bytes) -> None:
    """A whole file at once."""
    with replacing(target) as new:
        new.write_bytes(content)


def create(path: Path) -> int:
    """A new file of our own, open to be written: an error if there is anything of this name, a link included."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)


def flush(path: Path) -> None:
    """To the disk, so that a power cut cannot undo it. Folders cannot be flushed everywhere; then they are not."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_leftovers(target: Path) -> None:
    """Remove what killed processes of this machine had begun for this target."""
    pattern = re.compile(rf"{re.escape(_prefix(target))}(\d+)-[0-9a-f]+\.tmp")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return  # what is wrong with the folder is said when it is written to
    for name in names:
        if (match := pattern.fullmatch(name)) and not _alive(int(match[1])):
            leftover = target.with_name(name)
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is being made here, or was left by a kill."""
    return re.fullmatch(r"\.captioner-[0-9a-f]{8}-\d+-[0-9a-f]+\.tmp", name) is not None


def _prefix(target: Path) -> str:
    # The machine is part of it: a folder may be shared, and a process number means nothing elsewhere.
    return f".captioner-{zlib.crc32(os.fsencode(f'{platform.node()}/{target.name}')):08x}-"


def _beside(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(8)}.tmp")


def _create(path: Path) -> int:
    """Make an empty file, and tell the mode bits that the umask gave it."""
    descriptor = create(path)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _mode_of(target: Path, otherwise: int) -> int:
    try:
        status = target.lstat()
    except FileNotFoundError:
        return otherwise
    return stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else otherwise


def _alive(process: int) -> bool:
    import psutil  # only where something was left

    return psutil.pid_exists(process)
