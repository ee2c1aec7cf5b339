"""Places are checked before any work is done, and what the system says of a file becomes one sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import BadInput, BadOutput

RESUME = "What is done is kept: put it right, then set resume."
LEAST_FREE = 1_000_000
"""Bytes that must be free before work starts."""


def check_new(out: Path, ending: str = "") -> None:
    """A file that can be made."""
    if not out.name.endswith(ending):
        raise BadInput(f"{out}: name a file that ends in {ending}.")
    check_place(out.parent)
    check_name(out)
    if os.path.lexists(out):
        raise BadOutput(f"{out} is already there: remove it, or name another file.")


def check_name(out: Path, added: str = "") -> None:
    """A name that leaves room for what is added to it."""
    most = os.pathconf(out.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(os.fsencode(out.name + added)) > most:
        raise BadOutput(f"The name {out.name[:40]}… is too long: choose a shorter one.")


def check_new_folder(out: Path) -> None:
    """A folder that is not there yet, or is empty."""
    if out.name in ("", ".."):  # . and / have no name that another folder could take
        raise BadOutput(f"{out} is a folder that is in use: name one to be made.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadOutput(f"{out} is already there: remove it, or name another folder.")


def check_place(folder: Path, remedy: str = "choose another place") -> None:
    """A folder that is there, may be written to and has room: said before any work is done."""
    try:
        if not folder.is_dir():
            raise BadOutput(f"There is no folder {folder}: make it first (mkdir -p).")
        disk = shutil.disk_usage(folder)
    except OSError as error:  # somewhere above it we may not look
        raise BadOutput(f"{folder} cannot be reached ({error.strerror}): {remedy}.") from error
    if not os.access(folder, os.W_OK | os.X_OK) or disk.total == 0:  # /proc and its like hold no files of users
        raise BadOutput(f"{folder} cannot be written to: {remedy}.")
    if disk.free < LEAST_FREE:
        raise BadOutput(f"The disk of {folder} is full: make room, or {remedy}.")


@contextmanager
def explained(path: Path, remedy: str = "Choose another place.") -> Iterator[None]:
    """The system's complaint about a file as one clear line."""
    try:
        yield
    except OSError as error:
        raise BadOutput(f"{path} cannot be written ({error.strerror or error}). {remedy}") from error


@contextmanager
def not_resumable(remedy: str) -> Iterator[None]:
    """For work through a sink or a journal that cannot be resumed: what is to be done instead."""
    try:
        yield
    except BadOutput as error:
        if RESUME not in str(error):
            raise
        raise BadOutput(str(error).replace(RESUME, remedy)) from error
