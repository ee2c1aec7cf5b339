"""The linear layers of a model: found, and replaced by others of the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored transposed `[in, out]`."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.t(), self.bias)


def replace_linear(
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
            replace_linear(child, wanted, make, but)
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
