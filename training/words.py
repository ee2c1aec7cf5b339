"""How durations and names are written in messages and in the model card. Light."""

from __future__ import annotations

import re


def without_folders(argument: str) -> str:
    """An option or a source as others may read it: of a path on this machine, its last name alone."""
    [(option, prefix, path)] = re.findall(r"\A(--[\w-]+=)?([a-z]{2,}:)?(.*)\Z", argument, re.DOTALL)
    if re.match(r"[/~\\]|[A-Za-z]:[\\/]", path):
        path = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return option + prefix + path


def duration(seconds: float) -> str:
    """40 s, 12 min, 3 h 20 min: about as exactly as it is known."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
