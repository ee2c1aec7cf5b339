"""Who is asked, and how: every model of a report about each picture once. An ensemble is made of what its members say,
which are asked as the other models are."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.contracts import PLAIN_REQUEST, LoadOptions, Model, Request
from captioner.decoding import DecodingChanges
from captioner.errors import BadInput, BadOutput, counted, missing_extra
from captioner.files.names import path_of
from captioner.models.ensemble import ensemble
from captioner.models.openai import spent
from captioner.text.embedding import unit
from eval import baselines, tables
from eval.answers import Answer, Track, answer_all, was_begun
from eval.entries import Entry, short_name
from eval.provenance import hash_of, weights_hash

if TYPE_CHECKING:
    from captioner.models.ensemble.ensemble import Member
    from captioner.text.embedding import TextEmbedder
    from eval.data import Pairs


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


@dataclass
class Asker:
    """Asks the models of one report, each about each picture once: an ensemble is made of its members' answers."""

    entries: Sequence[Entry]
    pairs: Pairs
    folder: Path
    """Where answers are kept."""
    settings: Settings
    embed_texts: TextEmbedder
    track: Track
    asked: dict[tuple[Entry, tuple[int, ...]], Answered] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What was odd about any answer, each once."""
        return list(dict.fromkeys(note for answered in self.asked.values() for note in answered.notes))

    def ask(self, entry: Entry, seeds: Sequence[int] = ()) -> Answered:
        """All answers of one model; those that are kept are taken from there. A model that fails is a result, too.

        seeds: a model that samples is asked once with each of them.
        """
        key = (entry, tuple(seeds))
        if key not in self.asked:
            self.asked[key] = self._ask(entry, seeds)
        return self.asked[key]

    def _ask(self, entry: Entry, seeds: Sequence[int]) -> Answered:
        answered = Answered(entry)
        try:
            if entry.tables:
                table = partial(_answers_from_table, entry.label, self.pairs, self.embed_texts, answered.notes)
                runs, names = [*map(table, entry.tables)], [table.stem for table in entry.tables]
            else:
                answered.weights = weights_hash(entry.name)
                is_ensemble = baselines.is_ensemble(entry.name)
                runs, names = ([self._mixed(answered)], []) if is_ensemble else self._ask_model(answered, seeds)
            answered.answers, *answered.repeats = runs
            answered.run_names = names if len(runs) > 1 else []
        except BadOutput:
            raise  # a disk that is full says nothing of the model
        except Exception as error:  # whatever is wrong with one model, the others still count; the report shows why
            answered.failure = " ".join(f"{missing_extra(error) or error or type(error).__name__}".split())[:500]
            answered.traceback = traceback.format_exc()
        asked = [] if entry.tables else [answer for run in answered.runs for answer in run]
        if broken := sum(not np.isfinite(answer.vector).all() for answer in asked):
            answered.warning = (
                f"gives {broken:,} of {len(asked):,} pictures an embedding that is no number (NaN or infinite): "
                "nothing is measured there. Its weights may be damaged."
            )
        return answered

    def _mixed(self, answered: Answered) -> list[Answer]:
        """What an ensemble says: the weighted sum of what its members say."""
        members, by_norm = ensemble.read(path_of(answered.entry.name))
        of_members = [self.ask(self._entry_of(member)) for member in members]
        for one in of_members:
            if one.failure is not None:
                raise BadInput(f"Its member {one.entry.name} fails: {one.failure}")
        loading = [one.load_seconds for one in of_members if one.load_seconds is not None]
        answered.load_seconds = sum(loading) if loading else None
        given = [np.stack([answer.whole for answer in one.answers]) for one in of_members]
        vectors = ensemble.weighted_sum(members, ensemble.scaled(members, given, by_norm))
        times = [[answer.seconds for answer in one.answers] for one in of_members]
        return [
            Answer(item.id, None, vector, None if None in seconds else sum(seconds), length=float(length))
            for item, vector, length, seconds in zip(
                self.pairs.items, unit(vectors), np.linalg.norm(vectors, axis=1), zip(*times, strict=True), strict=True
            )
        ]

    def _entry_of(self, member: Member) -> Entry:
        """The entry of this report, or of a member before, that is this model; or one of its own."""
        name = member.model + (baselines.EXPECTED if member.expected else "")
        known = [*self.entries, *(entry for entry, _ in self.asked)]
        same = [entry for entry in known if baselines.absolute(entry.name) == baselines.absolute(name)]
        labels = {entry.label for entry in known}
        free = (label for label in (short_name(name), name, f"member {name}") if label not in labels)
        return same[0] if same else Entry(next(free), name)

    def _ask_model(self, answered: Answered, seeds: Sequence[int]) -> tuple[list[list[Answer]], list[str]]:
        """The answers of each run, and what the runs are called. The model is loaded only if it is needed, and once."""
        entry, settings = answered.entry, self.settings
        loaded: list[Model] = []

        def load() -> Model:
            if not loaded:
                start = time.perf_counter()
                loaded.append(baselines.load(entry.name, settings.load_options))
                answered.load_seconds = time.perf_counter() - start
            return loaded[0]

        header = {"model": entry.name, "weights": answered.weights, "data": self.pairs.fingerprint, **asdict(settings)}
        if settings.embedder is not None and Path(settings.embedder).is_dir():
            header["embedder_weights"] = hash_of([Path(settings.embedder)])  # its vectors of the texts are kept, too

        def answers(seed: int | None) -> list[Answer]:
            file, begins = self.folder / entry.file_name, header
            if seed is not None:
                file, begins = _seeded(self.folder, entry, header, seed)
            return answer_all(
                file,
                begins,
                load,
                self.pairs,
                settings.batch_size,
                self.embed_texts,
                self.track,
                entry.label if seed is None else f"{entry.label}, seed {seed}",
                answered.notes,
                PLAIN_REQUEST if seed is None else Request(DecodingChanges(seed=seed)),
            )

        if len(seeds) > 1 and (was_begun(*_seeded(self.folder, entry, header, seeds[0])) or _samples(load())):
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


def _answers_from_table(
    label: str, pairs: Pairs, embed_texts: TextEmbedder, notes: list[str], path: Path
) -> list[Answer]:
    texts: dict[str, str | None] = {}
    rows = tables.read_rows(path, ("id", "prediction"))
    for row in rows:
        texts.setdefault(row["id"] or "", row["prediction"])
    doubles = len(rows) - len(texts)
    if doubles:
        notes.append(f"{label}: {counted(doubles, 'row')} with the id of another; the first counts.")
    lookup = tables.Lookup(texts)
    names = [lookup.find(item.id) for item in pairs.items]
    if not any(name is not None for name in names):
        raise BadInput(f"{path} answers none of the pictures: its ids are others, e.g. {next(iter(texts))!r}.")
    answers = [None if name is None else texts[name] for name in names]
    vectors = embed_texts([text or "" for text in answers])
    vectors[[text is None for text in answers]] = np.nan  # not answered: missing, not 0
    return [Answer(item.id, text, v, None) for item, text, v in zip(pairs.items, answers, vectors, strict=True)]
