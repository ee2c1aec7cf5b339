"""What a library declares loosely, as what it is: torch and transformers give a part as a tensor, a module or None.

Each function looks at the value, so that a part that is something else is named here, and not by what then goes wrong.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind")


def narrowed(value: object, kind: type[Kind]) -> Kind:
    """The value, which is of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is needed here, and there is {type(value).__name__}")
    return value


def all_of(layers: object, kind: type[Kind]) -> list[Kind]:
    """The layers of a `ModuleList`, which are all of this kind."""
    return [narrowed(layer, kind) for layer in narrowed(layers, nn.ModuleList)]
