"""Attention over an image memory that beams share, and the key–value cache of the text.

transformers copies the image's keys and values to every beam, and moves the copies at every step; that is a third to
four fifths of BLIP's generate time. Here the image side keeps one row per image: beams are folded into the query
dimension. Of the text nothing moves either, but the list of its words' places.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def laid_out(part: Tensor) -> Tensor:
    """Keys or values as a step reads them best. On a CPU, where a product with the strided views that projections give
    would copy them at every step, laid out once; a GPU's fused attention reads such views as they are."""
    return part.contiguous() if part.device.type == "cpu" else part


class ImageMemory:
    """Tensors that depend on the image alone, per layer: keys, values, each with one row per image."""

    def __init__(self, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        # One after the other, so that not all are there twice.
        self.layers = [(laid_out(keys), laid_out(values)) for keys, values in layers]

    def __len__(self) -> int:
        return self.layers[0][0].shape[0]

    def tensors(self) -> list[Tensor]:
        """The keys of all layers, then the values."""
        return [keys for keys, _ in self.layers] + [values for _, values in self.layers]

    def select(self, images: Tensor) -> ImageMemory:
        return ImageMemory((keys[images], values[images]) for keys, values in self.layers)


class TextCache:
    """The keys and values of texts, per layer.

    Those of a word stay where they were written, and a text is a list of its words' places: one that goes on as
    several, or in another row, shares them, and nothing but its list is copied.
    """

    ROOM = 32

    def __init__(self, words: Tensor, places: Tensor, used: int = 0) -> None:
        self.words = words  # [layers, room, 2, heads, head_dim]
        self.places = places  # [rows, length]
        self.used = used  # of the room

    @classmethod
    def begin(cls, rows: int, layers: int, heads: int, like: Tensor) -> TextCache:
        """Of texts without a word yet. like: a tensor `[…, heads · head_dim]` of their device and precision."""
        words = like.new_empty(layers, 0, 2, heads, like.shape[-1] // heads)
        return cls(words, torch.empty(rows, 0, dtype=torch.long, device=like.device))

    @property
    def length(self) -> int:
        return self.places.shape[1]

    def extend(self, added: int) -> None:
        """Make place for so many more words of every text, which `attend_words` is to write."""
        rows = len(self.places)
        used, self.used = self.used, self.used + rows * added
        if self.used > self.words.shape[1]:
            layers, _, *sizes = self.words.shape
            larger = self.words.new_empty(layers, self.used + rows * self.ROOM, *sizes)
            larger[:, :used] = self.words[:, :used]
            self.words = larger
        places = torch.arange(used, self.used, device=self.places.device).view(rows, added)
        self.places = torch.cat((self.places, places), dim=1)

    def select(self, rows: Tensor) -> TextCache:
        """These rows alone, in this order; a row may come several times. Only one of the two may be extended."""
        return TextCache(self.words, self.places[rows], self.used)

    def copy(self) -> TextCache:
        """One that can be extended while this one stays: without room it takes memory of its own then."""
        return TextCache(self.words[:, : self.used], self.places, self.used)


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
    folded = query.view(images, beams, heads, t, dim).transpose(1, 2).reshape(images, heads, beams * t, dim)
    if bias is not None:
        bias = bias.repeat(1, beams, 1)  # [heads, beams·t, regions]
    if query.device.type != "cpu":
        mixed = F.scaled_dot_product_attention(folded, keys.transpose(-1, -2), values, attn_mask=bias, scale=scale)
    else:
        scores = torch.bmm(folded.flatten(0, 1) * (scale or dim**-0.5), keys.flatten(0, 1))
        if bias is not None:
            scores = scores + bias.repeat(images, 1, 1)  # [images·heads, beams·t, regions]
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
    if t == 1 and query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale)
    scores = query @ keys.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)  # [rows, heads, t, length]
    if bias is not None:
        scores = scores + bias
    if t > 1:
        future = torch.ones(t, length, dtype=torch.bool, device=query.device).triu(length - t + 1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ values


def attend_words(
    query: Tensor,
    written: Tensor,
    words: Tensor,
    places: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attend_text` of the last t words of every text over all of its words, after theirs have been written.

    Args:
        query: of the last words `[rows, heads, t, head_dim]`.
        written: their keys and values `[rows, t, 2, heads, head_dim]`.
        words, places: a layer of a `TextCache` that was extended by t.
        bias, scale: as in `attend_text`.
    """
    t = written.shape[1]
    words.index_copy_(0, places[:, -t:].flatten(), written.flatten(0, 1))
    if t < places.shape[1]:
        written = words.index_select(0, places.flatten()).unflatten(0, places.shape)
    keys, values = written.permute(2, 0, 3, 1, 4).unbind()
    return attend_text(query, keys, values, bias, scale)


def attend_shared(query: Tensor, written: Tensor, words: Tensor, newest: Tensor, unseen: Tensor) -> Tensor:
    """Self-attention of every text's last word, where the texts of an image share one room for their words.

    Args:
        query: of the last words `[rows, heads, 1, head_dim]`.
        written: their keys and values `[rows, 1, 2, heads, head_dim]`, which are put into the room.
        words: of a layer `[images, room, 2, heads, head_dim]`.
        newest: where in the room the last words of an image's texts are `[texts]`.
        unseen: a bias for each text and place `[rows, room]`: 0, or −inf where the text does not see the word.
    """
    images, room, _, heads, dim = words.shape
    words.index_copy_(1, newest, written.view(images, -1, 2, heads, dim))
    keys, values = words.permute(2, 0, 3, 1, 4).unbind()  # each [images, heads, room, head_dim]
    folded = query.view(images, -1, heads, dim).transpose(1, 2)  # [images, heads, texts, head_dim]
    bias = unseen.view(images, 1, -1, room)
    mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias)
    return mixed.transpose(1, 2).reshape(query.shape)
