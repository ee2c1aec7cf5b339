"""Which parts of a model learn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from captioner.errors import BadInput


def freeze(tower: nn.Module, blocks: Iterable[nn.Module] = (), but_last: int = 0) -> None:
    """Nothing in the tower learns but its last `but_last` blocks."""
    blocks = list(blocks)
    if but_last > len(blocks):
        raise BadInput(f"--unfreeze {but_last}: this tower has {len(blocks)} blocks.")
    tower.requires_grad_(False)
    for block in blocks[len(blocks) - but_last :]:
        block.requires_grad_(True)


def is_frozen(tower: nn.Module) -> bool:
    """True when nothing in it learns: its outputs may then be computed once and cached."""
    return not any(parameter.requires_grad for parameter in tower.parameters())
