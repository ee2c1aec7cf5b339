"""What OFA's encoder and decoder are made of.

Positions never enter the token embeddings: attention adds pos_q · pos_kᵀ (absolute, computed once for all layers) and
a relative table of each layer. Every sublayer is normed before and, as in NormFormer, once more inside; each head's
output has a learnt weight. Queries are scaled by (2 · head_dim)^-½, the positions' queries too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from captioner.models.ofa.config import OFAConfig
from captioner.models.parts.attention import ImageMemory, TextCache, attend_image, attend_text, attend_words


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """[..., t, width] → [..., heads, t, head_dim]"""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def scale_of(config: OFAConfig) -> float:
    """What queries are multiplied by; half of the variance is the positions'."""
    return (config.d_model / config.encoder_attention_heads * config.attn_scale_factor) ** -0.5


class Attention(nn.Module):
    """The projections of one attention; who attends to what is the layers' business."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.c_attn = nn.Parameter(torch.ones(heads))

    def query(self, x: Tensor) -> Tensor:
        return heads_apart(self.q_proj(x), self.heads)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return heads_apart(self.k_proj(x), self.heads), heads_apart(self.v_proj(x), self.heads)

    def merged(self, mixed: Tensor) -> Tensor:
        """What each head saw [n, heads, t, head_dim] → [n, t, width]"""
        return self.out_proj((mixed * self.c_attn[:, None, None]).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The sublayer that both kinds of layer end with."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.ffn_layer_norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        inner = self.ffn_layer_norm(F.gelu(self.fc1(self.final_layer_norm(x))))
        return x + self.dropout(self.fc2(inner))


class EncoderLayer(GradientCheckpointingLayer, FeedForward):
    """Every region and word looks at all others."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config.d_model, config.encoder_ffn_dim, config.dropout)
        self.scale = scale_of(config)
        self.self_attn = Attention(config.d_model, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [n, s, width]; bias [1 or n, heads, s, s], padding in it."""
        normed = self.self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_and_values(normed)
        query = self.self_attn.query(normed)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scale)
        x = x + self.dropout(self.self_attn_mid_layer_norm(self.self_attn.merged(mixed)))
        return self.feed_forward(x)


class DecoderLayer(FeedForward):
    """The text looks at itself and at what the encoder made of picture and question. (Its activations are few: they
    are never recomputed.)"""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config.d_model, config.decoder_ffn_dim, config.dropout)
        self.scale = scale_of(config)
        self.self_attn = Attention(config.d_model, config.decoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn = Attention(config.d_model, config.decoder_attention_heads)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        number: int,
        memory: ImageMemory,
        past: TextCache | None,
        bias: Tensor,
        cross_bias: Tensor,
        watched: list[Tensor] | None = None,
    ) -> Tensor:
        """x [rows, t, width]; bias [heads, t, length so far]; cross_bias [heads, t, source]. The cross-attention's
        weights [rows, heads, t, source] are added to `watched`, for a single picture."""
        normed = self.self_attn_layer_norm(x)
        query, (keys, values) = self.self_attn.query(normed), self.self_attn.keys_and_values(normed)
        if past is None:
            mixed = attend_text(query, keys, values, bias, self.scale)
        else:
            written = torch.stack((keys, values), dim=2).transpose(1, 3)  # [rows, t, 2, heads, head_dim]
            mixed = attend_words(query, written, past.words[number], past.places, bias, self.scale)
        x = x + self.dropout(self.self_attn_mid_layer_norm(self.self_attn.merged(mixed)))
        query = self.cross_attn.query(self.cross_attn_layer_norm(x))
        mixed = attend_image(query, *memory.layers[number], cross_bias, self.scale)
        if watched is not None:
            scores = query * self.scale @ memory.layers[number][0]
            watched.append((scores + cross_bias).softmax(-1))
        x = x + self.dropout(self.cross_attn_mid_layer_norm(self.cross_attn.merged(mixed)))
        return self.feed_forward(x)


def token_buckets(length: int, size: int, device: torch.device) -> Tensor:
    """Which row of a relative table belongs to each pair of text positions `[length, length]`: one row a distance up
    to size / 2, then logarithmically coarser ones up to 1,024."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    near = size // 2
    far = distance.abs().clamp(min=near - 1)
    coarse = ((far / near).log() / math.log(1023 / near) * (near - 1)).ceil().long() + near
    return torch.where(far <= near, distance, coarse * distance.sign()) + size - 1


def image_buckets(rows: int, columns: int, size: int, device: torch.device) -> Tensor:
    """Which row of a relative table belongs to each pair of regions `[rows · columns, rows · columns]`."""
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    down, right = row[:, None] - row, column[:, None] - column
    return (down + size - 1) * (2 * size - 1) + right + size - 1


def image_position_ids(rows: int, columns: int, size: int, device: torch.device) -> Tensor:
    """Regions are numbered along rows as wide as the largest picture; 0 is none."""
    return (torch.arange(rows, device=device)[:, None] * size + torch.arange(columns, device=device) + 1).flatten()


def relative_tables(layers: int, rows: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(rows, heads) for _ in range(layers))


def image_table_rows(config: OFAConfig) -> int:
    """All distances in two dimensions, and three that published files hold for a class token."""
    return (2 * config.image_bucket_size - 1) ** 2 + 3
