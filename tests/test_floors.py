"""The house has floors: a room imports from its own floor and from those below, never from above; not in functions
either, nor for types alone. ARCHITECTURE.md tells what each room is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("cli", "cluster"),
    ("web",),
    ("serving",),
    ("training", "eval", "run", "review", "shards"),
    ("models",),
    ("pipeline",),
    ("text",),
    ("search",),
    ("compute",),
    ("pairs", "sinks", "contracts"),
    ("zoo", "images", "files", "decoding", "quiet"),
    ("errors", "prompt", "terms", "styles", "statistics", "memory", "openmp"),
)
"""Top down. `training` and `eval` are packages of their own; the other rooms are inside `captioner`."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SIDEWAYS = {
    ("eval", "training"),  # a report reads the same data as a training
    ("eval", "run"),  # every entry point begins with run/lastresort.py
    ("training", "run"),
    ("cli", "cluster"),
    ("shards", "run"),  # a part is a run over a shard
    ("zoo", "files"),
    ("images", "files"),
    ("sinks", "contracts"),
    ("pairs", "sinks"),
}
"""Arrows between rooms of one floor, which must not make a circle."""


def room_of(module: str) -> str | None:
    """The room of a dotted name; None for the package's own front, `captioner/__init__.py`."""
    first, *rest = module.split(".")
    return first if first in ("training", "eval") else rest[0] if rest and rest[0] in FLOOR_OF else None


@cache
def modules() -> dict[str, ast.Module]:
    """All modules of the three packages by dotted name."""
    files = (file for package in ("captioner", "training", "eval") for file in (ROOT / package).rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text(encoding="utf-8"))
        for file in files
    }


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> set[tuple[str | None, str | None, str]]:
    """From which room to which, and where."""
    return {
        (room_of(module), room_of(name), f"{module} imports {name}")
        for module, tree in modules().items()
        for name in imports(tree)
        if name.split(".")[0] in ("captioner", "training", "eval")
    }


def test_every_module_has_a_room() -> None:
    fronts = {"captioner.__init__", "captioner.__main__"}
    assert [module for module in modules() if room_of(module) is None and module not in fronts] == []


def test_nothing_points_upward() -> None:
    upward = [line for room, other, line in arrows() if room and other and FLOOR_OF[other] < FLOOR_OF[room]]
    assert upward == []


def test_arrows_on_one_floor_are_few_and_make_no_circle() -> None:
    rooms = {(room, other) for room, other, _ in arrows() if room and other and room != other}
    sideways = {(room, other) for room, other in rooms if FLOOR_OF[room] == FLOOR_OF[other]}
    assert sideways <= SIDEWAYS
    assert not {(other, room) for room, other in SIDEWAYS} & SIDEWAYS


def test_imports_are_absolute() -> None:
    """So that they can be read here: a relative one has no module's name."""
    relative = [
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []
