"""All measurements in one go: every subject of the package gives rows, each a ratio within one run."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captioner.errors import BadInput
from eval.speed import SUBJECTS
from eval.speed.clock import check_file, machine, write_figures


@dataclass(frozen=True)
class Row:
    """One ratio: how often it was taken, what it should be, and what it was made of."""

    subject: str
    """What was done: "mini, 400 pictures"."""
    figure: str
    """What the ratio is of: "times faster than transformers"."""
    ratios: Sequence[float]
    """One of each turn."""
    least: float | None = None
    most: float | None = None
    """What the ratio should at least, or at most, be."""
    details: dict[str, Any] = field(default_factory=dict)
    """Seconds, counts: whatever the ratio was made of."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def target(self) -> str:
        """ "≥ 1.50", or nothing."""
        if self.least is not None:
            return f"≥ {self.least:.2f}"
        return "" if self.most is None else f"≤ {self.most:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "ratios": list(self.ratios), "median": self.median}


def suite(only: Sequence[str], out: Path | None, say: Callable[[str], object]) -> dict:
    """Measure these subjects (none named: all). Returns, and writes as JSON to `out`, the machine and the rows."""
    if unknown := set(only) - set(SUBJECTS):
        raise BadInput(f"There is nothing to measure called {sorted(unknown)[0]!r}: use {', '.join(SUBJECTS)}.")
    check_file(out)
    rows: list[dict] = []
    for name in SUBJECTS:
        if not only or name in only:
            say(f"measuring: {name}")
            measured: list[Row] = importlib.import_module(f"eval.speed.{name}").measure(say)
            rows += [{"part": name, **row.to_dict(), "target": row.target} for row in measured]
    result = {"machine": machine(), "rows": rows}
    write_figures(out, result)
    return result


def print_table(result: dict) -> None:
    """The ratios: medians, lowest and highest."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("what", "ratio", "of", "target"):
        table.add_column(heading)
    for row in result["rows"]:
        ratios = row["ratios"]
        shown = f"{row['median']:.2f}" + (f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else "")
        table.add_row(*map(Text, (row["subject"], shown, row["figure"], row["target"])))
    console = Console()
    console.print(table)
    console.print(Text(", ".join(f"{name} {value}" for name, value in result["machine"].items()), "dim"))
