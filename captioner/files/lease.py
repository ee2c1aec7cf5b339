"""A piece of work that one of many processes has taken, on one machine or on several that share a folder.

A lease is a small file that tells who holds it. Two things say whether the holder lives:

- **Its lock** (`flock`), where the asker runs on the same machine: the kernel lets go of it the moment the holder dies,
  however that happens, and the lease is free at once. A network file system may keep no locks, or each machine's for
  itself, so between machines a lock that can be had proves nothing.
- **Its heartbeat**, between machines: the holder writes the file again every `BEAT` seconds, and a lease whose file is
  older than `EXPIRES` is free. Both times are the file system's own, so clocks of machines need not agree. `EXPIRES` is
  longer than the minute for which an NFS client may take a file's time from its memory.

The file appears whole and locked, by a hard link, which is atomic everywhere; so of all that begin at once one wins.
What a lease does not promise: a process that slept for longer than `EXPIRES` may wake up and go on with what another
has taken since, and two machines that find the same expired lease within a moment may both take it. Whoever writes
under a lease must therefore write whole or not at all, under a name that follows from the work. Then a doubled piece
of work costs time and changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from captioner.errors import BadOutput
from captioner.files import atomic
from captioner.files.lock import is_at, lock

BEAT = 10.0
EXPIRES = 120.0
LONGEST = 1_000_000
BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """What processes share that see each other's locks: the running kernel, whatever containers call themselves."""
    return BOOT.read_text(encoding="ascii").strip() if BOOT.is_file() else platform.node()


class Lease:
    """A lease that this process holds until it is released or the process ends."""

    def __init__(self, path: Path, temporary: Path, stream: FileIO, about: Callable[[], dict[str, Any]]) -> None:
        self.path = path
        self.temporary = temporary
        """Another name of the same file, where an open one cannot lose it."""
        self.stream = stream
        self.named = _locked_by_name(path)
        self.about = about
        self.over = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="lease").start()

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError, ValueError):  # a file system that is away comes back, or others take over
                _write(self.stream, self.about())

    def release(self) -> None:
        """Let go of it; it may have been taken over meanwhile."""
        self.over.set()
        is_ours = not self.stream.closed and is_at(self.stream, self.path)
        if is_ours and not atomic.OPEN_FILES_STAY:
            self.path.unlink(missing_ok=True)
        self.stream.close()
        if self.named is not None:
            self.named.close()
        if atomic.OPEN_FILES_STAY:
            for name in (self.temporary, self.path)[: 1 + is_ours]:
                with suppress(PermissionError):  # another has opened it since
                    name.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(path: Path, about: Callable[[], dict[str, Any]] = dict) -> Lease | None:
    """The lease of this name, or None while another process holds it. `about` is what it tells of its holder."""
    atomic.clear_leftovers(path)
    temporary = atomic.beside(path)
    stream = _open_locked(temporary)
    lease = None
    try:
        _write(stream, about())
        if atomic.link(temporary, path) or (_free(path, stream) and atomic.link(temporary, path)):
            lease = Lease(path, temporary, stream, about)
        return lease
    finally:
        if lease is None:
            stream.close()
        if lease is None or not atomic.OPEN_FILES_STAY:
            temporary.unlink(missing_ok=True)


def _open_locked(path: Path) -> FileIO:
    descriptor = atomic.create(path)
    stream = open(descriptor, "wb", buffering=0)  # noqa: SIM115 (open as long as the lease is held)
    _lock(stream, path)
    return stream


def _locked_by_name(path: Path) -> FileIO | None:
    """The lease by its own name, where that has a lock of its own: ntfs-3g gives one to each name of a file."""
    with suppress(OSError):
        stream = open(path, "r+b", buffering=0)  # noqa: SIM115 (open as long as the lease is held)
        if _lock(stream, path):
            return stream
        stream.close()
    return None


def _lock(stream: FileIO, path: Path) -> bool:
    """Whether nobody of this machine has it. Where there are no locks the heartbeat decides alone."""
    try:
        lock(stream, str(path))
    except BadOutput:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def _free(path: Path, mine: FileIO) -> bool:
    """Take away the lease that is there if its holder is dead."""
    try:
        stream = open(path, "r+b", buffering=0)  # noqa: SIM115 (closed below; its lock must outlive the check)
    except FileNotFoundError:
        return True
    with stream:
        if not _lock(stream, path):
            return False
        holder = read(path)
        now = os.fstat(mine.fileno()).st_mtime  # written just now: the time that the file system has
        if holder.get("machine") != machine() and now - os.fstat(stream.fileno()).st_mtime < EXPIRES:
            return False
        if is_at(stream, path):
            if atomic.OPEN_FILES_STAY:
                stream.close()
            path.unlink(missing_ok=True)
    return True


def read(path: Path) -> dict[str, Any]:
    """What a lease tells of its holder; nothing of one that is gone, or is being written this moment."""
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read(LONGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_held(path: Path) -> bool:
    """Whether its holder lives, as far as can be told without taking it."""
    try:
        with open(path, "r+b", buffering=0) as stream:
            if read(path).get("machine") == machine():
                return not _lock(stream, path)
            return _now(path.parent) - os.fstat(stream.fileno()).st_mtime < EXPIRES
    except OSError:
        return False


def _now(folder: Path) -> float:
    """The time that the file system has."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        return os.fstat(stream.fileno()).st_mtime


def _write(stream: FileIO, about: dict[str, Any]) -> None:
    content = json.dumps({"machine": machine(), "process": os.getpid(), **about}).encode()
    stream.seek(0)
    stream.write(content.ljust(os.fstat(stream.fileno()).st_size))  # spaces cover what was longer
