"""CLIP's text tower over thousands of texts, in which what several of them begin with is read once.

CLIP reads from left to right: what it makes of a token depends on the tokens before it alone. So texts are read as a
tree. What all texts of a list begin with, as the extensions of one prompt do, comes first and leaves its keys and
values; behind it every different beginning of the rest is one row, however many texts share it. Among 2,048 style terms
behind one prompt that is 3 to 4 rows a text, where a text padded to CLIP's length has 77.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPModel, CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPEncoderLayer

from captioner.models.parts.narrow import all_of, narrowed

NODES = 128
"""Rows of one tree: each is compared with all of its tree, which is little beside the layers' products."""
TREES = 16
"""Trees in one pass: enough to fill a processor, little enough for buffers that need no fresh pages each time."""


@dataclass
class _Tree:
    """Different beginnings of texts, each by its last token and its depth behind what the whole list shares."""

    row: int
    """Which beginning the texts stand behind."""
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    seeing: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    """Pairs of nodes: a node sees those before it on its path, and itself."""
    texts: list[int] = field(default_factory=list)
    """The texts that end in this tree, by their number in the list …"""
    ends: list[int] = field(default_factory=list)
    """… and the nodes where they do."""

    def grow(self, path: list[int], token: int) -> None:
        """One token more at the end of a path of nodes."""
        path.append(len(self.ids))
        self.ids.append(token)
        self.depths.append(len(path) - 1)
        self.seeing.extend([path[-1]] * len(path))
        self.seen.extend(path)


@dataclass
class _Beginnings:
    """What all texts of a list begin with, one a list: their lengths, and each layer's keys and values."""

    lengths: Tensor
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@torch.inference_mode()
def text_vectors(model: CLIPModel, lists: list[list[list[int]]]) -> list[Tensor]:
    """The vectors `[n, d]` of each list of texts, given by their ids from the first token to the end token."""
    width = narrowed(model.config.projection_dim, int)
    vectors = [torch.empty(len(texts), width, dtype=model.dtype, device=model.device) for texts in lists]
    asked = [index for index, texts in enumerate(lists) if texts]
    if not asked:
        return vectors
    # At least one token of each text is left to read behind what they share.
    shared = [min(_common(min(lists[i]), max(lists[i])), min(map(len, lists[i])) - 1) for i in asked]
    beginnings = _read_beginnings(model, [lists[i][0][:length] for i, length in zip(asked, shared, strict=True)])
    trees = [
        tree
        for row, (i, length) in enumerate(zip(asked, shared, strict=True))
        for tree in _trees(row, [text[length:] for text in lists[i]])
    ]
    for at in range(0, len(trees), TREES):
        of_pass = trees[at : at + TREES]
        x = _read_trees(model, beginnings, of_pass)
        for tree, rows in zip(of_pass, x, strict=True):
            at_end = model.text_model.final_layer_norm(rows[tree.ends])
            vectors[asked[tree.row]][tree.texts] = model.text_projection(at_end)
    return vectors


def _trees(row: int, tails: list[list[int]]) -> Iterator[_Tree]:
    """The texts of one list as trees of some NODES nodes, alike in size: they are padded to the largest of a pass."""
    order = sorted(range(len(tails)), key=tails.__getitem__)  # neighbours share the most
    count = len(tails[order[0]]) + sum(len(tails[b]) - _common(tails[a], tails[b]) for a, b in pairwise(order))
    limit = -(-count // -(-count // NODES)) + max(map(len, tails)) // 2  # each new tree begins with a path again
    tree, path = _Tree(row), list[int]()
    for text in order:
        tail = tails[text]
        if len(tree.ids) >= limit:
            yield tree
            tree, path = _Tree(row), []
        del path[_common([tree.ids[node] for node in path], tail) :]
        for token in tail[len(path) :]:
            tree.grow(path, token)
        tree.texts.append(text)
        tree.ends.append(path[-1])
    yield tree


def _read_beginnings(model: CLIPModel, texts: list[list[int]]) -> _Beginnings:
    beginnings = _Beginnings(torch.tensor([len(text) for text in texts]))
    ids = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], batch_first=True)
    length = ids.shape[1]
    if length:
        sees = torch.ones(length, length, dtype=torch.bool).tril()
        _read(model, ids, torch.arange(length), sees, keep=beginnings)
    return beginnings


def _read_trees(model: CLIPModel, beginnings: _Beginnings, trees: list[_Tree]) -> Tensor:
    """What the tower makes of every node, `[trees, nodes, width]`; where a tree has fewer, filling."""
    lists = torch.tensor([tree.row for tree in trees])
    ids, depths = (
        pad_sequence([torch.tensor(getattr(tree, name)) for tree in trees], batch_first=True)
        for name in ("ids", "depths")
    )
    nodes, before = ids.shape[1], int(beginnings.lengths.max())
    lengths = beginnings.lengths[lists]
    sees = torch.zeros(len(trees), 1, nodes, before + nodes, dtype=torch.bool)
    sees[..., :before] = (torch.arange(before) < lengths[:, None])[:, None, None]
    sees[..., before:] = torch.eye(nodes, dtype=torch.bool)  # filling sees itself
    for row, tree in enumerate(trees):
        sees[row, 0, tree.seeing, [before + node for node in tree.seen]] = True
    return _read(model, ids, lengths[:, None] + depths, sees, beginnings, lists.to(model.device))


def _read(
    model: CLIPModel,
    ids: Tensor,
    positions: Tensor,
    sees: Tensor,
    beginnings: _Beginnings | None = None,
    lists: Tensor | None = None,
    keep: _Beginnings | None = None,
) -> Tensor:
    """CLIP's text tower over ids `[rows, t]`, which see one another, and behind their list's beginning, as told.

    Into `keep` go the keys and values of every layer, `[rows, heads, t, head_dim]`.
    """
    text, heads = model.text_model, narrowed(model.config.text_config, CLIPTextConfig).num_attention_heads
    ids, positions = ids.to(model.device), positions.to(model.device)
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, -torch.inf).to(model.device)  # for all layers
    x = text.embeddings.token_embedding(ids) + text.embeddings.position_embedding(positions)
    for index, layer in enumerate(all_of(text.encoder.layers, CLIPEncoderLayer)):
        attention, y = layer.self_attn, layer.layer_norm1(x)
        query, keys, values = (
            part(y).unflatten(-1, (heads, -1)).transpose(1, 2)  # [rows, heads, t, head_dim]
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if keep is not None:
            keep.layers.append((keys, values))
        if beginnings is not None and beginnings.layers:
            first_keys, first_values = beginnings.layers[index]
            keys = torch.cat((first_keys[lists], keys), 2)
            values = torch.cat((first_values[lists], values), 2)
        mixed = F.scaled_dot_product_attention(query, keys, values, mask, scale=attention.scale)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def _common(a: list[int], b: list[int]) -> int:
    """How many ids two texts begin with together. What the least and the greatest share, all between them share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def silu_for_quick_gelu(model: nn.Module) -> None:
    """Make CLIP's activation one pass over the hidden layer instead of three, in place and with the same results.

    x · sigmoid(1.702 x) is silu(1.702 x) / 1.702, and both factors go into the weights before and behind it.
    """
    for mlp in model.modules():
        if isinstance(mlp, CLIPMLP) and mlp.config.hidden_act == "quick_gelu":
            with torch.no_grad():
                mlp.fc1.weight.mul_(1.702)
                mlp.fc1.bias.mul_(1.702)
                mlp.fc2.weight.div_(1.702)
            mlp.activation_fn = nn.SiLU(inplace=True)
