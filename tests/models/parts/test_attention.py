"""Attention over shared memories equals plain attention over copies."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from captioner.models.parts.attention import ImageMemory, TextCache, attend_image, attend_text, attend_words

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


def test_words_are_attended_to_wherever_their_texts_move() -> None:
    order, fewer = torch.tensor([3, 3, 0, 1]), torch.tensor([2, 0])
    cache = TextCache.begin(4, 2, HEADS, random(1, HEADS * DIM))
    assert cache.length == 0
    said = [torch.empty(4, 0, 2, HEADS, DIM, dtype=torch.float64)] * 2  # of each layer, in the order of the texts

    def read(t: int) -> None:
        """Every layer reads t more words of all texts."""
        cache.extend(t)
        for layer, before in enumerate(said):
            query, written = random(len(before), HEADS, t, DIM), random(len(before), t, 2, HEADS, DIM)
            said[layer] = torch.cat((before, written), dim=1)
            keys, values = said[layer].permute(2, 0, 3, 1, 4)
            mixed = attend_words(query, written, cache.words[layer], cache.places)
            torch.testing.assert_close(mixed, attend_text(query, keys, values))

    read(2)
    for rows in (order, fewer):
        cache, said = cache.select(rows), [of_layer[rows] for of_layer in said]
        for t in (1, 3, *[1] * 40):  # past any room set aside
            read(t)
    assert cache.length == 2 + 2 * 44


def test_a_copy_of_a_text_cache_goes_on_by_itself() -> None:
    cache = TextCache.begin(2, 1, HEADS, random(1, HEADS * DIM))
    query, first, second = random(2, HEADS, 1, DIM), random(2, 1, 2, HEADS, DIM), random(2, 1, 2, HEADS, DIM)
    cache.extend(1)
    attend_words(query, first, cache.words[0], cache.places)
    copies = cache.copy(), cache.copy()
    for copy, written in zip(copies, (first, second), strict=True):
        copy.extend(1)
        attend_words(query, written, copy.words[0], copy.places)
    kept = [copy.words[0][copy.places] for copy in copies]
    assert torch.equal(kept[0], torch.cat((first, first), dim=1))
    assert torch.equal(kept[1], torch.cat((first, second), dim=1))
    assert cache.length == 1


def test_image_memory_keeps_the_selected_images() -> None:
    keys, values = random(3, HEADS, REGIONS, DIM), random(3, HEADS, REGIONS, DIM)
    memory = ImageMemory([(keys, values)]).select(torch.tensor([2, 0]))
    assert len(memory) == 2
    assert torch.equal(memory.layers[0][0], keys[[2, 0]])
    assert torch.equal(memory.layers[0][1], values[[2, 0]])
