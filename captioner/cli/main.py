"""The command line: one function a verb, no logic of its own. Imports of a verb happen inside it, so help is instant.

Anything a user can put right is a `CaptionerError`: one line on standard error and exit status 2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperArgument, TyperGroup

from captioner import __version__
from captioner.cli.options import (
    CaptionInputFlags,
    CaptionOutputFlags,
    InputFlags,
    ModelFlags,
    OutputFlags,
    TextFlags,
    grouped,
    names,
)
from captioner.decoding import DecodingChanges
from captioner.errors import BadInput, CaptionerError, printable

if TYPE_CHECKING:
    from captioner.run.batch import Answers
    from captioner.sinks import Sink


class Verbs(TyperGroup):
    """Turns errors into one line and an exit status."""

    def invoke(self, ctx: typer.Context):
        try:
            return super().invoke(ctx)
        except CaptionerError as error:
            line = " ".join(str(error).split())  # a library's own words may have many
            typer.echo(f"captioner: {printable(with_flags(line))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            typer.echo(f"\ncaptioner: {str(stopped) or 'Stopped.'}", err=True)
            raise typer.Exit(130) from None
        except EOFError as error:  # click would call it "Aborted!"
            raise RuntimeError("A file ended too early.") from error

    def get_command(self, ctx: typer.Context, cmd_name: str):
        """Its help without the Python type of an argument, and of what takes no value."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.get_help_option(ctx).metavar = ""
            for parameter in command.params:
                if isinstance(parameter, TyperArgument):
                    parameter.display_type_rich = lambda ctx: None
        return command

    def resolve_command(self, ctx: typer.Context, args: list[str]):
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


FLAGS = {
    name: f"--{name.replace('_', '-')}" for group in (DecodingChanges, TextFlags, ModelFlags) for name in names(group)
}
FLAGS |= {"num_return_sequences": "--num-candidates", "max_clip_tokens": "--max-tokens-clip"}
FLAGS["expected"] = "--expected"
_SPELLED = re.compile(rf"(?<![\w/.-])(?:{'|'.join(name for name in FLAGS if '_' in name)})(?![\w/-]|\.\w)")
_NAMED = re.compile(rf"\b(?:{'|'.join(FLAGS)})\b(?!-)")
_NAMING = re.compile(r"^\w+(?= must be )|^.+(?= would change nothing)|(?<= has no use for ).+?(?=:)")
"""Where a message names settings alone, so that a common word is a setting too."""


def with_flags(message: str) -> str:
    """A message of the library in the words of the command line: max_new_tokens → --max-new-tokens."""
    message = re.sub(r"([Ss])et do_sample to false", r"\1ay --no-do-sample", message)
    message = re.sub(r"([Ss])et do_sample( to true)?", r"\1ay --do-sample", message)
    message = _NAMING.sub(lambda names: _NAMED.sub(lambda name: FLAGS[name[0]], names[0]), message)
    return _SPELLED.sub(lambda name: FLAGS[name[0]], message)


LISTED = 20
"""Of what was left out, so many are named one by one."""
SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
    rich_markup_mode="rich",
)
index = typer.Typer(cls=Verbs, no_args_is_help=True, help="Reference pictures for the knn model.")
ensemble = typer.Typer(cls=Verbs, no_args_is_help=True, help="Weighted means of image embedders.")
convert = typer.Typer(cls=Verbs, no_args_is_help=True, help="Checkpoints of other projects → ours.")
terms = typer.Typer(cls=Verbs, no_args_is_help=True, help="Term lists for the interrogator.")
for name, group in {"index": index, "ensemble": ensemble, "convert": convert, "terms": terms}.items():
    app.add_typer(group, name=name)

Images = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, http(s) addresses, @FILE (a list), or - (standard input).", metavar="PICTURE"
    ),
]
Embedder = Annotated[str | None, typer.Option(help="Another sentence-transformers model than MiniLM-L6.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, int8 or float64.")]
BatchSize = Annotated[int, typer.Option(help="Pictures at a time.", min=1)]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders too.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, one line a picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Members = Annotated[str, typer.Option(help="Models, comma-separated; NAME+expected averages all it might say.")]
EnsembleFile = Annotated[str, typer.Option("--out", "-o", help="The ensemble's .json; it must not be there yet.")]
ByNorm = Annotated[bool, typer.Option("--by-norm", help="A member counts more where it is surer.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"captioner {__version__}")
        raise typer.Exit


@app.callback(epilog="`--debug`, anywhere on the line, shows where a bug is.")
def captioner(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=_version, is_eager=True, metavar="")
    ] = False,
) -> None:
    """Give it an image, get the prompt that could have made it, and that prompt's embedding.

    captioner generate cat.png
    """


@app.command()
@grouped
def generate(
    images: Images,
    read: CaptionInputFlags,
    write: CaptionOutputFlags,
    text: TextFlags,
    search: DecodingChanges,
    model: ModelFlags,
) -> None:
    """Write the prompt that could have made a picture.

    One picture: its prompt alone on standard output. Many: a line each, or a file, a folder or sidecars. What cannot
    be read is reported, the run goes on, and the exit status is 1.

    captioner generate cat.png

    captioner generate photos --recursive --out captions.jsonl --resume

    captioner generate photos --sidecar --prefix "sks style" --max-tokens-clip 77

    captioner generate cat.png --model blip-large --num-candidates 5 --consensus --json
    """
    from captioner.run.questions import Model, Prompts

    prompts = Prompts(
        Model(model.model, model.load_options),
        model.request(search),
        text.finish(search.forbid or ()),
        read.metadata,
        read.max_pixels,
        write.embed,
        write.attention,
    )
    loading = str if read.metadata == "only" else model.label

    def sink(many: bool) -> Sink:
        return write.caption_sink(images, many, prompts.settings)

    _run(images, prompts, sink, read.recursive, read.batch_size, write.quiet, loading, prompts.model.spent)
    if write.attention and not write.quiet:
        typer.echo(f"captioner: {write.attention} shows where the model looked", err=True)


@app.command()
@grouped
def embed(
    read: InputFlags,
    write: OutputFlags,
    search: DecodingChanges,
    model: ModelFlags,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Texts; or pictures, wherever all are files, folders or addresses.")
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Texts, one a line; - is standard input.")] = None,
    expected: Annotated[
        bool, typer.Option("--expected", help="Pictures: the mean of all candidates, weighted by probability.")
    ] = False,
) -> None:
    """Embed texts, or pictures by what a model says of them, as unit vectors.

    They are printed, or written to a .npy, .jsonl, .csv or .parquet file. A .npy holds the vectors alone, in order:
    pictures that cannot be read have no row in it.

    captioner embed "a castle in the clouds, oil painting"

    captioner embed --file prompts.txt --out vectors.npy

    captioner embed photos --model runs/direct --out vectors.parquet
    """
    from captioner.run import questions

    inputs = inputs or []
    if model.model is None and (missing := [text for text in inputs if _is_missing(text)]):
        raise BadInput(f"There is no picture {missing[0]!r}. If it is a text, give it by --file.")
    if questions.are_pictures(inputs, model.model):
        asked = questions.Model(model.model, model.load_options)
        embeddings = questions.Embeddings(asked, model.request(search), read.max_pixels, expected)

        def of_pictures(many: bool) -> Sink:
            return write.sink(questions.numbers, many, embeddings.settings)

        spent = embeddings.model.spent
        _run(inputs, embeddings, of_pictures, read.recursive, read.batch_size, write.quiet, model.label, spent)
    else:
        if unused := [*["expected"][:expected], *sorted(model.request(search).named())]:
            raise BadInput(f"{' and '.join(unused)} would change nothing: these are texts, not pictures.")
        sink = write.sink(questions.numbers, False, {"captioner": __version__, "embedder": model.embedder})
        tally = questions.embed_texts(questions.read_texts(inputs, file), model.embedder, sink)
        if sink.resumable and not write.quiet:
            typer.echo(f"captioner: {sink.summary(tally.done, tally.skipped, tally.failed)}", err=True)


def _is_missing(text: str) -> bool:
    """Does it look like a picture's name, and nothing is there?"""
    from captioner.images import is_url

    return looks_like_pictures(text) and not is_url(text) and not os.path.lexists(text)


@app.command()
@grouped
def read(
    images: Images,
    recursive: Recursive = False,
    json: Json = False,
) -> None:
    """Read the generation parameters a picture carries: A1111, ComfyUI, InvokeAI, NovelAI, Fooocus …

    They are what somebody wrote into the file, and prove nothing.

    captioner read drawn.png

    captioner read folder --recursive --json
    """
    from captioner import sinks
    from captioner.run import questions

    def sink(many: bool) -> sinks.Stdout:
        return sinks.Stdout(sinks.to_json if json else partial(questions.parameters_text, named=many))

    _run(images, questions.Metadata(), sink, recursive, quiet=True)


def _run(
    images: list[str],
    answers: Answers,
    open_sink: Callable[[bool], Sink],
    recursive: bool,
    batch_size: int | None = None,
    quiet: bool = False,
    loading: Callable[[], str] = str,
    spent: Callable[[], str | None] = str,
) -> None:
    from captioner.run.batch import run_inputs

    tally = run_inputs(
        images, answers, open_sink, recursive=recursive, batch_size=batch_size, quiet=quiet, loading=loading
    )
    if not quiet and (used := spent()):
        typer.echo(f"captioner: {used}", err=True)
    if tally.failed:
        raise typer.Exit(1)


@app.command()
@grouped
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

    table = Table("name", "gives", "weights", box=None, pad_edge=False)
    table.add_column("what it is for", overflow="fold")
    for row in rows:
        there = "here" if row["where"] else "Hub" if "/" in row["weights"] else "yours"
        size = f"{row['bytes'] / 1e6:,.0f} MB, {there}" if row["bytes"] else there
        purpose = f"{row['purpose']}\n{row['weights']}" if "/" in row["weights"] else row["purpose"]
        table.add_row(row["name"], "text" if row["kind"] == "captioner" else "vector", size, purpose)
    for column in table.columns[:3]:
        column.no_wrap = True
    Console().print(table)
    typer.echo(
        "\ntext: for `captioner generate` and `embed`; vector: for `embed` alone\n"
        "here: on this machine; Hub: fetched when it is first used; yours: you train or build it and name its folder"
    )


@terms.command("mine")
@grouped
def terms_mine(
    prompts: Annotated[list[str], typer.Argument(help="Files of prompts, one a line; - is standard input.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the list to this file.")] = None,
    least: Annotated[int, typer.Option("--min-count", help="Leave out rarer terms.", min=1)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Collect the comma terms of prompts, most frequent first: TERM<TAB>COUNT, for `generate --terms`.

    captioner terms mine prompts.txt --out terms.tsv
    """
    from captioner.run.questions import read_texts
    from captioner.sinks import write_lines
    from captioner.text.terms import mine

    found = mine(line for file in prompts for line in read_texts([], file))
    lines = [f"{term}\t{count}" for term, count in found if count >= least]
    if not lines:
        raise BadInput(f"No term occurs {least} times. --min-count 1 lists all.")
    if out is not None:
        write_lines(out, lines, overwrite=overwrite)
    else:
        for line in lines:
            typer.echo(line)


@index.command("build")
@grouped
def index_build(
    data: Annotated[list[str], typer.Argument(help="Pictures with prompts: folders of any layout, parquet, hub:NAME.")],
    backbone: Annotated[
        str,
        typer.Option(help="vit, vit-large, clip, resnet50, resnet152 or efficientnet-lite0, -lite1, -lite2."),
    ] = "efficientnet-lite2",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="The folder of the index, not there yet (default: DATA's name + -index)."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The backbone's weights: folder or Hub id.")] = None,
    pool: Annotated[str | None, typer.Option(help='efficientnet-lite*: "statistics" adds every stage.')] = None,
    dims: Annotated[int | None, typer.Option(help="Keep so many principal components of the features.")] = None,
    centred: Annotated[bool, typer.Option(help="Subtract the mean of all pictures' features.")] = True,
    scaled: Annotated[bool, typer.Option(help="Divide every feature by its spread: good with statistics.")] = False,
    graph: Annotated[
        bool | None, typer.Option("--graph/--exact", help="Approximate search (default: above 200,000 pictures).")
    ] = None,
    k: Annotated[int, typer.Option(help="Neighbours that are averaged; `index tune` finds better.")] = 40,
    temperature: Annotated[float, typer.Option(help="Below it a difference in cosine hardly counts.")] = 0.05,
    embedder: Embedder = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a stopped run has read.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a reference index: features of all pictures, embeddings of all prompts. Name it as a model: --model DIR."""
    from captioner.contracts import LoadOptions
    from captioner.pairs.sources import parse_all
    from captioner.sinks import check_new_folder

    named = Path(parse_all(data)[0].name)
    place = Path(out or f"{named.stem if named.suffix in ('.parquet', '.json', '.zip') else named.name}-index")
    check_new_folder(place.expanduser())  # before the imports below, which take seconds
    from captioner.models.knn.build import Recipe, build

    settings = {"pool": pool} if pool else {}
    recipe = Recipe(backbone, weights, settings, dims, centred, scaled, graph, k, temperature)
    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    with _counting(quiet) as count:
        built = build(data, place, recipe, options, batch_size, count, resume)
    for one in built.left_out[:LISTED]:
        typer.echo(f"left out: {printable(str(one))}", err=True)
    if (more := len(built.left_out) - LISTED) > 0:
        typer.echo(f"left out: {more:,} more", err=True)
    typer.echo(f"{place}: {built.pictures:,} pictures, {built.prompts:,} prompts, {len(built.left_out):,} left out")


@index.command("tune")
@grouped
def index_tune(
    folder: Annotated[str, typer.Argument(help="The folder of the index.")],
    data: Annotated[str | None, typer.Option(help="Validation pictures with prompts (default: its own).")] = None,
    sample: Annotated[int, typer.Option(help="The most prompts to ask for.", min=1)] = 1000,
    same: Annotated[float, typer.Option(help="Prompts nearer than this cosine are kept from each other.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Which prompts are drawn.")] = 0,
) -> None:
    """Choose k and temperature on pictures whose own prompts are hidden from them, and write them into the index."""
    from captioner.models.knn.build import tune

    found = tune(folder, data, sample, same, seed)
    for k, temperature in sorted(found.table, key=found.table.get)[-5:]:
        typer.echo(f"k {k:4d}  temperature {temperature:.2f}  cosine {found.table[k, temperature]:.4f}")
    before = "" if found.before is None else f", before {found.before:.4f}"
    typer.echo(
        f"{folder}: k {found.k}, temperature {found.temperature}: "
        f"cosine {found.cosine:.4f}{before} over {found.queries:,} prompts"
    )


@app.command()
@grouped
def similar(
    images: Images,
    index: Annotated[str, typer.Option("--index", "-i", help="The folder of an index.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures shown.", min=1)] = 5,
    recursive: Recursive = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the reference pictures that look most like a picture, with their prompts."""
    from captioner import sinks
    from captioner.run import questions

    show = questions.neighbours_json if json else questions.neighbours_table
    neighbours = questions.Neighbours(Path(index), count)
    _run(images, neighbours, lambda many: sinks.Stdout(show), recursive, None, quiet, lambda: index)


@ensemble.command("fit")
@grouped
def ensemble_fit(
    members: Members,
    data: Annotated[str, typer.Option(help="Validation pictures with prompts: a folder, parquet or hub:NAME.")],
    out: EnsembleFile,
    by_norm: ByNorm = False,
    device: Device = "auto",
    precision: Precision = "auto",
    embedder: Embedder = None,
    batch_size: BatchSize = 8,
    quiet: Quiet = False,
) -> None:
    """Find the weights that reach the highest cosine. Name the file as a model: --model my.json."""
    from captioner import pipeline
    from captioner.contracts import LoadOptions
    from captioner.models.ensemble.ensemble import fit, parse

    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    with _counting(quiet) as count:
        found = fit(parse(members), data, out, pipeline.load, by_norm, options, batch_size, count)
    for warning in found.warnings:
        typer.echo(f"captioner: {warning}", err=True)
    for name, weight in found.weights.items():
        typer.echo(f"{weight:6.1%}  {name} (alone {found.alone[name]:.4f})")
    low, high = found.interval
    typer.echo(
        f"{out}: cosine {found.cosine:.4f}, gain over the best member {found.gain:+.4f} "
        f"(95% {low:+.4f} to {high:+.4f}) on {found.prompts:,} prompts left out in turn"
    )


@ensemble.command("make")
@grouped
def ensemble_make(
    members: Members,
    weights: Annotated[str, typer.Option(help="One number a member, comma-separated; they are scaled to sum 1.")],
    out: EnsembleFile,
    by_norm: ByNorm = False,
) -> None:
    """Write an ensemble with weights of your own."""
    from captioner.models.ensemble.ensemble import parse, save

    save(Path(out), parse(members, weights), by_norm)


@convert.command("clipcap")
@grouped
def convert_clipcap(
    file: Annotated[str, typer.Argument(help="A published ClipCap checkpoint (.pt).")],
    out: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
    clip: Annotated[str | None, typer.Option(help="The CLIP it was trained on: folder or Hub id.")] = None,
    gpt2: Annotated[str, typer.Option(help="Where GPT-2's vocabulary is: folder or Hub id.")] = "gpt2",
    mapper_heads: Annotated[int, typer.Option(help="Attention heads of the transformer mapper.")] = 8,
    normalize: Annotated[
        bool | None,
        typer.Option(help="Its image embeddings had length 1 (ClipCap's --normalize_prefix). Known of published ones."),
    ] = None,
) -> None:
    """A ClipCap checkpoint → a folder that `generate --model` takes."""
    from captioner.models.prefix import clipcap

    normalized = clipcap.convert(Path(file), Path(out), clip, gpt2, mapper_heads, normalize)
    scaled = "scaled to length 1" if normalized else "as CLIP gives them"
    typer.echo(f"{out} reads image embeddings {scaled}. Use it: captioner generate --model {out} picture.png")


@app.command()
@grouped
def merge(
    adapter: Annotated[str, typer.Argument(help="A folder that training with --lora wrote.")],
    out: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
) -> None:
    """Merge a LoRA adapter into its base model: one folder that stands alone."""
    from captioner import zoo
    from captioner.models.parts import merging

    merging.merge(Path(adapter), Path(out))
    verb = "generate" if zoo.resolve(out).speaks else "embed"
    typer.echo(f"{out} is whole. Use it: captioner {verb} --model {out} picture.png")


@contextmanager
def _counting(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on standard error for each step that is reported, with the time left where the total is known."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), disable=quiet) as progress:
        tasks: dict[str, int] = {}

        def count(step: str, done: int, total: int | None = None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(escape(step), total=total)
            progress.advance(tasks[step], done)

        yield count


def main() -> None:
    """The `captioner` command, for those who import it."""
    from captioner.__main__ import main

    main()
