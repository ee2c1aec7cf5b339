"""Read a checkpoint folder strictly and without running code; every failure is a `BadCheckpoint` that says what to do.

A folder may hold a LoRA adapter instead of a whole model: its base is looked up by the name in its
adapter_config.json, and the adapter is merged into it, so that nothing downstream knows of it.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from captioner import compute
from captioner.compute.quantized import peft_without_bitsandbytes
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, CaptionerError
from captioner.files.json import read_object
from captioner.files.weights import NAMES, weights_in
from captioner.models.parts.narrow import narrowed
from captioner.quiet import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BUFFERS = ("position_ids", ".attn.bias", ".attn.masked_bias")
"""Constants that older versions of transformers saved; today's models compute them."""
INDEXES = tuple(name for name in NAMES if name.endswith(".index.json"))
COUNTS = re.compile(r".*(layers?|depths?|blocks?|stages?|labels)")
MOST_LAYERS = 1000
"""Of a kind in one model. Each is an object of Python, made before any weight is read."""
SMALL = 10_000_000
"""Weights that any model may have, whatever its files hold."""


def load_pretrained(
    cls: type[Model],
    folder: Path,
    options: LoadOptions,
    encoder: str | None = None,
    before: Callable[[Model], object] | None = None,
) -> Model:
    """The model of this folder, placed for inference as the options say.

    encoder: see `compute.prepare`. before: what is done to the model while its layers are plain ones.
    """
    precision = compute.precision(options.precision, compute.device(options.device))
    model = read_model(cls, folder, compute.DTYPES.get(precision, torch.float32))
    if before is not None:
        before(model)
    return compute.prepare(model, options, encoder=model.get_submodule(encoder) if encoder else None)


def read_model(cls: type[Model], folder: Path, dtype: torch.dtype = torch.float32, **settings) -> Model:
    """The model of this folder in its plain form, fit for training and saving; an adapter is merged.

    Settings go to transformers' `from_pretrained`, e.g. `quantization_config`.
    """
    base = base_folder(folder)
    check_files(folder)
    if base != folder and (folder / "config.json").is_file():  # what an adapter changes beside weights: OFA's question
        with reading(folder):
            settings["config"] = config_class(cls).from_pretrained(folder)
    model = _read_whole(cls, base, dtype=dtype, **settings)
    return model if base == folder else _merge_adapter(model, folder)


def base_folder(folder: Path) -> Path:
    """The folder itself, or where the base model of its adapter lies."""
    if not (folder / "adapter_config.json").is_file():
        return folder
    from captioner import zoo

    return narrowed(zoo.base_of(folder).folder, Path)


def folder_with(folder: Path, *wanted: str | tuple[str, ...]) -> Path:
    """Where these processor files lie: in the folder itself, or in the base of its adapter. Of a tuple, one will do."""
    names = [(name,) if isinstance(name, str) else name for name in wanted]
    for candidate in (folder, base_folder(folder)):
        missing = [any_of[0] for any_of in names if not any((candidate / name).is_file() for name in any_of)]
        if not missing:
            check_files(candidate)
            return candidate
    raise BadCheckpoint(f"{candidate} lacks {', '.join(missing)}. Copy it from the model this one was made from.")


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Whatever a library says of a broken file, the user hears as one sentence, without bars and reports."""
    try:
        with without_bars():
            yield
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(
            f"The weights in {source} are damaged or hold pickled code, which we do not run. "
            "If you trust their source, convert them to safetensors there."
        ) from error
    except (SafetensorError, EOFError) as error:
        raise BadCheckpoint(f"A weights file of {source} is damaged or cut short ({error}). Fetch it again.") from error
    except (CaptionerError, ImportError):
        raise  # a sentence already; or a package that is not installed, which the caller can name
    except Exception as error:  # tokenizers and jinja raise classes of their own, and broken numbers any class there is
        raise BadCheckpoint(f"{source} cannot be loaded: {reason(error)}. Fetch or save it again.") from error


def reason(error: Exception) -> str:
    """What a library says is wrong, without its tables and advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".: ") if lines else type(error).__name__


# --- looking before anything is built ---------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json."""
    return read_object(folder / "config.json", remedy="It is no checkpoint, or a part of it was not copied.")


def check_files(folder: Path) -> None:
    """Libraries open by name what lies in a folder: a pipe would never answer, a device never end."""
    for name in os.listdir(folder):
        status = os.stat(folder / name) if os.path.exists(folder / name) else os.lstat(folder / name)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise BadCheckpoint(f"{folder / name} is no regular file. Take it away, or copy the model again.")


def check(folder: Path) -> dict[str, Any]:
    """The config.json of a folder that can be read without harm: real files, and sane counts."""
    check_files(folder)
    config = read_config(folder)
    for name, value in _numbers(config):
        if COUNTS.fullmatch(name) and value > MOST_LAYERS:
            raise BadCheckpoint(f"{folder}/config.json says {name} = {value:,}; no model has so many. Fetch it again.")
    return config


def weights_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights. An index may only name files that lie beside it."""
    for index in (folder / name for name in INDEXES):
        if index.is_file():
            named = read_object(index).get("weight_map")
            if not isinstance(named, dict) or not all(_is_beside(folder, file) for file in named.values()):
                raise BadCheckpoint(f"{index} should map each weight to a file beside it. Fetch the model again.")
    if not any((folder / name).is_file() for name in NAMES):
        raise BadCheckpoint(f"{folder} has no weights: there is no {NAMES[0]} in it. Copy or fetch it again.")
    return weights_in(folder)


def _is_beside(folder: Path, file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file and (folder / file).is_file()


def _numbers(setting: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in a configuration, with the name it goes by."""
    if isinstance(setting, Mapping):
        for key, value in setting.items():
            yield from _numbers(value, str(key))
    elif isinstance(setting, list):
        for value in setting:
            yield from _numbers(value, name)
    elif isinstance(setting, int):
        yield name, setting


def check_shape(build: Callable[[], nn.Module], folder: Path) -> None:
    """Refuse a model much larger than its weights: what they lack would be made up, in memory that may not be there."""
    size = sum(file.stat().st_size for file in weights_files(folder))
    with torch.device("meta"):  # shapes alone
        needed = sum(weight.numel() for weight in build().parameters())
    if needed > SMALL + size:
        raise BadCheckpoint(
            f"{folder}/config.json describes {needed:,} weights, its files hold at most {size:,}. Fetch it again."
        )


def check_numbers(model: nn.Module, folder: Path) -> None:
    """Refuse weights that are no numbers: every answer would be none either."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            raise BadCheckpoint(
                f"The weights in {folder} hold NaN or infinite numbers ({name}): the training diverged or the file is "
                "damaged. Use an earlier checkpoint, or fetch it again."
            )


def check_ids(folder: Path, vocabulary: int, ids: Iterable[int | None]) -> None:
    """Refuse token ids that the model has no weights for. None is not there to be used."""
    for number in ids:
        if number is not None and not (isinstance(number, int) and 0 <= number < vocabulary):
            raise BadCheckpoint(
                f"{folder} names the token {number!r}, the model has {vocabulary:,}. "
                "Copy the tokenizer and the configuration that were saved with the model."
            )


# --- weights ----------------------------------------------------------------------------------------------------------


def _read_whole(cls: type[Model], folder: Path, **settings) -> Model:
    """Every key must be there, and none too many."""
    wanted, is_type = config_class(cls).model_type, check(folder).get("model_type")
    if is_type != wanted:
        raise BadCheckpoint(f"{folder} holds a {is_type!r} model, not {wanted!r}. Name the model it belongs to.")
    with reading(folder):
        config = settings.pop("config", None) or config_class(cls).from_pretrained(folder)
        check_shape(lambda: cls(config), folder)
        model, report = with_report(cls, folder, config=config, ignore_mismatched_sizes=True, **settings)
    extra = [key for key in report["unexpected_keys"] if not key.endswith(BUFFERS)]
    _all_there(folder, report["missing_keys"], extra, [key for key, *_shapes in report["mismatched_keys"]])
    check_numbers(model, folder)
    return model


def config_class(cls: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    """The class of a model's configuration; transformers declares that there may be none."""
    if cls.config_class is None:
        raise TypeError(f"{cls.__name__} names no class of configuration")
    return cls.config_class


def with_report(cls: type[Model], folder: Path, **settings) -> tuple[Model, dict[str, Any]]:
    """transformers' model, and what of its weights was missing, unknown or of another size."""
    loaded: Any = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    return loaded  # a pair, with output_loading_info


def _all_there(folder: Path, missing: Collection[str], extra: Collection[str], misshapen: Collection[str] = ()) -> None:
    faults = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:2])}{', …' if len(keys) > 2 else ''})"
        for what, keys in (("missing", missing), ("unknown", extra), ("of another size", misshapen))
        if keys
    ]
    if faults:
        raise BadCheckpoint(
            f"The weights in {folder} do not fit the model: {' and '.join(faults)}. Was it made for another one?"
        )


def _merge_adapter(model: Model, folder: Path) -> Model:
    peft_without_bitsandbytes()
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadCheckpoint(f"{folder} has an adapter_config.json but no {ADAPTER_WEIGHTS}. Save the adapter again.")
    with reading(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied layers even where no adapter touches them
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
        adapted = PeftModel(model, config)
        report: Any = set_peft_model_state_dict(adapted, tensors)  # a named tuple, whose fields it does not declare
        _all_there(folder, [key for key in report.missing_keys if "lora_" in key], report.unexpected_keys)
        merged = narrowed(adapted.merge_and_unload(), type(model))
        for name, weight in merged.named_parameters():
            weight.requires_grad_(name in learning)  # peft has frozen all for the adapter, which is gone
        return merged
