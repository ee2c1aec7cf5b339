"""Verbs about models: models, convert, ensemble, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.cli.options import BatchSize, Device, Embedder, Precision, Quiet, grouped
from captioner.cli.verbs import group
from captioner.files.names import typed

if TYPE_CHECKING:
    from captioner.models.ensemble.ensemble import Member

ensemble = group("Weighted means of image embedders.")
convert = group("Checkpoints of other projects → ours.")

Members = Annotated[str, typer.Option(help="Models, comma-separated; NAME+expected averages all it might say.")]
EnsembleFile = Annotated[str, typer.Option("--out", "-o", help="The ensemble's .json; it must not be there yet.")]
ByNorm = Annotated[bool, typer.Option("--by-norm", help="A member counts more where it is surer.")]


@grouped
def models(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List every model: what it is for, where its weights are, and whether they are on this machine."""
    from captioner import zoo

    rows = zoo.listing()
    if json:
        import json as format

        typer.echo(format.dumps([asdict(row) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "gives", "weights", box=None, pad_edge=False)
    table.add_column("what it is for", overflow="fold")
    for row in rows:
        where = "here" if row.where else "Hub" if "/" in row.weights else "yours"
        size = f"{row.bytes / 1e6:,.0f} MB, {where}" if row.bytes else where
        purpose = f"{row.purpose}\n{row.weights}" if "/" in row.weights else row.purpose
        table.add_row(row.name, "text" if row.kind == "captioner" else "vector", size, purpose)
    for column in table.columns[:3]:
        column.no_wrap = True
    Console().print(table)
    typer.echo(
        "\ntext: for `captioner generate` and `embed`; vector: for `embed` alone\n"
        "here: on this machine; Hub: fetched when it is first used; yours: you train or build it and name its folder\n"
        "hub:ORG/NAME: any image-to-text model of the Hub that transformers runs\n"
        "openai:ADDRESS#NAME: a model of a server that speaks OpenAI's chat completions (LM Studio, Ollama, vLLM …)"
    )


@grouped
def doctor(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Versions, devices, precisions, caches, and what is missing: what a bug report should say."""
    from captioner.run.doctor import as_text, examine

    found = examine()
    if json:
        import json as format

        typer.echo(format.dumps(found, indent=2))
        return
    typer.echo(as_text(found))


def _members(names: str, weights: str | None = None) -> list[Member]:
    """The members of an ensemble; a misspelled one is told before any is loaded, or written down."""
    from captioner import zoo
    from captioner.models.ensemble.ensemble import parse

    members = parse(names, weights)
    for member in members:
        zoo.at_hand(member.model)
    return members


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
    from captioner.models.ensemble.fit import fit
    from captioner.run.progress import counting

    options = LoadOptions(device=device, precision=precision, embedder=embedder)
    with counting(quiet) as count:
        fitted = fit(_members(members), data, out, pipeline.load, by_norm, options, batch_size, count)
    for warning in fitted.warnings:
        typer.echo(f"captioner: {warning}", err=True)
    for name, weight in fitted.weights.items():
        typer.echo(f"{weight:6.1%}  {name} (alone {fitted.alone[name]:.4f})")
    low, high = fitted.interval
    typer.echo(
        f"{out}: cosine {fitted.cosine:.4f}, gain over the best member {fitted.gain:+.4f} "
        f"(95% {low:+.4f} to {high:+.4f}) on {fitted.prompts:,} prompts left out in turn"
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
    from captioner.models.ensemble.ensemble import save

    save(Path(out), _members(members, weights), by_norm)


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
    use = f"captioner generate --model {typed(out)} picture.png"
    typer.echo(f"{out} reads image embeddings {scaled}. Use it: {use}")
