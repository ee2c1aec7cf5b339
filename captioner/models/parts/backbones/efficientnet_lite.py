"""EfficientNet-Lite as plain torch: the small image backbone of the bundled model.

Batch normalisation is folded into the convolutions when weights are converted, so what is stored is what is
computed. Weights come from `training.mini`; nothing but torch is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner import compute
from captioner.models.parts.narrow import narrowed


@dataclass(frozen=True)
class Stage:
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


BASE_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
EPSILON = 1e-3
"""Of the published batch norms."""
WIDTH_DEPTH = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8)}


def scaled_stages(size: str) -> list[Stage]:
    """The stages of one size. Lite sizes leave the first and last stage's repeats, the stem and the head alone."""
    width, depth = WIDTH_DEPTH[size]
    scaled = []
    for number, stage in enumerate(BASE_STAGES):
        ends = number in (0, len(BASE_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(stage.repeats * depth)
        scaled.append(Stage(repeats, stage.kernel, stage.stride, stage.expansion, _round_to_8(stage.channels * width)))
    return scaled


def _round_to_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does, the odd pixel to the right and the bottom, and ReLU6."""

    def forward(self, x: Tensor) -> Tensor:
        down, right = (self._padding(length) for length in x.shape[-2:])
        # Where there is an odd pixel, a first tap of zeros stands for it: padding at one side would copy the picture.
        weight = F.pad(self.weight, (right % 2, 0, down % 2, 0)) if down % 2 or right % 2 else self.weight
        padding = ((down + 1) // 2, (right + 1) // 2)
        return compute.convolved_relu6(x, weight, self.bias, self.stride, padding, self.groups)

    def _padding(self, length: int) -> int:
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)


class Pointwise(nn.Conv2d):
    """A 1 × 1 convolution as the matrix product it is with channels last: a third faster on CPUs."""

    def __init__(self, inputs: int, outputs: int, relu6: bool = False) -> None:
        super().__init__(inputs, outputs, 1)
        self.relu6 = relu6
        self.packed: compute.PackedLinear | None = None

    def pack(self) -> None:
        """Lay out the weight once."""
        self.packed = compute.PackedLinear(self.weight.flatten(1), self.bias, "relu6" if self.relu6 else "none")
        self.weight = nn.Parameter(self.packed.weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(x)
        product = compute.multiplied_relu6 if self.relu6 else F.linear
        return product(x, self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel by itself, narrow; skip when the shape is kept."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expand = Pointwise(inputs, wide, relu6=True) if stage.expansion > 1 else None
        self.depthwise = SameConv(wide, wide, stage.kernel, stride, groups=wide)
        self.project = Pointwise(wide, stage.channels)
        self.skip = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else self.expand(x)
        narrow = self.project(self.depthwise(wide))
        return x + narrow if self.skip else narrow


class EfficientNetLite(nn.Module):
    """Pixels `[n, 3, h, w]`, scaled as (x - 127) / 128 → feature map `[n, 1280, h / 32, w / 32]`."""

    def __init__(self, size: str = "lite2") -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks, inputs = [], STEM_CHANNELS
        self.stage_ends: list[int] = []
        for stage in scaled_stages(size):
            for repeat in range(stage.repeats):
                blocks.append(Block(inputs, stage, stage.stride if repeat == 0 else 1))
                inputs = stage.channels
            self.stage_ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = Pointwise(inputs, HEAD_CHANNELS, relu6=True)

    def pack(self) -> None:
        """For inference on a CPU: a tenth faster, and the same numbers by one thread and by several."""
        for layer in self.modules():
            if isinstance(layer, Pointwise):
                layer.pack()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self._start(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def statistics(self, pixels: Tensor) -> Tensor:
        """The mean of the last map, then mean and spread of every stage's: what is seen, and in which style.

        Texture and palette live in the early maps' statistics, and prompts name styles as often as things.
        """
        moments = []
        for x in self.maps(pixels):
            mean = x.mean((2, 3), keepdim=True)
            spread = (x - mean).square_().mean((2, 3)).sqrt()
            moments += [mean.flatten(1), spread]
        *style, last, _ = moments
        return torch.cat((last, *style), dim=1)  # [n, statistics_width]

    @property
    def statistics_width(self) -> int:
        """Length of a picture's statistics."""
        stages = sum(narrowed(self.blocks[end], Block).project.out_channels for end in self.stage_ends)
        return self.head.out_channels + 2 * stages

    def maps(self, pixels: Tensor) -> Iterator[Tensor]:
        """Every stage's map, then the head's."""
        x = self._start(pixels)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.stage_ends:
                yield x
        yield self.head(x)

    def _start(self, pixels: Tensor) -> Tensor:
        return self.stem(pixels.contiguous(memory_format=torch.channels_last))  # a quarter faster on CPUs


def fold_published(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of `EfficientNetLite` from a published checkpoint, batch norms folded into the convolutions."""
    folded: dict[str, Tensor] = {}

    def fold(name: str, conv: str, norm: str) -> None:
        gain = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + EPSILON).sqrt()
        folded[f"{name}.weight"] = published[f"{conv}.weight"] * gain[:, None, None, None]
        folded[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain

    fold("stem", "_conv_stem", "_bn0")
    fold("head", "_conv_head", "_bn1")
    blocks = 1 + max(int(key.split(".")[1]) for key in published if key.startswith("_blocks."))
    for number in range(blocks):
        ours, theirs = f"blocks.{number}", f"_blocks.{number}"
        if f"{theirs}._expand_conv.weight" in published:
            fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    return folded
