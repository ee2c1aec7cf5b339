"""Likeness of pictures: by the bundled network, and by their colours."""

import numpy as np
from PIL import Image, ImageDraw

from eval.likeness import Network, colours_in_common


def drawn() -> Image.Image:
    image = Image.new("RGB", (48, 48), (0, 90, 200))
    ImageDraw.Draw(image).ellipse((0, 4, 20, 28), fill=(240, 0, 60))
    return image


def test_likeness_knows_the_same_from_another() -> None:
    network = Network()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    near = drawn().resize((60, 60), Image.Resampling.BICUBIC)
    cosine, distance = network.compare(drawn(), [drawn(), near, noise])
    assert cosine[0] > cosine[1] > cosine[2]
    assert distance[0] < distance[1] < distance[2]
    assert colours_in_common(drawn(), near) > 0.9
    assert colours_in_common(Image.new("RGB", (8, 8), "red"), Image.new("L", (4, 4), 0)) == 0
