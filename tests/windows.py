"""What Windows refuses, refused here: a file that is open in this process can be neither removed nor renamed, nor can a
file take its place or a folder around it be renamed; and names that Windows does not have cannot be made."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner.files import atomic

NOT_A_NAME = re.compile(r"[<>:\"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
MAKING = {"os.mkdir": 0, "os.rename": 1, "os.link": 1}
"""Audit events that make a name → which argument it is."""

_watched: list[Path] = []
_hooked = False


@contextmanager
def like_windows(folder: Path) -> Iterator[None]:
    """Under this folder, while the block runs."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_refuse)  # it stays for as long as the process
        _hooked = True
    before, atomic.OPEN_FILES_STAY = atomic.OPEN_FILES_STAY, True
    _watched.append(folder.resolve())
    try:
        yield
    finally:
        _watched.pop()
        atomic.OPEN_FILES_STAY = before


def _refuse(event: str, arguments: tuple) -> None:
    if not _watched or event not in ("open", "os.remove", "os.rename", "os.mkdir", "os.link"):
        return
    if event in ("os.remove", "os.rename"):
        opened = _open_files()
        for name in arguments[: 1 if event == "os.remove" else 2]:
            path = _watched_path(name)
            if path and any(file == path or (event == "os.rename" and path in file.parents) for file in opened):
                raise PermissionError(errno.EACCES, "The process cannot access the file: it is in use", str(path))
    makes = event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & os.O_CREAT
    if makes or event in MAKING:
        path = _watched_path(arguments[MAKING.get(event, 0)])
        if path and NOT_A_NAME.search(path.name):
            raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", str(path))


def _watched_path(name: str | bytes | int) -> Path | None:
    if isinstance(name, int):
        return None
    path = Path(os.path.abspath(os.fsdecode(name)))
    path = Path(os.path.realpath(path.parent)) / path.name
    return path if _watched[-1] in path.parents else None


def _open_files() -> list[Path]:
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISREG(os.fstat(int(number)).st_mode):
                files.append(Path(os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            continue  # it was open for the list alone
    return files
