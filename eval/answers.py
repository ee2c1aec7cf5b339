"""What each model says to each picture: asked once, written down at once, never asked again.

`OUT/answers/<label>.jsonl` begins with a line that says which weights, data and settings it belongs to; each line after
it is one picture's answer. A run that was killed goes on after the last whole line; another model, other weights or
other data start afresh.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from eval import baselines
from eval.provenance import weights_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.embedding import TextEmbedder
    from captioner.pipeline import Captioner, DirectEmbedder
    from eval.data import Pairs


@dataclass(frozen=True)
class Answer:
    """One picture's answer: a text, a vector, or both."""

    id: str
    text: str | None
    vector: np.ndarray
    """`[d]`: the embedding of the text, or the one predicted directly."""
    seconds: float | None
    """Time the model took for this picture; None: nobody measured."""

    def line(self) -> str:
        packed = base64.b64encode(np.asarray(self.vector, dtype="<f4").tobytes()).decode()
        return json.dumps({"id": self.id, "text": self.text, "seconds": self.seconds, "vector": packed}) + "\n"

    @classmethod
    def parse(cls, line: str) -> Answer:
        row = json.loads(line)
        vector = np.frombuffer(base64.b64decode(row["vector"]), dtype="<f4")
        return cls(row["id"], row["text"], vector, row["seconds"])


@dataclass(frozen=True)
class Request:
    """One entry of `--models`: `name`, or `label=name`; a .csv brings texts (columns id, prediction) from elsewhere."""

    label: str
    name: str

    @classmethod
    def parse(cls, entry: str) -> Request:
        label, separator, name = entry.partition("=")
        return cls(label, name) if separator else cls(entry, entry)

    @property
    def file_name(self) -> str:
        """Safe as a file name, and no two labels share one."""
        readable = re.sub(r"[^\w.-]+", "_", self.label)[-60:]
        return f"{readable}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}.jsonl"


@dataclass(frozen=True)
class Settings:
    """How models are loaded and asked."""

    batch_size: int = 8
    device: str = "auto"
    precision: str = "auto"
    embedder: str | None = None


@dataclass
class Answered:
    """A model's row in the report."""

    request: Request
    answers: list[Answer] = field(default_factory=list)
    """One an item of the data, in order; empty if the model failed."""
    failure: str | None = None
    weights: str | None = None
    """sha256 of the model's files."""
    load_seconds: float | None = None

    @property
    def images_per_second(self) -> float | None:
        seconds = [answer.seconds for answer in self.answers]
        return len(seconds) / sum(seconds) if seconds and None not in seconds else None


Track = Callable[[Iterable[int], int, str], Iterable[int]]
"""Wraps a loop to show progress: told how many steps there are and whose they are."""


def ask(
    request: Request, pairs: Pairs, folder: Path, settings: Settings, embed_texts: TextEmbedder, track: Track
) -> Answered:
    """All answers of one model; those already in `folder` are taken from there. A model that fails is a result, too."""
    answered = Answered(request)

    def load() -> Captioner | DirectEmbedder:
        import captioner

        start = time.perf_counter()
        options = LoadOptions(device=settings.device, precision=settings.precision)
        load_any = captioner.load if baselines.index_of(request.name) is None else baselines.load
        model = load_any(request.name, options)
        answered.load_seconds = time.perf_counter() - start
        return model

    try:
        if request.name.endswith(".csv"):
            answered.answers = _answers_from_table(request, pairs, embed_texts)
        else:
            answered.weights = weights_hash(request.name)
            header = {"model": request.name, "weights": answered.weights, "data": pairs.fingerprint, **asdict(settings)}
            file = folder / request.file_name
            answered.answers = answer_all(file, header, load, pairs, settings.batch_size, embed_texts, track)
    except Exception as error:  # whatever is wrong with one model, the others still count; the report shows the reason
        answered.failure = " ".join(f"{error or type(error).__name__}".split())[:500]
    return answered


def answer_all(
    file: Path,
    header: dict,
    load: Callable[[], Captioner | DirectEmbedder],
    pairs: Pairs,
    batch_size: int,
    embed_texts: TextEmbedder,
    track: Track,
) -> list[Answer]:
    """One answer an item, those in `file` first; the model is loaded only if some are missing."""
    ids = [item.id for item in pairs.items]
    done = _answers_in(file, header)
    if len(done) == len(ids):
        return done
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")  # without the line that a kill cut off
    beside.write_text("".join([json.dumps(header) + "\n", *(answer.line() for answer in done)]), encoding="utf-8")
    beside.replace(file)
    model = load()
    with file.open("a", encoding="utf-8") as out:
        starts = range(len(done), len(ids), batch_size)
        for start in track(starts, len(starts), file.stem):
            batch = range(start, min(start + batch_size, len(ids)))
            answers = _ask_batch(model, [pairs.image(i) for i in batch], [ids[i] for i in batch], embed_texts)
            out.write("".join(answer.line() for answer in answers))
            out.flush()
            done += answers
    return done


def _ask_batch(model, images: list[Image], ids: list[str], embed_texts: TextEmbedder) -> list[Answer]:
    start = time.perf_counter()
    if model.speaks:
        texts = [prompt.text for prompt in model.generate(images, batch_size=len(images))]
    else:
        texts, vectors = [None] * len(images), model.embed(images, batch_size=len(images))
    seconds = (time.perf_counter() - start) / len(images)
    if model.speaks:
        vectors = embed_texts(texts)
    return [Answer(i, text, vector, seconds) for i, text, vector in zip(ids, texts, vectors, strict=True)]


def _answers_in(file: Path, header: dict) -> list[Answer]:
    """The whole lines of an earlier run that asked the same."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if not lines or lines[0] != json.dumps(header) + "\n":
        return []
    return [Answer.parse(line) for line in lines[1:] if line.endswith("\n")]


def _answers_from_table(request: Request, pairs: Pairs, embed_texts: TextEmbedder) -> list[Answer]:
    path = Path(request.name)
    if not path.exists():
        raise BadInput(f"There is no {path}.")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"id", "prediction"} <= set(rows.fieldnames or ()):
            raise BadInput(f"{path} needs the columns id and prediction; it has {', '.join(rows.fieldnames or ())}.")
        said = {row["id"]: row["prediction"] for row in rows}
    if not any(item.id in said for item in pairs.items):
        raise BadInput(f"{path} answers none of the pictures: its ids are others, e.g. {next(iter(said), 'none')!r}.")
    texts = [said.get(item.id) for item in pairs.items]
    vectors = embed_texts([text or "" for text in texts])
    vectors[[text is None for text in texts]] = np.nan  # not answered: missing, not 0
    return [Answer(item.id, text, v, None) for item, text, v in zip(pairs.items, texts, vectors, strict=True)]
