"""How alike a picture is to those that were drawn from the models' texts of it (`redraw.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.errors import BadCheckpoint, BadInput, counted
from captioner.files.json import read_object
from eval import schema
from eval.answers import Track
from eval.gallery import TRUE_PROMPT
from eval.metrics import cosines
from eval.redraw import PLAN, Redrawn
from eval.results import Results

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from eval.clip import Clip

CELLS = 8
"""Of a colour histogram, along each of red, green and blue."""
AT_ONCE = 16
"""Pictures the network sees at a time."""


class Network:
    """The EfficientNet-Lite2 of the bundled model, as one who compares pictures."""

    def __init__(self) -> None:
        from safetensors.torch import load_file

        from captioner.models.parts.backbones import backbones
        from captioner.models.parts.backbones.efficientnet_lite import EfficientNetLite

        folder = zoo.BUNDLED / "mini"
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.backbone = backbones.from_config(config["backbone"]).eval()
        prefix = "backbone."
        weights = load_file(folder / "model.safetensors")
        self.backbone.load_state_dict(
            {name.removeprefix(prefix): weight.float() for name, weight in weights.items() if name.startswith(prefix)}
        )
        if not isinstance(self.backbone.tower, EfficientNetLite):
            raise BadCheckpoint(f"{folder} has another image network than EfficientNet-Lite.")
        self.tower = self.backbone.tower

    def maps(self, images: Sequence[Image]) -> list[Tensor]:
        """Every stage's map and the last one's, `[n, channels, height, width]` each."""
        import torch

        with torch.inference_mode():
            return list(self.tower.maps(self.backbone.preprocess(images)))

    def compare(self, picture: Image, others: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
        """The cosines of the means of the last maps `[n]`, and the distances of all maps `[n]`."""
        import torch

        angles, distances = [], []
        for start in range(0, len(others), AT_ONCE):
            maps = self.maps([picture, *others[start : start + AT_ONCE]])
            seen = maps[-1].mean((2, 3)).numpy()
            angles.append(cosines(np.repeat(seen[:1], len(seen) - 1, axis=0), seen[1:]))
            units = [torch.nn.functional.normalize(of_stage, dim=1) for of_stage in maps]
            of_stages = [(unit[1:] - unit[:1]).square().sum(1).mean((1, 2)) for unit in units]
            distances.append(torch.stack(of_stages).mean(0).numpy())
        return np.concatenate(angles), np.concatenate(distances)


def colours_in_common(a: Image, b: Image) -> float:
    """Overlap of the two colour histograms: 0 no colour in common, 1 the same share of each."""
    return float(np.minimum(_colours(a), _colours(b)).sum())


def _colours(image: Image) -> np.ndarray:
    """Share of the pixels in each cell of the RGB cube `[CELLS ** 3]`."""
    levels = np.asarray(image.convert("RGB"), dtype=np.int64).reshape(-1, 3) * CELLS // 256
    cells = levels @ np.array([CELLS * CELLS, CELLS, 1])
    return np.bincount(cells, minlength=CELLS**3) / len(cells)


def likeness(
    redrawn: Redrawn,
    picture: Callable[[int], Image],
    items: int,
    clip: Clip | None,
    track: Track,
) -> dict[str, dict[str, np.ndarray]]:
    """Label → metric → one value an item, the mean over its drawings; NaN where nothing was drawn."""
    network = Network()
    names = ["redrawn_efficientnet", "redrawn_distance", "redrawn_colour", *(["redrawn_clip"] if clip else [])]
    values = {label: {name: np.full(items, np.nan) for name in names} for label in redrawn.files}
    drawn = sorted({item for of_model in redrawn.files.values() for item in of_model})
    unreadable = 0
    for item in track(drawn, len(drawn), "likeness"):
        opened = [(label, image) for label in redrawn.files for image in redrawn.pictures(item, label)]
        unreadable += sum(image is None for _, image in opened)
        present = [(label, image) for label, image in opened if image is not None]
        if not present:
            continue
        original, images = picture(item), [image for _, image in present]
        cosine, distance = network.compare(original, images)
        measured = [cosine, distance, np.array([colours_in_common(original, image) for image in images])]
        if clip is not None:
            vectors = clip.embed_images([original, *images])
            measured.append(cosines(np.repeat(vectors[:1], len(images), axis=0), vectors[1:]))
        for label in {label for label, _ in present}:
            rows = [row for row, (of_row, _) in enumerate(present) if of_row == label]
            for name, column in zip(names, measured, strict=True):
                values[label][name][item] = column[rows].mean()
    if unreadable:
        redrawn.notes.append(f"{counted(unreadable, 'picture')} in {redrawn.folder} cannot be read: left out.")
    return values


def add_likeness(
    measured: Results, redrawn: Redrawn, picture: Callable[[int], Image], clip: Clip | None, track: Track
) -> schema.Redrawn:
    """The models' columns go into `measured`; returned is what report.json says of the drawings."""
    values = likeness(redrawn, picture, len(measured.ids), clip, track)
    nothing = np.full(len(measured.ids), np.nan)
    for name in next(iter(values.values())):
        columns = [values[model][name] if model in values else nothing for model in measured.models]
        measured.values[name] = np.stack(columns, axis=1)
    plan = redrawn.folder / PLAN
    return {
        "folder": redrawn.folder.name,
        "settings": read_object(plan, BadInput, "Draw again into another folder.") if plan.exists() else {},
        "pictures": {label: sum(map(len, of_model.values())) for label, of_model in redrawn.files.items()},
        "true_prompts": {
            name: float(np.nanmean(column))
            for name, column in values.get(TRUE_PROMPT, {}).items()
            if not np.isnan(column).all()
        },
    }
