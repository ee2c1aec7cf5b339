"""The options of the command line in groups: a verb takes a group as one parameter, `--help` shows it as one panel.

What a model is loaded with and asked are dataclasses of the library, whose fields become options here; the other groups
are declared where their options are. An option that is left out is None wherever the model or the checkpoint has a say
in the default.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache, partial, wraps
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

from typer import Argument, Option

from captioner.contracts import TAG_KINDS, TERM_KINDS, MetadataUse
from captioner.decoding import DecodingChanges
from captioner.errors import BadInput, printable, refuse_idle
from captioner.quiet import PROGRESS
from captioner.run.flags import flag
from captioner.run.help import FIRST, as_written

if TYPE_CHECKING:
    from captioner.sinks import Row, Settings, Sink
    from captioner.text.finish import Finish


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb take groups of options: each field of a dataclass parameter becomes an option of that name."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    signature = inspect.signature(verb)
    for name, hint in get_type_hints(verb, include_extras=True).items():
        hint = as_written(hint)
        if isinstance(hint, type) and is_dataclass(hint):
            groups[name] = hint
            parameters += _of_group(hint)
        elif name != "return":
            parameters.append(_parameter(name, hint, signature.parameters[name].default))

    @wraps(verb)
    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = _made(group, given)
        verb(**given)

    called.__dict__["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def names(group: type) -> list[str]:
    """The names of a group's options, as Python spells them."""
    return [parameter.name for parameter in _of_group(group)]


@cache  # several verbs take the same group
def _of_group(group: type) -> list[inspect.Parameter]:
    """The options of a group; a field that is a group itself brings its own."""
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in fields(group):
        if field.name in INNER:
            parameters += _of_group(INNER[field.name])
        else:
            hint = hints[field.name]
            if get_origin(hint) is not Annotated:
                hint = Annotated[SPELLED.get(field.name, hint), LIBRARY[field.name]]
            parameters.append(_parameter(field.name, hint, field.default))
    return parameters


def _made(group: type, given: dict[str, Any]) -> Any:
    """The group, of the options that were given; they are taken from there."""
    return group(**{field.name: _value(field, given) for field in fields(group)})


def _value(field: Field, given: dict[str, Any]) -> Any:
    if field.name in INNER:
        return _made(INNER[field.name], given)
    value = given.pop(field.name)
    return READ[field.name](value) if field.name in READ and value is not None else value


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def panel_option(panel: str | None = None) -> Callable[..., Any]:
    """`Option` for one panel of the help."""

    def option(help: str, *names: str, **more: Any) -> Any:
        return Option(*names, help=help, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)

    return option


_first = panel_option(FIRST)


# --- options that several verbs take ---------------------------------------------------------------------------------

PICTURES = "Files, folders, globs, http(s) addresses, @FILE (a list), or - (standard input)."
Images = Annotated[list[str], Argument(help=PICTURES, metavar="PICTURE")]
ImagesOrPlan = Annotated[
    list[str] | None, Argument(help=f"{PICTURES} None where --out is the folder of a plan.", metavar="PICTURE")
]
Embedder = Annotated[str | None, Option(help="Another sentence-transformers model than MiniLM-L6.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16, fp16, int8 or float64.")]
BatchSize = Annotated[int, Option(help="Pictures at a time.", min=1)]
SUBFOLDERS = "Look into subfolders too; links to folders are not followed."
Recursive = Annotated[bool, Option("--recursive", "-r", help=SUBFOLDERS)]
Json = Annotated[bool, Option("--json", help="As JSON, one line a picture.")]


def _hush(quiet: bool) -> bool:
    """What models tell of their progress, too."""
    PROGRESS.setLevel(logging.ERROR if quiet else logging.NOTSET)
    return quiet


Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress on standard error.", callback=_hush)]


# --- which model, what it is asked, how it searches for the answer ---------------------------------------------------

_model = panel_option("Model")
_search = panel_option("Search")

Model = Annotated[
    str | None,
    _first(
        "A name of `captioner models`, a folder, a Hub id or openai:ADDRESS#NAME (default: the first of blip-large, "
        "blip and mini that is here).",
        "--model",
        "-m",
    ),
]

LIBRARY: dict[str, Any] = {
    # LoadOptions
    "device": _model("auto, cpu, cuda, cuda:1 or mps."),
    "precision": _model("auto (half precision on a GPU, mostly fp32 on a CPU), fp32, bf16, fp16, int8 or float64."),
    "caption_model": _model("Interrogator: who writes the caption (default: blip)."),
    "clip_model": _model(
        "Interrogator: the CLIP or SigLIP that ranks the terms (default: openai/clip-vit-large-patch14)."
    ),
    "load_in": _model("Hub models on a GPU: load the weights in 8 or 4 bits."),
    "trust_remote_code": _model("Let a Hub model run its own code.", "--trust-remote-code"),
    "embedder": _model("Another sentence-transformers model than the packaged MiniLM-L6."),
    # Request
    "prompt": _model(
        'What the text, or a chat model\'s answer, goes on from: "a picture of". Not written itself (--prefix writes).'
    ),
    "question": _model("What OFA is asked about the picture (default: what does the image describe?)."),
    "instruction": _model(
        "What a chat model is asked. Here, in --prompt and --question {name}, {folder}, {tags} (the sidecar) and "
        "{metadata} (the prompt it carries) stand for the picture's own."
    ),
    "mode": _model("Interrogator: best (default), fast, classic or negative."),
    "terms": _model(
        "Interrogator: your own terms, one a line. A file called artists.txt, mediums.txt, movements.txt, trending.txt "
        "or negative.txt holds terms of that kind, any other flavours. Repeatable."
    ),
    "style": _model("Chat models: what is written, e.g. tags for SD 1.5, a sentence for SDXL, a paragraph for Flux."),
    "quality": _model("mini: best (default) judges many texts by MiniLM, fast a few by a table of its own."),
    "threshold": _model("Tagger: the least probability of a tag that is written (default: 0.35)."),
    "character_threshold": _model("Tagger: the same of a character's name (default: 0.85)."),
    "rating": _model("Tagger: where the likeliest rating stands (default: nowhere)."),
    # DecodingChanges
    "num_beams": _search("Search with so many texts side by side; 1 takes the likeliest token each time."),
    "num_candidates": _first("Texts made per picture, of which the best is chosen (generate --all-candidates: all)."),
    "max_new_tokens": _search("The longest text, in tokens."),
    "min_new_tokens": _search("The shortest text, in tokens."),
    "length_penalty": _search("Above 0 favours long texts, below 0 short ones."),
    "early_stopping": _search("When a beam search ends: true, false or never.", metavar="WHEN"),
    "repetition_penalty": _search("Above 1 discourages words that were said."),
    "no_repeat_ngram_size": _search("No sequence of so many tokens comes twice."),
    "do_sample": _search("Draw texts at random instead of searching (mini does)."),
    "temperature": _search("Sampling: below 1 is tamer, above 1 wilder."),
    "top_k": _search("Sampling: only the k likeliest tokens; 0 is all."),
    "top_p": _search("Sampling: only the likeliest tokens that sum to p."),
    "seed": _search("Sampling: the same seed gives the same texts, whatever the batch size."),
    "forbid": _search("Words that are never written, comma-separated."),
}
"""The fields of the library's dataclasses as options."""

SPELLED: dict[str, Any] = {
    "terms": list[Path] | None,
    "early_stopping": Literal["true", "false", "never"] | None,
    "forbid": list[str] | None,
}
"""Their types, where a command line spells them otherwise than the field …"""


def words_of(flag: str, lists: Sequence[str]) -> tuple[str, ...]:
    """The words of comma-separated lists."""
    words = tuple(word.strip() for given in lists for word in whole(flag, given).split(",") if word.strip())
    if not words:
        raise BadInput(f"{flag} names no word.")
    return words


def whole(flag: str, text: str) -> str:
    """A text that a model can read: bytes that were no UTF-8 are lone surrogates here."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadInput(f"{flag} is not UTF-8 text.")
    return text


def model_of(name: str) -> str:
    from captioner import zoo

    return zoo.absolute(name)


def embedder_of(name: str) -> str:
    from captioner.text import embedding

    return embedding.absolute(name)


READ: dict[str, Callable[[Any], Any]] = {
    # Files and folders by their absolute names: a worker, or who goes on with a run, may stand in another folder.
    "terms": lambda files: tuple(file.absolute() for file in files) or None,
    "caption_model": model_of,
    "clip_model": model_of,
    "embedder": embedder_of,
    "out": lambda out: None if out == Path("-") else out,  # standard output, as elsewhere
    "early_stopping": lambda when: {"true": True, "false": False}.get(when, when),
    "forbid": partial(words_of, "--forbid"),
    "prompt": partial(whole, "--prompt"),
    "question": partial(whole, "--question"),
    "instruction": partial(whole, "--instruction"),
}
"""… and how such a value is read. What is None is left out."""

INNER = {"decoding": DecodingChanges}
"""Fields that are groups of options themselves."""


# --- which terms a picture is compared with --------------------------------------------------------------------------


@dataclass(frozen=True)
class RankingFlags:
    """Which terms are ranked for a picture, and by what."""

    model: Annotated[
        str,
        _first("The interrogator, or a tagger: its tags and their probabilities.", "--model", "-m", show_default=True),
    ] = "interrogator"
    kind: Annotated[
        list[str] | None,
        _first(
            f"Of {', '.join(TERM_KINDS)} (a tagger: {', '.join(TAG_KINDS)}), comma-separated, those that are shown "
            "(default: all that there are)."
        ),
    ] = None
    count: Annotated[int, _first("Terms of each kind.", "--count", "-n", min=1, show_default=True)] = 5
    terms: tuple[Path, ...] | None = None
    clip_model: str | None = None
    device: str = "auto"
    precision: str = "auto"


# --- what becomes of the text ----------------------------------------------------------------------------------------

_text = panel_option("Text")


@dataclass(frozen=True)
class TextFlags:
    """What is done to the text after the model has spoken."""

    raw: Annotated[bool, _text("The text exactly as the model said it.", "--raw")] = False
    consensus: Annotated[
        bool | None, _text("Choose the candidate nearest in meaning to all of them (default: the model's own).")
    ] = None
    prefix: Annotated[
        str,
        _first('A trigger word before the text: "sks style" gives "sks style, …". {concept}: see docs/variables.md.'),
    ] = ""
    suffix: Annotated[str, _text("The same after the text.")] = ""
    require: Annotated[
        list[str] | None, _text("Words that every text contains, comma-separated; what is missing becomes a term.")
    ] = None
    replace: Annotated[
        list[str] | None,
        _text(
            "1girl=woman writes one comma term for another, 1girl= none: whole terms of the chosen text, in any "
            "case. --forbid, --require and --max-tokens-clip come after, then --prefix. Repeatable.",
            metavar="OLD=NEW",
        ),
    ] = None
    plain: Annotated[
        bool, _text("With --metadata: the carried prompt's words alone, without weights, <lora:…> or BREAK.", "--plain")
    ] = False
    escape: Annotated[
        bool, _text("Write brackets as \\( and \\): to A1111 and ComfyUI bare ones are a weight.", "--escape")
    ] = False
    max_tokens_clip: Annotated[
        int | None,
        _first("At most N of CLIP's tokens, start and end included: cut at a comma. CLIP reads 77.", min=3),
    ] = None

    def __post_init__(self) -> None:
        whole("--prefix", self.prefix)
        whole("--suffix", self.suffix)

    def finish(self, forbid: tuple[str, ...]) -> Finish:
        """The same in terms of the library; what the search must not write does not stand in the text either."""
        from captioner.text.finish import Finish

        require = words_of("--require", self.require) if self.require else ()
        replace = tuple(whole("--replace", text) for text in self.replace or ())
        return Finish(
            clean=not self.raw,
            consensus=self.consensus,
            prefix=self.prefix,
            suffix=self.suffix,
            max_clip_tokens=self.max_tokens_clip,
            forbid=forbid,
            require=require,
            replace=replace,
            plain=self.plain,
            escape=self.escape,
        )


# --- what is read ----------------------------------------------------------------------------------------------------

_input = panel_option("Input")


@dataclass(frozen=True)
class InputFlags:
    """How pictures are found and read."""

    recursive: Annotated[bool, _first(SUBFOLDERS, "--recursive", "-r")] = False
    max_pixels: Annotated[int, _input("Refuse larger pictures (decompression bombs).", min=1, show_default=True)] = (
        100_000_000
    )
    batch_size: Annotated[int | None, _input("Pictures at a time (default: what fits).", min=1)] = None


@dataclass(frozen=True)
class CaptionInputFlags(InputFlags):
    """A picture may also carry its prompt."""

    metadata: Annotated[
        MetadataUse,
        _input(
            "A prompt that the picture carries: ignore it, take it first, or take only that. "
            "The result's `source` says which it was.",
            show_default=True,
        ),
    ] = "ignore"


# --- many pictures, many processes --------------------------------------------------------------------------------

_shards = panel_option("Shards")


@dataclass(frozen=True)
class ShardFlags:
    """Which shards of a plan are done here; `captioner plan` makes one."""

    shard: Annotated[
        str | None,
        _shards("With --out PLAN: I/N, the I-th of N equal shares (default: whichever is free next, until none is)."),
    ] = None
    engine: Annotated[
        Literal["ray"] | None, _shards("Let Ray start workers for the plan, here or on a cluster (default: work here).")
    ] = None
    address: Annotated[str | None, _shards("Of a Ray that runs, or auto (default: start one on this machine).")] = None
    workers: Annotated[int | None, _shards("How many Ray starts (default: as many as fit).", min=1)] = None
    gpus_per_worker: Annotated[float, _shards("GPUs that each needs; 0.5 lets two share one.", min=0.0)] = 0.0

    def __post_init__(self) -> None:
        if self.engine is None:
            refuse_idle((name for name in self.given() if name != "--shard"), "add --engine ray.")

    def given(self) -> list[str]:
        """The flags that were given."""
        return [flag(item.name) for item in fields(self) if getattr(self, item.name) != item.default]

    @property
    def share(self) -> tuple[int, int] | None:
        """(I, N), counted from 1."""
        return share_of(self.shard)


def share_of(text: str | None) -> tuple[int, int] | None:
    """--shard I/N as two numbers."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    share = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= share[0] <= share[1]:
        raise BadInput(f"--shard {printable(text)}: write I/N with I from 1 to N, as in 1/8.")
    return share


# --- where it goes ---------------------------------------------------------------------------------------------------

_output = panel_option("Output")


@dataclass(frozen=True)
class OutputFlags:
    """Where results go, and how a stopped run goes on."""

    out: Annotated[
        Path | None, _first("A .npy, .jsonl, .csv or .parquet file to write; its ending says which.", "--out", "-o")
    ] = None
    resume: Annotated[bool, _first("Go on where a stopped run left off.", "--resume")] = False
    overwrite: Annotated[bool, _output("Replace the file that --out names.", "--overwrite")] = False
    json: Annotated[bool, _output("Print everything as JSON, one line each.", "--json")] = False
    quiet: Annotated[
        bool, _output("No progress on standard error; errors still show.", "--quiet", "-q", callback=_hush)
    ] = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise BadInput("--resume keeps what is there, --overwrite replaces it: give one of them.")
        if self.overwrite and self.out is None:
            raise BadInput("--overwrite is about the file that --out names; for sidecars say --on-existing overwrite.")
        if self.json and self.out is not None:
            raise BadInput("--json prints; --out FILE.jsonl holds the same.")

    def sink(self, show: Callable[[Row], str], named: bool, settings: Settings, columns: Sequence[str]) -> Sink:
        """The sink the user chose, ready to be written to; `show` is what a row looks like when it is printed."""
        from captioner import sinks

        if self.out is not None:
            kept = {"resume": self.resume, "overwrite": self.overwrite}
            return sinks.open_out(self.out, **kept, settings=settings, columns=columns)
        if self.resume:
            raise BadInput("--resume needs an --out to go on with.")
        return sinks.Stdout(sinks.to_json) if self.json else sinks.Stdout(show, named=named)


@dataclass(frozen=True)
class TextOutputFlags(OutputFlags):
    """What is no vector may lie in a folder, too."""

    out: Annotated[
        Path | None,
        _first(
            "A .jsonl, .csv or .parquet file; without an ending a folder: pictures + metadata.jsonl (HF imagefolder).",
            *("--out", "-o"),
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix == ".npy":
            raise BadInput("A .npy file holds no text: name another, or use `captioner embed`.")


@dataclass(frozen=True)
class CaptionOutputFlags(TextOutputFlags):
    """Captions may also lie beside the pictures."""

    sidecar: Annotated[bool, _first("photo.txt beside photo.png, for each picture.", "--sidecar")] = False
    caption_extension: Annotated[
        Literal[".txt", ".caption"] | None, _output("Of sidecars (default: of the one that is there, else .txt).")
    ] = None
    on_existing: Annotated[
        Literal["skip", "overwrite", "append", "prepend", "error"] | None,
        _output("What to do where a sidecar is already there (default: skip)."),
    ] = None
    all_candidates: Annotated[bool, _output("Print every candidate on a line of its own.", "--all-candidates")] = False
    embed: Annotated[bool, _output("Add the prompt's embedding.", "--embed")] = False
    attention: Annotated[
        Path | None, _output("One picture: draw where the model looked for each word, as a .png.", "--attention")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sidecar and (self.out is not None or self.json or self.embed):
            raise BadInput("--sidecar holds the text alone and goes with none of --out, --json and --embed.")
        if self.all_candidates and (self.sidecar or self.out is not None or self.json):
            raise BadInput("--all-candidates prints lines; --json and --out hold all anyway, a sidecar holds one text.")
        if self.on_existing is not None and not self.sidecar:
            raise BadInput("--on-existing is about sidecars: add --sidecar.")
        if self.caption_extension is not None and not self.sidecar:
            raise BadInput("--caption-extension is about sidecars: add --sidecar.")
        if self.embed and self.out is None and not self.json:
            raise BadInput("--embed needs --json or --out; `captioner embed` prints embeddings alone.")
        if self.out is not None and self.out.suffix == ".txt" and not os.path.isdir(self.out):
            raise BadInput(
                f"{self.out}: a .txt beside each picture is what --sidecar is for; for one list name a .jsonl."
            )

    def caption_sink(self, inputs: Sequence[str], named: bool, settings: Settings, columns: Sequence[str]) -> Sink:
        """As `sink`, sidecars included."""
        from captioner import sinks

        if self.attention is not None:
            if named:
                raise BadInput("--attention draws one picture: name one.")
            sinks.check_new(self.attention, ".png")
        if self.sidecar:
            extension, on_existing = self.caption_extension, self.on_existing or "skip"
            return sinks.Sidecars(inputs, on_existing, extension=extension, resume=self.resume, settings=settings)
        if self.all_candidates:
            return sinks.Stdout(partial(candidates_text, named=named))
        return self.sink(itemgetter("text"), named, settings, columns)


def candidates_text(row: Row, named: bool) -> str:
    """All candidates, best first, a line each; of many pictures each line begins with the picture's name."""
    name = f"{printable(row['file'])}\t" if named else ""
    texts = [candidate["text"] for candidate in row["candidates"]] or [row["text"]]
    return "\n".join(name + " ".join(text.split()) for text in texts)
