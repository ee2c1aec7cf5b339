"""Read a JSON object from a file that somebody else may have made, and write one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from captioner.errors import BadCheckpoint, CaptionerError
from captioner.files import atomic

MOST_BYTES = 100_000_000
"""No configuration is longer; a pipe or a device has no end."""


def read_object(path: Path, error: type[CaptionerError] = BadCheckpoint, remedy: str = "") -> dict[str, Any]:
    """The JSON object in this file; whatever is wrong with it is one sentence, raised as `error`."""
    content = read_value(path, error, remedy)
    if not isinstance(content, dict):
        raise error(f"{path} should hold a JSON object. {remedy}".rstrip())
    return content


def read_value(path: Path, error: type[CaptionerError] = BadCheckpoint, remedy: str = "") -> Any:
    """The JSON value in this file."""
    try:
        return json.loads(_read(path))
    except FileNotFoundError as missing:
        raise error(f"{path.parent} has no {path.name}. {remedy}".rstrip()) from missing
    except RecursionError as deep:
        raise error(f"{path} is nested too deeply to be read as JSON. {remedy}".rstrip()) from deep
    except (OSError, ValueError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) and wrong.strerror else wrong
        raise error(f"{path} cannot be read as JSON ({reason}). {remedy}".rstrip()) from wrong


def write_object(path: Path, content: Any) -> None:
    """As indented UTF-8 JSON, whole or not at all."""
    atomic.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> str:
    """The text of a regular file. It is opened without waiting: a pipe that nobody writes to would never open."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        return stream.read().decode("utf-8")
