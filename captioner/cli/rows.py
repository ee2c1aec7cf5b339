"""How rows look when they are printed."""

from __future__ import annotations

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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("similarity", "picture", "prompt", title=Text(printable(row["file"])))
    for near in row["similar"]:
        names = (Text(printable(near[column])) for column in ("picture", "prompt"))
        table.add_row(f"{near['similarity']:.3f}", *names)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
