"""Linear layers of 8 bits for inference on a CPU: our own where its products are exact, else torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from captioner.compute.devices import has_avx512, has_bf16
from captioner.compute.linear import replace_linear
from captioner.compute.packed import pack

Module = TypeVar("Module", bound=nn.Module)

MOST = 127
"""The largest integer of 8 bits."""
LEAST = 1e-12
"""A row or a column that is smaller counts as zero."""


class Int8Linear(nn.Module):
    """A linear layer for inference on a CPU with weights of 8 bits, one scale an output, and rows quantised as they
    come, one scale a row: what becomes of a row does not depend on its neighbours.

    BLIP reads a picture 1.8 times as fast as by torch's `quantize_dynamic`, and MiniLM errs a third as much. dtype: of
    what goes in and comes out.
    """

    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        integers, self.scales = _rounded(weight.detach().float())
        self.register_buffer("packed", _packed(integers), persistent=False)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.weight = weight.new_empty(0, dtype=dtype)  # code that asks for the dtype still finds it

    def __getstate__(self) -> dict[str, Any]:
        """As `PackedLinear.__reduce__`: plain integers are sent."""
        return self.__dict__ | {"_buffers": {"packed": self._integers()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = _packed(self.packed)

    def _integers(self) -> Tensor:
        """The weight `[out, in]`, by a product: a layout may hold sums besides that oneDNN need not undo."""
        unit, scales = torch.eye(self.in_features, dtype=torch.int8), torch.ones(self.out_features)
        return _int8_product(unit, self.packed, scales, self.zeros, torch.float32).t().to(torch.int8).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        # One less than fits: rounded to bf16, the product with a row's largest number may be a little larger.
        per_unit = (MOST - 1) / x.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
        integers = (x * per_unit).round_().to(torch.int8)
        y = _int8_product(integers, self.packed, self.scales, self.zeros, x.dtype)
        unit = per_unit.reciprocal_()
        return y.mul_(unit) if self.bias is None else torch.addcmul(self.bias, y, unit)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight `[out, in]` as integers of 8 bits, and the scale of each output."""
    scales = weight.abs().amax(1).clamp_min_(LEAST).div_(MOST)
    return (weight / scales[:, None]).round_().to(torch.int8).contiguous(), scales


def _packed(integers: Tensor) -> Tensor:
    """Integers `[out, in]`, laid out for oneDNN as `[in, out]`."""
    return torch.ops.onednn.qlinear_prepack(integers, None)


def _int8_product(integers: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers `[…, in]` by a packed weight and its outputs' scales, in this precision."""
    if torch.jit.is_tracing():
        return _traceable_int8_product()(integers, packed, scales, zeros, dtype)
    return torch.ops.onednn.qlinear_pointwise.default(
        integers, 1.0, 0, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], "none"
    )


@cache
def _traceable_int8_product() -> Callable[..., Tensor]:
    """As `_traceable_product`."""

    def product(integers: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, dtype: int) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, 0, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], "none"
        )

    return torch.jit.script(product)


@cache
def multiplies_int8() -> bool:
    """Does torch multiply integers of 8 bits quickly here, and exactly? Without VNNI sums of two products saturate."""
    if not has_avx512():
        return False
    integers = torch.full((64, 64), MOST, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(integers, None)
        y = _int8_product(integers, packed, torch.ones(64), torch.zeros(64, dtype=torch.int32), torch.float32)
    except (AttributeError, RuntimeError):
        return False
    return bool((y == 64 * MOST**2).all())


def as_int8(model: Module) -> Module:
    """Linear layers as `Int8Linear`. GPT-2's `Conv1D`, whose weight lies transposed, is not rounded, as
    `quantize_dynamic` does not either.

    A transformer computes in bf16 in between where the CPU has it; convolutions lose more by that than by int8.
    """
    kernels = sum(weight.numel() for weight in model.parameters() if weight.ndim > 2)
    transformer = 10 * kernels < sum(weight.numel() for weight in model.parameters())
    dtype = torch.bfloat16 if transformer and has_bf16() else torch.float32
    replace_linear(model, Tensor.is_contiguous, lambda weight, bias: Int8Linear(weight, bias, dtype))
    model.to(dtype)
    pack(model)
    return model


def quantize(model: Module) -> Module:
    """Torch's own: weights to 8 bits per output channel; activations to 7 as they come, all rows by one scale."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the eager API is called deprecated; its successor needs a graph and a package
        return quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, dtype=torch.qint8, inplace=True)
