"""The options that every trainer shares. A trainer's own recipe is a subclass that changes defaults and adds fields;
its `--help` is made from the fields. Light: a wrong option is told before torch is imported.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from captioner.errors import BadInput, refuse_idle
from captioner.pairs.layouts import ReadOptions
from captioner.pairs.sources import check_options, parse_all
from captioner.run.flags import flag
from training import resuming

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BACKBONES = [
    *("clip", "clip-resnet", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"),
    *("resnet152", "resnet50", "vit", "vit-large"),
]
"""Image towers by name, as in captioner/models/parts/backbones/backbones.py, which imports torch."""


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A command-line option with its help text, its `choices`, its bounds (`least`, `above`, `most`); one that its
    trainer always refuses is `hidden` from the help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


def changed(name: str, default: Any = MISSING, **metadata: Any) -> Any:
    """The shared option `name` with another default or other metadata, for a trainer's own recipe."""
    shared = LoraRecipe.__dataclass_fields__[name]
    return option(shared.default if default is MISSING else default, **shared.metadata, **metadata)


OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw-8bit": "adamw_bnb_8bit",
    "adamw-paged": "paged_adamw_32bit",
    "adamw-8bit-paged": "paged_adamw_8bit",
}
"""--optimizer in the Trainer's words."""


@dataclass
class Recipe:
    """How to train. Defaults are the published recipe of each model."""

    data: list[str] = option(
        [],
        "Where pairs come from: a folder, parquet, kaggle:DIR, coco:DIR, diffusiondb:DIR, hub:NAME; DIR@2 counts "
        "twice. May be repeated",
    )
    text_column: str = option("", "The column of captions, where it has an unusual name")
    image_column: str = option("", "The column of pictures, likewise")
    validation: list[str] = option(
        [], "Pairs to validate on; left out: the data's own validation part, else a tenth of the prompts"
    )
    out: str = option("", "The folder for checkpoints, the finished model, its card and its curves")
    epochs: float = option(1.0, "Times through the data", above=0)
    max_steps: int = option(-1, "Stop after this many optimiser steps, whatever --epochs says", least=-1)
    batch_size: int = option(8, "Pictures per process and step", least=1)
    accumulate: int = option(1, "Batches per optimiser step; the losses are those of one large batch", least=1)
    lr: float = option(1e-4, "Peak learning rate", above=0)
    schedule: str = option("cosine", "How the rate falls", choices=["cosine", "linear", "constant"])
    warmup: float = option(0.1, "Share of the steps in which the rate rises (1 or more: a number of steps)", least=0)
    weight_decay: float = option(0.01, "AdamW's weight decay", least=0)
    optimizer: str = option(
        "adamw",
        "8bit keeps AdamW's state in a quarter of the memory; paged moves it off a full GPU (both by bitsandbytes)",
        choices=list(OPTIMIZERS),
    )
    precision: str = option("fp32", "fp16 (GPUs only) scales its gradients", choices=["fp32", "bf16", "fp16"])
    stream: bool = option(
        False, "Keep no copy of the data: pictures are read as they come; needs --max-steps, for what outgrows the disk"
    )
    by_prompt: bool = option(False, "An epoch shows one picture of each prompt, so that a prompt counts once")
    augment: bool = option(False, "Flip, crop, turn and colour-jitter the training pictures")
    freeze: str = option("none", "Parts that do not learn; each trainer names its own")
    unfreeze: int = option(0, "Of a frozen tower, let the last N blocks learn after all", least=0)
    max_tokens: int = option(48, "Prompts are cut after this many tokens", least=1)
    early_stopping: int = option(0, "Stop after N evaluations without a better one; 0: never", least=0)
    eval_every: int = option(0, "Evaluate every N steps; 0: after each epoch, of a stream every 500", least=0)
    save_every: int = option(0, "Save every N steps too; 0: at every evaluation alone", least=0)
    keep: int = option(2, "Checkpoints kept beside the best one", least=1)
    select_by: str = option("loss", "Which checkpoint is the best", choices=["loss", "cosine"])
    samples: int = option(
        32, "Validation pictures captioned at every evaluation, for the cosine and to read; 0: none", least=0
    )
    resume: bool = option(False, "Go on from the newest whole checkpoint in --out")
    seed: int = option(0, "Everything random follows from it", least=0, most=2**32 - 1)
    workers: int = option(
        -1,
        "Processes that load pictures; -1: beside a GPU one for each core, at most 8, else none",
        least=-1,
        most=64,
    )
    cache_features: str = option("", "A folder where a frozen encoder's outputs are kept; no augmentation then")
    gradient_checkpointing: bool = option(False, "Less memory, a third more time")
    compile: bool = option(False, "torch.compile of the layers, a minute or two; pays on GPUs")
    log_every: int = option(10, "Steps between two lines of the log", least=1)
    push_to_hub: str = option("", "Send the finished model to this Hub id")
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])


@dataclass
class LoraRecipe(Recipe):
    """Recipes of models that have adapters."""

    lora: bool = option(False, "Train a low-rank adapter instead of the weights")
    lora_rank: int = option(8, "The adapter's rank", least=1)
    lora_alpha: int = option(16, "Its scale is alpha / rank", least=1)
    lora_targets: list[str] = option([], "Layer names to adapt; left out: the ones that work for this model")
    qlora: str = option("", "Load the frozen weights in 8bit or 4bit (implies --lora)", choices=["", "8bit", "4bit"])


class Prose(argparse.RawDescriptionHelpFormatter):
    """A description is as wide as the terminal; its commands stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            one if one.startswith((" ", "python -m ")) else textwrap.fill(one, width, break_on_hyphens=False)
            for one in paragraphs
        )


RecipeType = TypeVar("RecipeType", bound=Recipe)
Settings = TypeVar("Settings", bound="DataclassInstance")


def parse(kind: type[RecipeType], description: str | None, argv: list[str] | None = None) -> RecipeType:
    """The command line → a checked recipe."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {kind.__module__}" if kind.__module__ != "__main__" else f"python -m {_main_module()}",
        usage="%(prog)s --data DATA --out FOLDER [--OPTION VALUE ...]",
        description=description,
        formatter_class=Prose,
        allow_abbrev=False,
    )
    add_options(parser, kind)
    arguments = parser.parse_args(argv)
    recipe = settings(kind, arguments)
    if isinstance(recipe, LoraRecipe):
        of_adapter = (arguments.qlora, arguments.lora_rank, arguments.lora_alpha, arguments.lora_targets)
        recipe.lora |= any(value is not None for value in of_adapter)
    check(recipe)
    before_the_first_weight(recipe)
    return recipe


def before_the_first_weight(recipe: Recipe) -> None:
    """Everything random follows from the seed, the weights that a model begins with too."""
    from captioner.compute.quantized import peft_with_bitsandbytes, peft_without_bitsandbytes

    quantized = recipe.optimizer != "adamw" or (isinstance(recipe, LoraRecipe) and bool(recipe.qlora))
    (peft_with_bitsandbytes if quantized else peft_without_bitsandbytes)()
    from transformers import set_seed  # imports peft

    set_seed(recipe.seed)


METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}
"""What stands for a value in the help: the option says what it is."""


def add_options(parser: argparse.ArgumentParser, kind: type[DataclassInstance]) -> None:
    """One `--option` a field; a list's may be given several times."""
    types = get_type_hints(kind)
    for setting in fields(kind):
        default = setting.default if setting.default is not MISSING else []
        required = setting.metadata.get("required", False)
        shown = "" if required or default is False or default in ("", []) else f" (default: {default})"
        help = setting.metadata["help"].replace("%", "%%") + shown
        form: dict[str, Any] = {
            "help": argparse.SUPPRESS if setting.metadata.get("hidden") else help,
            "required": required,
        }
        if types[setting.name] is bool:
            form |= {"action": "store_true"}
        elif types[setting.name] == list[str]:
            form |= {"action": "append", "metavar": METAVARS[str]}
        else:
            kind_of_value, choices = types[setting.name], setting.metadata.get("choices")
            shown_as = "|".join(filter(None, choices)) if choices else METAVARS[kind_of_value]
            form |= {"type": kind_of_value, "choices": choices, "metavar": shown_as}
        parser.add_argument(flag(setting.name), **form)


def settings(kind: type[Settings], arguments: argparse.Namespace) -> Settings:
    """What the command line gives, and the defaults of the rest."""
    given = {setting.name: getattr(arguments, setting.name) for setting in fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def _main_module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else f"training.{Path(sys.argv[0]).stem}"


def check(recipe: Recipe) -> None:
    """Contradictions are found before anything is loaded, those that need no torch first."""
    check_bounds(recipe)
    if not recipe.data:
        raise BadInput("Say where the pairs are: --data FOLDER (a folder of pictures with captions, parquet, …).")
    if not recipe.out:
        raise BadInput("Say where the result goes: --out FOLDER.")
    if recipe.max_steps == 0:
        raise BadInput("--max-steps 0 trains nothing: say 1 or more, or leave it out (-1) to count by --epochs.")
    if recipe.select_by == "cosine" and not recipe.samples:
        raise BadInput("--select-by cosine needs captions of a sample: --samples 32.")
    if recipe.unfreeze and recipe.freeze == "none":
        raise BadInput("--unfreeze opens the last blocks of what --freeze keeps as it is: name that with --freeze.")
    if recipe.unfreeze and isinstance(recipe, LoraRecipe) and recipe.lora:
        raise BadInput("Beside a --lora adapter no block learns as a whole: leave out --unfreeze.")
    if recipe.cache_features and recipe.augment:
        raise BadInput("--cache-features keeps one view of each picture: leave out --augment.")
    if recipe.stream and recipe.max_steps < 1:
        raise BadInput("A stream has no length to count epochs by: say --max-steps with --stream.")
    if recipe.stream and (recipe.cache_features or recipe.by_prompt or recipe.workers > 0):
        raise BadInput("--stream reads pairs in their order: leave out --cache-features, --by-prompt and --workers.")
    sources = parse_all([*recipe.data, *recipe.validation])
    if not resuming.goes_on(recipe):
        check_options(sources, ReadOptions(recipe.text_column, recipe.image_column))
    resuming.check_folder(recipe)
    check_machine(recipe)


def refuse_options(recipe: Recipe, names: Iterable[str], why: str) -> None:
    """Refuse those of these options that were given: nothing would follow from them.

    A run that was begun with them goes on: without them it would be one with other settings.
    """
    if resuming.goes_on(recipe):
        return
    defaults = type(recipe)()
    refuse_idle((flag(name) for name in names if getattr(recipe, name) != getattr(defaults, name)), why)


def check_bounds(recipe: DataclassInstance) -> None:
    """Every number is one that means something."""
    for setting in fields(recipe):
        value, bounds = getattr(recipe, setting.name), setting.metadata
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        name = flag(setting.name)
        # "not >=" rather than "<": a NaN compares as false
        if "least" in bounds and not value >= bounds["least"]:
            raise BadInput(f"{name} {value}: it must be at least {bounds['least']}.")
        if "above" in bounds and not value > bounds["above"]:
            raise BadInput(f"{name} {value}: it must be above {bounds['above']}.")
        if not value <= sys.float_info.max:
            raise BadInput(f"{name} {value}: it must be a finite number.")
        if "most" in bounds and not value <= bounds["most"]:
            raise BadInput(f"{name} {value}: it must be at most {bounds['most']}.")


def check_machine(recipe: Recipe) -> None:
    """What cannot be done here is said before anything is loaded."""
    import torch

    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    if recipe.device == "cuda" and not on_gpu:
        raise BadInput("This machine has no GPU that torch can use: --device cpu.")
    if recipe.precision == "fp16" and not on_gpu:
        raise BadInput("--precision fp16 needs a GPU. On a CPU use bf16 or fp32.")
    if recipe.push_to_hub:
        from training.hub import check_login

        check_login(recipe.push_to_hub)
