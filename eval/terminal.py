"""How figures look on a terminal: tables on standard output, notes on standard error."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from captioner.errors import printable
from eval import explained
from eval.progress import say
from eval.wording import as_published, decimals, is_best, number, p_value, signed

if TYPE_CHECKING:
    from eval.compare import Change
    from eval.schema import Figures, ModelRow, ProtocolTable, Report
    from eval.submission import Check


def print_figures(written: Report) -> None:
    """Every model in every metric, and what has to be said of it."""
    console, left = Console(), written["models"]
    wide = len(left) <= 3  # of more models the intervals would take many tables
    while left:
        tables = (_figures_of(written, left[:count], wide) for count in range(len(left), 0, -1))
        table = next(table for table in tables if _fits(console, table) or len(table.columns) == 2)
        console.print(table)
        left = left[len(table.columns) - 1 :]
    print(f"{'mean (95 % interval)' if wide else 'mean'}; bold: significantly better than every other")
    for sentence in explained.sentences(written):
        print(printable(sentence))
    if (protocol := written["protocol"]) is not None:
        _print_protocol(protocol)
    for note in written["data"]["notes"]:
        say(f"note: {note}")


def _figures_of(written: Report, models: list[ModelRow], wide: bool) -> Table:
    """The figures of some of the models; wide: with intervals."""
    table = Table("metric")
    for model in models:
        table.add_column(Text(printable(model["label"])), overflow="fold")
    for metric in written["metrics"]:
        cells = [
            _cell(model["figures"].get(metric["name"]), is_best(dict(written), metric["name"], dict(model)), wide)
            for model in models
        ]
        table.add_row(Text(printable(metric["label"])), *cells)
    return table


def _fits(console: Console, table: Table) -> bool:
    """Whether all names and figures stay on a line."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum <= console.width


def _cell(figures: Figures | None, bold: bool, wide: bool) -> Text:
    """One model in one metric; wide: with the interval."""
    if figures is None:
        return Text(number(None))
    cell = Text(number(figures["mean"]), "bold" if bold else "")
    if wide and figures["low"] is not None:
        cell.append(f" ({number(figures['low'])} – {number(figures['high'])})", "not bold")
    return cell


def _print_protocol(protocol: ProtocolTable) -> None:
    table = Table(title=protocol["title"], caption=" ".join(protocol["notes"]))
    for heading in ("", *(column["label"] for column in protocol["columns"]), "where"):
        table.add_column(heading, overflow="fold")
    for row in protocol["rows"]:
        values = map(decimals, row["values"])
        table.add_row(Text(printable(row["label"])), *values, "measured here")
    for published in protocol["published"]:
        values = map(as_published, published["values"])
        table.add_row(published["label"], *values, f"as published: {published['where']}")
    Console().print(table)


def print_changes(changes: list[Change]) -> None:
    """Two reports: a table for every model, with a line for each metric that both have."""
    console = Console()
    for who, of_model in groupby(
        changes, lambda change: change.a if change.a == change.b else f"{change.a} → {change.b}"
    ):
        table = Table(title=Text(printable(who)), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("metric", "change", "95 % interval", "p (Holm)", "n"):
            table.add_column(heading, no_wrap=True)
        table.add_column("B is")
        for change in of_model:
            interval = change.difference.interval
            verdict = "worse" if change.worse else "better" if change.better else "not clearly different"
            spread = f"{signed(interval.low)} to {signed(interval.high)}"
            n = str(change.difference.items)
            table.add_row(change.metric, signed(interval.mean), spread, p_value(change.p_holm), n, verdict)
        console.print(table, "")


def print_check(result: Check, has_prompts: bool) -> None:
    """What a submission is worth; has_prompts: it was held against them."""
    for problem in result.problems:
        say(f"wrong: {problem}")
    for note in result.notes:
        say(f"note: {note}")
    if result.cosine is not None:
        mean = result.cosine
        print(f"{result.images:,} images, mean cosine {mean.mean:.4f} (95 % {mean.low:.4f} to {mean.high:.4f})")
    elif not has_prompts:
        print(f"{result.images:,} images; without --prompts their names and their score are not looked at.")
    print("The format is wrong: it would be refused." if result.problems else "The format is right.")
