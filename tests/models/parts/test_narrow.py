"""What torch and transformers declare loosely is looked at where it is used."""

import pytest
from torch import nn

from captioner.models.parts.narrow import all_of, narrowed


def test_a_value_of_the_kind_is_itself() -> None:
    layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 4)])
    assert narrowed(layers[0], nn.Linear) is layers[0]
    assert all_of(layers, nn.Linear) == list(layers)


def test_anything_else_is_named() -> None:
    with pytest.raises(TypeError, match="a Linear is needed here, and there is NoneType"):
        narrowed(None, nn.Linear)
    with pytest.raises(TypeError, match="a Linear is needed here, and there is ReLU"):
        all_of(nn.ModuleList([nn.Linear(2, 3), nn.ReLU()]), nn.Linear)
