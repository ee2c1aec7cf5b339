"""What `--help` of a command line says of its options: words, no types of Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from typer.core import TyperArgument, TyperGroup
from typer.models import ParameterInfo

METAVARS: dict[Any, str] = {
    bool: "",
    int: "N",
    float: "X",
    str: "TEXT",
    list[str]: "TEXT",
    Path: "PATH",
    list[Path]: "PATH",
}
"""Short names for values: typer's own leave little room for the help beside them."""


def as_written(hint: Any) -> Any:
    """Python 3.10 makes `Optional[Annotated[…]]` of an `Annotated[…]` whose default is None."""
    inner = [one for one in get_args(hint) if get_origin(one) is Annotated]
    return inner[0] if get_origin(hint) in (Union, UnionType) and inner else hint


def name_value(kind: Any, option: ParameterInfo) -> None:
    """Give an option's value its short name, if it has none."""
    if option.metavar is None:
        option.metavar = next((METAVARS[one] for one in (kind, *get_args(kind)) if one in METAVARS), None)


def worded(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose options' values have short names."""
    hints = {name: as_written(hint) for name, hint in get_type_hints(verb, include_extras=True).items()}
    for name, hint in hints.items():
        if name != "return":
            name_value(*get_args(hint))
    verb.__annotations__ = hints  # typer would read them anew
    return verb


class PlainHelp(TyperGroup):
    """Its help speaks of no types of Python."""

    def get_params(self, ctx: Any):
        """Without the Python type of what takes no value."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters

    def get_command(self, ctx: Any, cmd_name: str):
        """Its help without the Python type of an argument, and of what takes no value; a paragraph is as wide as the
        terminal, not as the source."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", command.help or "")
            if (help_option := command.get_help_option(ctx)) is not None:
                help_option.metavar = ""
            for parameter in command.params:
                if isinstance(parameter, TyperArgument):
                    parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # typer has no other way
        return command
