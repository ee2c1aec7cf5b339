"""Where a model computes and how precisely, and how much memory there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil
import torch

from captioner.contracts import check_precision
from captioner.errors import BadInput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}


@contextmanager
def on_cpu() -> Iterator[None]:
    """What is made without naming a device is made on the CPU, also where the caller's `torch.set_default_device` says
    another."""
    with torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext():
        yield


def device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" is the first of cuda, mps and cpu that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        named = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise BadInput(f"There is no device {name!r}: use auto, cpu, cuda, cuda:1 or mps.") from error
    if named.type not in ("cpu", "cuda", "mps"):
        raise BadInput(f"No model runs on the device {name!r}: use auto, cpu, cuda, cuda:1 or mps.")
    if named.type == "cuda" and not (named.index or 0) < torch.cuda.device_count():
        raise BadInput(f"This machine has no device {name!r}. Use cpu.")
    if named.type == "mps" and not torch.backends.mps.is_available():
        raise BadInput("This machine has no MPS device. Use cpu.")
    return named


def precision(name: str, target: torch.device) -> str:
    """The precision of this name; "auto" is fp32 on a CPU and half precision on a GPU."""
    check_precision(name)
    if name == "int8" and target.type != "cpu":
        raise BadInput("int8 is for CPUs. On a GPU use bf16 or fp16.")
    if name == "auto":
        if target.type == "cpu":
            return "fp32"
        return "bf16" if target.type == "cuda" and torch.cuda.is_bf16_supported() else "fp16"
    return name


def has_avx512() -> bool:
    """Does torch compute with vectors of 512 bits here?"""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def has_bf16() -> bool:
    """Does this CPU compute in bf16? One that does not is slower in it than in fp32."""
    return torch.cpu._is_avx512_bf16_supported() or has_amx()


def has_amx() -> bool:
    """Does this CPU multiply small matrices at once?"""
    return torch.cpu._is_amx_tile_supported()


def fused_attention_pays(x: torch.Tensor) -> bool:
    """Is `scaled_dot_product_attention` of hundreds of positions faster here than plain products and a softmax?

    In fp32 by a third. In bf16 it takes half the time with AMX, and twice as long without.
    """
    return x.device.type != "cpu" or x.dtype != torch.bfloat16 or has_amx()


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the processor's, there; what a GPU has yet to do before is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def free_memory(target: torch.device) -> int:
    """Bytes that may still be used on this device."""
    if target.type == "cuda":
        return torch.cuda.mem_get_info(target)[0]
    return psutil.virtual_memory().available


def has_room_for_another(target: torch.device) -> bool:
    """Could another thread take as much of a GPU's memory as this process has ever taken?"""
    return target.type == "cuda" and torch.cuda.max_memory_reserved(target) <= free_memory(target)


def fits(weights: int, target: torch.device, most: int = 32) -> int:
    """The largest batch, at least 1 and at most `most`, that needs no more than half of the free memory.

    weights: bytes of the model's weights. Reading an image and captioning it with four beams takes a fifth as many.
    """
    return max(1, min(most, free_memory(target) // 2 // max(1, weights // 5)))
