"""A group of verbs: what a user can put right becomes one line on standard error and exit status 2."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin

import typer

from captioner.cli.flags import with_flags
from captioner.errors import BadInput, CaptionerError, one_line
from captioner.run.help import CommandLine, Group

ELSEWHERE = ("caption", "describe", "interrogate", "prompt", "tag")
"""What other tools call `generate` …"""
OTHER_OPTIONS = {
    "--on-existing": ("append", "append-tags", "append-captions", "overwrite-captions", "no-skip", "skip-existing"),
    "--prefix": ("prepend", "always-first-tags", "caption-prefix", "trigger", "trigger-word", "class-token"),
    "--suffix": ("append", "postfix", "caption-postfix", "caption-suffix"),
    "--forbid": ("exclude", "exclude-tags", "undesired-tags", "undesired-words", "blacklist", "bad-words"),
    "--replace": ("tag-replacement", "alias", "rename"),
    "--threshold": ("general-threshold", "thresh", "confidence"),
    "--model": ("repo-id", "model-id", "caption-weights", "interrogator"),
    "--out": ("output", "output-dir", "output-path", "save"),
    "--caption-extension": ("ext", "extension", "caption-ext"),
    "--max-new-tokens": ("max-length", "max-tokens", "length"),
    "--min-new-tokens": ("min-length",),
    "--num-beams": ("beam-search", "beams"),
    "--no-do-sample": ("greedy",),
    "--instruction": ("question-prompt", "system-prompt", "caption-prompt", "user-prompt"),
}
"""… and its options."""


class Verbs(Group):
    """Turns errors into one line and an exit status."""

    def invoke(self, ctx: Any):
        try:
            return super().invoke(ctx)
        except CaptionerError as error:
            typer.echo(f"captioner: {with_flags(one_line(error))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            typer.echo(f"\ncaptioner: {with_flags(str(stopped)) or 'Stopped.'}", err=True)
            raise typer.Exit(130) from None
        except EOFError as error:  # click would call it "Aborted!"
            raise RuntimeError("A file ended too early.") from error
        except Exception as error:  # what typer raises of an option that is none has no public name
            _name_ours(error)
            raise

    def get_params(self, ctx: Any):
        """With plain values read plainly."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _read_plainly(parameter)
        return parameters

    def get_command(self, ctx: Any, cmd_name: str):
        """With plain values read plainly."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            for parameter in command.get_params(ctx):
                _read_plainly(parameter)
        return command

    def resolve_command(self, ctx: Any, args: list[str]):
        """`captioner help` and `captioner help VERB` are help; `captioner cat.png` is nearly right."""
        if args == ["help"]:
            typer.echo(ctx.get_help())
            raise typer.Exit
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        if args and args[0] not in self.commands and (args[0] in ELSEWHERE or looks_like_pictures(args[0])):
            picture = next(filter(looks_like_pictures, args), "cat.png")
            raise BadInput(f"There is no command {args[0]!r}. Did you mean: captioner generate {picture}")
        return super().resolve_command(ctx, args)


def _name_ours(error: Any) -> None:
    """Of an option that is none but in another tool, say what it is called here, if the verb has it."""
    said = getattr(error, "option_name", "").lstrip("-").replace("_", "-")
    if ours := [name for name, others in OTHER_OPTIONS.items() if said in others]:
        known = {
            name for parameter in error.ctx.command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        error.possibilities = [name for name in ours if name in known] or error.possibilities


def _read_plainly(parameter: Any) -> None:
    """Ask pydantic, as typer does since it is its own click, only where a value has to be checked.

    Its import, and one checker for each of fifty options, take a quarter of a second.
    """
    build = getattr(parameter, "get_runtime_param", None)
    if build is not None and not isinstance(build, partial):
        parameter.get_runtime_param = partial(_Plain, build)


@dataclass(frozen=True)
class _Plain:
    """Reads the values of a parameter: what is left out, or as it should be, is not checked."""

    checked: Callable[[], Any]

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """As typer's own class of this purpose."""
        kind, is_many = param.type_descriptor.annotation, param.multiple or param.nargs == -1
        if value is None:
            return () if is_many else None
        if type(value) is kind or (get_origin(kind) is Literal and value in get_args(kind)):  # a text, or a default
            return value
        if is_many and kind == list[str] and all(type(one) is str for one in value):
            return list(value)
        try:
            return self.checked().coerce(value, param=param, ctx=ctx)
        except typer.BadParameter as error:
            error.message = _plainly(error.message, value)
            raise


def _plainly(message: str, value: Any) -> str:
    """What pydantic says of a value, in words for who typed it."""
    for words, kind in (("a valid integer", "a whole number"), ("a valid number", "a number")):
        if words in message:
            return f"{value!r} is not {kind}."
    message = message.removeprefix("Value error, ").replace("Input should be", f"{value!r} should be", 1)
    return message if message.endswith(".") else f"{message}."


def looks_like_pictures(text: str) -> bool:
    """Does this name pictures, there or not, rather than say something?"""
    from captioner.images import EXTENSIONS, is_url

    named = text.lower().endswith(EXTENSIONS) or (re.search(r"[/\\]", text) and " " not in text)
    return bool(named) or is_url(text) or os.path.lexists(text)


def group(help: str) -> CommandLine:
    """Verbs under a name of their own: `captioner index build`."""
    return CommandLine(cls=Verbs, no_args_is_help=True, help=help)
