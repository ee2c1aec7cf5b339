"""Attention over shared memories equals plain attention over copies."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from captioner.models.parts.attention import ImageMemory, TextCache, attend_image, attend_text

IMAGES, BEAMS, HEADS, REGIONS, DIM = 3, 4, 2, 5, 6


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def per_beam(of_images: torch.Tensor) -> torch.Tensor:
    return of_images.repeat_interleave(BEAMS, dim=0)


@pytest.mark.parametrize("t", [1, 3])
def test_image_attention_equals_attention_over_copies(t: int) -> None:
    query = random(IMAGES * BEAMS, HEADS, t, DIM)
    keys, values = random(IMAGES, HEADS, REGIONS, DIM), random(IMAGES, HEADS, REGIONS, DIM)
    expected = scaled_dot_product_attention(query, per_beam(keys), per_beam(values))
    torch.testing.assert_close(attend_image(query, keys.transpose(-1, -2), values), expected)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_text_attention_is_causal(t: int) -> None:
    query, keys, values = (random(2, HEADS, 5, DIM) for _ in range(3))
    expected = scaled_dot_product_attention(query, keys, values, is_causal=True)[:, :, 5 - t :]
    torch.testing.assert_close(attend_text(query[:, :, 5 - t :], keys, values), expected)


def test_text_cache_grows_and_follows_its_beams() -> None:
    cache = TextCache()
    assert cache.length == 0
    first, second = random(4, HEADS, 2, DIM), random(4, HEADS, 1, DIM)
    for layer in range(2):
        cache.append(layer, first, first + 1)
    assert cache.length == 2
    cache = cache.select(torch.tensor([3, 3, 0, 1]))
    keys, values = cache.append(0, second, second + 1)
    expected = torch.cat((first[[3, 3, 0, 1]], second), dim=2)
    torch.testing.assert_close(keys, expected)
    torch.testing.assert_close(values, expected + 1)
    for _ in range(40):  # past any room set aside
        keys, values = cache.append(0, second, second + 1)
    torch.testing.assert_close(keys, torch.cat((expected, *[second] * 40), dim=2))
    assert cache.length == 43
    order = torch.tensor([1, 1, 3, 2])  # with room set aside, beams change places within it
    expected = keys[order]
    assert torch.equal(cache.select(order).layers[0][0], expected)
    fewer = cache.select(torch.tensor([0, 2]))
    assert torch.equal(fewer.append(0, second[:2], second[:2])[0][:, :, -1:], second[:2])
    keys, values = fewer.extend(1, 2)  # to be written by the caller
    assert keys.shape == values.shape == (2, HEADS, 4, DIM)
    keys[:, :, -2:] = 7
    assert (fewer.layers[1][0][:, :, 2:] == 7).all()


def test_image_memory_keeps_the_selected_images() -> None:
    keys, values = random(3, HEADS, REGIONS, DIM), random(3, HEADS, REGIONS, DIM)
    memory = ImageMemory([(keys, values)]).select(torch.tensor([2, 0]))
    assert len(memory) == 2
    assert torch.equal(memory.layers[0][0], keys[[2, 0]])
    assert torch.equal(memory.layers[0][1], values[[2, 0]])
