"""Folders of pictures for the tests of Review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def picture(file: Path, number: int = 0) -> None:
    Image.new("RGB", (8, 8), (20 * number % 256, 99, 99)).save(file)


def write_rows(
    table: Path, files: Sequence[str], column: str = "file", score: float | None = None, embedding: bool = False
) -> None:
    """A table as `generate` writes it."""
    rows = []
    for file in files:
        stem = Path(file).stem
        said = [{"text": f"{text} {stem}", "score": score, "finished": True} for text in ("text of", "another of")]
        row = {column: file, "text": said[0]["text"], "score": score, "model": "mini", "source": "model", "raw": ""}
        rows.append(row | ({"embedding": [0.5] * 384} if embedding else {"candidates": said}))
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(table: Path) -> list[dict]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
