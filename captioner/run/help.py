"""`--help` of a command line: what a command is for, examples, and its options in panels.

Typer draws such pages too, but speaks of Python's types, and loads what draws Markdown and tracebacks for them: a
quarter of the time of `captioner --help`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, ParameterInfo

if TYPE_CHECKING:
    from rich.text import Text

    Panels = dict[str, list[tuple[Text, Text]]]
    """Their names → what is typed, and what it does."""

Called = TypeVar("Called", bound=Callable[..., Any])

VALUES: dict[Any, str] = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""What a value is called."""
EXAMPLE = re.compile(r"(captioner|python -m) ")
"""How a paragraph begins that can be typed."""
FIRST = "First of all"
"""The panel of what most people need; those of other names stand below the options that are in none."""
SWITCHES = 30
"""Characters of an option, beside which its help stands; a longer one is folded."""
NARROW = 30
"""A terminal that leaves fewer characters beside an option has its help below it."""


class CommandLine(typer.Typer):
    """Verbs whose `--help` is such a page."""

    def __init__(self, *, cls: type[TyperGroup] | None = None, **more: Any) -> None:
        super().__init__(cls=cls or Group, pretty_exceptions_enable=False, **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[Called], Called]:
        def added(verb: Called) -> Called:
            return super(CommandLine, self).command(name, cls=Verb, **more)(_worded(verb))

        return added


class Verb(TyperCommand):
    """One verb."""

    def get_usage(self, ctx: Any) -> str:
        """What is required as everybody writes it: FROM, not {FROM}."""
        return re.sub(r"\{(\w+)\}", r"\1", super().get_usage(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show(self, ctx)


class Group(TyperGroup):
    """Verbs under one name."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show(self, ctx)


def as_written(hint: Any) -> Any:
    """Python 3.10 makes `Optional[Annotated[…]]` of an `Annotated[…]` whose default is None."""
    inner = [one for one in get_args(hint) if get_origin(one) is Annotated]
    return inner[0] if get_origin(hint) in (Union, UnionType) and inner else hint


def _worded(verb: Called) -> Called:
    """A verb each of whose values has a name."""
    hints = {name: as_written(hint) for name, hint in get_type_hints(verb, include_extras=True).items()}
    for name, hint in hints.items():
        kind, *given = get_args(hint) if get_origin(hint) is Annotated else [hint]
        for option in given:
            if isinstance(option, ParameterInfo) and option.metavar is None:
                option.metavar = name.upper() if isinstance(option, ArgumentInfo) else _value(kind, option)
    verb.__annotations__ = hints  # typer would read them anew
    return verb


def _value(kind: Any, option: ParameterInfo) -> str | None:
    """What the value of an option is called, with the words or the numbers that it may be."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind not in VALUES:
        return next(filter(None, (_value(inner, option) for inner in get_args(kind))), None)
    if option.max is not None:
        return f"{option.min:g}..{option.max:g}"
    return VALUES[kind] if option.min is None else f"{VALUES[kind]}>={option.min:g}"


def _show(command: Verb | Group, ctx: Any) -> None:
    """Print the page of a command."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(Padding(_coloured(command.get_usage(ctx), "bold"), 1))
    for paragraph in _paragraphs(command.help or ""):
        console.print(Padding(paragraph, (0, 1, 1, 1)))
    verbs = _verbs(command, ctx) if isinstance(command, Group) else {}
    for panels in (verbs, _parameters(command, ctx)):
        width = min(SWITCHES, max((len(left) for rows in panels.values() for left, _ in rows), default=0))
        for name, rows in panels.items():
            if rows:
                console.print(_panel(name, rows, width, is_narrow=console.width < width + NARROW))
    if command.epilog:
        console.print(Padding(_coloured(command.epilog), 1))


def _paragraphs(text: str) -> Iterator[Text]:
    """As wide as the terminal, not as the source; examples one below the other."""
    from rich.text import Text

    examples: list[str] = []
    for paragraph in re.split(r"\n{2,}", text):
        if EXAMPLE.match(paragraph):
            examples.append(paragraph)
            continue
        if examples:
            yield Text("\n".join(examples), "cyan")
            examples = []
        yield _coloured(" ".join(paragraph.split()))
    if examples:
        yield Text("\n".join(examples), "cyan")


def _row(parameter: Any) -> tuple[Text, Text]:
    """What is typed, and what it does."""
    from rich.text import Text

    help = _coloured(" ".join((parameter.help or "").split()))
    value = parameter.metavar or ""
    if "|" in value:
        help.append(f" [{value.replace('|', ', ')}]", "dim")
        value = "WORD"
    if parameter.required:
        help.append(" [required]", "red")
    elif (default := _default(parameter)) is not None:
        help.append(f" [default: {default}]", "dim")
    if getattr(parameter, "envvar", None):
        help.append(f" [or the environment's {parameter.envvar}]", "dim")
    if parameter.param_type_name == "argument":
        return Text(value + "..." * (parameter.nargs != 1), "bold yellow"), help
    left = Text(_switches(parameter.opts, parameter.secondary_opts), "bold cyan")
    if value and not parameter.is_flag:
        left.append(f" {value}", "yellow")
    return left, help


def _switches(on: list[str], off: list[str]) -> str:
    """`-o, --out`, `    --graph/--exact`."""
    short, long = ([name for name in on if name.startswith("--") == is_long] for is_long in (False, True))
    return ("" if short else "    ") + "/".join((", ".join((*short, *long)), *off))


def _default(parameter: Any) -> str | None:
    """What holds where the parameter is left out, if that says anything."""
    value = parameter.default
    if not parameter.show_default or value is None or value == () or callable(value):
        return None
    if isinstance(value, bool):
        return ("off", "on")[value] if parameter.secondary_opts else None
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value) or None


def _verbs(group: Group, ctx: Any) -> Panels:
    """The verbs of a group, with their first sentences."""
    from rich.text import Text

    panels: Panels = {}
    for name in group.list_commands(ctx):
        verb = group.get_command(ctx, name)
        if verb is not None and not verb.hidden:
            row = Text(name, "bold cyan"), _coloured(" ".join((verb.help or "").split("\n\n")[0].split()))
            panels.setdefault(getattr(verb, "rich_help_panel", None) or "Commands", []).append(row)
    return panels


def _parameters(command: Verb | Group, ctx: Any) -> Panels:
    """Arguments and options."""
    panels: Panels = {"Arguments": [], FIRST: [], "Options": []}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(_row(parameter))
    return panels


def _coloured(text: str, style: str = "") -> Text:
    """With options and what stands in backticks set off."""
    from rich.text import Text

    coloured = Text(text, style)
    coloured.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*|`[^`]+`", "cyan")
    return coloured


def _panel(name: str, rows: Iterable[tuple[Text, Text]], width: int, is_narrow: bool) -> Any:
    """The rows in a frame; narrow: what is typed, and below it what it does."""
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 0 if is_narrow else 2, 0, 0), expand=True)
    if not is_narrow:
        table.add_column(width=width, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for left, help in rows:
        if is_narrow:
            table.add_row(left)
            table.add_row(Padding(help, (0, 0, 0, 6)))
        else:
            table.add_row(left, help)
    return Panel(table, title=name, title_align="left", border_style="dim")
