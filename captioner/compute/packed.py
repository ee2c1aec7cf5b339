"""Linear layers whose weights are laid out for this machine: packed for oneDNN, or in float16.

Linear layers dominate every model here, and oneDNN multiplies about twice as fast by weights that were laid out for it
beforehand: all of them with AVX-512 (but for hundreds of rows on Intel's processors, where a plain product is as
fast), without it large ones that meet few rows. A small decoder mostly waits for its weights, and has them in float16.
The operators that do so are private to torch, so a plain product remains as the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from captioner.compute.devices import has_amx, has_avx512
from captioner.compute.linear import replace_linear

LARGE, WIDE = 750_000, 768
"""Weights, or inputs and outputs, of a linear layer that no longer stays in a core's cache."""
NARROW, SMALL = 1024, 2_500_000
"""Outputs and weights of a layer in bf16 that multiplies some hundred rows at half the speed of fewer and of more: so
oneDNN shares its work among threads. 577 rows by 3,072 × 768 weights take 3 ms, in two parts 1.7 (two cores with AMX).
"""
HUNDREDS = range(449, 1101)
"""Rows that it is given in parts."""
AWKWARD = range(577, 579)
"""Rows that are multiplied in fp32 without AVX-512 at five sixths of the speed of fewer and of more, and so in parts
too. 577 are 24 × 24 patches and a class token: BLIP's picture, and CLIP's of 336 pixels a side."""
FEWER = 320
"""The most rows of a part."""


def pack(model: nn.Module, but: nn.Module | None = None) -> None:
    """Replace the linear layers (GPT-2's `Conv1D` too) by packed ones where that pays, in place; one part's stay."""
    replace_linear(model, pays_to_pack, PackedLinear, but)


def multiplies_well() -> bool:
    """Is torch's plain fp32 product of hundreds of rows as fast as a packed one? Intel's library takes its quick paths
    on Intel's processors alone: 290 GFLOP/s there against 226 packed, and half of the packed on others."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and str(capabilities.get("cpu_name")).startswith("Intel")


def pays_to_pack(weight: Tensor) -> bool:
    """Measured for 1 to 600 rows: with AVX-512 always; with AVX2 a small plain product is up to seven times as fast."""
    return weight.dtype != torch.float32 or has_avx512() or weight.numel() >= LARGE or min(weight.shape) >= WIDE


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU, its weight laid out once for oneDNN; `activation` may be "gelu" or
    "relu6"."""

    packed: Tensor | None
    """A buffer, for `traced` to find."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.activation = activation
        self.register_buffer("packed", _packed(weight), persistent=False)
        # Once packed, an empty stand-in is left: one copy is enough, and code that asks for the dtype still finds it.
        self.weight = weight if self.packed is None else weight.new_empty(0)
        self.in_parts = _slow_rows(weight)

    def __reduce__(self) -> tuple:
        """torch copies and pickles no packed weight: a copy, or one in another process, is laid out anew there."""
        weight = self.weight if self.packed is None else self.packed.to_dense()
        return PackedLinear, (weight, self.bias, self.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return _ACTIVATIONS[self.activation](nn.functional.linear(x, self.weight, self.bias))
        rows = x.shape[:-1].numel() if self.in_parts else 1
        if rows not in self.in_parts:
            return self._product(x)
        parts = x.reshape(rows, -1).tensor_split(-(-rows // FEWER))
        return torch.cat([self._product(part) for part in parts]).view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            return _traceable_product()(x, self.packed, self.bias, self.activation)
        # By its overload: a small decoder calls this so often that looking for it would count.
        product = torch.ops.mkldnn._linear_pointwise.default
        if self.activation == "relu6":
            return product(x, self.packed, self.bias, "hardtanh", [0.0, 6.0], "")
        return product(x, self.packed, self.bias, self.activation, [], "none")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": nn.Identity(),
    "gelu": nn.functional.gelu,
    "relu6": nn.functional.relu6,
}


@cache
def _traceable_product() -> Callable[..., Tensor]:
    """The product as `torch.jit` can trace it: left to itself it does not know the type of no numbers."""

    def product(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")

    return torch.jit.script(product)


def _slow_rows(weight: Tensor) -> range:
    """So many rows by this weight are multiplied more quickly in parts."""
    if weight.dtype == torch.float32 and not has_avx512():
        return AWKWARD
    narrow = len(weight) <= NARROW and weight.numel() <= SMALL
    return HUNDREDS if narrow and weight.dtype == torch.bfloat16 and has_amx() else range(0)


def fuse_gelu(module: nn.Module, linear: str, activation: str) -> None:
    """Let a packed layer of the module apply the GELU that follows it, in place; other layers leave it where it is."""
    layer = getattr(module, linear)
    if type(layer) is PackedLinear:
        layer.activation = "gelu"
        setattr(module, activation, nn.Identity())


def _packed(weight: Tensor) -> Tensor | None:
    """None where this build of torch lacks the operator, or this CPU the instructions for the precision."""
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    except (AttributeError, RuntimeError):
        return None


def convolved_relu6(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    """A convolution and ReLU6; without gradients on a CPU the same numbers in one pass over the picture."""
    fused = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    if fused and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return fused(x, weight, bias, padding, stride, (1, 1), groups, "hardtanh", [0.0, 6.0], "")
    return nn.functional.relu6(nn.functional.conv2d(x, weight, bias, stride, padding, groups=groups), inplace=True)


def multiplied_relu6(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer and ReLU6; of many rows by a small weight, without gradients on a CPU with AVX-512, in one pass.

    oneDNN lays out the weight anew each time, which pays where it is small beside what comes out: half of the time for
    130 × 130 rows of 16 numbers, eight tenths for 33 × 33 of 48. The rows of one item decide, so that the size of a
    batch does not.
    """
    fused = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if fused and plain and has_avx512() and x[0].numel() > 4 * x.shape[-1] ** 2:
        return fused(x, weight, bias, "hardtanh", [0.0, 6.0], "")
    return nn.functional.relu6(nn.functional.linear(x, weight, bias), inplace=True)


def read_as_half(model: nn.Module, rounded: bool = False) -> None:
    """Store the weights of linear layers in float16 wherever that is lossless, in place; rounded: everywhere."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    if not hasattr(torch.ops.quantized, "linear_prepack_fp16"):
        return
    replace_linear(model, lambda weight: rounded or torch.equal(weight.half().float(), weight), HalfLinear)


class HalfLinear(nn.Module):
    """A linear layer that reads float16 weights and multiplies in fp32: half the bytes, the same numbers if the weights
    are float16 numbers.

    Two thirds of the time for few rows, where reading the weights takes longest; the same time for 128 rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        bias = None if bias is None else bias.detach()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
