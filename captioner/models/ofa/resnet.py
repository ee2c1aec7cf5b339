"""OFA's eyes: a ResNet up to its third stage, sixteen pixels to a region. Keys are named as in published files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

WIDTH = 1024
"""Channels of the third stage."""


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride), 1×1, beside a shortcut."""

    def __init__(self, channels: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner * 4)
        self.downsample = None
        if stride != 1 or channels != inner * 4:
            shortcut = nn.Conv2d(channels, inner * 4, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(inner * 4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Sequential):
    """Pixels `[n, 3, h, w]` → map `[n, 1024, h/16, w/16]`."""

    def __init__(self, depths: Sequence[int]) -> None:
        stem = OrderedDict(
            conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, 2, 1),
        )
        channels = 64
        for stage, depth in enumerate(depths):
            inner, blocks = 64 * 2**stage, []
            for block in range(depth):
                blocks.append(Bottleneck(channels, inner, stride=2 if stage and not block else 1))
                channels = inner * 4
            stem[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        super().__init__(stem)

    def train(self, mode: bool = True) -> ResNet:
        """Always as in inference: batch norms keep the statistics they learnt, whatever the size of a batch."""
        return super().train(False)
