"""`python -m eval VERB`: one function a verb, no logic of its own. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import BadInput, CaptionerError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False
)

Models = Annotated[
    str,
    typer.Option(
        help="Comma-separated: zoo names, folders, Hub ids, ensemble .json files. `label=NAME` gives a label; a .csv "
        "with columns id,prediction brings texts from elsewhere. E.g. `mini,vit=runs/vit,others=texts.csv`."
    ),
]
Data = Annotated[
    list[str],
    typer.Option(help="Folder, parquet file, Kaggle or COCO layout, … as in training. May be given several times."),
]
Seed = Annotated[int, typer.Option(help="For the bootstrap and for everything drawn by chance.")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples.", min=100)]
BatchSize = Annotated[int, typer.Option(help="Pictures a model is given at once.", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]


@app.callback()
def about() -> None:
    """Measure how well pictures are turned back into their prompts.

    - **report**: every model side by side on the same pictures, with error bars, as a page to read and data to use
    - **score**: metrics for texts that come from anywhere
    - **compare**: two reports; exit status 1 if the second is significantly worse (for CI)
    - **submission**: write or check a file in the competition's format
    - **speed**: how fast a model is on this machine

    Start here: `python -m eval report --data DIR --models mini --out report/`, then open report/report.html.

    Exit status: 0 fine; 1 done, but something failed or got worse; 2 it could not start.
    """


@app.command()
def report(
    data: Data,
    models: Models,
    out: Annotated[Path, typer.Option(help="Folder to write: report.html, .md, .json, per_image.parquet, answers/.")],
    clip: Annotated[str | None, typer.Option(help="CLIP or SigLIP (folder or Hub id) for CLIPScore.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many rows, drawn by chance.", min=1)] = None,
    gallery: Annotated[int, typer.Option(help="Pictures shown of each kind: best, worst, random.", min=1)] = 12,
    figures_only: Annotated[
        bool, typer.Option("--figures-only", help="No picture, prompt or text in OUT: for data that is not public.")
    ] = False,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Prompt recovery, side by side",
    batch_size: BatchSize = 8,
    device: Device = "auto",
    precision: Precision = "auto",
    embedder: Annotated[str | None, typer.Option(help="Another sentence embedder than MiniLM-L6.")] = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
) -> None:
    """Measure models side by side and write one folder.

    A run that was interrupted goes on where it stopped when the same command is given again; a model added to
    `--models` is asked alone. A model that fails is a row with its reason, and the exit status is 1.

    An index of training pictures gives two baselines: `nearest:INDEX`, the prompt of the picture most alike, and
    `constant:INDEX`, the one prompt that fits them all best.
    """
    from eval.answers import Settings
    from eval.report import report as make

    settings = Settings(batch_size, device, precision, embedder)
    names = [name.strip() for name in models.split(",") if name.strip()]
    chosen = {"settings": settings, "clip": clip, "limit": limit, "gallery": gallery, "title": title}
    chosen["figures_only"] = figures_only
    written = make(data, names, out, _track, seed=seed, resamples=resamples, **chosen)
    _print_figures(written)
    for note in written["data"]["notes"]:
        _say(f"note: {note}")
    for model in written["models"]:
        for problem in filter(None, (model["failure"], model["warning"])):
            _say(f"{model['label']}: {problem}")
    _say(f"written: {out / 'report.html'}")
    raise typer.Exit(any(model["failure"] for model in written["models"]))


@app.command()
def score(
    table: Annotated[Path, typer.Argument(help="CSV with columns truth, prediction; optional model and id.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the same files as a report's.")] = None,
    cosine: Annotated[
        bool, typer.Option(help="With --no-cosine no text is embedded: seconds for 16,000 pairs.")
    ] = True,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
) -> None:
    """Metrics for texts that come from anywhere."""
    from eval.score import score as make

    written = make(table, out, cosine=cosine, seed=seed, resamples=resamples)
    _print_figures(written)
    for note in written["data"]["notes"]:
        _say(f"note: {note}")
    if out is not None:
        _say(f"written: {out / 'report.html'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="report.json of the first, per_image.parquet beside it.")],
    b: Annotated[Path, typer.Argument(help="report.json of the second.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Judge by this; may be repeated. Default: cosine, or all if it is missing.")
    ] = None,
    model_a: Annotated[str | None, typer.Option(help="A model of the first …")] = None,
    model_b: Annotated[str | None, typer.Option(help="… against this one of the second. Default: equal names.")] = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
) -> None:
    """Compare two reports on the pictures they share: exit status 1 if B is significantly worse in a judged metric.

    Pictures are paired by their content and prompt; the p-values are corrected by Holm's method for all lines.
    """
    from eval.compare import compare as make

    changes = make(a, b, metric or (), model_a, model_b, resamples, seed)
    _print_changes(changes)
    raise typer.Exit(any(change.worse for change in changes))


@app.command()
def submission(
    data: Annotated[str | None, typer.Option(help="Folder of images, or any data source.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Who embeds them: zoo name, folder, Hub id, ensemble .json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    check: Annotated[Path | None, typer.Option(help="Do not write: validate and score this file …")] = None,
    prompts: Annotated[Path | None, typer.Option(help="… against this CSV with columns imgId, prompt.")] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Write a submission (`imgId_eId,val`, 384 rows an image), or check one.

    `--data DIR --model NAME --out FILE` writes; `--check FILE --prompts CSV` checks. Both take images one batch at a
    time. A picture that cannot be read gets a neutral vector, is named, and the exit status is 1.
    """
    if check is not None and prompts is not None and not (data or model or out):
        raise typer.Exit(_check(check, prompts))
    if check is not None or prompts is not None or not (data and model and out):
        raise BadInput("Give --data, --model and --out to write, or --check and --prompts to check.")
    import captioner
    from eval import submission as file

    file.refuse_existing(out)
    loaded = captioner.load(model, device=device, precision=precision)
    unreadable = file.write(loaded, file.pictures([data]), out, batch_size)
    _say(f"written: {out}" + (f"; {len(unreadable)} unreadable pictures got a neutral vector" if unreadable else ""))
    raise typer.Exit(bool(unreadable))


@app.command()
def speed(
    model: Annotated[
        str, typer.Option(help="Zoo name, folder or Hub id; blip-base-random and blip-large-random need no weights.")
    ],
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    precisions: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16, int8 …")] = "fp32",
    repeats: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    device: Device = "auto",
) -> None:
    """Load time, encode and decode per picture, memory, and the ratio to transformers' own generate in the same run."""
    from eval.speed import print_table
    from eval.speed import speed as measure

    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError as error:
        raise BadInput(f"--batch-sizes {batch_sizes!r}: whole numbers with commas between, e.g. 1,8.") from error
    print_table(measure(model, sizes, precisions.split(","), repeats, out, device))


def _check(check: Path, prompts: Path) -> int:
    from eval.submission import check as run

    result = run(check, prompts)
    for problem in result.problems:
        _say(f"wrong: {problem}")
    for note in result.notes:
        _say(f"note: {note}")
    if result.cosine is not None:
        found = result.cosine
        print(f"{result.images:,} images, mean cosine {found.mean:.4f} (95 % {found.low:.4f} to {found.high:.4f})")
    print("The format is wrong: it would be refused." if result.problems else "The format is right.")
    return int(bool(result.problems))


def _print_figures(written: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    from eval.page import number

    wide = len(written["models"]) <= 3  # beside more models the intervals would be cut to pieces
    what = "mean (95 % interval)" if wide else "mean"
    table = Table(caption=f"{what}; bold: significantly better than every other")
    for heading in ("metric", *(model["label"] for model in written["models"])):
        table.add_column(heading, overflow="fold")
    for metric in written["metrics"]:
        cells = []
        for model in written["models"]:
            figures = model["figures"].get(metric["name"], {"mean": None, "low": None, "high": None})
            mean = number(figures["mean"])
            mean = f"[bold]{mean}[/bold]" if written["best"][metric["name"]] == model["label"] else mean
            known = wide and figures["low"] is not None
            cells.append(mean + (f" ({number(figures['low'])} – {number(figures['high'])})" if known else ""))
        table.add_row(metric["label"], *cells)
    Console().print(table)


def _print_changes(changes: list) -> None:
    from rich.console import Console
    from rich.table import Table

    from eval.page import p_value, signed

    table = Table("model", "metric", "change", "95 % interval", "p (Holm)", "n", "B is")
    for change in changes:
        found = change.difference.interval
        who = change.a if change.a == change.b else f"{change.a} → {change.b}"
        told = "worse" if change.worse else "better" if change.better else "not clearly different"
        spread = f"{signed(found.low)} to {signed(found.high)}"
        table.add_row(
            who, change.metric, signed(found.mean), spread, p_value(change.p_holm), str(change.difference.items), told
        )
    Console().print(table)


def _track(steps: Iterable[int], total: int, what: str) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=what, total=total, console=Console(stderr=True))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    """Errors that the user can put right are one line and exit status 2."""
    try:
        app(prog_name="python -m eval")
    except CaptionerError as error:
        _say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
