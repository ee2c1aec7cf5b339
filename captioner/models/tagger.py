"""Booru taggers (WD14, WD v3): a graph that gives every tag of a list its probability → comma tags.

A checkpoint is `model.onnx` and `selected_tags.csv` (tag_id, name, category, count; a row for each output). The graph
reads pictures `[n, side, side, 3]`, each on a white square, BGR, 0..255, and gives probabilities `[n, tags]`. The
published weights were not run here; what is tested is their format.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from captioner import compute, zoo
from captioner.contracts import PLAIN_REQUEST, TAG_KINDS, LoadOptions, Place, Request, check_kinds
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, one_line
from captioner.files.weights import TAGGER
from captioner.prompt import Candidate, Reading
from captioner.terms import tag_text
from captioner.text.words import holds

THRESHOLD, CHARACTER_THRESHOLD = 0.35, 0.85
"""The least probability of a tag that is written, and of a character's name: those of SmilingWolf's own page."""
RATING, CHARACTER = "9", "4"
"""Categories; every other is general."""
LARGEST, MOST = 4096, 256
"""Pixels a side, and pictures at once, that a graph may want."""


@dataclass(frozen=True)
class Tag:
    """What an output of the graph stands for."""

    name: str
    category: str

    @property
    def text(self) -> str:
        """As it is written in a prompt."""
        return tag_text(self.name)

    @property
    def kind(self) -> str:
        """One of `TAG_KINDS`."""
        return {RATING: "ratings", CHARACTER: "characters"}.get(self.category, "general")


class Tagger:
    """The tags whose probability reaches its threshold, those of characters first, the likeliest first."""

    uses = zoo.asked_with("tagger")
    longest = None

    def __init__(
        self, session: onnxruntime.InferenceSession, tags: Sequence[Tag], load_again: Callable[[], Tagger]
    ) -> None:
        self.session = session
        self.tags = tags
        self.load_again = load_again
        [pixels] = session.get_inputs()
        self.input = pixels.name
        self.side: int = pixels.shape[1]
        self.batch: int | None = pixels.shape[0] if _is_size(pixels.shape[0], MOST) else None
        """Pictures that the graph reads at once, where it says how many."""

    def __reduce__(self) -> tuple:
        """onnxruntime copies and pickles no session: a copy, or one in another process, is read from the files anew."""
        return self.load_again, ()

    def ready(self, image: Image.Image) -> Image.Image:
        """On a white square of the size that the graph reads."""
        if image.size == (self.side, self.side):
            return image
        image = image.reduce(max(1, max(image.size) // (4 * self.side)))  # the square around a long strip is large
        longest = max(image.size)
        square = Image.new("RGB", (longest, longest), "white")
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return square.resize((self.side, self.side), Image.Resampling.BICUBIC)

    def read_images(
        self, images: Sequence[Image.Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        thresholds = self._thresholds(request)
        rows = self._probabilities(images)
        return [Reading((self._candidate(row, thresholds, decoding.forbid, request.rating),)) for row in rows]

    def analyze(
        self, images: Sequence[Image.Image], count: int = 5, kinds: Sequence[str] = ()
    ) -> list[dict[str, dict[str, float]]]:
        """For each picture the likeliest tags of these kinds, or of all `TAG_KINDS`, with their probabilities, the
        likeliest first."""
        check_kinds(kinds, TAG_KINDS)
        return [self._likeliest(row, count, kinds or TAG_KINDS) for row in self._probabilities(images)]

    def _likeliest(self, row: np.ndarray, count: int, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {kind: {} for kind in TAG_KINDS if kind in kinds}
        for index in np.argsort(-row, kind="stable"):
            tag = self.tags[index]
            if len(of_kind := found.get(tag.kind, {})) < count:
                of_kind[tag.text] = float(row[index])
        return found

    def _thresholds(self, request: Request) -> np.ndarray:
        """`[tags]`; ratings are written in another way."""
        general = THRESHOLD if request.threshold is None else request.threshold
        character = CHARACTER_THRESHOLD if request.character_threshold is None else request.character_threshold
        special = {RATING: math.inf, CHARACTER: character}
        return np.array([special.get(tag.category, general) for tag in self.tags])

    def _probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """`[n, tags]`; of a graph that reads so many at once, the last are filled up."""
        pixels = np.stack([np.asarray(self.ready(image), np.float32)[..., ::-1] for image in images])
        size = self.batch or len(pixels)
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        rows = [self._run(np.pad(part, [(0, size - len(part)), *[(0, 0)] * 3]))[: len(part)] for part in parts]
        return np.clip(np.nan_to_num(np.concatenate(rows)), 0, 1)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        try:
            given = self.session.run(None, {self.input: pixels})[0]
        except Exception as error:  # onnxruntime's have no class in common
            if "alloc" in str(error):
                raise MemoryError(_reason(error)) from error
            raise BadCheckpoint(f"The tagger's {TAGGER[0]} cannot be run ({_reason(error)}).") from error
        if given.shape != (len(pixels), len(self.tags)):
            raise BadCheckpoint(f"The tagger's {TAGGER[0]} gives no number for each picture and tag ({given.shape}).")
        return given

    def _candidate(
        self, row: np.ndarray, thresholds: np.ndarray, forbid: Sequence[str], rating: Place | None
    ) -> Candidate:
        """The score is the log of the tags' mean probability, the rating's not among them; where there are none, of
        how unlikely each tag is."""
        order = np.argsort(-row, kind="stable")
        likely = order[row[order] >= thresholds[order]]
        chosen = [index for index in likely if not any(holds(self.tags[index].text, word) for word in forbid)]
        chosen.sort(key=lambda index: self.tags[index].category != CHARACTER)
        mean = row[chosen].mean() if chosen else 1 - row[np.isfinite(thresholds)].max()
        texts = [self.tags[index].text for index in chosen]
        if rating is not None:
            likeliest = [name for name in self._likeliest(row, 1, ["ratings"])["ratings"] if name not in forbid]
            texts = likeliest + texts if rating == "first" else texts + likeliest
        return Candidate(", ".join(texts), math.log(max(float(mean), sys.float_info.min)))


# --- loading ----------------------------------------------------------------------------------------------------------


def load(folder: Path, options: LoadOptions) -> Tagger:
    """A folder with the graph and the list of its tags."""
    if options.precision != "fp32":
        raise BadInput("A tagger computes in fp32: leave precision out, or name another model.")
    if missing := [name for name in TAGGER if not (folder / name).is_file()]:
        command = f"hf download ORG/NAME {' '.join(TAGGER)}"
        raise BadCheckpoint(f"{folder} has no {' and no '.join(missing)}. Fetch what a tagger is made of: {command}")
    tags = read_tags(folder / TAGGER[1])
    session = _session(folder / TAGGER[0], options.device)
    _check_graph(session, len(tags))
    return Tagger(session, tags, partial(load, folder, options))


def read_tags(file: Path) -> list[Tag]:
    """The tags of a list, in the order of the graph's outputs."""
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""), strict=True))
        tags = [Tag(row["name"].strip(), row["category"].strip()) for row in rows]
    except (OSError, ValueError, csv.Error, KeyError, AttributeError) as error:  # None, where a row is too short
        reason = one_line(error) if isinstance(error, OSError | ValueError | csv.Error) else "a row lacks its tag"
        raise BadCheckpoint(f"{file} is no list of tags ({reason}). Fetch it again.") from error
    if not any(tag.category != RATING for tag in tags):
        raise BadCheckpoint(f"{file} names no tag. Fetch it again.")
    return tags


def _session(file: Path, device: str) -> onnxruntime.InferenceSession:
    where = compute.device(device)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it keeps others from the cores
    settings.log_severity_level = 4  # what is wrong is raised, too
    providers: list[Any] = ["CPUExecutionProvider"]
    if where.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": where.index or 0}))
    try:
        # Since 1.25 it reads no file outside the graph's folder; Python 3.10 has 1.23 at most.
        session = onnxruntime.InferenceSession(file, settings, providers)
    except Exception as error:  # onnxruntime's have no class in common
        raise BadCheckpoint(f"{file} is no graph that can be run ({_reason(error)}). Fetch it again.") from error
    if device != "auto" and where.type != "cpu" and session.get_providers()[0] == "CPUExecutionProvider":
        raise BadInput(f"The onnxruntime that is installed computes on no {where.type}: install another, or use cpu.")
    return session


def _reason(error: Exception) -> str:
    """onnxruntime's words without the class and number before them."""
    return one_line(str(error).rpartition(" : ")[2])


def _check_graph(session: onnxruntime.InferenceSession, tags: int) -> None:
    """Refuse a graph of another kind."""
    inputs = session.get_inputs()
    kinds = [(pixels.type, len(pixels.shape), *pixels.shape[3:]) for pixels in inputs]
    sides = {side for pixels in inputs for side in pixels.shape[1:3]}
    if kinds != [("tensor(float)", 4, 3)] or len(sides) != 1 or not all(_is_size(side, LARGEST) for side in sides):
        shapes = " and ".join(str(pixels.shape) for pixels in inputs)
        raise BadCheckpoint(f"No tagger's {TAGGER[0]}: it reads {shapes}, not pictures [n, side, side, 3].")
    output = session.get_outputs()[0]
    if output.type != "tensor(float)" or len(output.shape) != 2:
        raise BadCheckpoint(f"No tagger's {TAGGER[0]}: it gives {output.shape}, not probabilities [n, tags].")
    width = output.shape[1]  # which a graph may leave open
    if isinstance(width, int) and width != tags:
        raise BadCheckpoint(
            f"{TAGGER[0]} gives {width:,} numbers a picture, and {TAGGER[1]} names {tags:,} tags: fetch both again "
            "from one place."
        )


def _is_size(size: Any, most: int) -> bool:
    """A number that is reasonable; what a graph leaves open is a name, or None."""
    return isinstance(size, int) and 0 < size <= most
