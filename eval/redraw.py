"""`python -m eval redraw`: what each model's text of a picture draws; `likeness.py` compares it with the picture.

`redraw` draws the texts of a report into a folder, `Redrawn.find` reads such a folder, or one that was drawn elsewhere.
In it is one folder a model, called as the report calls it, and in that one picture an id, `LABEL/ID.png`; further ones
of the same text are `LABEL/ID~2.png`, `LABEL/ID~3.png` …
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from captioner.errors import BadImage, BadInput, counted
from captioner.images import EXTENSIONS, open_image
from eval import store, tables
from eval.entries import mark_of, safe_name
from eval.gallery import TRUE_PROMPT
from eval.results import Results

if TYPE_CHECKING:
    from PIL.Image import Image

    from training.data.drawing import Drawing

PLAN = "redrawn.json"
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
    if silent := [model for model in models if not any(text is not None for text in texts[model])]:
        raise BadInput(f"The report holds no text of {silent[0]!r}, so there is nothing to draw: leave it out.")
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
                f"{counted(stale, 'picture')} in {folder} left out, drawn from other texts than the models say now. "
                "`python -m eval redraw` draws what is missing."
            )
        return cls(folder, files, notes)

    def pictures(self, item: int, label: str) -> Iterator[Image | None]:
        """What was drawn from what this model said of this picture; None for what cannot be read."""
        return map(_open, self.files.get(label, {}).get(item, ()))

    def picture(self, item: int, label: str) -> Image | None:
        """The first of these, if there is any."""
        return next(self.pictures(item, label), None)


def _drawn_texts(folder: Path) -> dict[Path, str]:
    from training.data.drawing import drawn_lines

    return {folder / str(line["file_name"]): str(line.get("text")) for line in drawn_lines(folder)}


def _nothing_found(folder: Path, speaking: Sequence[str], identifiers: Sequence[str], stale: int) -> str:
    if not speaking:
        return f"No model says any text, so nothing in {folder} can have been drawn from one. Leave out --redrawn."
    if stale:
        return f"{folder} has {counted(stale, 'picture')}, drawn from other texts. Draw again: `python -m eval redraw`."
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


def _open(file: Path) -> Image | None:
    try:
        return open_image(file)
    except BadImage:
        return None  # the caller counts it
