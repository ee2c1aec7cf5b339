"""Where a model looked as it wrote each word: one picture (PNG) with a map a word.

For models that attend to regions of the image and say so by `look` (see contracts.py).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image
from torch import Tensor

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, Attentive, Processor, Request
from captioner.errors import BadInput, BadOutput
from captioner.files.atomic import replacing
from captioner.models.parts.speaker import SearchedDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
SIDE = 320  # pixels of a panel; larger pictures are drawn smaller


@compute.inference_mode()
def looked_at(
    speaker: object, image: Image, text: str, request: Request = PLAIN_REQUEST
) -> tuple[list[str], np.ndarray]:
    """The words of a text that this model wrote of this picture, and a map for each: `[words, rows, columns]`."""
    if not isinstance(speaker, SearchedDecoder) or not isinstance(speaker.model, Attentive):
        raise BadInput("This model has no attention over the picture to draw: use blip, ofa or resnet-lstm.")
    model, processor = speaker.model, speaker.beginning(request.prompt)
    ids, start = processor.encode(text), len(processor.start_ids)
    if not ids:
        raise BadInput("There is no text whose words could be drawn.")
    pixels = processor.preprocess([image]).to(model.device, model.dtype)
    maps = speaker.look(pixels, [*processor.start_ids, *ids[:-1]], request)[start - 1 :]  # the map that led to each id
    return by_word(processor, ids, maps.float().cpu().numpy())


def by_word(processor: Processor, ids: Sequence[int], maps: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Pieces of words put together: a word's map is the mean of its tokens' maps."""
    words = processor.decode(ids).split()
    ends = [len(processor.decode(ids[: n + 1]).split()) for n in range(len(ids))]  # words begun after each token
    tokens_of = [[n for n, end in enumerate(ends) if max(end, 1) == word + 1] for word in range(len(words))]
    drawn = [(word, maps[tokens].mean(0)) for word, tokens in zip(words, tokens_of, strict=True) if tokens]
    return [word for word, _ in drawn], np.stack([light for _, light in drawn])


def draw(image: Image, words: Sequence[str], maps: np.ndarray | Tensor, out: str | Path) -> None:
    """The picture, then once a word with what was looked at in the light and the rest in the dark.

    maps: `[words, rows, columns]`, any scale. An existing file is not overwritten.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise BadOutput(f"{out}: attention maps are drawn as PNG. Name a file that ends in .png.")
    if os.path.lexists(out):
        raise BadOutput(f"{out} exists. Remove it or name another file.")
    if len(words) != len(maps):
        raise ValueError(f"{len(words)} words, but {len(maps)} maps")
    figure = _figure(image, words, np.asarray(maps, dtype=np.float32))
    _save(figure, out)


def _figure(image: Image, words: Sequence[str], maps: np.ndarray) -> Figure:
    from matplotlib.figure import Figure  # who asks for the maps alone needs no matplotlib

    picture = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    width, height = picture.size
    columns = min(COLUMNS, len(words) + 1)
    rows = math.ceil((len(words) + 1) / columns)
    panel = 2.2  # inches
    figure = Figure((columns * panel, rows * (panel * height / width + 0.35)), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, title, light in zip(panels, ("", *words), (None, *maps), strict=False):
        axes.imshow(picture)
        axes.set_title(title.replace("$", r"\$"), fontsize=11)  # a bare dollar would begin a formula
        if light is not None:
            axes.imshow(_shade(light), extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bicubic")
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _shade(light: np.ndarray) -> np.ndarray:
    """Black, transparent where most was looked at: `[rows, columns, 4]`."""
    span = light.max() - light.min()
    shade = np.zeros((*light.shape, 4), dtype=np.float32)
    if span > 0:  # an even look leaves the picture as it is
        shade[..., 3] = 0.8 * (1 - (light - light.min()) / span)
    return shade


def _save(figure: Figure, out: Path) -> None:
    """Whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    try:
        with replacing(out, expected=False) as new, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
            FigureCanvasAgg(figure).print_png(str(new))
    except OSError as error:
        raise BadOutput(f"{out} cannot be written: {error.strerror or error}.") from error
