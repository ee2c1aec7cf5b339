"""Where a model computes, and how fast: devices and precisions, and kernels with their fallbacks."""

from captioner.compute.agreement import bf16_agrees
from captioner.compute.devices import (
    DTYPES,
    device,
    fits,
    free_memory,
    fused_attention_pays,
    has_avx512,
    has_bf16,
    has_room_for_another,
    on_cpu,
    precision,
    sent,
)
from captioner.compute.inference import inference_mode, prepare
from captioner.compute.int8 import Int8Linear, multiplies_int8
from captioner.compute.linear import Conv1D
from captioner.compute.packed import (
    HalfLinear,
    PackedLinear,
    convolved_relu6,
    fuse_gelu,
    multiplied_relu6,
    pack,
    pays_to_pack,
    read_as_half,
)
from captioner.compute.recorded import (
    Lending,
    RecordedFunction,
    pays_to_record,
    recorded,
)
from captioner.compute.threads import each_alone, side_by_side
from captioner.compute.tracing import traced

__all__ = [
    "DTYPES",
    "Conv1D",
    "HalfLinear",
    "Int8Linear",
    "Lending",
    "PackedLinear",
    "RecordedFunction",
    "bf16_agrees",
    "convolved_relu6",
    "device",
    "each_alone",
    "fits",
    "free_memory",
    "fuse_gelu",
    "fused_attention_pays",
    "has_avx512",
    "has_bf16",
    "has_room_for_another",
    "inference_mode",
    "multiplied_relu6",
    "multiplies_int8",
    "on_cpu",
    "pack",
    "pays_to_pack",
    "pays_to_record",
    "precision",
    "prepare",
    "read_as_half",
    "recorded",
    "sent",
    "side_by_side",
    "traced",
]
