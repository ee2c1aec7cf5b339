"""What the tests of reports share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from eval import store
from eval.anatomy import EVERY_TERM

Step = TypeVar("Step")


def quietly(steps: Iterable[Step], total: int | None, what: str) -> Iterable[Step]:
    """No progress bar."""
    return steps


def broken_model(folder: Path) -> Path:
    """A checkpoint whose weights were not copied."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "direct"}')
    return folder


def begun(title: str, resamples: int, notes: list[str]) -> dict[str, Any]:
    """A report on twelve texts, before its figures."""
    return {
        "title": title,
        "kind": "score",
        "figures_only": False,
        **store.circumstances(0, resamples),
        "settings": {},
        "data": {
            **{"specs": ["x"], "names": ["x"], "noun": "pictures", "pictures": 12, "prompts": 12},
            **{"fingerprint": "0" * 64, "notes": notes},
        },
        "vocabulary": store.vocabulary_row(EVERY_TERM),
        "protocol": None,
        "redrawn": None,
    }
