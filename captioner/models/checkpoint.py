"""Read a checkpoint folder strictly and without running code; every failure is a `BadCheckpoint` that says what to do.

A folder may hold a LoRA adapter instead of a whole model: its base is looked up by the name in its
adapter_config.json, and the adapter is merged into it, so that nothing downstream knows of it.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint

Model = TypeVar("Model", bound=PreTrainedModel)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BUFFERS = ("position_ids", ".attn.bias", ".attn.masked_bias")
"""Constants that older versions of transformers saved; today's models compute them."""


def load_pretrained(cls: type[Model], folder: Path, options: LoadOptions) -> Model:
    """The model of this folder, adapter merged, placed for inference as the options say."""
    base = base_folder(folder)
    where = compute.device(options.device)
    dtype = compute.DTYPES.get(compute.precision(options.precision, where), torch.float32)
    model = read_model(cls, base, dtype)
    if base != folder:
        model = _merge_adapter(model, folder)
    return compute.place(model, options)


def read_model(cls: type[Model], folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    """A whole model in its original form, fit for training: every key must be there, and none too many."""
    wanted, is_type = cls.config_class.model_type, read_json(folder / "config.json").get("model_type")
    if is_type != wanted:
        raise BadCheckpoint(f"{folder} holds a {is_type!r} model, not {wanted!r}. Name the model it belongs to.")
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if not any((folder / name).is_file() for name in weights):
        raise BadCheckpoint(f"{folder} has no weights: there is no model.safetensors in it. Copy or fetch it again.")
    with reading(folder):
        model, report = cls.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    extra = sorted(key for key in report["unexpected_keys"] if not key.endswith(BUFFERS))
    if missing or extra:
        faults = [f"{len(keys)} {what} ({', '.join(keys[:2])})" for what, keys in
                  (("missing", missing), ("unknown", extra)) if keys]  # fmt: skip
        raise BadCheckpoint(f"The weights in {folder} do not fit a {wanted!r} model: {' and '.join(faults)}.")
    return model


def base_folder(folder: Path) -> Path:
    """The folder itself, or where the base model of its adapter lies."""
    if not (folder / "adapter_config.json").is_file():
        return folder
    from captioner import zoo

    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise BadCheckpoint(f"{folder}/adapter_config.json does not name its base model (base_model_name_or_path).")
    beside = folder / name  # a path as it stands in the file, or one seen from the adapter's folder
    found = zoo.resolve(str(beside) if beside.is_dir() else name).folder
    if found is None or (found / "adapter_config.json").is_file():
        raise BadCheckpoint(f"{folder} names {name!r} as its base, which is no whole model. Merge adapters first.")
    return found


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
def reading(source: Path) -> Iterator[None]:
    """Whatever a library says of a broken file, the user hears as one sentence, without bars and reports."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(
            f"{source} holds pickled code, which we do not run. Convert it to safetensors where you trust it."
        ) from error
    except (SafetensorError, EOFError) as error:
        raise BadCheckpoint(f"A weights file of {source} is damaged or cut short ({error}). Fetch it again.") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise BadCheckpoint(f"{source} cannot be loaded: {reason[0] if reason else type(error).__name__}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
        missing = [key for key in report.missing_keys if "lora_" in key]
        if missing or report.unexpected_keys:
            raise BadCheckpoint(
                f"The adapter in {folder} does not fit its base model: {len(missing)} tensors are missing, "
                f"{len(report.unexpected_keys)} unknown. Is base_model_name_or_path right?"
            )
        return adapted.merge_and_unload()
