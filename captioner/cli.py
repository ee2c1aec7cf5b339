"""The command line: one function a verb, no logic of its own. Imports of a verb happen inside it, so help is instant.

Anything a user can put right is a `CaptionerError`: one line on standard error and exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperGroup

from captioner.errors import BadImage, CaptionerError
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


@index.command("build")
def index_build(
    data: Annotated[list[str], typer.Argument(help="Folders of pictures with prompts, or parquet files.")],
    backbone: Annotated[
        str,
        typer.Option(help="vit, vit-large, clip, resnet50, resnet152 or efficientnet-lite2."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder of the index; it must not be there yet.")],
    weights: Annotated[str | None, typer.Option(help="The backbone's weights: folder or Hub id.")] = None,
    pool: Annotated[str | None, typer.Option(help='efficientnet-lite2: "statistics" adds every stage.')] = None,
    dims: Annotated[int | None, typer.Option(help="Keep so many principal components of the features.")] = None,
    centred: Annotated[bool, typer.Option(help="Subtract the mean of all pictures' features.")] = True,
    graph: Annotated[
        bool | None, typer.Option("--graph/--exact", help="Approximate search (default: above 200,000 pictures).")
    ] = None,
    k: Annotated[int, typer.Option(help="Neighbours that are averaged; `index tune` finds better.")] = 40,
    temperature: Annotated[float, typer.Option(help="Below it a difference in cosine hardly counts.")] = 0.05,
    embedder: Annotated[str | None, typer.Option(help="Another sentence-transformers model than MiniLM-L6.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 32,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Make a reference index: features of all pictures, embeddings of all prompts. Name it as a model: --model DIR."""
    from captioner.contracts import LoadOptions
    from captioner.index import Recipe, build

    recipe = Recipe(backbone, weights, {"pool": pool} if pool else {}, dims, centred, graph, k, temperature)
    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    with _counting(quiet) as count:
        built = build(data, out, recipe, options, batch_size, count)
    for line in built.unreadable:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(f"{out}: {built.pictures:,} pictures, {built.prompts:,} prompts, {len(built.unreadable):,} left out")


@index.command("tune")
def index_tune(
    folder: Annotated[str, typer.Argument(help="The folder of the index.")],
    data: Annotated[str | None, typer.Option(help="Validation pictures with prompts (default: its own).")] = None,
    sample: Annotated[int, typer.Option(help="The most prompts to ask for.", min=1)] = 1000,
    same: Annotated[float, typer.Option(help="Prompts nearer than this cosine are kept from each other.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Which prompts are drawn.")] = 0,
) -> None:
    """Choose k and temperature on pictures whose own prompts are hidden from them, and write them into the index."""
    from captioner.index import tune

    found = tune(folder, data, sample, same, seed)
    for k, temperature in sorted(found.table, key=found.table.get)[-5:]:
        typer.echo(f"k {k:4d}  temperature {temperature:.2f}  cosine {found.table[k, temperature]:.4f}")
    before = "" if found.before is None else f", before {found.before:.4f}"
    typer.echo(
        f"{folder}: k {found.k}, temperature {found.temperature}: "
        f"cosine {found.cosine:.4f}{before} over {found.queries:,} prompts"
    )


@app.command()
def similar(
    images: Images,
    index: Annotated[str, typer.Option("--index", "-i", help="The folder of an index.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures shown.", min=1)] = 5,
    json: Annotated[bool, typer.Option("--json", help="As JSON, one line a picture.")] = False,
) -> None:
    """Show the reference pictures that look most like a picture, with their prompts."""
    from pathlib import Path

    from captioner.contracts import LoadOptions
    from captioner.images import find_images
    from captioner.models import knn

    model, failed = knn.load(Path(index), LoadOptions()), False
    for source in find_images(images):
        try:
            picture = source.open()
        except BadImage as error:
            typer.echo(f"captioner: {error}", err=True)
            failed = True
            continue
        [near] = model.similar([picture], count)
        _show_similar(source.name, near, json)
    if failed:
        raise typer.Exit(1)


def _show_similar(name: str, near: list, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"image": name, "similar": [asdict(each) for each in near]}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("similarity", "picture", "prompt", title=Text(name))
    for each in near:
        table.add_row(f"{each.similarity:.3f}", Text(each.picture), Text(each.prompt))
    Console().print(table)


@ensemble.command("fit")
def ensemble_fit(
    members: Annotated[str, typer.Option(help="Models, comma-separated; NAME+expected averages all its candidates.")],
    data: Annotated[str, typer.Option(help="Validation pictures with prompts: a folder or a parquet file.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The ensemble's .json; it must not be there yet.")],
    by_norm: Annotated[bool, typer.Option("--by-norm", help="A member counts more where it is surer.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")] = "auto",
    embedder: Annotated[str | None, typer.Option(help="Another sentence-transformers model than MiniLM-L6.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Find the weights that reach the highest cosine. Name the file as a model: --model my.json."""
    from captioner.contracts import LoadOptions
    from captioner.models.ensemble import fit, parse

    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    with _counting(quiet) as count:
        found = fit(parse(members), data, out, by_norm, options, batch_size, count)
    for name, weight in found.weights.items():
        typer.echo(f"{weight:6.1%}  {name} (alone {found.alone[name]:.4f})")
    low, high = found.interval
    typer.echo(
        f"{out}: cosine {found.cosine:.4f}, gain over the best member {found.gain:+.4f} "
        f"(95% {low:+.4f} to {high:+.4f}) on {found.prompts:,} prompts left out in turn"
    )


@ensemble.command("make")
def ensemble_make(
    members: Annotated[str, typer.Option(help="Models, comma-separated; NAME+expected averages all its candidates.")],
    weights: Annotated[str, typer.Option(help="One number a member, comma-separated; they are scaled to sum 1.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The ensemble's .json; it must not be there yet.")],
    by_norm: Annotated[bool, typer.Option("--by-norm", help="A member counts more where it is surer.")] = False,
) -> None:
    """Write an ensemble with weights of your own."""
    from pathlib import Path

    from captioner.models.ensemble import parse, save

    save(Path(out), parse(members, weights), by_norm)


@convert.command("clipcap")
def convert_clipcap(
    file: Annotated[str, typer.Argument(help="A published ClipCap checkpoint (.pt).")],
    out: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
    clip: Annotated[str | None, typer.Option(help="The CLIP it was trained on: folder or Hub id.")] = None,
    gpt2: Annotated[str, typer.Option(help="Where GPT-2's vocabulary is: folder or Hub id.")] = "gpt2",
    mapper_heads: Annotated[int, typer.Option(help="Attention heads of the transformer mapper.")] = 8,
) -> None:
    """A ClipCap checkpoint → a folder that `generate --model` takes."""
    from pathlib import Path

    from captioner.models import clipcap

    clipcap.convert(Path(file), Path(out), clip, gpt2, mapper_heads)


@contextmanager
def _counting(quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Counters on standard error, one for each step that is reported."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = ("{task.description}", "{task.completed:,}", TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        tasks: dict[str, int] = {}

        def count(step: str, done: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=None)
            progress.advance(tasks[step], done)

        yield count


def main() -> None:
    """The `captioner` command."""
    app(prog_name="captioner")


if __name__ == "__main__":
    sys.exit(main())
