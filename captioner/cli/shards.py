"""Verbs for more pictures than one process can do: plan, status, merge; and how generate and embed work off a plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captioner.cli.options import InputFlags, OutputFlags, Quiet, Recursive, ShardFlags, grouped
from captioner.errors import BadInput, Stopped, counted, printable, refuse_idle
from captioner.files.names import typed
from captioner.run.flags import flag

if TYPE_CHECKING:
    from captioner.shards.part import Failure, Job, Manifest
    from captioner.shards.plan import Plan

PlanFolder = Annotated[str, typer.Argument(help="The folder of a plan.", metavar="OUT")]


@grouped
def plan(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, addresses, @FILE (a list); .parquet with pictures or their addresses; .tar "
            "(webdataset); hub:NAME. A folder of pictures and tars: pictures:FOLDER, webdataset:FOLDER, or both.",
            metavar="INPUT",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make; it must not be there yet.")],
    shard_size: Annotated[int, typer.Option(help="Pictures in a shard: some minutes' work.", min=1)] = 10_000,
    recursive: Recursive = False,
    split: Annotated[str, typer.Option(help="Of a Hub data set, or of a folder of parquet files.")] = "train",
    image_column: Annotated[
        str | None, typer.Option(help="Where a table's pictures are (default: a usual name).")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Where its captions are, for {tags} (default: text, prompt or caption).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """List many pictures in shards, for many processes and machines to work off.

    captioner plan photos --recursive --out run

    captioner generate --out run            (as often, and on as many machines that see the folder, as you like)

    captioner status run

    captioner merge run captions.parquet
    """
    from captioner.images.find import passed_over
    from captioner.shards import plan as plans
    from captioner.shards.inputs import Finding

    videos: set[str] = set()
    made = plans.make(out, inputs, shard_size, Finding(recursive, split, image_column, text_column), videos)
    if not quiet:
        typer.echo(f"{out}: {counted(made.pictures, 'picture')} in {counted(made.shards, 'shard')}", err=True)
    if videos and not quiet:
        typer.echo(f"captioner: {passed_over(videos)}", err=True)


@grouped
def status(
    out: PlanFolder,
    price_per_hour: Annotated[
        float | None, typer.Option(help="What an hour of one worker costs: tells what a million pictures do.", min=0.0)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show how far the shards of a plan have come, how fast, and what that costs.

    captioner status run --price-per-hour 1.20
    """
    from dataclasses import asdict

    from captioner.run.progress import duration
    from captioner.shards import plan as plans
    from captioner.shards.status import status as count

    now = count(plans.read(Path(out)))
    cost = None if price_per_hour is None else now.cost_per_million(price_per_hour)
    if json:
        from captioner.sinks import to_json

        derived = {"rate": now.rate, "seconds_left": now.seconds_left, "cost_per_million": cost}
        typer.echo(to_json(asdict(now) | derived))
        return
    typer.echo(
        f"{now.shards_done:,} of {now.shards:,} shards done, {now.running:,} running, {len(now.failed):,} failed\n"
        f"{now.pictures_done + now.under_way:,} of {now.pictures:,} pictures, {now.pictures_failed:,} could not be read"
    )
    if now.pace is not None and now.seconds_left is not None:
        left = f", {duration(now.seconds_left)} left" if now.seconds_left else ""
        workers = f"by {counted(now.running, 'worker')}" if now.running else "a worker"
        typer.echo(f"{now.pace * (now.running or 1):.1f} pictures/s {workers}{left}")
    if cost is not None:
        typer.echo(f"{cost:,.2f} per million pictures, at {price_per_hour:g} an hour for each worker")
    for failure in now.failed[:20]:
        typer.echo(f"shard {failure.shard} failed: {printable(failure.error)}")


@grouped
def merge(
    source: Annotated[
        str, typer.Argument(help="The folder of a plan, or one that training with --lora wrote.", metavar="FROM")
    ],
    out: Annotated[str, typer.Argument(help="The file or folder to write; it must not be there yet.")],
    kind: Annotated[
        Literal["table", "webdataset", "imagefolder"] | None,
        typer.Option("--as", help="Of a plan (default: .parquet or .jsonl a table, a folder an imagefolder)."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Of a plan: without the shards that are missing.")] = False,
) -> None:
    """Merge the parts of a plan into one output; or a LoRA adapter into its base model.

    A table has a row for every picture, with the `error` of those that could not be read; the others leave them out.

    captioner merge run captions.parquet

    captioner merge run tars --as webdataset

    captioner merge runs/lora whole-model
    """
    from captioner.shards import plan as plans

    if not plans.is_plan(Path(source)):
        _merge_adapter(source, out, [flag for flag, value in (("--as", kind), ("--partial", partial)) if value])
        return
    from captioner.shards import merge as merging

    merged = merging.merge(plans.read(Path(source)), Path(out), merging.format_of(Path(out), kind), partial)
    failed = f", {merged.failed:,} of which could not be read" if merged.failed else ""
    if kind in ("webdataset", "imagefolder") or not Path(out).suffix:
        failed = f"; {merged.failed:,} that could not be read are left out" if merged.failed else ""
    missing = f"; without {counted(merged.missing, 'shard')} that nobody has made" if merged.missing else ""
    typer.echo(f"{out}: {counted(merged.rows, 'row')}{failed}{missing}")


def _merge_adapter(adapter: str, out: str, of_plans: Sequence[str]) -> None:
    from captioner import zoo

    if not zoo.is_adapter(Path(adapter)):
        raise BadInput(f"{adapter} holds neither a plan (of captioner plan) nor an adapter (of training with --lora).")
    refuse_idle(of_plans, f"{adapter} holds an adapter, not a plan.")
    from captioner.models.parts import adapters

    adapters.merge(Path(adapter), Path(out))
    verb = "generate" if zoo.resolve(out).speaks else "embed"
    typer.echo(f"{out} is whole. Use it: captioner {verb} --model {typed(out)} picture.png")


# --- generate and embed ----------------------------------------------------------------------------------------------


UNUSED = ("recursive", "resume", "overwrite", "json", "sidecar", "caption_extension", "on_existing", "attention")
"""Of the flags for pictures and outputs, those that mean nothing where a plan is worked off."""


def is_of_plan(inputs: Sequence[str] | None, read: InputFlags, write: OutputFlags, shards: ShardFlags) -> bool:
    """Whether a verb is to work off the plan that --out names."""
    from captioner.shards.plan import is_plan

    if write.out is None or not is_plan(write.out):
        if given := shards.given():
            raise BadInput(f"{' and '.join(given)}: there is no plan. Make one with captioner plan; --out names it.")
        return False
    if inputs:
        raise BadInput(f"{write.out} holds a plan, which names its pictures: name none, or another --out.")
    unused = (flag(name) for name in UNUSED if getattr(read, name, None) or getattr(write, name, None))
    refuse_idle(unused, f"{write.out} holds a plan.")
    return True


def work(out: Path, shards: ShardFlags, job: Job, quiet: bool) -> None:
    """Make parts until none is left to be made. Status 1 where a shard could not be."""
    from captioner.shards import part
    from captioner.shards import plan as plans

    plan = plans.read(out)
    made, failed = 0, 0
    progress = None if quiet or shards.engine is None else Whole(plan)
    with progress or nullcontext():
        if shards.engine is None:
            outcomes = part.work(plan, job, shards.share)
        else:
            from captioner.cluster import pool

            cluster = pool.Cluster(shards.address, shards.workers, shards.gpus_per_worker)
            outcomes = pool.work(plan, job, cluster, shards.share, progress.look if progress else lambda: None)
        try:
            for what in outcomes:
                made += 1
                failed += isinstance(what, part.Failure)
                line = f"captioner: {line_of(what, plan.shards)}"
                if progress:
                    progress.tell(what, line)
                elif not quiet:
                    typer.echo(line, err=True)
        except KeyboardInterrupt:
            raise Stopped("Stopped. The parts that are written stay; the same command makes the others.") from None
    if not quiet:
        here = counted(made - failed, "shard")
        typer.echo(f"captioner: {here} written here; captioner status {out} tells of all", err=True)
    if failed:
        raise typer.Exit(1)


class Whole:
    """The progress of all workers of a cluster: a bar on a terminal, lines elsewhere."""

    def __init__(self, plan: Plan) -> None:
        from captioner.run.progress import Bar, Lines, Tally, Total
        from captioner.shards.status import status

        self.plan = plan
        before = status(plan)
        self.tally = Tally(failed=0, skipped=before.pictures_done)
        total = Total(plan.pictures)
        self.progress = Bar(total, "workers") if sys.stderr.isatty() else Lines(total)

    def __enter__(self) -> Whole:
        self.progress.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.__exit__(*raised)

    def look(self) -> None:
        """What leases tell of shards that are being made."""
        from captioner.run.progress import Tally
        from captioner.shards.status import under_way

        here = Tally(self.tally.done + under_way(self.plan), self.tally.failed, self.tally.skipped)
        if here.done:
            self.progress.ready()
        self.progress.show(here)

    def tell(self, what: Manifest | Failure, line: str) -> None:
        """A shard has come to its end."""
        from captioner.shards.part import Manifest

        if isinstance(what, Manifest):
            self.tally.done += what.pictures - what.failed
            self.tally.failed += what.failed
        self.progress.say(line)
        self.look()


def line_of(what: Manifest | Failure, shards: int) -> str:
    """What became of a shard, in one line."""
    from captioner.shards.part import Failure

    if isinstance(what, Failure):
        return f"shard {what.shard} of {shards:,} failed: {printable(what.error)}"
    failed = f", {what.failed:,} could not be read" if what.failed else ""
    pace = f", {what.pictures / what.seconds:.1f}/s" if what.seconds else ""
    return f"shard {what.shard} of {shards:,}: {counted(what.pictures, 'picture')}{failed}{pace}"
