"""Read a checkpoint folder strictly and without running code; every failure is a `BadCheckpoint` that says what to do.

A folder may hold a LoRA adapter instead of a whole model: its base is looked up by the name in its
adapter_config.json, and the adapter is merged into it, so that nothing downstream knows of it.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint

Model = TypeVar("Model", bound=PreTrainedModel)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BUFFERS = ("position_ids", ".attn.bias", ".attn.masked_bias")
"""Constants that older versions of transformers saved; today's models compute them."""


def load_pretrained(cls: type[Model], folder: Path, options: LoadOptions) -> Model:
    """The model of this folder, placed for inference as the options say."""
    precision = compute.precision(options.precision, compute.device(options.device))
    return compute.place(read_model(cls, folder, compute.DTYPES.get(precision, torch.float32)), options)


def read_model(cls: type[Model], folder: Path, dtype: torch.dtype = torch.float32, **settings) -> Model:
    """The model of this folder in its plain form, fit for training and saving; an adapter is merged.

    Settings go to transformers' `from_pretrained`, e.g. `quantization_config`.
    """
    base = base_folder(folder)
    if base != folder and (folder / "config.json").is_file():  # what an adapter changes beside weights: OFA's question
        with reading(folder):
            settings["config"] = cls.config_class.from_pretrained(folder)
    model = _read_whole(cls, base, dtype=dtype, **settings)
    return model if base == folder else _merge_adapter(model, folder)


def base_folder(folder: Path) -> Path:
    """The folder itself, or where the base model of its adapter lies."""
    if not (folder / "adapter_config.json").is_file():
        return folder
    from captioner import zoo

    base = zoo.base_of(folder)
    if base.folder is None or (base.folder / "adapter_config.json").is_file():
        raise BadCheckpoint(f"{folder} names {base.name!r} as its base, which is no whole model. Name one that is.")
    return base.folder


def folder_with(folder: Path, *names: str) -> Path:
    """Where these processor files lie: in the folder itself, or in the base of its adapter."""
    for place in (folder, base_folder(folder)):
        if all((place / name).is_file() for name in names):
            return place
    missing = ", ".join(name for name in names if not (place / name).is_file())
    raise BadCheckpoint(f"{place} lacks {missing}. Copy it from the model this one was made from.")


def read_json(file: Path) -> dict:
    """A JSON object from a file of a checkpoint."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{file.parent} is no checkpoint: it has no {file.name}.") from error
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{file} should hold a JSON object.")
    return content


@contextmanager
def without_bars() -> Iterator[None]:
    """A bar for each file, and transformers' reports, would hide what matters."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()
        raise BadCheckpoint(f"{source} cannot be loaded: {reason[0] if reason else type(error).__name__}") from error


def _read_whole(cls: type[Model], folder: Path, **settings) -> Model:
    """Every key must be there, and none too many."""
    wanted, is_type = cls.config_class.model_type, read_json(folder / "config.json").get("model_type")
    if is_type != wanted:
        raise BadCheckpoint(f"{folder} holds a {is_type!r} model, not {wanted!r}. Name the model it belongs to.")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise BadCheckpoint(f"{folder} has no weights: there is no {WEIGHTS[0]} in it. Copy or fetch it again.")
    with reading(folder):
        model, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    extra = [key for key in report["unexpected_keys"] if not key.endswith(BUFFERS)]
    _all_there(folder, report["missing_keys"], extra, [key for key, *_shapes in report["mismatched_keys"]])
    return model


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
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadCheckpoint(f"{folder} has an adapter_config.json but no {ADAPTER_WEIGHTS}. Save the adapter again.")
    with reading(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied layers even where no adapter touches them
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = PeftModel(model, config)
        report = set_peft_model_state_dict(adapted, tensors)
        _all_there(folder, [key for key in report.missing_keys if "lora_" in key], report.unexpected_keys)
        return adapted.merge_and_unload()
