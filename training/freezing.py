"""Which parts of a model learn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from captioner.errors import BadInput
from captioner.models.parts.backbones.towers import Backbone


def freeze(tower: nn.Module, blocks: Iterable[nn.Module] = (), but_last: int = 0) -> None:
    """Nothing in the tower learns but its last `but_last` blocks."""
    blocks = list(blocks)
    _refuse_more(but_last, len(blocks))
    tower.requires_grad_(False)
    for block in blocks[len(blocks) - but_last :]:
        block.requires_grad_(True)


def thaw(backbone: Backbone, last: int | None) -> None:
    """Of an image tower the last N blocks learn; None: all of it."""
    _refuse_more(last or 0, len(backbone.blocks))
    backbone.thaw(last)


def _refuse_more(wanted: int, blocks: int) -> None:
    if wanted > blocks:
        raise BadInput(f"--unfreeze {wanted}: this tower has {blocks} blocks.")


def is_frozen(tower: nn.Module) -> bool:
    """True when nothing in it learns: its outputs may then be computed once and cached."""
    return not any(parameter.requires_grad for parameter in tower.parameters())
