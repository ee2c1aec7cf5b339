"""Attention maps: words from pieces of words, the drawing, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captioner.contracts import LoadOptions
from captioner.errors import BadInput, BadOutput
from captioner.models import ofa
from captioner.models.lstm import attention_lstm, lstm_gpt2
from captioner.run import attention_map
from tests import decoders

CPU = LoadOptions(device="cpu")


@pytest.mark.parametrize(("family", "module"), [("resnet-lstm", attention_lstm), ("ofa", ofa)])
def test_every_word_has_its_map(tiny_checkpoint, family, module, tmp_path):
    speaker = module.load(tiny_checkpoint(family), CPU)
    image = decoders.pictures(1)[0]
    text = "a red king, at xyz"
    words, maps = attention_map.looked_at(speaker, image, text)
    assert words == text.split()
    assert len(maps) == len(words)
    tokens = speaker.processor.encode(text)
    assert len(tokens) > len(words)
    pixels = speaker.processor.preprocess([image])
    every = speaker.model.look(pixels, [*speaker.processor.start_ids, *tokens])
    of_first = every[: len(speaker.processor.encode("a"))].mean(0)
    np.testing.assert_allclose(maps[0], of_first.numpy(), atol=1e-6)
    attention_map.draw(image, words, maps, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width > 1000  # a panel for the picture and each word, in one row


class Pieces:
    """Three tokens that are two words."""

    def decode(self, ids):
        return "".join(("un", "even", " light")[i] for i in ids)


def test_pieces_of_a_word_are_averaged():
    maps = np.stack([np.full((2, 2), value, dtype=np.float32) for value in (1, 3, 7)])
    words, merged = attention_map.by_word(Pieces(), [0, 1, 2], maps)
    assert words == ["uneven", "light"]
    assert merged[:, 0, 0].tolist() == [2, 7]


def test_light_falls_where_the_model_looked(tmp_path):
    white = Image.new("RGB", (64, 64), "white")
    left = np.array([[1.0, 0.0], [1.0, 0.0]])
    attention_map.draw(white, ["left"], left[None], tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("L"), dtype=float)
    height, width = drawn.shape
    panel = drawn[height // 2, width // 2 :]
    assert panel[len(panel) // 4] > 200
    assert panel[3 * len(panel) // 4] < 120


def test_many_words_and_odd_ones(tmp_path):
    words = ["$x$", "_{", "猫", *("word",) * 9]
    attention_map.draw(Image.new("L", (40, 90)), words, np.ones((12, 3, 3)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "other").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_refusals(tiny_checkpoint, tmp_path):
    image = Image.new("RGB", (8, 8))
    blind = lstm_gpt2.load(tiny_checkpoint("resnet-lstm-gpt2"), CPU)
    with pytest.raises(BadInput, match="no attention over the picture"):
        attention_map.looked_at(blind, image, "a fox")
    sighted = attention_lstm.load(tiny_checkpoint("resnet-lstm"), CPU)
    with pytest.raises(BadInput, match="no text"):
        attention_map.looked_at(sighted, image, "")
    with pytest.raises(BadOutput, match=r"ends in \.png"):
        attention_map.draw(image, ["a"], np.ones((1, 2, 2)), tmp_path / "a.jpg")
    with pytest.raises(BadOutput, match="No such file"):
        attention_map.draw(image, ["a"], np.ones((1, 2, 2)), tmp_path / "nowhere" / "a.png")
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(BadOutput, match="exists"):
        attention_map.draw(image, ["a"], np.ones((1, 2, 2)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"mine"
