"""`python -m eval redraw`: what a picture's text draws, beside the picture; and how alike the two are.

`redraw` draws each model's texts of a report into a folder, `Redrawn.find` reads such a folder, or one that was drawn
elsewhere, and `likeness` compares. In the folder is one folder a model, called as the report calls it, and in it one
picture an id, `LABEL/ID.png`; further ones of the same text are `LABEL/ID~2.png`, `LABEL/ID~3.png` …
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.errors import BadCheckpoint, BadImage, BadInput
from captioner.files.json import read_object
from captioner.images import EXTENSIONS, open_image
from eval import schema, store, tables
from eval.answers import Track, mark_of, safe_name
from eval.gallery import TRUE_PROMPT
from eval.metrics import cosines
from eval.results import Results

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from eval.clip import Clip
    from training.data.drawing import Drawing

PLAN = "redrawn.json"
CELLS = 8
"""Of a colour histogram, along each of red, green and blue."""
AT_ONCE = 16
"""Pictures the network sees at a time."""
_PLAIN = re.compile(r"[\w(][\w.,+()=@ -]{0,118}[\w)]|\w")
_LATER = re.compile(r"~\d+$")


@dataclass(frozen=True)
class Drawn:
    """What a run has left."""

    pictures: int
    blacked_out: int
    """By the pipeline's safety checker."""


def redraw(
    report: Path,
    out: Path,
    drawing: Drawing,
    *,
    models: Sequence[str] = (),
    per_prompt: int = 1,
    limit: int | None = None,
    true_prompts: bool = False,
    seed: int = 0,
) -> Drawn:
    """Draw what each model said of each picture; what is drawn already stays.

    The texts of one picture all begin with the same noise, so that models differ by their texts alone. limit: only so
    many pictures of the report, drawn by chance; more of them begin with the same ones.
    """
    from training.data.drawing import Job, draw_missing

    about, results = store.load(report)
    if not any(text is not None for texts in results.texts.values() for text in texts):
        raise BadInput(
            f"{report} holds no texts: they were left out (--figures-only), or none of its models says any. "
            "Make a report with the texts in it."
        )
    if unknown := [model for model in models if model not in results.models]:
        raise BadInput(f"The report has no model {unknown[0]!r}: it has {', '.join(results.models)}.")
    texts = {model: results.texts[model] for model in models or results.models}
    if true_prompts:
        if TRUE_PROMPT in texts:
            raise BadInput(f"A model is called {TRUE_PROMPT!r}, as the true prompts are: give it another label.")
        texts[TRUE_PROMPT] = [truths[0] if truths else None for truths in results.truths]
    items = list(range(len(results.ids)))
    random.Random(seed).shuffle(items)
    names = picture_names(results.ids)
    jobs = [
        Job(
            f"{folder_name(label)}/{names[item]}{'' if number == 0 else f'~{number + 1}'}.png",
            text,
            _seed(seed, results.ids[item], number),
            {"id": results.ids[item], "label": label, "model": drawing.model},
        )
        for item in items[:limit]
        for label, of_model in texts.items()
        for number in range(per_prompt)
        if (text := of_model[item]) is not None
    ]
    settings = {
        "data": about["data"].get("fingerprint"),
        "model": drawing.model,
        "steps": drawing.steps,
        "size": drawing.size,
        "save_size": drawing.save_size,
        "guidance": drawing.guidance,
        "seed": seed,
    }
    blacked_out = draw_missing(out, PLAN, settings, jobs, drawing)
    return Drawn(sum((out / job.file_name).is_file() for job in jobs), blacked_out)


def _seed(seed: int, identifier: str, number: int) -> int:
    """The same for every model, and whatever else is drawn."""
    digest = hashlib.sha256(repr((seed, identifier, number)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


# --- the folder ------------------------------------------------------------------------------------------------------


def folder_name(label: str) -> str:
    """Where a model's pictures are: its label, if that can be a file's name."""
    return label if _PLAIN.fullmatch(label) else safe_name(label).lstrip(".")


def picture_names(identifiers: Sequence[str]) -> list[str]:
    """Where each id's picture is, without its ending: the id itself as a path, if it can be one."""
    names = ["/".join(map(folder_name, _parts(identifier))) for identifier in identifiers]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name}-{mark_of(identifier)}"
        for name, identifier in zip(names, identifiers, strict=True)
    ]


def _parts(identifier: str) -> tuple[str, ...]:
    path = PurePosixPath(identifier)
    return (path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path).parts or ("",)


@dataclass(frozen=True)
class Redrawn:
    """Pictures that were drawn again."""

    folder: Path
    files: dict[str, dict[int, list[Path]]]
    """Per model (and `TRUE_PROMPT`) and item; of each item at least one."""
    notes: list[str]

    @classmethod
    def find(cls, folder: Path, results: Results) -> Redrawn:
        """Of this folder, what belongs to these models and pictures. A picture of another text than the model's is
        left out, where the folder says what it was drawn from."""
        texts = _drawn_texts(folder)
        speaking = [model for model, of_model in results.texts.items() if any(text is not None for text in of_model)]
        wanted = {model: results.texts[model] for model in speaking}
        wanted[TRUE_PROMPT] = [truths[0] if truths else None for truths in results.truths]
        files: dict[str, dict[int, list[Path]]] = {}
        stale = 0
        for label, of_model in wanted.items():
            here = folder / folder_name(label)
            if not here.is_dir() and speaking == [label]:
                here = folder  # a single model needs no folder of its own
            pictures = _pictures_of(here, results.ids) if here.is_dir() else {}
            for item, of_item in pictures.items():
                current = [file for file in of_item if texts.get(file, of_model[item]) == of_model[item]]
                stale += len(of_item) - len(current)
                if current and of_model[item] is not None:
                    files.setdefault(label, {})[item] = current
        if not files:
            raise BadInput(_nothing_found(folder, speaking, results.ids, stale))
        notes = []
        if stale:
            notes.append(
                f"{stale:,} pictures in {folder} were drawn from other texts than the models say now: left out. "
                "`python -m eval redraw` draws what is missing."
            )
        return cls(folder, files, notes)

    def picture(self, item: int, label: str) -> Image | None:
        """The first one that was drawn from what this model said of this picture, if there is any."""
        files = self.files.get(label, {}).get(item)
        return _open(files[0]) if files else None


def _drawn_texts(folder: Path) -> dict[Path, str]:
    from training.data.drawing import drawn_lines

    return {folder / str(line["file_name"]): str(line.get("text")) for line in drawn_lines(folder)}


def _nothing_found(folder: Path, speaking: Sequence[str], identifiers: Sequence[str], stale: int) -> str:
    if not speaking:
        return f"No model says any text, so nothing in {folder} can have been drawn from one. Leave out --redrawn."
    if stale:
        return f"All {stale:,} pictures in {folder} were drawn from other texts. Draw again: `python -m eval redraw`."
    example = f"{folder_name(speaking[0])}/{picture_names(identifiers[:1])[0]}.png"
    return f"{folder} has no picture that belongs to a model and a picture of this data. They are called {example}."


def _pictures_of(folder: Path, identifiers: Sequence[str]) -> dict[int, list[Path]]:
    """Item → its pictures."""
    from captioner.pairs.layouts import pictures_in

    by_name: dict[str, list[Path]] = {}
    for file in pictures_in(folder):
        name = _LATER.sub("", file.relative_to(folder).with_suffix("").as_posix())
        by_name.setdefault(name, []).append(file)
    lookup = tables.Lookup(dict.fromkeys(by_name))
    names = [
        name if name in by_name else lookup.find(identifier)
        for name, identifier in zip(picture_names(identifiers), identifiers, strict=True)
    ]
    count = Counter(names)  # where one picture would be that of two, it is not clear whose it is
    return {item: by_name[name] for item, name in enumerate(names) if name is not None and count[name] == 1}


# --- likeness --------------------------------------------------------------------------------------------------------


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
        opened = [
            (label, image) for label, of_model in redrawn.files.items() for image in map(_open, of_model.get(item, ()))
        ]
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
        redrawn.notes.append(f"{unreadable:,} pictures in {redrawn.folder} cannot be read: left out.")
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


def _open(file: Path) -> Image | None:
    try:
        return open_image(file)
    except BadImage:
        return None  # the caller counts it
