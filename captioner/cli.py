"""The command line: one function a verb, no logic of its own. Imports of a verb happen inside it, so help is instant.

Anything a user can put right is a `CaptionerError`: one line on standard error and exit status 2.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from captioner.errors import CaptionerError
from captioner.options import InputFlags, ModelFlags, OutputFlags, SearchFlags, TextFlags, grouped


class Verbs(TyperGroup):
    """Turns errors into one line and an exit status."""

    def invoke(self, ctx: typer.Context):
        try:
            return super().invoke(ctx)
        except CaptionerError as error:
            typer.echo(f"captioner: {error}", err=True)
            raise typer.Exit(2) from None


SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Verbs, no_args_is_help=True, add_completion=False, context_settings=SETTINGS, rich_markup_mode="rich"
)
index = typer.Typer(no_args_is_help=True, help="Reference pictures for the knn model.")
ensemble = typer.Typer(no_args_is_help=True, help="Weighted means of image embedders.")
convert = typer.Typer(no_args_is_help=True, help="Checkpoints of other projects → ours.")
terms = typer.Typer(no_args_is_help=True, help="Term lists for the interrogator.")
for name, group in {"index": index, "ensemble": ensemble, "convert": convert, "terms": terms}.items():
    app.add_typer(group, name=name)

Images = Annotated[list[str], typer.Argument(help="Files, folders, globs, http(s) addresses, or - for standard input.")]


@app.callback()
def captioner() -> None:
    """Give it an image, get the prompt that could have made it, and that prompt's embedding."""


@app.command()
@grouped
def generate(
    images: Images, model: ModelFlags, search: SearchFlags, text: TextFlags, read: InputFlags, write: OutputFlags
) -> None:
    """Write the prompt that could have made a picture.

    One picture: its prompt alone on standard output. Many: one line each, or a file or folder by --out.
    """
    from captioner.images import find_images
    from captioner.pipeline import load

    speaker = load(model.model, model.load_options)
    for source in find_images(images, recursive=read.recursive):
        [prompt] = speaker.generate([source.open(read.max_pixels)], search.over(speaker.decoding), text.finish)
        typer.echo(prompt.text)


@app.command()
def models(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List every model: what it is for, where its weights are, and whether they are on this machine."""
    from captioner import zoo

    rows = zoo.listing()
    if json:
        import json as format

        typer.echo(format.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "weights", "size", "on this machine", "what it is for")
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else "–"
        table.add_row(row["name"], row["kind"], row["weights"], size, "yes" if row["where"] else "no", row["purpose"])
    Console().print(table)


def main() -> None:
    """The `captioner` command."""
    app(prog_name="captioner")


if __name__ == "__main__":
    sys.exit(main())
