"""CLIP's image towers of ResNet form (RN50 … RN50x64), in the key names of their authors and of open_clip.

Unlike a plain ResNet: three convolutions before the first stage, a mean over 2×2 wherever the map is halved, and at the
end attention from the mean over all places, which is the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.errors import BadCheckpoint
from captioner.files.json import read_object
from captioner.models.parts.backbones.preprocess import CLIP, Preprocess
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.checkpoint import check_files, reading
from captioner.models.parts.narrow import narrowed

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HEAD_WIDTH = 64
STAGES = 4
EXPANSION = 4
"""Channels of a block's output, in those of its middle."""
SHRINKS = 32
"""Pixels a side of the last map, in pixels of the picture."""
LARGEST = {"width": 512, "image_size": 4096, "output_dim": 8192, "layers": 200}


class Block(nn.Module):
    """1×1, 3×3, 1×1, beside them what came in."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * middle
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(inputs, outputs, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(self.avgpool(y)))
        return (y + self.downsample(x)).relu()


class AttentionPool(nn.Module):
    """One query, the mean over all places, attends to them and to itself."""

    def __init__(self, side: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # [n, places, width]
        x = torch.cat((x.mean(1, keepdim=True), x), dim=1) + self.positional_embedding
        query, keys, values = (
            y.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)  # [n, heads, 1 + places, HEAD_WIDTH]
            for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(1))


class CLIPResNetTower(nn.Module):
    """Pixels → the last map → the embedding."""

    def __init__(self, layers: Sequence[int], width: int, image_size: int, output_dim: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(layers):
            middle = width * 2**stage
            blocks = [Block(inputs, middle, stride=2 if stage else 1)]
            inputs = EXPANSION * middle
            blocks += [Block(inputs, middle, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(image_size // SHRINKS, inputs, output_dim)

    @property
    def stages(self) -> list[nn.Sequential]:
        return [narrowed(getattr(self, f"layer{stage + 1}"), nn.Sequential) for stage in range(STAGES)]

    def forward(self, pixels: Tensor) -> Tensor:
        """The last map `[n, channels, rows, columns]`."""
        x = self.bn1(self.conv1(pixels)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = F.avg_pool2d(self.bn3(self.conv3(x)).relu(), 2)
        for stage in self.stages:
            x = stage(x)
        return x


class CLIPResNet(Backbone):
    """CLIP's image tower of ResNet form: pooled is the embedding in CLIP's joint space, the grid the last map."""

    tower: CLIPResNetTower

    def widths(self) -> tuple[int, int]:
        return self.tower.attnpool.c_proj.out_features, self.tower.attnpool.c_proj.in_features

    @classmethod
    def blank_tower(cls, name: str, settings: dict) -> CLIPResNetTower:
        return CLIPResNetTower(**settings)

    @property
    def stem(self) -> nn.Module:
        tower = self.tower
        return nn.ModuleList([tower.conv1, tower.bn1, tower.conv2, tower.bn2, tower.conv3, tower.bn3])

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.tower.stages for block in stage]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower.attnpool(self.tower(pixels))

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).flatten(2).transpose(1, 2)  # [n, regions, channels]


def read(folder: Path) -> tuple[Preprocess, dict, CLIPResNetTower]:
    """The tower of a folder that open_clip saved, its settings, and how its pixels are made."""
    check_files(folder)
    config = read_object(folder / CONFIG, remedy="A CLIP of ResNet form is a folder that open_clip saved.")
    settings = _settings(config, folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise BadCheckpoint(f"{folder} has no {' and no '.join(WEIGHTS)}. Fetch it again.")
    tower = CLIPResNetTower(**settings)
    with reading(file):
        state = _state(file)
        wanted = tower.state_dict()
        if misfit := sorted(
            key for key in wanted.keys() | state.keys()
            if key not in state or key not in wanted or state[key].shape != wanted[key].shape
        ):  # fmt: skip
            raise BadCheckpoint(
                f"{file} does not fit its {CONFIG}: {misfit[0]!r} is missing, unknown or of another size."
            )
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise BadCheckpoint(f"The weights in {file} hold NaN or infinite numbers. Fetch it again.")
        tower.load_state_dict({key: tensor.to(wanted[key].dtype) for key, tensor in state.items()})
    pixels: dict[str, Any] = {**CLIP, **_object(config, "preprocess_cfg")}
    size = settings["image_size"]
    preprocess = Preprocess(size, size, mean=tuple(pixels["mean"]), std=tuple(pixels["std"]), rounded=True)
    return preprocess, settings, tower.eval()


def _settings(config: dict, folder: Path) -> dict:
    """Layers, width, image_size and output_dim, all of them sane."""
    model = _object(config, "model_cfg")
    vision = _object(model, "vision_cfg")
    layers = vision.get("layers")
    if not isinstance(layers, list) or len(layers) != STAGES:
        raise BadCheckpoint(f"{folder} holds no CLIP of ResNet form: its {CONFIG} does not name four stages.")
    numbers = {name: vision.get(name) for name in ("width", "image_size")} | {"output_dim": model.get("embed_dim")}
    for name, number in (*numbers.items(), *(("layers", count) for count in layers)):
        if type(number) is not int or not 0 < number <= LARGEST[name]:
            raise BadCheckpoint(f"{folder}/{CONFIG} says {name} = {number!r}. Fetch it again.")
    settings = {name: int(number or 0) for name, number in numbers.items()}
    if settings["width"] % 2 or settings["image_size"] < SHRINKS:
        raise BadCheckpoint(f"{folder}/{CONFIG}: width is even, and image_size at least {SHRINKS}. Fetch it again.")
    return {**settings, "layers": layers}


def _object(config: dict, name: str) -> dict:
    return config[name] if isinstance(config.get(name), dict) else {}


def _state(file: Path) -> dict[str, Tensor]:
    """The weights of the image tower alone."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as stored:
            return {key.removeprefix("visual."): stored.get_tensor(key) for key in stored.keys() if "visual." in key}  # noqa: SIM118
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
