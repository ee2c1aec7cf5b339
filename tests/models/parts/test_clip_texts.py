"""CLIP's text tower over trees of texts: the numbers of transformers, from fewer rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from captioner.models.parts import clip_texts
from captioner.models.parts.clip_texts import silu_for_quick_gelu, text_vectors


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[[str], Path]) -> CLIPModel:
    return CLIPModel.from_pretrained(tiny_checkpoint("clip")).double().eval()


def drawn_texts(model: CLIPModel, start: list[int], count: int) -> list[list[int]]:
    """Texts behind one start, of few different words, so that they often begin alike, end alike or are the same."""
    draw, end = random.Random(count), model.config.text_config.eos_token_id
    return [[*start, *draw.choices((5, 6, 7), k=draw.randrange(6)), end] for _ in range(count)]


@pytest.mark.parametrize(("nodes", "trees"), [(1, 1), (7, 3), (128, 16)])
def test_vectors_are_those_of_transformers(
    model: CLIPModel, monkeypatch: pytest.MonkeyPatch, nodes: int, trees: int
) -> None:
    monkeypatch.setattr(clip_texts, "NODES", nodes)
    monkeypatch.setattr(clip_texts, "TREES", trees)
    begin = model.config.text_config.bos_token_id
    lists = [
        drawn_texts(model, [begin, *range(10, 10 + length)], count) for length, count in ((0, 20), (9, 60), (40, 1))
    ]
    lists.append([])
    lists.append([[*range(20, 96), model.config.text_config.eos_token_id]])  # as long as CLIP reads
    for texts, vectors in zip(lists, text_vectors(model, lists), strict=True):
        assert vectors.shape == (len(texts), model.config.projection_dim)
        for text, vector in zip(texts, vectors, strict=True):
            expected = model.get_text_features(torch.tensor([text])).pooler_output[0]
            torch.testing.assert_close(vector, expected)


def test_what_texts_share_is_one_row(model: CLIPModel) -> None:
    texts = drawn_texts(model, [], 100)
    beginnings = {tuple(text[:length]) for text in texts for length in range(1, len(text) + 1)}
    rows = [len(tree.ids) for tree in clip_texts._trees(0, texts)]
    assert len(beginnings) <= sum(rows) < len(beginnings) + 6 * len(rows)  # a new tree begins with a path again
    assert sum(rows) < sum(map(len, texts)) / 2
    assert sorted(text for tree in clip_texts._trees(0, texts) for text in tree.texts) == list(range(100))


def test_one_activation_for_three_changes_nothing(tiny_checkpoint: Callable[[str], Path], model: CLIPModel) -> None:
    changed = CLIPModel.from_pretrained(tiny_checkpoint("clip")).double().eval()
    silu_for_quick_gelu(changed)
    ids, pixels = torch.tensor([[3, 4, 5, 6]]), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(
            (changed.get_text_features(ids), changed.get_image_features(pixels)),
            (model.get_text_features(ids), model.get_image_features(pixels)),
            strict=True,
        ):
            torch.testing.assert_close(ours.pooler_output, theirs.pooler_output)
