"""Write a file or a folder whole, or not at all: the only place that makes temporary names and renames them.

The new content is made beside its target under a name that nobody can guess, created so that no planted link is
followed, with the mode bits that the user's umask gives, flushed to the disk, and renamed over the target. A process
that is killed in between leaves the target as it was; what it had begun is taken away by the next one that writes
there.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import BadOutput

TEMPORARY = re.compile(r"(\.captioner-[0-9a-f]{8}-)(\d+)-[0-9a-f]+\.tmp")
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
OPEN_FILES_STAY = os.name == "nt"
"""Whether a file that is open can be neither removed nor renamed."""
PAUSES = (0.05, 0.2, 0.5)
"""Seconds between tries to rename on Windows: virus scanners, and what sends files to a cloud, open each new one."""
NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What systems say where a file can have one name only."""
NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that cannot flush a folder."""
NO_MODES = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""What disks say that keep no mode bits: all their files are those of whoever mounted them, as FAT's are."""


class Leftovers:
    """What killed processes of this machine had begun, in the folders that a run writes to. Each folder is listed once
    for all its files: one of 10,000 is otherwise listed 10,000 times."""

    def __init__(self) -> None:
        self.names: dict[Path, list[str]] = {}

    def clear(self, *targets: Path) -> None:
        """Remove what had been begun for these targets, which lie in one folder."""
        folder = targets[0].parent
        if folder not in self.names:
            try:
                self.names[folder] = [name for name in os.listdir(folder) if is_temporary(name)]
            except OSError:
                return  # what is wrong with the folder is said when it is written to
        if not self.names[folder]:
            return
        prefixes = {_prefix(target) for target in targets}
        for name in self.names[folder]:
            begun, process = TEMPORARY.fullmatch(name).groups()  # type: ignore[union-attr]  # it is one
            if begun in prefixes and not _alive(int(process)):
                leftover = folder / name
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)


def clear_leftovers(*targets: Path) -> None:
    """Remove what killed processes of this machine had begun for these targets, which lie in one folder."""
    Leftovers().clear(*targets)


@contextmanager
def replacing(
    target: Path, keep: bool = False, leftovers: Leftovers | None = None, expected: bool = True
) -> Iterator[Path]:
    """A new file that takes the target's place when it is whole (with `keep` it does not, and is dropped).

    A target that is there keeps its mode bits. leftovers: of a run that writes many files. expected: whether there may
    be a target; what has got its name since it was looked for is somebody else's.
    """
    refuse_no_file(target)
    (leftovers or Leftovers()).clear(target)
    temporary = beside(target)
    mode = _create(temporary)
    try:
        yield temporary
        flush(temporary)  # first: it needs a file that may be written to
        # Some libraries write to a file of their own and rename it, with other mode bits.
        _set_mode(temporary, _mode_of(target, mode))
        if not expected:
            refuse_new(target, "do the same again")
        if not keep:
            _rename(temporary, target)
            flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes the target when it is whole. The target must not be there yet, or be empty."""
    clear_leftovers(target)
    temporary = beside(target)
    temporary.mkdir()
    mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                if not file.is_symlink():
                    _set_mode(file, mode)  # safetensors shuts everybody else out of its files
                flush(file)
        if target.is_dir():
            target.rmdir()  # empty, or this says so; Windows does not rename over a folder
        _rename(temporary, target)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """A whole UTF-8 text file at once."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, content: bytes, leftovers: Leftovers | None = None) -> None:
    """A whole file at once."""
    with replacing(target, leftovers=leftovers) as new:
        new.write_bytes(content)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Many whole files, each as `write_bytes` writes it, with one look at each folder for all."""
    folders: dict[Path, list[Path]] = {}
    for target in contents:
        folders.setdefault(target.parent, []).append(target)
    for folder, targets in folders.items():
        clear_leftovers(*targets)
        for target in targets:
            _replace(target, contents[target])
        flush(folder)


def _replace(target: Path, content: bytes) -> None:
    refuse_no_file(target)
    temporary = beside(target)
    mode = _create(temporary)
    try:
        temporary.write_bytes(content)
        flush(temporary)
        _set_mode(temporary, _mode_of(target, mode))
        _rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_no_file(target: Path, remedy: str = "name a file") -> None:
    """A folder, a device or a pipe is not replaced by a file, nor is a link to one: /dev/null would be gone for all."""
    if os.path.exists(target) and not os.path.isfile(target):
        raise BadOutput(f"{target} is {'a folder' if os.path.isdir(target) else 'no file'}: {remedy}.")


def refuse_new(target: Path, remedy: str) -> None:
    """A target that was not there when the work began is somebody else's."""
    if os.path.lexists(target):
        raise BadOutput(f"{target} has appeared meanwhile and is left alone: move it away, and {remedy}.")


def write_first(target: Path, content: bytes) -> bool:
    """A whole file, unless there is one: of several processes that begin at once, on whatever machines, one wins."""
    clear_leftovers(target)
    temporary = beside(target)
    _create(temporary)
    try:
        temporary.write_bytes(content)
        flush(temporary)
        return link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def link(temporary: Path, target: Path) -> bool:
    """Give a finished file its name; False where something has that name already. Nobody sees it half written."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        raise BadOutput(
            f"{target.parent} lies on a disk without hard links (FAT, some shares), by which processes agree who does "
            "what: name a folder on another."
        ) from error
    return True


def create(path: Path) -> int:
    """A new file of our own, open to be written: an error if there is anything of this name, a link included."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)


def flush(path: Path) -> None:
    """To the disk, so that a power cut cannot undo it. Folders cannot be flushed everywhere; then they are not."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is being made here, or was left by a kill."""
    return name.startswith(".captioner-") and TEMPORARY.fullmatch(name) is not None


def _prefix(target: Path) -> str:
    # The machine is part of it: a folder may be shared, and a process number means nothing elsewhere.
    return f".captioner-{zlib.crc32(os.fsencode(f'{platform.node()}/{target.name}')):08x}-"


def beside(target: Path) -> Path:
    """An unguessable name in the target's folder, for what becomes the target when it is whole."""
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


def _rename(temporary: Path, target: Path) -> None:
    for pause in PAUSES if OPEN_FILES_STAY else ():
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(temporary, target)


def _set_mode(path: Path, mode: int) -> None:
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in NO_MODES:
            raise


def _alive(process: int) -> bool:
    import psutil  # only where something was left

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # one that nobody has waited for yet
    except psutil.NoSuchProcess:
        return False
