"""`python -m eval VERB`: one function a verb, no logic of its own. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import BadInput, counted, refuse_idle
from captioner.run import lastresort
from captioner.run.flags import flag
from captioner.run.help import CommandLine
from eval.speed import SUBJECTS

NAME = "python -m eval"

app = CommandLine(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Models = Annotated[
    str,
    typer.Option(
        help="Comma-separated: names that `captioner models` lists, folders, Hub ids, ensemble .json files. "
        "`label=NAME` gives a label, `NAME+expected` takes what a captioner expects instead of what it says, a .csv or "
        ".jsonl (columns id,prediction, or file,text as `captioner generate` writes them) brings texts from elsewhere. "
        "E.g. `mini,vit=runs/vit,others=texts.csv`."
    ),
]
Data = Annotated[
    list[str],
    typer.Option(help="Folder, parquet file, Kaggle or COCO layout, … as in training. May be given several times."),
]
TextColumn = Annotated[str | None, typer.Option(help="The column of the prompts, if it has no usual name.")]
ImageColumn = Annotated[str | None, typer.Option(help="The column of the pictures.")]
Gallery = Annotated[int, typer.Option(help="Pictures shown of each kind: best, worst, random.", min=1)]
Modifiers = Annotated[
    Path | None,
    typer.Option(help="A list of the terms that count as modifiers; else those that 10 of the prompts have."),
]
Embedder = Annotated[str | None, typer.Option(help="Another sentence embedder than MiniLM-L6.")]
Seed = Annotated[int, typer.Option(help="For the bootstrap and for everything drawn by chance.", min=0)]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples.", min=100, max=1_000_000)]
BatchSize = Annotated[int, typer.Option(help="Pictures a model is given at once.", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, int8 or float64.")]


@app.callback()
def about() -> None:
    """Measure how well pictures are turned back into their prompts.

    Start here, then open report/report.html:

    python -m eval report --data DIR --models mini --out report/

    Exit status: 0 fine; 1 done, but something failed or got worse; 2 it could not be done; 130 stopped by Ctrl-C.
    """


@app.command()
def report(
    data: Data,
    models: Models = "mini",
    out: Annotated[
        Path, typer.Option(help="Folder to write: report.html, .md, .json, per_image.parquet, answers/.")
    ] = Path("report"),
    split: Annotated[
        str, typer.Option(help="Which part of a Hub data set, or of a folder of parquet files.")
    ] = "train",
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="A paper's own table, with its published rows: promptstealer, kaggle (and submissions), coco."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP (folder or Hub id): text–text, picture–text and CLIPScore.")
    ] = None,
    modifiers: Modifiers = None,
    bert_score: Annotated[
        str | None, typer.Option("--bertscore", help="An encoder (folder or Hub id) for BERTScore, e.g. roberta-large.")
    ] = None,
    perplexity: Annotated[
        str | None, typer.Option(help="A language model (folder or Hub id) that says how fluent the texts are.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Ask a model that samples N times; one row, with the spread of its runs.", min=1)
    ] = 1,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=DATA: what a model was trained on, to count near-duplicates. May be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many pictures, drawn by chance.", min=1)] = None,
    gallery: Gallery = 12,
    figures_only: Annotated[
        bool, typer.Option("--figures-only", help="No picture, prompt or text in OUT: for data that is not public.")
    ] = False,
    redrawn: Annotated[
        Path | None,
        typer.Option(help="Pictures drawn from the models' texts (`redraw`): how like are they to the true ones?"),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Prompt recovery, side by side",
    batch_size: BatchSize = 8,
    device: Device = "auto",
    precision: Precision = "auto",
    embedder: Embedder = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--also-embedder",
            help="A column for the texts' cosine in its space, e.g. all-MiniLM-L12-v2. May be repeated.",
        ),
    ] = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
) -> None:
    """Measure models side by side and write one folder.

    A run that was interrupted goes on where it stopped when the same command is given again; a model added to
    `--models` is asked alone, and a report is never replaced by one that lacks a model. A model that fails is a row
    with its reason, and the exit status is 1.

    An index of training pictures gives two baselines: `nearest:INDEX`, the prompt of the picture most alike, and
    `constant:INDEX`, the one prompt that fits them all best.
    """
    with _stoppable("What the models said so far is kept: the same command goes on from there."):
        from captioner.pairs.layouts import ReadOptions
        from eval.asking import Settings
        from eval.measure import Measures
        from eval.progress import track
        from eval.report import report as make
        from eval.terminal import print_figures

        written = make(
            data,
            _names(models),
            out,
            track,
            settings=Settings(batch_size, device, precision, embedder),
            measures=Measures(clip, tuple(beside or ()), modifiers, bert_score, perplexity, protocol, seeds),
            reading=ReadOptions(text_column, image_column, split),
            trained_on=trained_on or (),
            limit=limit,
            seed=seed,
            resamples=resamples,
            gallery=gallery,
            title=title,
            figures_only=figures_only,
            redrawn=redrawn,
        )
    print_figures(written)
    for model in written["models"]:
        for problem in filter(None, (model["failure"], model["warning"])):
            _say(f"{model['label']}: {problem}")
    _say(f"written: {out / 'report.html'}")
    raise typer.Exit(any(model["failure"] for model in written["models"]))


@app.command()
def redraw(
    report: Annotated[Path, typer.Option(help="Folder of the report whose texts are drawn, or its report.json.")],
    pipeline: Annotated[str, typer.Option(help="A text-to-image pipeline of diffusers: folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on with.")],
    models: Annotated[str | None, typer.Option(help="Comma-separated labels of the report. Default: all.")] = None,
    per_prompt: Annotated[int, typer.Option(help="Pictures drawn of each text.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only so many pictures, drawn by chance.", min=1)] = None,
    true_prompts: Annotated[
        bool, typer.Option("--true-prompts", help="Draw the true prompts too: nearer nobody can be expected to come.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 50,
    size: Annotated[int, typer.Option(help="Pixels a side, a multiple of 8.", min=8)] = 512,
    guidance: Annotated[float, typer.Option(help="How closely the text is followed; 0 for turbo models.")] = 7.5,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at once.", min=1)] = 1,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto (fp16 on a GPU, else fp32), fp32, bf16 or fp16.")] = "auto",
    seed: Annotated[int, typer.Option(help="For the noise that pictures begin with.", min=0)] = 0,
) -> None:
    """Draw again: what would the models' texts make? Needs `pip install "captioner[synth]"`.

    Writes OUT/LABEL/ID.png and OUT/metadata.jsonl. The same command goes on where it was stopped. Then
    `python -m eval report … --redrawn OUT` measures how like the pictures are; pictures drawn elsewhere under the same
    names work as well.
    """
    with _stoppable("What was drawn is kept: the same command goes on from there."):
        from eval.redraw import redraw as draw
        from training.data.drawing import Drawing

        drawing = Drawing(
            model=pipeline,
            steps=steps,
            size=size,
            save_size=size,
            guidance=guidance,
            batch_size=batch_size,
            precision=precision,
            device=device,
        )
        drawn = draw(
            report,
            out,
            drawing,
            models=_names(models or ""),
            per_prompt=per_prompt,
            limit=limit,
            true_prompts=true_prompts,
            seed=seed,
        )
    if drawn.blacked_out:
        _say(f"{counted(drawn.blacked_out, 'picture')} blacked out by the pipeline's safety checker: left out.")
    _say(f"written: {counted(drawn.pictures, 'picture')} in {out}; now report --redrawn {out}")


@app.command()
def page(
    report: Annotated[Path, typer.Argument(help="Folder of the report, or its report.json.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Where the pictures are, if not where the report has them from.")
    ] = None,
    redrawn: Annotated[Path | None, typer.Option(help="Pictures drawn again, to be shown beside the others.")] = None,
    split: Annotated[str, typer.Option(help="Which part of the data the report was made from.")] = "train",
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    gallery: Gallery = 12,
) -> None:
    """Draw report.html and report.md anew from report.json and per_image.parquet; no figure changes."""
    with _stoppable():
        from captioner.pairs.layouts import ReadOptions
        from eval.anew import draw_page

        reading = ReadOptions(text_column, image_column, split)
        written = draw_page(report, data or (), redrawn, gallery, reading)
    _say(f"written: {written}")


@app.command()
def score(
    table: Annotated[
        Path,
        typer.Argument(help="CSV or JSON lines: columns truth and prediction (or text); optional model, id (or file)."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the same files as a report's.")] = None,
    cosine: Annotated[
        bool, typer.Option(help="With --no-cosine no text is embedded: seconds for 16,000 pairs.")
    ] = True,
    embedder: Embedder = None,
    modifiers: Modifiers = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
) -> None:
    """Metrics for texts that come from anywhere."""
    with _stoppable():
        from eval.score import score as make
        from eval.terminal import print_figures

        written = make(
            table, out, cosine=cosine, embedder=embedder, modifiers=modifiers, seed=seed, resamples=resamples
        )
    print_figures(written)
    if out is not None:
        _say(f"written: {out / 'report.html'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of the first report, or its report.json.")],
    b: Annotated[Path, typer.Argument(help="Folder of the second report, or its report.json.")],
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
    with _stoppable():
        from eval.compare import compare as make
        from eval.terminal import print_changes

        changes = make(a, b, metric or (), model_a, model_b, resamples, seed)
    print_changes(changes)
    raise typer.Exit(any(change.worse for change in changes))


@app.command()
def submission(
    context: typer.Context,
    data: Annotated[str | None, typer.Option(help="Folder of images, or any data source.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Who embeds them: name, folder, Hub id, ensemble .json, NAME+expected.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a stopped run left in OUT.part.")] = False,
    check: Annotated[Path | None, typer.Option(help="Do not write: validate this file …")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="… and score it against this CSV with columns imgId, prompt.")
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Write a submission (`imgId_eId,val`, 384 rows an image), or check one.

    `--data DIR --model NAME --out FILE` writes; `--check FILE` checks the format, with `--prompts CSV` the images and
    the score too. Both take images one batch at a time. A picture that cannot be read gets a neutral vector, is named,
    and the exit status is 1.
    """
    if check is not None and not (data or model or out or resume):
        _refuse_options(context, ("batch_size", "device", "precision"), "--check asks no model.")
        with _stoppable():
            from eval.submission import check as validate
            from eval.terminal import print_check

            result = validate(check, prompts)
        print_check(result, has_prompts=prompts is not None)
        raise typer.Exit(bool(result.problems))
    if check is not None or prompts is not None or not (data and model and out):
        raise BadInput("Give --data, --model and --out to write, or --check (and --prompts) to check.")
    with _stoppable(f"What is done is kept in {out}.part: the same command with --resume goes on from there."):
        from eval import submission as file
        from eval.progress import track

        settings = file.Settings(model, batch_size, device, precision)
        unreadable = file.write(settings, data, out, track, resume)
    _say(
        f"written: {out}"
        + (f"; {counted(len(unreadable), 'unreadable picture')} got a neutral vector" if unreadable else "")
    )
    raise typer.Exit(bool(unreadable))


@app.command()
def speed(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="Name, folder or Hub id; blip-base-random and blip-large-random need no weights."),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    precisions: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16, int8 …")] = "fp32",
    repeats: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    device: Device = "auto",
    suite: Annotated[bool, typer.Option("--suite", help="Everything that this package measures. Minutes.")] = False,
    only: Annotated[str, typer.Option(help=f"Parts of the suite, comma-separated: {', '.join(SUBJECTS)}.")] = "",
    profile: Annotated[
        Path | None, typer.Option(help="Tell where the time goes instead; draws a flame picture to this SVG file.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Compare what the precisions write about these pairs instead (as for report; repeatable)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many pictures of --data.", min=1)] = None,
) -> None:
    """Load time, encode and decode per picture, memory, and the ratio to transformers' own generate in the same run.

    Columns: encode and decode, milliseconds a picture to read it and to write its text; total, both; theirs, the same
    work by transformers' own generate in fp32 (on a GPU in bf16); times faster, theirs over total (lowest to highest);
    alike, the same with transformers in this precision; MB, the most memory that the work needed beyond the loaded
    model; ceiling, how much of the machine's fastest matrix product encoding reaches.

    With --data: the share of captions that are the same as in fp32, and the loss in cosine to the true prompts. What is
    measured of bf16 so is kept, and `--precision auto` takes bf16 where 98 % of at least 50 captions were the same.
    """
    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError as error:
        raise BadInput(f"--batch-sizes {batch_sizes!r}: whole numbers with commas between, e.g. 1,8.") from error
    if suite == (model is not None):
        raise BadInput("Give either --model or --suite.")
    of_texts, of_all = ("data", "limit"), ("batch_sizes", "precisions", "repeats", "device", "profile")
    if suite:
        _refuse_options(context, (*of_all, *of_texts), "the suite measures in its own way. Name a --model instead.")
    else:
        _refuse_options(context, ("only",), "it names parts of --suite.")
    if data:
        _refuse_options(context, ("batch_sizes", "repeats", "profile"), "with --data texts are compared.")
    else:
        _refuse_options(context, ("limit",), "it is about --data.")
    if profile is not None:
        _refuse_options(context, ("repeats",), "a profile is taken once.")
    with _stoppable("Nothing was written: a measurement that was cut off says nothing."):
        if model is None:
            from eval.speed import suite as whole

            whole.print_table(whole.suite([part for part in only.split(",") if part], out, _say))
            return
        from eval.speed import agreement
        from eval.speed import model as of_model
        from eval.speed import profile as of_profile

        named = precisions.split(",")
        if data:
            agreement.show(model, named, data, limit, out, device)
        elif profile is not None:
            of_profile.show(model, sizes, named, profile, out, device)
        else:
            of_model.print_table(of_model.speed(model, sizes, named, repeats, out, device))


def _refuse_options(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse those of these options that were given: nothing would follow from them."""
    sources = {name: context.get_parameter_source(name) for name in names}
    refuse_idle((flag(name) for name, source in sources.items() if source and source.name == "COMMANDLINE"), why)


def _names(listed: str) -> list[str]:
    """Between the commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def _say(line: str) -> None:
    from eval.progress import say

    say(line)


@contextmanager
def _stoppable(kept: str = "Nothing was written.") -> Iterator[None]:
    """Ctrl-C ends the program with what is left of the work."""
    try:
        yield
    except KeyboardInterrupt:
        lastresort.leave(NAME, f"Stopped. {kept}", 130)


def main() -> None:
    """The command `python -m eval`."""
    lastresort.run(NAME, lambda: app(prog_name=NAME))


if __name__ == "__main__":
    main()
