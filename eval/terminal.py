"""How figures look on a terminal: tables on standard output, notes on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captioner.errors import printable
from eval import explained
from eval.progress import say
from eval.wording import as_published, decimals, is_best, number, p_value, signed

if TYPE_CHECKING:
    from eval.compare import Change
    from eval.schema import Figures, ProtocolTable, Report
    from eval.submission import Check


def print_figures(written: Report) -> None:
    """Every model in every metric, and what has to be said of it."""
    wide = len(written["models"]) <= 3  # beside more models the intervals would be cut to pieces
    what = "mean (95 % interval)" if wide else "mean"
    table = Table(caption=f"{what}; bold: significantly better than every other")
    table.add_column("metric", no_wrap=True)
    for model in written["models"]:
        table.add_column(Text(printable(model["label"])), overflow="fold")
    for metric in written["metrics"]:
        cells = [
            _cell(model["figures"].get(metric["name"]), is_best(dict(written), metric["name"], dict(model)), wide)
            for model in written["models"]
        ]
        table.add_row(Text(printable(metric["label"])), *cells)
    Console().print(table)
    for sentence in explained.sentences(written):
        print(printable(sentence))
    if (protocol := written["protocol"]) is not None:
        _print_protocol(protocol)
    for note in written["data"]["notes"]:
        say(f"note: {note}")


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
        table.add_column(heading)
    for row in protocol["rows"]:
        values = map(decimals, row["values"])
        table.add_row(Text(printable(row["label"])), *values, "measured here")
    for published in protocol["published"]:
        values = map(as_published, published["values"])
        table.add_row(published["label"], *values, f"as published: {published['where']}")
    Console().print(table)


def print_changes(changes: list[Change]) -> None:
    """Two reports, a line for every model and metric that both have."""
    table = Table("model", "metric", "change", "95 % interval", "p (Holm)", "n", "B is")
    for change in changes:
        interval = change.difference.interval
        who = change.a if change.a == change.b else f"{change.a} → {change.b}"
        verdict = "worse" if change.worse else "better" if change.better else "not clearly different"
        spread = f"{signed(interval.low)} to {signed(interval.high)}"
        cells = (signed(interval.mean), spread, p_value(change.p_holm), str(change.difference.items), verdict)
        table.add_row(Text(printable(who)), change.metric, *cells)
    Console().print(table)


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
