"""`--help` of a command line: what a command is for, examples, and its options in panels.

Typer draws such pages too, but speaks of Python's types, and loads rich for them: a third of the time of
`captioner --help`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, ParameterInfo

from captioner.errors import can_print

Panels = dict[str, list[tuple[str, str]]]
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
BELOW = 6
"""So many characters further to the right."""
COLOURS = {"name": "1;36", "value": "33", "dim": "2", "red": "31", "cyan": "36", "bold": "1"}
PLAIN = re.compile(
    r"(?P<red>\[required\])|(?P<dim>\[[^]]*\](?=(?:\s+\[[^]]*\])*$))|(?P<cyan>(?<![\w-])--?[a-z][\w-]*|`[^`]+`)"
)
"""What is set off in a text: the brackets at its end, options, and what stands in backticks."""
TYPED = re.compile(r"(?P<name>(?<!\S)(?:-\S*|[a-z][\w-]*))|(?P<value>\S+)")
"""An option or a verb, and what is given to it."""
USAGE, EXAMPLES = re.compile(r"(?P<bold>[\s\S]+)"), re.compile(r"(?P<cyan>[\s\S]+)")
FRAMES = "╭─╮│╰╯", "+-+|++"
"""The second where the first cannot be printed."""


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
        return f"{option.min:.10g}..{option.max:.10g}"
    return VALUES[kind] if option.min is None else f"{VALUES[kind]}>={option.min:.10g}"


def _show(command: Verb | Group, ctx: Any) -> None:
    """Print the page of a command."""
    width = max(shutil.get_terminal_size().columns, NARROW)
    typer.echo("\n".join(_page(command, ctx, width)), color=_has_colours())


def _has_colours() -> bool:
    """As https://no-color.org and https://force-color.org ask for it."""
    if os.environ.get("NO_COLOR") or os.environ.get("FORCE_COLOR"):
        return not os.environ.get("NO_COLOR")
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _page(command: Verb | Group, ctx: Any, width: int) -> Iterator[str]:
    """Its lines."""
    yield from ("", *_paragraph(command.get_usage(ctx), width, USAGE), "")
    yield from _about(command.help or "", width)
    verbs = _verbs(command, ctx) if isinstance(command, Group) else {}
    for panels in (verbs, _parameters(command, ctx)):
        left = min(SWITCHES, max((len(typed) for rows in panels.values() for typed, _ in rows), default=0))
        for name, rows in panels.items():
            if rows:
                yield from _panel(name, rows, width, left if width >= left + NARROW else None)
    if command.epilog:
        yield from ("", *_paragraph(command.epilog, width), "")


def _about(text: str, width: int) -> Iterator[str]:
    """As wide as the terminal, not as the source; examples one below the other."""
    paragraphs = re.split(r"\n{2,}", text)
    for this, following in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
        is_example = EXAMPLE.match(this)
        yield from _paragraph(this, width, EXAMPLES if is_example else PLAIN)
        if not (is_example and EXAMPLE.match(following)):
            yield ""


def _paragraph(text: str, width: int, marks: re.Pattern[str] = PLAIN) -> Iterator[str]:
    return (f" {line}".rstrip() for line in _lines(text, width - 2, marks))


def _lines(text: str, width: int, marks: re.Pattern[str] = PLAIN) -> list[str]:
    """The lines of a text, each so wide, with its marks in colours."""
    bare = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    coloured = marks.sub(_coloured, "\n".join(bare)).split("\n")
    return [line + " " * (width - len(its)) for line, its in zip(coloured, bare, strict=True)]


def _coloured(match: re.Match[str]) -> str:
    colour = COLOURS[match.lastgroup or ""]
    return re.sub(r".+", rf"\033[{colour}m\g<0>\033[0m", match.group())


def _row(parameter: Any) -> tuple[str, str]:
    """What is typed, and what it does."""
    help = [parameter.help or ""]
    value = parameter.metavar or ""
    if "|" in value:
        help.append(f"[{value.replace('|', ', ')}]")
        value = "WORD"
    if parameter.required:
        help.append("[required]")
    elif (default := _default(parameter)) is not None:
        help.append(f"[default: {default}]")
    if getattr(parameter, "envvar", None):
        help.append(f"[or the environment's {parameter.envvar}]")
    if parameter.param_type_name == "argument":
        return value + "..." * (parameter.nargs != 1), " ".join(help)
    switches = _switches(parameter.opts, parameter.secondary_opts)
    return switches if parameter.is_flag or not value else f"{switches} {value}", " ".join(help)


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
    panels: Panels = {}
    for name in group.list_commands(ctx):
        verb = group.get_command(ctx, name)
        if verb is not None and not verb.hidden:
            panel = getattr(verb, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, (verb.help or "").split("\n\n")[0]))
    return panels


def _parameters(command: Verb | Group, ctx: Any) -> Panels:
    """Arguments and options."""
    panels: Panels = {"Arguments": [], FIRST: [], "Options": []}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(_row(parameter))
    return panels


def _panel(name: str, rows: Iterable[tuple[str, str]], width: int, left: int | None) -> Iterator[str]:
    """The rows in a frame: what is typed in a column so wide, and beside it what it does; without one below it."""
    corner, bar, its_end, side, *below = list(FRAMES[0] if can_print(FRAMES[0]) else FRAMES[1])
    inner = width - 4
    yield _dim(f"{corner}{bar} {name} {bar * (inner - len(name) - 1)}{its_end}")
    for typed, help in rows:
        if left is None:
            lines = _lines(typed, inner, TYPED) + [" " * BELOW + line for line in _lines(help, inner - BELOW)]
        else:
            columns = zip_longest(_lines(typed, left, TYPED), _lines(help, inner - left - 2))
            lines = [f"{one or ' ' * left}  {other or ' ' * (inner - left - 2)}" for one, other in columns]
        yield from (f"{_dim(side)} {line} {_dim(side)}" for line in lines)
    yield _dim(f"{below[0]}{bar * (inner + 2)}{below[1]}")


def _dim(text: str) -> str:
    return f"\033[{COLOURS['dim']}m{text}\033[0m"
