"""Verbs about pictures: generate, embed, read, similar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captioner import __version__
from captioner.cli.flags import with_flags
from captioner.cli.options import (
    CaptionInputFlags,
    CaptionOutputFlags,
    Images,
    ImagesOrPlan,
    InputFlags,
    Json,
    Model,
    OutputFlags,
    Quiet,
    Recursive,
    ShardFlags,
    TextFlags,
    grouped,
    names,
)
from captioner.cli.shards import is_of_plan, work
from captioner.cli.verbs import looks_like_pictures
from captioner.contracts import LoadOptions, Request
from captioner.errors import BadInput, refuse_idle
from captioner.files.names import MANY, path_of, typed

if TYPE_CHECKING:
    from captioner.run.batch import Answers
    from captioner.run.questions import Embeddings, Prompts
    from captioner.sinks import Sink


@grouped
def generate(
    read: CaptionInputFlags,
    write: CaptionOutputFlags,
    text: TextFlags,
    request: Request,
    options: LoadOptions,
    shards: ShardFlags,
    model: Model = None,
    images: ImagesOrPlan = None,
) -> None:
    """Write the prompt that could have made a picture.

    One picture: its prompt alone on standard output. Many: a line each, or a file, a folder or sidecars. What cannot
    be read is reported, the run goes on, and the exit status is 1.

    captioner generate cat.png

    captioner generate photos --recursive --out captions.jsonl --resume

    captioner generate photos --sidecar --prefix "sks style" --max-tokens-clip 77

    captioner generate cat.png --model blip-large --num-candidates 5 --consensus --json
    """
    from captioner.run import questions

    prompts = questions.Prompts(
        questions.Model(model, options),
        request,
        text.finish(request.decoding.forbid or ()),
        read.metadata,
        read.max_pixels,
        write.embed,
        write.attention,
    )
    loading = str if read.metadata == "only" else prompts.model.label
    if is_of_plan(images, read, write, shards):
        _work(write, shards, prompts, "generate", read.batch_size)
        return
    images = _named(images)

    def sink(many: bool) -> Sink:
        return write.caption_sink(images, many, prompts.settings, ("file", *prompts.columns))

    run(images, prompts, sink, read.recursive, read.batch_size, write.quiet, loading, prompts.remarks)
    if write.attention and not write.quiet:
        typer.echo(f"captioner: {write.attention} shows where the model looked", err=True)


@grouped
def embed(
    read: InputFlags,
    write: OutputFlags,
    request: Request,
    options: LoadOptions,
    shards: ShardFlags,
    model: Model = None,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Texts; or pictures, wherever all are files, folders, globs, addresses or standard input (-)."
        ),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Texts, one a line; - is standard input.")] = None,
    expected: Annotated[
        bool,
        typer.Option(
            "--expected", help="Pictures: the mean of all candidates (see --num-candidates), weighted by probability."
        ),
    ] = False,
) -> None:
    """Embed texts, or pictures by what a model says of them, as unit vectors.

    They are printed, or written to a .npy, .jsonl, .csv or .parquet file. A .npy holds the vectors alone, in order:
    pictures that cannot be read have no row in it.

    captioner embed "a castle in the clouds, oil painting"

    captioner embed --file prompts.txt --out vectors.npy

    captioner embed photos --model runs/direct --out vectors.parquet
    """
    from captioner.cli.rows import numbers
    from captioner.run import questions, texts
    from captioner.sinks import given

    inputs = inputs or []
    if is_of_plan(inputs, read, write, shards):
        if file is not None:
            refuse_idle(["--file"], f"{write.out} holds a plan.")
        embeddings = questions.Embeddings(questions.Model(model, options), request, read.max_pixels, expected)
        _work(write, shards, embeddings, "embed", read.batch_size)
        return
    if model is None and (planned := [text for text in inputs if _is_planned(text) and " " not in text]):
        raise _may_hold_many(planned[0])
    if model is None and (missing := [text for text in inputs if _is_missing(text)]):
        raise BadInput(f"There is no picture {missing[0]!r}. If it is a text, give it by --file.")
    if texts.are_pictures(inputs, model):
        if file is not None:
            raise BadInput("--file holds texts: leave out pictures and --model. What embeds texts is --embedder.")
        inputs = _named(inputs)
        asked = questions.Model(model, options)
        embeddings = questions.Embeddings(asked, request, read.max_pixels, expected)

        def of_pictures(many: bool) -> Sink:
            return write.sink(numbers, many, embeddings.settings, ("file", *embeddings.columns))

        run(inputs, embeddings, of_pictures, read.recursive, read.batch_size, write.quiet, asked.label, asked.remarks)
    else:
        of_input = [name for name in names(InputFlags) if getattr(read, name) != getattr(InputFlags, name)]
        loading = given(replace(options, embedder=None))  # the packaged MiniLM is run in fp32 on the processor
        unused = [*["expected"][:expected], *of_input, *sorted(request.named() | loading.keys())]
        refuse_idle(unused, "these are texts, not pictures.")
        if write.out is not None and (not write.out.suffix or os.path.isdir(write.out)):
            raise BadInput(f"{write.out} is for pictures, these are texts: name a .npy, .jsonl, .csv or .parquet file.")
        settings = {"captioner": __version__, "embedder": options.embedder}
        sink = write.sink(numbers, False, settings, ("text", "embedding"))
        tally = texts.embed_texts(texts.read_texts(inputs, file), options.embedder, sink)
        if sink.resumable and not write.quiet:
            typer.echo(f"captioner: {sink.summary(tally.done, tally.skipped, tally.failed)}", err=True)


def _named(images: list[str] | None) -> list[str]:
    """What a verb is about; none is right for a plan alone."""
    if not images:
        raise BadInput(
            "Name a picture, a folder, an address or - (standard input); or, by --out, the folder of a plan."
        )
    if all(map(_is_planned, images)):
        raise _may_hold_many(images[0])
    return images


def _may_hold_many(name: str) -> BadInput:
    plan = f"captioner plan {typed(name)} --out RUN"
    return BadInput(f"{name} may hold many pictures: list them by {plan}, and give --out RUN in its place.")


def _is_planned(name: str) -> bool:
    """Is it what `captioner plan` alone reads?"""
    says_so = any(name.startswith(f"{kind}:") for kind in (*MANY.values(), "hub"))
    return says_so or (name.lower().endswith(tuple(MANY)) and not os.path.isdir(name))


def _work(
    write: OutputFlags,
    shards: ShardFlags,
    answers: Prompts | Embeddings,
    verb: str,
    batch_size: int | None,
) -> None:
    """Work off the plan that --out names."""
    from captioner.shards.part import Job

    assert write.out is not None, "it is where the plan is"
    answers.check()  # before the settings are written into the plan, and before Ray is started
    settings = {"verb": verb, **answers.settings, "columns": ", ".join(answers.columns)}
    answers.model.name = settings.get("model", answers.model.name)  # absolute: a worker may stand in another folder
    work(write.out, shards, Job(answers, answers.columns, settings, batch_size, with_flags), write.quiet)


def _is_missing(text: str) -> bool:
    """Does it look like a picture's name, and nothing is there?"""
    from captioner.images import is_there

    return looks_like_pictures(text) and not is_there(text)


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
    from captioner.cli.rows import parameters_text
    from captioner.run import questions

    def sink(many: bool) -> sinks.Stdout:
        return sinks.Stdout(sinks.to_json if json else partial(parameters_text, named=many))

    run(images, questions.Metadata(), sink, recursive, quiet=True)


def run(
    images: list[str],
    answers: Answers[Any],
    open_sink: Callable[[bool], Sink],
    recursive: bool,
    batch_size: int | None = None,
    quiet: bool = False,
    loading: Callable[[], str] = str,
    remarks: Callable[[], Iterable[str]] = tuple,
) -> None:
    """Ask about all pictures that are named; one that fails is told, and the exit status then is 1."""
    from captioner.run.batch import run_inputs

    tally = run_inputs(
        images,
        answers,
        open_sink,
        recursive=recursive,
        batch_size=batch_size,
        quiet=quiet,
        loading=loading,
        explain=with_flags,
    )
    for remark in () if quiet else remarks():
        typer.echo(f"captioner: {with_flags(remark)}", err=True)
    if tally.failed:
        raise typer.Exit(1)


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
    from captioner.cli.rows import neighbours_table
    from captioner.run import questions

    show = sinks.to_json if json else neighbours_table
    neighbours = questions.Neighbours(path_of(index), count)
    run(images, neighbours, lambda many: sinks.Stdout(show), recursive, None, quiet, lambda: index)
