"""Packed weights: a loaded model made ready for inference on this machine.

Linear layers dominate every model here, and oneDNN multiplies about twice as fast by weights that were laid out for it
beforehand: all of them with AVX-512 (but for hundreds of rows on Intel's processors, where a plain product is as
fast), without it large ones that meet few rows. A small decoder mostly waits for its
weights, and has them in float16. The operators that do so are private to torch, so a plain product remains as the
fallback.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from captioner.compute.devices import DTYPES, device, has_amx, has_bf16, precision
from captioner.contracts import LoadOptions

Module = TypeVar("Module", bound=nn.Module)
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
MOST = 127
"""The largest integer of 8 bits."""
LEAST = 1e-12
"""A row or a column that is smaller counts as zero."""


def prepare(
    model: Module, options: LoadOptions, small: nn.Module | None = None, encoder: nn.Module | None = None
) -> Module:
    """Make a model ready for inference: on its device, in its precision, its linear layers packed where that pays.

    Args:
        model: changed in place. Packed weights can neither be trained nor saved.
        options: the device and the precision.
        small: the part of the model that multiplies few rows at a time by weights with float16 values. On a CPU in fp32
            these are kept in float16; in int8 all around them stays in fp32, which is as fast.
        encoder: the part of the model that multiplies hundreds of rows at a time.
    """
    target = device(options.device)
    chosen = precision(options.precision, target)
    model = model.eval().requires_grad_(False).to(target, DTYPES.get(chosen, torch.float32))
    if target.type != "cpu":
        return model
    if chosen == "int8":
        return _as_int8(model) if small is None and multiplies_int8() else _quantize(model)
    if chosen == "fp32" and small is not None:
        read_as_half(small)
    if chosen != "float64":
        pack(model, encoder if chosen == "fp32" and multiplies_well() else None)
    return model


def pack(model: nn.Module, but: nn.Module | None = None) -> None:
    """Replace the linear layers (GPT-2's `Conv1D` too) by packed ones where that pays, in place; one part's stay."""
    _replace_linear(model, pays_to_pack, PackedLinear, but)


def multiplies_well() -> bool:
    """Is torch's plain fp32 product of hundreds of rows as fast as a packed one? Intel's library takes its quick paths
    on Intel's processors alone: 290 GFLOP/s there against 226 packed, and half of the packed on others."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and str(capabilities.get("cpu_name")).startswith("Intel")


def pays_to_pack(weight: Tensor) -> bool:
    """Measured for 1 to 600 rows: with AVX-512 always; with AVX2 a small plain product is up to seven times as fast."""
    return weight.dtype != torch.float32 or has_avx512() or weight.numel() >= LARGE or min(weight.shape) >= WIDE


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored transposed `[in, out]`."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.t(), self.bias)


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


def has_avx512() -> bool:
    """Does torch compute with vectors of 512 bits here?"""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def read_as_half(model: nn.Module, rounded: bool = False) -> None:
    """Store the weights of linear layers in float16 wherever that is lossless, in place; rounded: everywhere."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    if not hasattr(torch.ops.quantized, "linear_prepack_fp16"):
        return
    _replace_linear(model, lambda weight: rounded or torch.equal(weight.half().float(), weight), HalfLinear)


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


def traced(function: Callable, layers: nn.Module, *inputs) -> Callable:
    """The function as `torch.jit` traces it with these inputs, which runs without Python between its operators.

    A small decoder's step on a CPU takes half the time so. Later inputs may have other sizes, but the trace follows the
    branches that these inputs took. Elsewhere than on a CPU, and where torch cannot trace the function, it is returned
    as it is.

    Args:
        function: takes and returns tensors.
        layers: the module whose layers the function calls.
        inputs: examples of what the function takes.
    """
    if inputs[0].device.type != "cpu":
        return function
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # tracing is called deprecated; its successors need a compiler
            graph = torch.jit.trace(_Traceable(function, layers), inputs, check_trace=False)
    except (AttributeError, RuntimeError):
        return function

    def run(*inputs) -> Tensor:
        with torch.jit.optimized_execution(False):  # to optimise takes longer than many captions
            return graph(*inputs)

    return run


class _Traceable(nn.Module):
    """A function as a module, which holds the layers that `torch.jit` must know by name: those with opaque weights."""

    def __init__(self, function: Callable, layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.opaque = nn.ModuleList(layer for layer in layers.modules() if isinstance(layer, OPAQUE))

    def forward(self, *inputs) -> Tensor:
        return self.function(*inputs)


def _replace_linear(
    model: nn.Module,
    wanted: Callable[[Tensor], bool],
    make: Callable[[Tensor, Tensor | None], nn.Module],
    but: nn.Module | None = None,
) -> None:
    """Put `make(weight [out, in], bias)` in place of the linear layers whose weights are wanted, but for one part's."""
    for name, child in model.named_children():
        if child is but:
            continue
        if (parameters := _linear(child)) is None:
            _replace_linear(child, wanted, make, but)
        elif wanted(parameters[0]):
            setattr(model, name, make(*parameters))


def _linear(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight `[out, in]` and the bias of a linear layer; None of anything else."""
    # Only the very classes: others (the projection inside nn.MultiheadAttention) have their weight read directly.
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    # transformers' `Conv1D` by its name: its import costs 20 MB, and who has none of it needs none of it.
    foreign = type(layer).__module__ == "transformers.pytorch_utils" and type(layer).__qualname__ == "Conv1D"
    if not foreign and type(layer) is not Conv1D:
        return None
    return layer.get_parameter("weight").t(), layer.get_parameter("bias")


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
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(integers, None), persistent=False)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.weight = weight.new_empty(0, dtype=dtype)  # code that asks for the dtype still finds it

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


def _as_int8(model: Module) -> Module:
    """Linear layers as `Int8Linear`. GPT-2's `Conv1D`, whose weight lies transposed, is not rounded, as
    `quantize_dynamic` does not either.

    A transformer computes in bf16 in between where the CPU has it; convolutions lose more by that than by int8.
    """
    kernels = sum(weight.numel() for weight in model.parameters() if weight.ndim > 2)
    transformer = 10 * kernels < sum(weight.numel() for weight in model.parameters())
    dtype = torch.bfloat16 if transformer and has_bf16() else torch.float32
    _replace_linear(model, Tensor.is_contiguous, lambda weight, bias: Int8Linear(weight, bias, dtype))
    model.to(dtype)
    pack(model)
    return model


def _quantize(model: Module) -> Module:
    """Torch's own: weights to 8 bits per output channel; activations to 7 as they come, all rows by one scale."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the eager API is called deprecated; its successor needs a graph and a package
        return quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, dtype=torch.qint8, inplace=True)


OPAQUE = (HalfLinear, PackedLinear, Int8Linear)
"""Layers whose weights only their own operator can read."""
