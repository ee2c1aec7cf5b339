"""A LoRA adapter and its base → one whole model."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from safetensors import SafetensorError

from captioner import zoo
from captioner.errors import BadCheckpoint, BadOutput
from captioner.files.atomic import replacing_folder
from captioner.files.weights import ENDINGS
from captioner.models.parts import checkpoint
from captioner.quiet import without_bars

MODELS = {"blip": "Blip", "clip_prefix": "ClipPrefix", "direct": "DirectModel", "ofa": "OFA"}
"""File under captioner/models/ → its class, for the families that adapters are trained for."""


def merge(adapter: Path, out: Path) -> None:
    """Write the merged model, with the processor files of its base, to a new folder."""
    if not zoo.is_adapter(adapter):
        raise BadCheckpoint(f"{adapter} holds no adapter: there is no adapter_config.json in it.")
    if out.exists() or out.is_symlink():
        raise BadOutput(f"{out} is there already. Name a folder that is not.")
    if not out.parent.is_dir():
        raise BadOutput(f"There is no folder {out.parent} to make {out.name} in.")
    module = zoo.resolve(str(adapter)).module
    if module not in MODELS:
        raise BadCheckpoint(f"{adapter} adapts a model of a kind that captioner does not merge ({module}).")
    kind = getattr(importlib.import_module(f"captioner.models.{module}"), MODELS[module])
    model = checkpoint.read_model(kind, adapter)
    try:
        with replacing_folder(out) as new:
            with without_bars():
                model.save_pretrained(new)
            for file in checkpoint.base_folder(adapter).iterdir():
                if (
                    file.is_file()
                    and not file.name.endswith((*ENDINGS, ".index.json"))
                    and not (new / file.name).exists()
                ):
                    shutil.copyfile(file, new / file.name)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        raise BadOutput(f"{out} cannot be written ({error}). Make room, or name another folder.") from error
