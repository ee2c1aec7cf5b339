"""The BERT encoder that MiniLM is, in plain torch: importing transformers' model classes outlasts a caption."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from captioner import compute, memory

EPSILON = 1e-12
HEADS = 12
KINDS = ("weight", "bias")


class Layer(nn.Module):
    """Attention, then two layers of width; each added to what it read and normalised after."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        projections = ("query", "key", "value")
        self.query_key_value = linear(
            *(torch.cat([weights[f"attention.self.{name}.{kind}"] for name in projections]) for kind in KINDS)
        )
        self.mix = linear(*(weights[f"attention.output.dense.{kind}"] for kind in KINDS))
        self.mixed_norm = norm(weights, "attention.output.LayerNorm")
        self.widen = linear(*(weights[f"intermediate.dense.{kind}"] for kind in KINDS))
        self.gelu: nn.Module = nn.GELU()
        self.narrow = linear(*(weights[f"output.dense.{kind}"] for kind in KINDS))
        self.norm = norm(weights, "output.LayerNorm")

    def forward(self, x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """Hidden states without padding `[tokens, width]` → the same; attention alone needs them padded.

        rows: where the tokens are among the flattened `mask` `[B, T]`.
        """
        padded = x.new_zeros(mask.numel(), 3 * x.shape[1]).index_copy_(0, rows, self.query_key_value(x))
        query, key, value = padded.view(*mask.shape, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        mixed = mixed.transpose(1, 2).reshape(mask.numel(), -1)[rows]  # [tokens, width]
        x = self.mixed_norm(self.mix(mixed).add_(x))
        return self.norm(self.narrow(self.gelu(self.widen(x))).add_(x))

    def pack(self) -> None:
        """Lay out the weights for this processor, and let the product before GELU apply it, where that pays."""
        compute.pack(self)
        compute.fuse_gelu(self, "widen", "gelu")


class Bert(nn.Module):
    """Token ids `[B, T]` and their mask → hidden states `[B, T, width]`."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """dtype float16: weights are rounded to it and kept in it, and multiplied in fp32."""
        super().__init__()
        file = folder / "model.safetensors"
        halved, dtype = dtype == torch.float16, torch.float32 if dtype == torch.float16 else dtype
        embeddings = _below(file, "embeddings.", dtype)
        self.words = embeddings["word_embeddings.weight"]
        first_segment = embeddings["token_type_embeddings.weight"][0]
        self.positions = embeddings["position_embeddings.weight"] + first_segment
        self.first_norm = norm(embeddings, "LayerNorm")
        self.layers = nn.ModuleList()
        while weights := _below(file, f"encoder.layer.{len(self.layers)}.", dtype):
            layer = Layer(weights).eval().requires_grad_(False)
            if halved:
                compute.read_as_half(layer, rounded=True)
                memory.give_back()
            if dtype == torch.float32:
                layer.pack()
            self.layers.append(layer)
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        mask = mask.bool()
        rows = mask.flatten().nonzero()[:, 0]  # the tokens alone: padding is a fifth of four short texts
        embedded = self.words[ids] + self.positions[: ids.shape[1]]
        x = self.first_norm(embedded.flatten(0, 1)[rows])
        for layer in self.layers:
            x = layer(x, mask, rows)
        return x.new_zeros(mask.numel(), x.shape[1]).index_copy_(0, rows, x).view(*mask.shape, -1)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer around these tensors, not copied."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def norm(weights: dict[str, Tensor], name: str) -> nn.LayerNorm:
    """The layer norm of this name."""
    layer = nn.LayerNorm(len(weights[f"{name}.weight"]), eps=EPSILON, device="meta")
    layer.weight, layer.bias = nn.Parameter(weights[f"{name}.weight"]), nn.Parameter(weights[f"{name}.bias"])
    return layer


def _below(file: Path, start: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights whose names begin so, under the rest of their names.

    Matrices lie in the mapped file, every part's in a mapping of its own: what is packed gives its pages back, and of
    the words only those that are looked up are read.
    """
    with safe_open(file, "pt") as weights:
        parts = {key: weights.get_tensor(key).to(dtype) for key in weights.keys() if key.startswith(start)}  # noqa: SIM118
    return {key.removeprefix(start): part if part.ndim > 1 else part.clone() for key, part in parts.items()}
