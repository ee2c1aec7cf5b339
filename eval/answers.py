"""What each model says to each picture: asked once, written down at once, never asked again.

`OUT/answers/<label>.jsonl` begins with a line that says which weights, data and settings it belongs to; each line after
it is one picture's answer, known by the picture's id. A run that was killed goes on with the pictures that have no
whole line yet; another model, other weights or other data start afresh.
"""

from __future__ import annotations

import base64
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from captioner.contracts import PLAIN_REQUEST, LoadOptions, Model, Request
from captioner.decoding import DecodingChanges
from captioner.errors import BadInput, BadOutput, missing_extra
from captioner.files import atomic
from captioner.images.ahead import read_ahead
from captioner.images.open import bytes_of
from captioner.models.openai import spent
from captioner.sinks.checks import explained
from captioner.sinks.journal import write_whole
from eval import baselines, tables
from eval.entries import Entry
from eval.provenance import hash_of, weights_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.text.embedding import TextEmbedder
    from eval.data import Pairs


KEPT = "What the models said so far is kept: put it right, and give the same command again."


@dataclass(frozen=True)
class Answer:
    """One picture's answer: a text, a vector, or both."""

    id: str
    text: str | None
    vector: np.ndarray
    """`[d]`: the embedding of the text, or the one predicted directly."""
    seconds: float | None
    """Time the model took for this picture; None: nobody measured."""
    precision: str | None = None
    """In which the model computed; None: nobody told."""

    def line(self) -> str:
        packed = base64.b64encode(np.asarray(self.vector, dtype="<f4").tobytes()).decode()
        about = {"id": self.id, "text": self.text, "seconds": self.seconds, "precision": self.precision}
        return json.dumps({**about, "vector": packed}) + "\n"

    @classmethod
    def parse(cls, line: str) -> Answer:
        """ValueError if the line is not a whole answer."""
        row = json.loads(line)
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kinds) for key, kinds in _KINDS.items()):
            raise ValueError("no answer")
        vector = np.frombuffer(base64.b64decode(row["vector"], validate=True), dtype="<f4")
        return cls(row["id"], row["text"], vector, row["seconds"], row.get("precision"))


_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "text": (str, type(None)),
    "seconds": (int, float, type(None)),
    "precision": (str, type(None)),
    "vector": (str,),
}


@dataclass(frozen=True)
class Settings:
    """How models are loaded and asked."""

    batch_size: int = 8
    device: str = "auto"
    precision: str = "auto"
    embedder: str | None = None

    @property
    def load_options(self) -> LoadOptions:
        return LoadOptions(device=self.device, precision=self.precision, embedder=self.embedder)


def check(entry: Entry, settings: Settings) -> None:
    """Refuse a misspelled name before any model is asked; what is wrong inside a model or a table is its row's."""
    for table in entry.tables:
        tables.check(table)
    if not entry.tables:
        baselines.check(entry.name, settings.load_options)


@dataclass
class Answered:
    """A model's row in the report."""

    entry: Entry
    answers: list[Answer] = field(default_factory=list)
    """One an item of the data, in order; empty if the model failed."""
    repeats: list[list[Answer]] = field(default_factory=list)
    """The answers of further runs: of a sampled model with other seeds, or of further tables."""
    run_names: list[str] = field(default_factory=list)
    """What the runs are called, if there are several."""
    failure: str | None = None
    traceback: str | None = None
    """Where it failed."""
    warning: str | None = None
    notes: list[str] = field(default_factory=list)
    """What was odd about its table of texts, or about the answers that were there."""
    weights: str | None = None
    """sha256 of the model's files."""
    load_seconds: float | None = None

    @property
    def runs(self) -> list[list[Answer]]:
        """The answers of every run."""
        return [self.answers, *self.repeats]

    @property
    def images_per_second(self) -> float | None:
        seconds = [answer.seconds for answer in self.answers if answer.seconds is not None]
        return len(seconds) / sum(seconds) if seconds and len(seconds) == len(self.answers) else None

    @property
    def precision(self) -> str | None:
        """In which the model computed: both, where a run began in one and went on in another."""
        return " and ".join(sorted({answer.precision for answer in self.answers if answer.precision})) or None


Step = TypeVar("Step")


class Track(Protocol):
    """Wraps a loop to show progress: told how many steps there are (None: nobody knows) and whose they are."""

    def __call__(self, steps: Iterable[Step], total: int | None, what: str, /) -> Iterable[Step]: ...


def ask(
    entry: Entry,
    pairs: Pairs,
    folder: Path,
    settings: Settings,
    embed_texts: TextEmbedder,
    track: Track,
    seeds: Sequence[int] = (),
) -> Answered:
    """All answers of one model; those already in `folder` are taken from there. A model that fails is a result, too.

    seeds: a model that samples is asked once with each of them.
    """
    answered = Answered(entry)
    try:
        if entry.tables:
            runs = [_answers_from_table(t, entry.label, pairs, embed_texts, answered.notes) for t in entry.tables]
            names = [table.stem for table in entry.tables]
        else:
            answered.weights = weights_hash(entry.name)
            runs, names = _ask_model(answered, pairs, folder, settings, embed_texts, track, seeds)
        answered.answers, *answered.repeats = runs
        answered.run_names = names if len(runs) > 1 else []
    except BadOutput:
        raise  # a disk that is full says nothing of the model
    except Exception as error:  # whatever is wrong with one model, the others still count; the report shows the reason
        answered.failure = " ".join(f"{missing_extra(error) or error or type(error).__name__}".split())[:500]
        answered.traceback = traceback.format_exc()
    asked = [] if entry.tables else [answer for run in answered.runs for answer in run]
    if broken := sum(not np.isfinite(answer.vector).all() for answer in asked):
        answered.warning = (
            f"gives {broken:,} of {len(asked):,} pictures an embedding that is no number (NaN or infinite): "
            "nothing is measured there. Its weights may be damaged."
        )
    return answered


def _ask_model(
    answered: Answered,
    pairs: Pairs,
    folder: Path,
    settings: Settings,
    embed_texts: TextEmbedder,
    track: Track,
    seeds: Sequence[int],
) -> tuple[list[list[Answer]], list[str]]:
    """The answers of each run, and what the runs are called. The model is loaded only if it is needed, and once."""
    entry = answered.entry
    loaded: list[Model] = []

    def load() -> Model:
        if not loaded:
            start = time.perf_counter()
            loaded.append(baselines.load(entry.name, settings.load_options))
            answered.load_seconds = time.perf_counter() - start
        return loaded[0]

    header = {"model": entry.name, "weights": answered.weights, "data": pairs.fingerprint, **asdict(settings)}
    if settings.embedder is not None and Path(settings.embedder).is_dir():
        header["embedder_weights"] = hash_of([Path(settings.embedder)])  # its vectors of the texts are kept, too

    def answers(seed: int | None) -> list[Answer]:
        file, begins = (folder / entry.file_name, header) if seed is None else _seeded(folder, entry, header, seed)
        asked = PLAIN_REQUEST if seed is None else Request(DecodingChanges(seed=seed))
        label = entry.label if seed is None else f"{entry.label}, seed {seed}"
        return answer_all(
            file, begins, load, pairs, settings.batch_size, embed_texts, track, label, answered.notes, asked
        )

    if len(seeds) > 1 and (_was_begun(*_seeded(folder, entry, header, seeds[0])) or _samples(load())):
        runs, names = [answers(seed) for seed in seeds], [f"seed {seed}" for seed in seeds]
    else:
        runs, names = [answers(None)], []
    answered.notes += [f"{entry.label}: {used}." for model in loaded if (used := spent(model)) is not None]
    return runs, names


def _seeded(folder: Path, entry: Entry, header: Mapping[str, object], seed: int) -> tuple[Path, dict[str, object]]:
    """Where the answers with one seed are, and how they begin."""
    return folder / Entry(f"{entry.label} seed {seed}", entry.name).file_name, {**header, "seed": seed}


def _samples(model: Model) -> bool:
    return model.speaks and model.decoding is not None and model.decoding.do_sample


def answer_all(
    file: Path,
    header: Mapping[str, object],
    load: Callable[[], Model],
    pairs: Pairs,
    batch_size: int,
    embed_texts: TextEmbedder,
    track: Track,
    label: str,
    notes: list[str],
    asked: Request = PLAIN_REQUEST,
) -> list[Answer]:
    """One answer an item, those in `file` first; the model is loaded only if some are missing."""
    ids = [item.id for item in pairs.items]
    done, damaged = _answers_in(file, header, ids)
    if damaged:
        notes.append(f"{file}: {damaged:,} lines are damaged or belong to no picture; left out, and asked again.")
    missing = [index for index, identifier in enumerate(ids) if identifier not in done]
    if not missing:
        return [done[identifier] for identifier in ids]
    # Without the line that a kill cut off, and without what is damaged.
    whole = [done[identifier].line() for identifier in ids if identifier in done]
    with explained(file, KEPT):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(header) + "\n" + "".join(whole))
    model = load()
    ahead = read_ahead(missing, lambda index, _: pairs.image(index), bytes_of)
    with closing(ahead) as opened, file.open("ab", buffering=0) as out:
        starts = range(0, len(missing), batch_size)
        for start in track(starts, len(starts), label):
            of_batch = [ids[i] for i in missing[start : start + batch_size]]
            images = list(islice(opened, len(of_batch)))
            answers = _ask_batch(model, images, of_batch, embed_texts, asked)
            with explained(file, KEPT):
                write_whole(out, "".join(answer.line() for answer in answers).encode())
            done |= {answer.id: answer for answer in answers}
    return [done[identifier] for identifier in ids]


def _ask_batch(
    model: Model, images: list[Image], ids: list[str], embed_texts: TextEmbedder, asked: Request
) -> list[Answer]:
    start = time.perf_counter()
    if not model.speaks:
        vectors = model.embed(images, batch_size=len(images))
        seconds = (time.perf_counter() - start) / len(images)
        return [Answer(id_, None, vector, seconds) for id_, vector in zip(ids, vectors, strict=True)]
    prompts = model.generate(images, asked, batch_size=len(images))
    seconds = (time.perf_counter() - start) / len(images)  # the evaluation's own embedding of texts is no part of it
    vectors = embed_texts([prompt.text for prompt in prompts])
    return [
        Answer(id_, prompt.text, vector, seconds, prompt.precision)
        for id_, prompt, vector in zip(ids, prompts, vectors, strict=True)
    ]


def _was_begun(file: Path, header: Mapping[str, object]) -> bool:
    """Do answers of an earlier run that asked the same lie here?"""
    if not file.exists():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline() == json.dumps(header) + "\n"


def _answers_in(file: Path, header: Mapping[str, object], ids: list[str]) -> tuple[dict[str, Answer], int]:
    """By id, the answers of an earlier run that asked the same; and how many lines are none of them."""
    if not _was_begun(file, header):
        return {}, 0
    _, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    known, damaged = set(ids), 0
    answers: dict[str, Answer] = {}
    for line in lines:
        if not line.endswith("\n"):
            continue  # what a kill leaves
        try:
            answer = Answer.parse(line)
        except ValueError:
            damaged += 1
            continue
        if answer.id in known and answer.id not in answers:
            answers[answer.id] = answer
        else:
            damaged += 1
    lengths = Counter(len(answer.vector) for answer in answers.values())
    whole = {i: answer for i, answer in answers.items() if len(answer.vector) == lengths.most_common(1)[0][0]}
    return whole, damaged + len(answers) - len(whole)


def _answers_from_table(
    path: Path, label: str, pairs: Pairs, embed_texts: TextEmbedder, notes: list[str]
) -> list[Answer]:
    texts: dict[str, str | None] = {}
    rows = tables.read_rows(path, ("id", "prediction"))
    for row in rows:
        texts.setdefault(row["id"] or "", row["prediction"])
    doubles = len(rows) - len(texts)
    if doubles:
        notes.append(f"{label}: {doubles:,} rows repeat an id; the first counts.")
    lookup = tables.Lookup(texts)
    names = [lookup.find(item.id) for item in pairs.items]
    if not any(name is not None for name in names):
        raise BadInput(f"{path} answers none of the pictures: its ids are others, e.g. {next(iter(texts))!r}.")
    answers = [None if name is None else texts[name] for name in names]
    vectors = embed_texts([text or "" for text in answers])
    vectors[[text is None for text in answers]] = np.nan  # not answered: missing, not 0
    return [Answer(item.id, text, v, None) for item, text, v in zip(pairs.items, answers, vectors, strict=True)]
