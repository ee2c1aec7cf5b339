"""The BERT encoder that MiniLM is, in plain torch: importing transformers' model classes outlasts a caption."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from captioner import compute

EPSILON = 1e-12
KINDS = ("weight", "bias")


class Layer(nn.Module):
    """Attention, then two layers of width; each added to what it read and normalised after."""

    def __init__(self, weights: dict[str, Tensor], heads: int) -> None:
        super().__init__()
        self.heads = heads
        both = [[weights[f"attention.self.{one}.{kind}"] for one in ("query", "key", "value")] for kind in KINDS]
        self.query_key_value = linear(*map(torch.cat, both))
        self.mix = linear(*(weights[f"attention.output.dense.{kind}"] for kind in KINDS))
        self.mixed_norm = norm(weights, "attention.output.LayerNorm")
        self.widen = linear(*(weights[f"intermediate.dense.{kind}"] for kind in KINDS))
        self.narrow = linear(*(weights[f"output.dense.{kind}"] for kind in KINDS))
        self.norm = norm(weights, "output.LayerNorm")

    def forward(self, x: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        """x `[tokens, width]`, at these places of `seen` `[B, T]`: attention alone needs the texts side by side."""
        projected = x.new_zeros(seen.numel(), 3 * x.shape[1]).index_copy_(0, places, self.query_key_value(x))
        query, key, value = projected.view(*seen.shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        mixed = mixed.transpose(1, 2).reshape(seen.numel(), -1)[places]  # [tokens, width]
        x = self.mixed_norm(x + self.mix(mixed))
        return self.norm(x + self.narrow(F.gelu(self.widen(x))))


class Bert(nn.Module):
    """Token ids `[B, T]` and their mask → hidden states `[B, T, width]`."""

    def __init__(self, folder: Path, heads: int = 12, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weights = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
        self.words = weights["embeddings.word_embeddings.weight"]
        of_text = weights["embeddings.token_type_embeddings.weight"][0]
        self.places = weights["embeddings.position_embeddings.weight"] + of_text
        self.first_norm = norm(weights, "embeddings.LayerNorm")
        self.layers = nn.ModuleList()
        while of_layer := _below(weights, f"encoder.layer.{len(self.layers)}."):
            self.layers.append(Layer(of_layer, heads))
        self.eval().requires_grad_(False)
        if dtype == torch.float32:
            compute.pack(self)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = mask.bool()
        places = seen.flatten().nonzero()[:, 0]  # of the tokens: padding is a fifth of four short texts
        embedded = self.words[ids] + self.places[: ids.shape[1]]
        x = self.first_norm(embedded.flatten(0, 1)[places])
        for layer in self.layers:
            x = layer(x, seen, places)
        return x.new_zeros(seen.numel(), x.shape[1]).index_copy_(0, places, x).view(*seen.shape, -1)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(*weight.T.shape, device="meta")
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


def norm(weights: dict[str, Tensor], name: str) -> nn.LayerNorm:
    made = nn.LayerNorm(len(weights[f"{name}.weight"]), eps=EPSILON, device="meta")
    made.weight, made.bias = nn.Parameter(weights[f"{name}.weight"]), nn.Parameter(weights[f"{name}.bias"])
    return made


def _below(weights: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
