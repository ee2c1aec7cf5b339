"""One writer at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from captioner.errors import BadOutput

LOCK = ".lock"
"""In a folder that is one run's alone."""
FAR = 2**31 - 2
"""The byte that stands for the file where bytes are locked."""


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold this folder, by a file that is removed at the end. It is made if it is not there; one in which nothing came
    about is not left behind.

    refusal: what is told of a folder that cannot be written, after its name; {} stands for the system's words.
    """
    made = not folder.exists()
    try:
        with ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock(held.enter_context(open(folder / LOCK, "ab", buffering=0)), str(folder))
            except OSError as error:
                raise BadOutput(f"{folder} {refusal.format(error.strerror)}") from error
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file: an empty one stays
                    (folder / LOCK).unlink()
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def lock(stream: FileIO, what: str) -> None:
    """Hold this open file until it is closed. `what` names it in the message to a second run.

    A run that ends may remove its file between our opening and locking it: what is then written would be lost.
    """
    _hold(stream, what)
    if not is_at(stream, stream.name):
        raise _taken(what)


def is_at(stream: FileIO, path: Path | str | int) -> bool:
    """Whether an open file still has this name: it, or its folder, may have been removed, or replaced by another."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _hold(stream: FileIO, what: str) -> None:
    if sys.platform == "win32":
        import msvcrt

        # Windows locks bytes, and nobody else can read those. One far behind the end is the same for every run, however
        # long the file has become.
        here = os.lseek(stream.fileno(), 0, os.SEEK_CUR)
        os.lseek(stream.fileno(), FAR, os.SEEK_SET)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise _taken(what) from error
        finally:
            os.lseek(stream.fileno(), here, os.SEEK_SET)
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _taken(what) from error


def _taken(what: str) -> BadOutput:
    return BadOutput(f"{what} is being written by another run. Wait for it, or choose another place.")
