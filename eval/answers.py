"""What each model says to each picture: asked once, written down at once, never asked again.

`OUT/answers/<label>.jsonl` begins with a line that says which weights, data and settings it belongs to; each line after
it is one picture's answer, known by the picture's id. A run that was killed goes on with the pictures that have no
whole line yet; another model, other weights or other data start afresh.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner import zoo
from captioner.contracts import LoadOptions, Model
from captioner.errors import BadInput
from captioner.files import atomic
from eval import baselines, tables
from eval.provenance import weights_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.text.embedding import TextEmbedder
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
        """ValueError if the line is not a whole answer."""
        row = json.loads(line)
        kinds = {"id": str, "text": (str, type(None)), "seconds": (int, float, type(None)), "vector": str}
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            raise ValueError("no answer")
        vector = np.frombuffer(base64.b64decode(row["vector"], validate=True), dtype="<f4")
        return cls(row["id"], row["text"], vector, row["seconds"])


@dataclass(frozen=True)
class Request:
    """One entry of `--models`: `name`, or `label=name`; a table (id, prediction) brings texts from elsewhere."""

    label: str
    name: str

    @classmethod
    def parse(cls, entry: str) -> Request:
        label, separator, name = entry.partition("=")
        is_whole = not separator or Path(entry).exists() or entry.startswith(zoo.SERVER)  # an address may hold a "="
        return cls(short_name(entry), entry) if is_whole else cls(label, name)

    @property
    def file_name(self) -> str:
        """Safe as a file name, and no two labels share one."""
        readable = re.sub(r"[^\w.-]+", "_", self.label)[-60:]
        return f"{readable}-{hashlib.sha256(self.label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}.jsonl"


def requests(entries: Iterable[str]) -> list[Request]:
    """The models to ask. Those that would have one label, like two folders of one name, are called by their paths."""
    parsed = [Request.parse(entry) for entry in entries]
    if not parsed:
        raise BadInput("No model: name at least one, e.g. --models mini.")
    count = Counter(request.label for request in parsed)
    parsed = [
        Request(request.name, request.name)
        if count[request.label] > 1 and request.label == short_name(request.name)
        else request
        for request in parsed
    ]
    count = Counter(request.label for request in parsed)
    if doubles := sorted(label for label in count if count[label] > 1):
        raise BadInput(f"Two models are called {doubles[0]!r}: give one another label, e.g. --models second=NAME.")
    return parsed


def short_name(name: str) -> str:
    """What a model is called if nobody says: a path by its last part, everything else by its whole name."""
    if (index := baselines.index_of(name)) is not None:
        return f"{name.partition(':')[0]} {short_name(str(index))}"
    if name.endswith(baselines.EXPECTED):
        return f"{short_name(name.removesuffix(baselines.EXPECTED))} expected"
    path = Path(name).expanduser()
    if not path.exists() and not name.startswith(("/", ".", "~")):
        return name
    path = path.resolve()
    return (path.stem if path.is_file() or tables.is_table(name) else path.name) or name


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
    warning: str | None = None
    notes: list[str] = field(default_factory=list)
    """What was odd about its table of texts, or about the answers that were there."""
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

    def load() -> Model:
        start = time.perf_counter()
        options = LoadOptions(device=settings.device, precision=settings.precision, embedder=settings.embedder)
        model = baselines.load(request.name, options)
        answered.load_seconds = time.perf_counter() - start
        return model

    try:
        if tables.is_table(request.name):
            answered.answers = _answers_from_table(request, pairs, embed_texts, answered.notes)
            return answered
        answered.weights = weights_hash(request.name)
        header = {"model": request.name, "weights": answered.weights, "data": pairs.fingerprint, **asdict(settings)}
        file = folder / request.file_name
        batch = settings.batch_size
        answered.answers = answer_all(
            file, header, load, pairs, batch, embed_texts, track, request.label, answered.notes
        )
    except Exception as error:  # whatever is wrong with one model, the others still count; the report shows the reason
        answered.failure = " ".join(f"{error or type(error).__name__}".split())[:500]
    if broken := sum(not np.isfinite(answer.vector).all() for answer in answered.answers):
        answered.warning = (
            f"gives {broken:,} of {len(answered.answers):,} pictures an embedding that is no number (NaN or infinite): "
            "nothing is measured there. Its weights may be damaged."
        )
    return answered


def answer_all(
    file: Path,
    header: dict,
    load: Callable[[], Model],
    pairs: Pairs,
    batch_size: int,
    embed_texts: TextEmbedder,
    track: Track,
    label: str,
    notes: list[str],
) -> list[Answer]:
    """One answer an item, those in `file` first; the model is loaded only if some are missing."""
    ids = [item.id for item in pairs.items]
    done, damaged = _answers_in(file, header, ids)
    if damaged:
        notes.append(f"{file}: {damaged:,} lines are damaged or belong to no picture; left out, and asked again.")
    missing = [index for index, identifier in enumerate(ids) if identifier not in done]
    if not missing:
        return [done[identifier] for identifier in ids]
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the line that a kill cut off, and without what is damaged.
    whole = [done[identifier].line() for identifier in ids if identifier in done]
    atomic.write_text(file, json.dumps(header) + "\n" + "".join(whole))
    model = load()
    with file.open("a", encoding="utf-8") as out:
        starts = range(0, len(missing), batch_size)
        for start in track(starts, len(starts), label):
            batch = missing[start : start + batch_size]
            answers = _ask_batch(model, [pairs.image(i) for i in batch], [ids[i] for i in batch], embed_texts)
            out.write("".join(answer.line() for answer in answers))
            out.flush()
            done |= {answer.id: answer for answer in answers}
    return [done[identifier] for identifier in ids]


def _ask_batch(model: Model, images: list[Image], ids: list[str], embed_texts: TextEmbedder) -> list[Answer]:
    start = time.perf_counter()
    if model.speaks:
        texts = [prompt.text for prompt in model.generate(images, batch_size=len(images))]
        seconds = time.perf_counter() - start  # the evaluation's own embedding of texts is no part of it
        vectors = embed_texts(texts)
    else:
        texts, vectors = [None] * len(images), model.embed(images, batch_size=len(images))
        seconds = time.perf_counter() - start
    return [Answer(i, text, vector, seconds / len(images)) for i, text, vector in zip(ids, texts, vectors, strict=True)]


def _answers_in(file: Path, header: dict, ids: list[str]) -> tuple[dict[str, Answer], int]:
    """By id, the answers of an earlier run that asked the same; and how many lines are none of them."""
    if not file.exists():
        return {}, 0
    first, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
    if first != json.dumps(header) + "\n":
        return {}, 0
    known, found, damaged = set(ids), {}, 0
    for line in lines:
        if not line.endswith("\n"):
            continue  # what a kill leaves
        try:
            answer = Answer.parse(line)
        except ValueError:
            damaged += 1
            continue
        if answer.id in known and answer.id not in found:
            found[answer.id] = answer
        else:
            damaged += 1
    lengths = Counter(len(answer.vector) for answer in found.values())
    whole = {i: answer for i, answer in found.items() if len(answer.vector) == lengths.most_common(1)[0][0]}
    return whole, damaged + len(found) - len(whole)


def _answers_from_table(request: Request, pairs: Pairs, embed_texts: TextEmbedder, notes: list[str]) -> list[Answer]:
    path = Path(request.name).expanduser()
    texts: dict[str, str | None] = {}
    rows = tables.read_rows(path, ("id", "prediction"))
    for row in rows:
        texts.setdefault(row["id"] or "", row["prediction"])
    doubles = len(rows) - len(texts)
    if doubles:
        notes.append(f"{request.label}: {doubles:,} rows repeat an id; the first counts.")
    lookup = tables.Lookup(texts)
    names = [lookup.find(item.id) for item in pairs.items]
    if not any(name is not None for name in names):
        raise BadInput(f"{path} answers none of the pictures: its ids are others, e.g. {next(iter(texts))!r}.")
    answers = [None if name is None else texts[name] for name in names]
    vectors = embed_texts([text or "" for text in answers])
    vectors[[text is None for text in answers]] = np.nan  # not answered: missing, not 0
    return [Answer(item.id, text, v, None) for item, text, v in zip(pairs.items, answers, vectors, strict=True)]
