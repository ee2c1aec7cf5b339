"""A loaded model made ready for inference on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from captioner.compute.devices import DTYPES, device, on_cpu, precision
from captioner.compute.int8 import as_int8, multiplies_int8, quantize
from captioner.compute.packed import multiplies_well, pack, read_as_half
from captioner.contracts import LoadOptions

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def inference_mode() -> Iterator[None]:
    """Without gradients, and in the model's own precision and on its own device also where the caller is within
    `torch.autocast` or has set a default device."""
    with on_cpu(), torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


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
        return as_int8(model) if small is None and multiplies_int8() else quantize(model)
    if chosen == "fp32" and small is not None:
        read_as_half(small)
    if chosen != "float64":
        pack(model, encoder if chosen == "fp32" and multiplies_well() else None)
    return model
