"""Figures that others have published, on their own data: for orientation only, never measured by us."""

from __future__ import annotations

from dataclasses import dataclass

NOTICE = (
    "Published by others, on other data and partly in other measures. "
    "Not measured here, and not comparable with the figures above."
)


@dataclass(frozen=True)
class Published:
    """One figure as its report gives it."""

    system: str
    what: str
    figure: str
    where: str


_COURSE = "a report of a student project on the Kaggle competition; its own test subset"
_NOTEBOOK = "a public notebook of the Kaggle competition; hidden test set"

FIGURES: tuple[Published, ...] = (
    Published("blip", "BLIP tuned on about 5 % of DiffusionDB-2M", "cosine 0.639", _COURSE + ", small"),
    Published(
        "clip-prefix",
        "CLIP ViT-B/32 → mapping transformer → GPT-2",
        "quick ratio 48 % (variance 427, max 100 %), ratio 19.5 % (96, 80 %), cosine 8.5 % (52, 70 %)",
        _COURSE + ", in its own measure",
    ),
    Published(
        "resnet-lstm-gpt2",
        "ResNet-50 → LSTM → GPT-2",
        "quick ratio 65 % (variance 281, max 85 %), ratio 13 % (79, 34 %), cosine 3 % (7, 14 %)",
        "the same report as clip-prefix, in its own measure",
    ),
    Published("resnet-lstm", "ResNet-50 → attention → LSTM, 5 % of DiffusionDB", "cosine 0.27", _COURSE),
    Published("ofa", "OFA, not tuned", "0.4264", _NOTEBOOK),
    Published("interrogator", "CLIP Interrogator", "0.45836", _NOTEBOOK),
    Published("interrogator", "CLIP Interrogator", "0.4930", "a report on an ensemble for the Kaggle competition"),
    Published("vit", "ViT-B/16 with a plain head, 10 % of DiffusionDB", "cosine 0.5364", _COURSE),
    Published("vit-large", "ViT-L, untuned → tuned", "0.4376 → 0.5409", "a report on an ensemble; 105,000 pairs"),
    Published("clip", "CLIP image tower, untuned → tuned", "0.4532 → 0.5502", "a report on an ensemble; 105,000 pairs"),
    Published("resnet152", "ResNet-152, frozen, two layers on top", "cosine 0.5317", _COURSE),
    Published("knn", "nearest neighbours with CLIP features", "0.553", "a public note of the 111th place"),
    Published("ensemble", "0.25 interrogator + 0.75 ViT", "0.53751", "a report on the Kaggle competition"),
    Published("ensemble", "tuned CLIP + tuned ViT-L + interrogator", "0.5590", "a report on the Kaggle competition"),
)
