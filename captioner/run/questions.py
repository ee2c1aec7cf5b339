"""What is asked about each picture of a run: its prompt, or its embedding. Rows for the sinks come out.

The model is loaded with the first picture that needs it: not for a list of broken files, nor where every picture
carries its own prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

from captioner import __version__, zoo
from captioner.contracts import (
    TAG_KINDS,
    TERM_KINDS,
    LoadOptions,
    MetadataUse,
    Request,
    Speaker,
    check_kinds,
    check_plain,
)
from captioner.errors import BadAnswer, BadImage, BadInput, refuse_idle
from captioner.images import Source
from captioner.images.fetch import in_thread
from captioner.images.metadata import read_parameters
from captioner.run import templates
from captioner.run.batch import Asked
from captioner.sinks import Row, Settings, given
from captioner.text.syntax import without_syntax

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from captioner.models.interrogator.interrogator import Interrogator
    from captioner.models.knn.knn import Knn
    from captioner.models.tagger import Tagger
    from captioner.pipeline import Captioner, DirectEmbedder
    from captioner.prompt import Prompt
    from captioner.text.finish import Finish

BATCH = 8
BATCH_ON_GPU = 64
"""Pictures at a time where nothing else is said; a run halves it when memory does not suffice."""
DIGITS = 4
"""Of a cosine; the vectors of terms are kept in half precision."""
RANKERS = {"interrogator": ("terms", "similarity", TERM_KINDS), "tagger": ("tags", "probability", TAG_KINDS)}
"""The architectures that rank terms: a row's column of them, what they are ranked by, and their kinds."""
_RESOLVING = Lock()
"""A model may have to be fetched, once."""


@dataclass
class Model:
    """A model to be loaded when it is first asked."""

    name: str | None
    """None: the default, which is looked for once, so that a run is of the model that its settings name."""
    options: LoadOptions
    _found: zoo.Resolved | None = field(default=None, init=False, repr=False)

    def label(self) -> str:
        """What it is called, loaded or not."""
        if self.name is None:
            self.name = zoo.default()
        return self.name

    def settings(self, request: Request) -> Settings:
        """What its answers depend on, for a run that is resumed; where it computes is not among it."""
        asked = given(request.decoding) | {name: getattr(request, name) for name in request.given()}
        options = given(replace(self.options, device="auto"))
        return {"captioner": __version__, "model": zoo.absolute(self.label()), **options, **asked}

    @cached_property
    def loaded(self) -> Captioner | DirectEmbedder:
        from captioner.pipeline import load

        return load(self.label(), self.options)

    def batch_size(self) -> int:
        """Pictures at a time: as many as pay, or as fit into memory."""
        if self.is_remote:
            return BATCH  # requests at once; whose memory it is, the server knows
        size = self._resolved.bytes_of_weights  # before the import, which takes seconds
        from captioner import compute

        where = compute.device(self.options.device)
        most = BATCH if where.type == "cpu" else BATCH_ON_GPU
        return compute.fits(size, where, most)

    def at_once(self) -> int:
        """Batches that may be asked about side by side; few models say that it may be more than one."""
        return getattr(self._speaker, "at_once", 1)

    def open(self, source: Source, max_pixels: int, whole: bool = False) -> Image:
        """The picture, as small as the model needs it; once that is loaded, as it reads it, where it can say so.

        whole: not cut or squashed.
        """
        image = source.open(max_pixels, self.side)
        ready = getattr(self._speaker, "ready", None)
        if whole or ready is None:
            return image
        try:
            return ready(image)
        except MemoryError:  # the model will try it, and a run then goes on with smaller batches
            return image

    @property
    def _speaker(self) -> Speaker | None:
        """What speaks, if it is loaded."""
        return self.loaded.speaker if "loaded" in self.__dict__ else None

    @property
    def is_remote(self) -> bool:
        """A server runs it, which answers many requests at once."""
        return self.label().startswith(zoo.SERVER)

    @property
    def side(self) -> int | None:
        """Pixels a side that it reads of a picture, loaded or not."""
        return self._resolved.side

    @property
    def module(self) -> str:
        """Its architecture, as `zoo` calls it."""
        return self._resolved.module

    @property
    def _resolved(self) -> zoo.Resolved:
        with _RESOLVING:  # `side` is asked in threads
            self._found = self._found or zoo.resolve(self.label())
        return self._found

    def check(self, request: Request, speaks: bool) -> None:
        """Refuse what can be told to be wrong before it is loaded: where others will, elsewhere."""
        from captioner.pipeline import check

        check(self.label(), self.options, request, speaks)

    def remarks(self) -> Iterator[str]:
        """What is told at the end of a run: what a server has counted, where one was asked."""
        if "loaded" not in self.__dict__ or "captioner.models.openai" not in sys.modules:
            return  # a run that asks no server never loads what speaks with one
        from captioner.models.openai import spent

        if used := spent(self.loaded):
            yield used


@dataclass
class Prompts:
    """`captioner generate`: the prompt that could have made a picture, or the one it carries."""

    model: Model
    request: Request
    finish: Finish
    metadata: MetadataUse
    max_pixels: int
    embed: bool = False
    attention: Path | None = None
    """Where to draw what the model looked at; for a single picture."""

    def __post_init__(self) -> None:
        self.request.decoding.check()
        self.request, self.varies = templates.parse(self.request)
        self.finish, self.dresses = templates.parse(self.finish)
        self._idle: Sequence[str] | None = None
        """What of `replace` no text had a use for; None before the first."""
        if self.attention is not None and self.metadata != "ignore":
            raise BadInput("attention is about what the model says: leave out metadata.")
        check_plain(self.finish.plain, self.metadata)
        if self.metadata == "only":
            refuse_idle(self._of_a_model(), "by metadata only no model is asked.")
        if self.model.options.embedder is not None and not (self.embed or self.finish.consensus):
            refuse_idle(["embedder"], "set embed or consensus.")

    def _of_a_model(self) -> list[str]:
        """What was said that only a model has a use for; forbidden words leave a carried prompt, too."""
        loading = given(replace(self.model.options, embedder=None))
        consensus = [] if self.finish.consensus is None else ["consensus"]
        return sorted({*loading, *consensus, *self.request.named()} - {"forbid"})

    @property
    def settings(self) -> Settings:
        asked = {} if self.metadata == "only" else self.model.settings(self.request)
        return {"metadata": self.metadata, **asked, **given(self.finish)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a row, beside the picture's name."""
        return (*COLUMNS, "embedding") if self.embed else COLUMNS

    def check(self) -> None:
        """As `Model.check`, where it is asked."""
        if self.metadata != "only":
            self.model.check(self.request, speaks=True)

    def look(self, source: Source) -> Asked | Row:
        finish = templates.filled(self.finish, source) if self.dresses else None
        if self.metadata != "ignore":
            carried = read_parameters(source.content(), source.title)
            if carried is not None and carried.prompt:
                return row_of_carried(carried.prompt, finish or self.finish)
            if self.metadata == "only":
                raise BadImage(f"{source.title} carries no prompt. Set metadata to first, and a model is asked.")
        whole = self.attention is not None  # which is drawn on it
        open_picture = partial(self.model.open, max_pixels=self.max_pixels, whole=whole)
        return opened(source, open_picture, self.request, self.varies, finish)

    def batch_size(self) -> int:
        return BATCH if self.metadata == "only" else self.model.batch_size()

    def at_once(self) -> int:
        return 1 if self.metadata == "only" else self.model.at_once()

    def answer(self, looks: list[Asked | Row]) -> list[Row | BadAnswer]:
        asked = [look for look in looks if not isinstance(look, dict)]
        answers = iter(grouped(asked, self._generate, at_once=self.model.is_remote) if asked else ())
        rows = [look if isinstance(look, dict) else next(answers) for look in looks]
        for raw in [row["raw"] for row in rows if isinstance(row, dict)]:
            self._idle = self.finish.idle(raw, self.finish.replace if self._idle is None else self._idle)
        if self.embed:
            from captioner.text.embedding import text_embedder

            texts = [row["text"] for row in rows if isinstance(row, dict)]
            vectors = iter(text_embedder(self.model.options.embedder)(texts))
            rows = [row | {"embedding": as_numbers(next(vectors))} if isinstance(row, dict) else row for row in rows]
        return rows

    def remarks(self) -> Iterator[str]:
        """As `Model.remarks`, and what was never replaced."""
        yield from self.model.remarks()
        if self._idle:
            yield f"replace found {', '.join(one.rpartition('=')[0] for one in self._idle)} in no text"

    def _generate(self, looks: list[Asked]) -> list[Row]:
        from captioner.pipeline import NO_TEXT, Captioner

        model, request = self.model.loaded, looks[0].request
        if not isinstance(model, Captioner):
            raise BadInput(NO_TEXT.format(model.name))
        readings = list(model.readings([look.image for look in looks], request, len(looks)))
        prompts = model.prompts(readings, [look.finish or self.finish for look in looks])
        if self.attention is not None:
            self._draw(looks[0].image, prompts[0].raw, request, self.attention)
        return [row_of(prompt) for prompt in prompts]

    def _draw(self, image: Image, raw: str, request: Request, out: Path) -> None:
        from captioner.run import attention_map

        words, maps = attention_map.looked_at(self.model.loaded.speaker, image, raw, request)
        attention_map.draw(image, words, maps, out)


COLUMNS = ("text", "score", "model", "precision", "source", "raw", "candidates")
"""Of a row of `Prompts`, whether a model or the picture itself says it."""


def row_of(prompt: Prompt) -> Row:
    """What a model says of a picture."""
    listed = [asdict(candidate) for candidate in prompt.candidates]
    return {
        "text": prompt.text,
        "score": prompt.score,
        "model": prompt.model,
        "precision": prompt.precision,
        "source": prompt.source,
        "raw": prompt.raw,
        "candidates": listed,
    }


def row_of_carried(carried: str, finish: Finish) -> Row:
    """The prompt that a picture carries; its brackets are as its author meant them, where they are not taken out."""
    said = without_syntax(carried) if finish.plain else carried
    text = replace(finish, clean=False, escape=finish.escape and finish.plain).text(said)
    row = {"text": text, "score": None, "model": None, "precision": None, "source": "metadata", "raw": carried}
    return row | {"candidates": []}


@dataclass
class Embeddings:
    """`captioner embed`: a picture's unit vector."""

    model: Model
    request: Request
    max_pixels: int
    expected: bool = False

    def __post_init__(self) -> None:
        self.request.decoding.check()
        self.request, self.varies = templates.parse(self.request)

    @property
    def settings(self) -> Settings:
        return {**self.model.settings(self.request), "expected": self.expected}

    @property
    def columns(self) -> tuple[str, ...]:
        """As of `Prompts`."""
        return ("embedding",)

    def check(self) -> None:
        """As `Model.check`."""
        self.model.check(self.request, speaks=False)

    def look(self, source: Source) -> Asked:
        return opened(source, partial(self.model.open, max_pixels=self.max_pixels), self.request, self.varies)

    def batch_size(self) -> int:
        return self.model.batch_size()

    def at_once(self) -> int:
        return self.model.at_once()

    def answer(self, looks: list[Asked]) -> list[Row | BadAnswer]:
        return grouped(looks, self._embed, at_once=self.model.is_remote)

    def _embed(self, looks: list[Asked]) -> list[Row]:
        images = [look.image for look in looks]
        vectors = self.model.loaded.embed(images, looks[0].request, len(looks), self.expected)
        return [{"embedding": as_numbers(vector)} for vector in vectors]


def opened(
    source: Source,
    open_picture: Callable[[Source], Image],
    request: Request,
    varies: bool,
    finish: Finish | None = None,
) -> Asked:
    """The picture, what is asked about it (varies: that depends on it), and how its text is finished."""
    if varies:
        request = templates.filled(request, source)  # before the picture, which takes room
    return Asked(open_picture(source), request, finish)


def grouped(looks: Sequence[Asked], ask: Callable[[list[Asked]], list[Row]], at_once: bool) -> list[Row | BadAnswer]:
    """A row for each picture; those of which the same is asked are asked about together.

    at_once: a thread for each group. What a model says of a picture that is asked about alone stands in its place.
    """
    groups_of: dict[Request, list[int]] = {}
    for index, look in enumerate(looks):
        groups_of.setdefault(look.request, []).append(index)

    def answers(indices: list[int]) -> list[Row | BadAnswer]:
        try:
            return [*ask([looks[index] for index in indices])]
        except BadAnswer as error:
            if len(indices) > 1:
                raise
            return [error]

    rows: list[Row | BadAnswer] = [{}] * len(looks)
    if at_once and len(groups_of) > 1:
        waiting = [in_thread(partial(answers, indices)) for indices in groups_of.values()]
        answered: Iterable[list[Row | BadAnswer]] = [future.result() for future in waiting]
    else:
        answered = map(answers, groups_of.values())
    for indices, of_group in zip(groups_of.values(), answered, strict=True):
        for index, row in zip(indices, of_group, strict=True):
            rows[index] = row
    return rows


class Metadata:
    """`captioner read`: the generation parameters a picture carries."""

    def look(self, source: Source) -> Row:
        parameters = read_parameters(source.content(), source.title)
        if parameters is None:
            raise BadImage(f"{source.title} carries no generation parameters.")
        return parameters.to_dict()

    def batch_size(self) -> int:
        return 1

    def at_once(self) -> int:
        return 1

    def answer(self, looks: list[Row]) -> list[Row]:
        return looks


@dataclass
class Neighbours:
    """`captioner similar`: the reference pictures that look most like a picture."""

    index: Path
    count: int

    def __post_init__(self) -> None:
        zoo.check_index(self.index)  # before a picture is looked for

    def look(self, source: Source) -> Image:
        return source.open()

    def batch_size(self) -> int:
        return BATCH

    def at_once(self) -> int:
        return 1

    def answer(self, looks: list[Image]) -> list[Row]:
        return [{"similar": [asdict(one) for one in near]} for near in self.model.similar(looks, self.count)]

    @cached_property
    def model(self) -> Knn:
        from captioner.models.knn import knn

        return knn.load(self.index, LoadOptions())


@dataclass
class NearestTerms:
    """`captioner terms rank`: the terms that lie nearest to a picture, of every kind."""

    model: Model
    """The interrogator, or a tagger, whose terms are its tags."""
    terms: tuple[Path, ...] | None
    kinds: tuple[str, ...]
    count: int
    max_pixels: int

    def __post_init__(self) -> None:
        self.model.check(Request(terms=self.terms), speaks=True)
        if self.model.module not in RANKERS:
            raise BadInput(f"{self.model.label()} ranks no terms: name the interrogator or a tagger.")
        self.column, self.measure, known = RANKERS[self.model.module]
        check_kinds(self.kinds, known)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a row, beside the picture's name."""
        return (self.column,)

    @property
    def settings(self) -> Settings:
        asked = self.model.settings(Request(terms=self.terms))
        return {**asked, "kind": self.kinds or None, "count": self.count}

    def look(self, source: Source) -> Image:
        return self.model.open(source, self.max_pixels)

    def batch_size(self) -> int:
        return self.model.batch_size()

    def at_once(self) -> int:
        return 1

    def answer(self, looks: list[Image]) -> list[Row]:
        ranker = cast("Interrogator | Tagger", self.model.loaded.speaker)
        own = {} if self.terms is None else {"terms": self.terms}
        analyses = ranker.analyze(looks, self.count, self.kinds, **own)
        return [{self.column: list(self._ranked(analysis))} for analysis in analyses]

    def _ranked(self, analysis: dict[str, dict[str, float]]) -> Iterator[Row]:
        for kind, terms in analysis.items():
            for term, number in terms.items():
                yield {"kind": kind, "term": term, self.measure: round(number, DIGITS)}


def as_numbers(vector: np.ndarray) -> list[float]:
    """The shortest decimals that give the same float32 back."""
    return [float(str(number)) for number in vector]
