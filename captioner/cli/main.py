"""The command line: one function a verb, no logic of its own. Imports of a verb happen inside it, so help is instant.

The verbs stand in `pictures.py`, `shards.py`, `models.py` and `data.py`, their options in `options.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from captioner import __version__
from captioner.cli import data, models, pictures, serving, shards
from captioner.cli.verbs import Verbs
from captioner.run.help import CommandLine

app = CommandLine(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, verbs in {
    "Pictures": (pictures.generate, pictures.embed, pictures.read, pictures.similar),
    "Millions of pictures": (shards.plan, shards.status, shards.merge),
    "Servers": (serving.serve, serving.mcp),
    "Models": (models.models,),
    "When something is wrong": (models.doctor,),
}.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
for name, group in {
    "index": data.index,
    "ensemble": models.ensemble,
    "convert": models.convert,
    "terms": data.terms,
}.items():
    app.add_typer(group, name=name, rich_help_panel="Models")

FIRST_STEPS = """\
captioner generate cat.png     the prompt that could have made a picture, or a folder of them
captioner embed cat.png        its embedding, or that of a text
captioner read cat.png         the prompt and settings that the program which drew it wrote into it

captioner --help lists every command, captioner generate --help its options.\
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"captioner {__version__}")
        raise typer.Exit


@app.callback(epilog="`--debug`, anywhere on the line, shows where a bug is.")
def captioner(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=_version, is_eager=True, metavar="")
    ] = False,
) -> None:
    """Give it an image, get the prompt that could have made it, and that prompt's embedding.

    captioner generate cat.png
    """
    if context.invoked_subcommand is None:
        typer.echo(FIRST_STEPS)


def main() -> None:
    """The `captioner` command, for those who import it."""
    from captioner.__main__ import main

    main()
