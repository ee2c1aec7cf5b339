"""How rows look when they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from captioner.errors import printable
from captioner.images.metadata import Parameters
from captioner.sinks import Row


def numbers(row: Row) -> str:
    """An embedding as decimals with spaces between."""
    return " ".join(map(str, row["embedding"]))


def parameters_text(row: Row, named: bool) -> str:
    """Generation parameters as A1111 shows them; one of many begins with its picture's name."""
    parameters = Parameters(**{column: value for column, value in row.items() if column != "file"})
    return f"{printable(row['file'])}\n{parameters.to_text()}\n" if named else parameters.to_text()


def neighbours_table(row: Row) -> str:
    """The neighbours of a picture as wide as the terminal."""
    rows = [(f"{near['similarity']:.3f}", near["picture"], near["prompt"]) for near in row["similar"]]
    return _table(row["file"], ("similarity", "picture", "prompt"), [rows])


def terms_table(row: Row, column: str, measure: str) -> str:
    """The terms nearest to a picture, kind by kind."""
    kinds = [
        [("" if n else kind, f"{near[measure]:.3f}", near["term"]) for n, near in enumerate(of_kind)]
        for kind, of_kind in groupby(row[column], itemgetter("kind"))
    ]
    return _table(row["file"], ("kind", measure, "term"), kinds)


def _table(title: str, columns: Sequence[str], sections: Iterable[Iterable[Sequence[str]]]) -> str:
    """Rows in sections as wide as the terminal; what strangers wrote is escaped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=Text(printable(title)))
    for rows in sections:
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        table.add_section()
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
