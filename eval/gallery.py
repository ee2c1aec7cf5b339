"""The pictures of a report: the best, the worst and a random sample, each with its true prompt and every answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from captioner.errors import BadImage
from eval.parts import Parts, prompt_lengths
from eval.results import Results, row_means

if TYPE_CHECKING:
    from PIL.Image import Image

TRUE_PROMPT = "true prompt"
"""What the drawings of the true prompts are called, where those of a model are called by its label."""
THUMBNAIL = 384
SMALL_THUMBNAIL = 256
"""Of a picture drawn again: there may be one a model."""
SHOWN_SCORES = ("cosine", "levenshtein_ratio", "rouge_l", "modifier_f1", "clip_score", "clip_text")
"""Beside each text; and whatever was measured of pictures drawn again."""

OpenPicture = Callable[[int], "Image"]
"""Opens the picture of one item."""
OpenRedrawn = Callable[[int, str], "Image | None"]
"""Opens what was drawn from a model's text of one item; None: nothing was."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a data address."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """What one model said of a picture."""

    model: dict
    text: str | None
    lead: float | None
    """The leading metric's value."""
    scores: list[tuple[dict, float]]
    """(metric, value)."""
    redrawn: Thumbnail | None
    is_top: bool = False
    """Of several texts the best."""


@dataclass(frozen=True)
class Card:
    """One picture of the gallery."""

    id: str
    kinds: list[str]
    """Why it is shown."""
    truths: tuple[str, ...]
    texts: list[Answer]
    others: list[Answer]
    """What only embeds, and who did not answer."""
    redrawn_truth: Thumbnail | None
    scores: dict[str, list[float | None]]
    """Per metric one value a model."""
    words: int
    """Of the true prompt."""
    part: tuple[int, int]
    """Its source and its length among the parts of the data."""
    picture: Thumbnail | None


def choose(values: np.ndarray, count: int, seed: int) -> dict[int, list[str]]:
    """Item → why it is shown. values: one an item, the higher the better; NaN is never best or worst."""
    present = np.flatnonzero(~np.isnan(values))
    order = present[np.argsort(values[present], kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(values))[:count]
    shown: dict[int, list[str]] = {}
    for kind, items in (("best", order[::-1][:count]), ("worst", order[:count]), ("random", drawn)):
        for item in items:
            shown.setdefault(int(item), []).append(kind)
    return shown


@dataclass(frozen=True)
class Gallery:
    """All that cards are made from."""

    results: Results
    models: list[dict]
    metrics: list[dict]
    """The first one leads."""
    parts: Parts
    picture: OpenPicture | None
    redrawn: OpenRedrawn | None

    def cards(self, count: int, seed: int) -> list[Card]:
        """So many of each kind: best, worst, random, and, where any are, drawn again."""
        lead = self.metrics[0]
        values = self.results.values[lead["name"]] * (-1 if lead["higher_is_better"] is False else 1)
        shown = choose(row_means(values), count, seed)
        for item in self._drawn_again(count, seed):
            shown.setdefault(item, []).append("redrawn")
        lengths = prompt_lengths(self.results)
        return [self._card(item, kinds, int(lengths[item])) for item, kinds in shown.items()]

    def _drawn_again(self, count: int, seed: int) -> list[int]:
        """Items with a picture that was drawn again, by chance."""
        measured = [values for name, values in self.results.values.items() if name.startswith("redrawn_")]
        if self.redrawn is None or not measured:
            return []
        items = np.flatnonzero(~np.isnan(np.concatenate(measured, axis=1)).all(axis=1))
        return np.random.default_rng(seed).permutation(items)[:count].tolist()

    def _card(self, item: int, kinds: list[str], words: int) -> Card:
        columns = [self.results.models.index(model["label"]) for model in self.models]
        scores = {
            metric["name"]: [_rounded(self.results.values[metric["name"]][item, column]) for column in columns]
            for metric in self.metrics
        }
        answers = [self._answer(item, number, scores) for number in range(len(self.models))]
        texts = [answer for answer in answers if answer.text is not None]
        return Card(
            id=self.results.ids[item],
            kinds=kinds,
            truths=self.results.truths[item],
            texts=self._with_top(texts),
            others=[answer for answer in answers if answer.text is None],
            redrawn_truth=self._drawn(item, TRUE_PROMPT),
            scores=scores,
            words=words,
            part=(int(self.parts.source_of[item]), int(self.parts.length_of[item])),
            picture=_of_item(self.picture, item),
        )

    def _answer(self, item: int, number: int, scores: dict[str, list[float | None]]) -> Answer:
        model = self.models[number]
        values = [(metric, scores[metric["name"]][number]) for metric in self.metrics]
        return Answer(
            model,
            self.results.texts[model["label"]][item],
            values[0][1],
            [
                (metric, value)
                for metric, value in values
                if value is not None and (metric["name"] in SHOWN_SCORES or metric["name"].startswith("redrawn_"))
            ],
            self._drawn(item, model["label"]),
        )

    def _with_top(self, texts: list[Answer]) -> list[Answer]:
        present = [answer.lead for answer in texts if answer.lead is not None]
        if len(texts) < 2 or not present:
            return texts
        best = min(present) if self.metrics[0]["higher_is_better"] is False else max(present)
        return [replace(answer, is_top=answer.lead == best) for answer in texts]

    def _drawn(self, item: int, label: str) -> Thumbnail | None:
        image = self.redrawn(item, label) if self.redrawn is not None else None
        return _thumbnail(image, SMALL_THUMBNAIL) if image is not None else None


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _of_item(picture: OpenPicture | None, item: int) -> Thumbnail | None:
    if picture is None:
        return None
    try:
        return _thumbnail(picture(item), THUMBNAIL)
    except BadImage:
        return None  # it was there when the run began; the card stays, without it


def _thumbnail(image: Image, side: int) -> Thumbnail:
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=78)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}", *image.size)
