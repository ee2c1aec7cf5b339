"""Verbs about pictures with prompts, and prompts alone: index, terms."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captioner.cli.options import (
    BatchSize,
    Device,
    Embedder,
    Images,
    InputFlags,
    Precision,
    Quiet,
    RankingFlags,
    TextOutputFlags,
    grouped,
    share_of,
    words_of,
)
from captioner.cli.pictures import run
from captioner.cli.verbs import group
from captioner.contracts import LoadOptions
from captioner.errors import BadInput, counted, printable, refuse_idle
from captioner.files.names import path_of

if TYPE_CHECKING:
    from captioner.models.knn.build import Built

index = group("Reference pictures for the knn model.")
terms = group("Term lists for the interrogator, and the terms nearest to a picture.")

LISTED = 20
"""Of what was left out, so many are named one by one."""


@index.command("build")
@grouped
def index_build(
    data: Annotated[list[str], typer.Argument(help="Pictures with prompts: folders of any layout, parquet, hub:NAME.")],
    backbone: Annotated[
        str,
        typer.Option(
            help="vit, vit-large, clip, clip-resnet, resnet50, resnet152, efficientnet-lite0, efficientnet-lite1 or "
            "efficientnet-lite2."
        ),
    ] = "efficientnet-lite2",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="The folder of the index, not there yet (default: DATA's name + -index)."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The backbone's weights: folder or Hub id.")] = None,
    pool: Annotated[
        Literal["statistics"] | None, typer.Option(help="efficientnet-lite*: statistics adds those of every stage.")
    ] = None,
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
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: read the I-th of N equal shares of the pictures; `index merge` makes one of all."),
    ] = None,
    engine: Annotated[
        Literal["ray"] | None, typer.Option(help="Let Ray's workers read a share each, and merge these.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray that runs, or auto (default: start one here).")] = None,
    workers: Annotated[int | None, typer.Option(help="Shares, with --engine ray (default: 2).", min=1)] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that each worker needs.", min=0.0)] = 0.0,
    quiet: Quiet = False,
) -> None:
    """Make a reference index: features of all pictures, embeddings of all prompts. Name it as a model: --model DIR."""
    from captioner.pairs.sources import parse_all
    from captioner.sinks import check_new_folder

    named = Path(parse_all(data)[0].name)
    folder = Path(out or f"{named.stem if named.suffix in ('.parquet', '.json', '.zip') else named.name}-index")
    check_new_folder(path_of(folder))  # before the imports below, which take seconds
    from captioner.cluster.index import build_with_ray
    from captioner.cluster.pool import Cluster
    from captioner.models.knn.build import Recipe, build, build_shard
    from captioner.run.progress import counting

    settings = {"pool": pool} if pool else {}
    recipe = Recipe(backbone, weights, settings, dims, centred, scaled, graph, k, temperature)
    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    share = share_of(shard)
    if engine is not None and share is not None:
        raise BadInput("--shard is a share to be read here, --engine ray reads all of them: give one of the two.")
    of_ray = {"--address": address, "--workers": workers, "--gpus-per-worker": gpus_per_worker}
    if engine is None:
        refuse_idle((flag for flag, value in of_ray.items() if value), "add --engine ray.")
    with counting(quiet) as count:
        if engine is not None:
            cluster = Cluster(address, workers, gpus_per_worker)
            built = build_with_ray(data, folder, recipe, options, batch_size, cluster, count)
        elif share is None:
            built = build(data, folder, recipe, options, batch_size, count, resume)
        else:
            built = build_shard(data, folder, share, recipe, options, batch_size, count)
    _tell(str(folder) if share is None else f"{folder}, shard {shard}", built)


@index.command("merge")
@grouped
def index_merge(
    folder: Annotated[str, typer.Argument(help="The --out of the shards.")],
    quiet: Quiet = False,
) -> None:
    """Make one index of the shards that `index build --shard I/N` has read."""
    from captioner.models.knn.build import merge
    from captioner.run.progress import counting

    with counting(quiet) as count:
        built = merge(folder, count)
    _tell(folder, built)


def _tell(what: str, built: Built) -> None:
    for item in built.left_out[:LISTED]:
        typer.echo(f"left out: {printable(str(item))}", err=True)
    if (more := len(built.left_out) - LISTED) > 0:
        typer.echo(f"left out: {more:,} more", err=True)
    typer.echo(f"{what}: {built.pictures:,} pictures, {built.prompts:,} prompts, {len(built.left_out):,} left out")


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
    from captioner.models.knn.tune import tune

    tuned = tune(folder, data, sample, same, seed)
    for k, temperature in sorted(tuned.table, key=lambda setting: tuned.table[setting])[-5:]:
        typer.echo(f"k {k:4d}  temperature {temperature:.2f}  cosine {tuned.table[k, temperature]:.4f}")
    before = "" if tuned.before is None else f", before {tuned.before:.4f}"
    typer.echo(
        f"{folder}: k {tuned.k}, temperature {tuned.temperature}: "
        f"cosine {tuned.cosine:.4f}{before} over {tuned.queries:,} prompts"
    )


@terms.command("mine")
@grouped
def terms_mine(
    prompts: Annotated[
        list[str],
        typer.Argument(help="Files of prompts, one a line (- is standard input), tables, or folders with captions."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the list to this file.")] = None,
    least: Annotated[int, typer.Option("--min-count", help="Leave out rarer terms.", min=1)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Collect the comma terms of prompts, most frequent first: TERM<TAB>COUNT, for `generate --terms`.

    captioner terms mine prompts.txt --out terms.tsv

    captioner terms mine my/lora-pictures --min-count 1
    """
    from captioner.run.texts import prompts_in
    from captioner.sinks import write_lines
    from captioner.text.terms import mine

    counts = mine(line for source in prompts for line in prompts_in(source))
    lines = [f"{term}\t{count}" for term, count in counts if count >= least]
    if not lines:
        raise BadInput(f"No term occurs {least} times. --min-count 1 lists all.")
    if out is not None and out != Path("-"):  # standard output, as elsewhere
        write_lines(out, lines, overwrite=overwrite)
        typer.echo(f"captioner: {out}: {counted(len(lines), 'term')}", err=True)
    else:
        for line in lines:
            typer.echo(line)


@terms.command("rank")
@grouped
def terms_rank(images: Images, ranking: RankingFlags, read: InputFlags, write: TextOutputFlags) -> None:
    """Show the terms that lie nearest to a picture, kind by kind, with their cosines: artists, mediums, flavors …

    The terms are those that the interrogator ranks; it writes no caption here. Of a tagger they are its tags, the
    ratings too, with their probabilities.

    captioner terms rank cat.png

    captioner terms rank photos --kind artists --count 10 --out artists.jsonl

    captioner terms rank photos --terms my.txt --json

    captioner terms rank photos --model wd-tagger --kind ratings --out ratings.csv
    """
    from captioner.cli.rows import terms_table
    from captioner.run import questions
    from captioner.sinks import Sink

    options = LoadOptions(device=ranking.device, precision=ranking.precision, clip_model=ranking.clip_model)
    model = questions.Model(ranking.model, options)
    kinds = words_of("--kind", ranking.kind) if ranking.kind else ()
    nearest = questions.NearestTerms(model, ranking.terms, kinds, ranking.count, read.max_pixels)

    def sink(many: bool) -> Sink:
        show = partial(terms_table, column=nearest.column, measure=nearest.measure)
        return write.sink(show, False, nearest.settings, ("file", *nearest.columns))

    run(images, nearest, sink, read.recursive, read.batch_size, write.quiet, model.label)
