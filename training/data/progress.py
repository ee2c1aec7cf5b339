"""How far the work on a data set is, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """The same items, with a bar above them."""
    return rich_track(items, description=what, total=total, console=Console(stderr=True))
