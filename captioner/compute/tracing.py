"""Functions of a small decoder, traced: they run without Python between their operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from captioner.compute.inference import inference_mode
from captioner.compute.int8 import Int8Linear
from captioner.compute.packed import HalfLinear, PackedLinear

OPAQUE = (HalfLinear, PackedLinear, Int8Linear)
"""Layers whose weights only their own operator can read."""


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
        with warnings.catch_warnings(), inference_mode():
            warnings.simplefilter("ignore")  # tracing is called deprecated; its successors need a compiler
            graph = torch.jit.trace(_Traceable(function, layers), inputs, check_trace=False)
    except (AttributeError, RuntimeError):
        return function
    return _Trace(function, graph)


class _Trace:
    """A traced function."""

    def __init__(self, function: Callable, graph: Callable) -> None:
        self.function = function
        self.graph = graph

    def __call__(self, *inputs) -> Tensor:
        with torch.jit.optimized_execution(False):  # to optimise takes longer than many captions
            return self.graph(*inputs)

    def __reduce__(self) -> tuple:
        """torch copies and pickles no trace: a copy is the function as it is."""
        return _itself, (self.function,)


def _itself(function: Callable) -> Callable:
    return function


class _Traceable(nn.Module):
    """A function as a module, which holds the layers that `torch.jit` must know by name: those with opaque weights."""

    def __init__(self, function: Callable, layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.opaque = nn.ModuleList(layer for layer in layers.modules() if isinstance(layer, OPAQUE))

    def forward(self, *inputs) -> Tensor:
        return self.function(*inputs)
