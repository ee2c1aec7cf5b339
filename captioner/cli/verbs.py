"""A group of verbs: what a user can put right becomes one line on standard error and exit status 2."""

from __future__ import annotations

import os
import re
from typing import Any

import typer

from captioner.cli.flags import with_flags
from captioner.errors import BadInput, CaptionerError, printable
from captioner.run.help import PlainHelp


class Verbs(PlainHelp):
    """Turns errors into one line and an exit status."""

    def invoke(self, ctx: Any):
        try:
            return super().invoke(ctx)
        except CaptionerError as error:
            line = " ".join(str(error).split())  # a library's own words may have many
            typer.echo(f"captioner: {printable(with_flags(line))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            typer.echo(f"\ncaptioner: {with_flags(str(stopped)) or 'Stopped.'}", err=True)
            raise typer.Exit(130) from None
        except EOFError as error:  # click would call it "Aborted!"
            raise RuntimeError("A file ended too early.") from error

    def resolve_command(self, ctx: Any, args: list[str]):
        """`captioner help` and `captioner help VERB` are help; `captioner cat.png` is nearly right."""
        if args == ["help"]:
            typer.echo(ctx.get_help())
            raise typer.Exit
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        if args and args[0] not in self.commands and looks_like_pictures(args[0]):
            raise BadInput(f"There is no command {args[0]!r}. Did you mean: captioner generate {args[0]}")
        return super().resolve_command(ctx, args)


def looks_like_pictures(text: str) -> bool:
    """Does this name pictures, there or not, rather than say something?"""
    from captioner.images import EXTENSIONS, is_url

    named = text.lower().endswith(EXTENSIONS) or (re.search(r"[/\\]", text) and " " not in text)
    return bool(named) or is_url(text) or os.path.lexists(text)


def group(help: str) -> typer.Typer:
    """Verbs under a name of their own: `captioner index build`."""
    return typer.Typer(cls=Verbs, no_args_is_help=True, help=help)
