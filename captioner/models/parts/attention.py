"""Attention over an image memory that beams share, and the key–value cache of the text.

transformers copies the image's keys and values to every beam, and moves the copies at every step; that is a third to
four fifths of BLIP's generate time. Here the image side keeps one row per image: beams are folded into the query
dimension, and only the small text cache is reordered.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


class ImageMemory:
    """Tensors that depend on the image alone, per layer: keys, values, each with one row per image."""

    def __init__(self, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        # Laid out once: a product with the strided views that projections give would copy them at every step. One after
        # the other, so that not all are there twice.
        self.layers = [(keys.contiguous(), values.contiguous()) for keys, values in layers]

    def __len__(self) -> int:
        return self.layers[0][0].shape[0]

    def select(self, images: Tensor) -> ImageMemory:
        return ImageMemory((keys[images], values[images]) for keys, values in self.layers)


class TextCache:
    """Keys and values of the text so far, per layer `[rows, heads, length, head_dim]`, with room for more to come."""

    ROOM = 32

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []  # the first token of a text appends them, in order
        self._buffer: Tensor | None = None  # [layers, 2, rows, heads, room, head_dim]; they are the beginning of it

    @classmethod
    def begin(cls, layers: int, nothing: Tensor) -> TextCache:
        """Of texts without a word yet. nothing: the keys or values of one layer `[rows, heads, 0, head_dim]`"""
        cache = cls()
        cache.layers = [(nothing, nothing)] * layers
        return cache

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new positions of one layer; returns all its keys and values."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
            return keys, values
        added = keys.shape[2]
        whole = self.extend(layer, added)
        for part, new in zip(whole, (keys, values), strict=True):
            part.narrow(2, part.shape[2] - added, added).copy_(new)
        return whole

    def extend(self, layer: int, added: int) -> tuple[Tensor, Tensor]:
        """All keys and values of one layer, and after them so many new positions for the caller to write."""
        rows, _, length, _ = self.layers[layer][0].shape
        self.layers[layer] = self._view(layer, rows, length + added)
        return self.layers[layer]

    def _view(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """The beginning of one layer's part of the buffer, which is made larger where it has to be."""
        if self._buffer is None or self._buffer.shape[2] < rows or self._buffer.shape[4] < length:
            self._buffer = self._larger(rows, length)
        keys, values = self._buffer[layer, :, :rows, :, :length].unbind()
        return keys, values

    def _larger(self, rows: int, length: int) -> Tensor:
        """The same beginning of every layer, and room for more rows and positions."""
        first = self.layers[0][0]
        before, heads, _, head_dim = first.shape
        rows = max(rows, 2 * before) if rows > before else before
        room = 0 if self._buffer is None else self._buffer.shape[4]
        room = room if length <= room else 2 * length + self.ROOM
        buffer = first.new_empty(len(self.layers), 2, rows, heads, room, head_dim)
        for of_layer, parts in zip(buffer, self.layers, strict=True):
            for whole, part in zip(of_layer, parts, strict=True):
                whole[:before, :, : part.shape[2]] = part
        return buffer

    def select(self, rows: Tensor) -> TextCache:
        """These rows alone, in this order; a row may come several times. One that keeps its place is not copied."""
        before, after = self.layers[0][0].shape[0], len(rows)
        moved = (rows != torch.arange(after, device=rows.device)).nonzero()[:, 0]
        if self._buffer is None:
            if before != after or len(moved):
                self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
            return self
        self.layers = [self._view(layer, after, part.shape[2]) for layer, (part, _) in enumerate(self.layers)]
        if len(moved):
            filled = self._buffer.narrow(4, 0, self.length)
            filled.index_copy_(2, moved, filled.index_select(2, rows[moved]))  # all layers at once
        return self


def attend_image(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Cross-attention of every beam over its image's one memory. Scale is 1/sqrt(head_dim) unless given.

    query [rows, heads, t, head_dim], rows = images × beams; keys [images, heads, head_dim, regions]: a product with few
    queries reads them in order so, and takes 0.6 times as long; values [images, heads, regions, head_dim]; bias of
    positions [heads, t, regions]. Returns [rows, heads, t, head_dim].
    """
    rows, heads, t, _ = query.shape
    images, dim = keys.shape[0], int(query.shape[3])  # a constant also where this is traced
    beams = rows // images
    folded = query.view(images, beams, heads, t, dim).transpose(1, 2).reshape(images * heads, beams * t, dim)
    scores = torch.bmm(folded * (scale or dim**-0.5), keys.flatten(0, 1))  # [images·heads, beams·t, regions]
    if bias is not None:
        scores = scores + bias.repeat(images, beams, 1)
    mixed = torch.bmm(scores.softmax(-1), values.flatten(0, 1))  # [images·heads, beams·t, head_dim]
    return mixed.view(images, heads, beams, t, dim).transpose(1, 2).reshape(rows, heads, t, dim)


def attend_text(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Causal self-attention of the last t positions over the whole text. Scale is 1/sqrt(head_dim) unless given.

    query [rows, heads, t, head_dim]; keys, values [rows, heads, length, head_dim], length ≥ t; bias [heads, t, length].
    """
    t, length = query.shape[2], keys.shape[2]
    if t in (1, length) and bias is None:  # both are tensors while this is traced
        return F.scaled_dot_product_attention(query, keys, values, is_causal=bool(t > 1), scale=scale)
    scores = query @ keys.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)  # [rows, heads, t, length]
    if bias is not None:
        scores = scores + bias
    if t > 1:
        future = torch.ones(t, length, dtype=torch.bool, device=query.device).triu(length - t + 1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ values
