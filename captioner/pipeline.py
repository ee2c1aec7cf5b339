"""Images → candidates → cleaned → best → Prompt (+ embedding): what `captioner.load` returns.

import captioner
for prompt in captioner.load("mini").generate(["cat.png", "dog.jpg"]):
    print(prompt.text, prompt.embedding.shape)
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import RLock
from types import ModuleType, NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard, cast, overload

import numpy as np
from PIL.Image import Image

from captioner import memory, openmp, zoo
from captioner.contracts import (
    PLAIN_REQUEST,
    Finishing,
    ImageEmbedder,
    LoadOptions,
    Request,
    Speaker,
    check_names,
    check_precision,
)
from captioner.decoding import Decoding, DecodingChanges, check_whole
from captioner.errors import BadCheckpoint, BadInput, counted, refuse_idle
from captioner.files.json import read_object
from captioner.images import open_image
from captioner.images.open import AnyImage, is_readable
from captioner.prompt import Candidate, Prompt, Reading
from captioner.styles import STYLES
from captioner.text import consensus
from captioner.text.finish import Finish
from captioner.text.terms import read_terms

if TYPE_CHECKING:
    from captioner.text.embedding import TextEmbedder


class Captioner:
    """A model that speaks: pictures in, prompts out."""

    speaks = True

    def __init__(
        self,
        name: str,
        speaker: Speaker,
        embed_texts: TextEmbedder,
        decoding: Decoding | None,
        consensus: bool = False,
        predicts: bool = True,
        precision: str | None = None,
        side: int | None = None,
    ) -> None:
        self.name = name
        self.speaker = speaker
        self.embed_texts = embed_texts
        self.judge: TextEmbedder = LazyEmbedder(None, "fp16")
        """MiniLM in half the memory, where a text is only chosen by it."""
        self.decoding = decoding
        """The model's own default settings; None: it does not search."""
        self.consensus = consensus
        self.predicts = predicts
        """Texts are embedded in the space of the model's own predictions, where it has any."""
        self.precision = precision
        """What it computes in; None: a server knows."""
        self.side = side
        """Pixels a side that it reads of a picture, where that is known (see `open_image`)."""

    def __repr__(self) -> str:
        return f"<Captioner {self.name}{', ' if self.precision else ''}{self.precision or ''}>"

    @overload
    def generate(
        self, images: AnyImage, request: Request | None = None, finish: Finishing | None = None, **settings: Any
    ) -> Prompt: ...

    @overload
    def generate(
        self,
        images: Iterable[AnyImage],
        request: Request | None = None,
        finish: Finishing | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> list[Prompt]: ...

    def generate(
        self,
        images: AnyImage | Iterable[AnyImage],
        request: Request | None = None,
        finish: Finishing | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> Prompt | list[Prompt]:
        """One prompt per image, in order; for one image alone, its prompt.

        Images are paths, PIL images, arrays, bytes or open files. Settings are fields of `Request` and of its
        `decoding`: `generate("cat.png", num_beams=2, prompt="a painting of")`. finish: trigger words, lengths and the
        like, `finish=captioner.Finish(prefix="sks style")`. batch_size: images that the model is asked about at once.
        """
        finish, request = _finish(finish), _request(request).changed(**settings)
        batches = self._readings(several(images), request, batch_size)
        prompts = [prompt for readings in batches for prompt in self.prompts(readings, [finish] * len(readings))]
        return prompts[0] if is_one(images) else prompts

    def readings(
        self, images: Iterable[AnyImage], request: Request = PLAIN_REQUEST, batch_size: int = 8
    ) -> Iterator[Reading]:
        """What the model itself says, uncleaned: all candidates of every image, in order."""
        return chain.from_iterable(self._readings(several(images), request, batch_size))

    def _readings(self, images: Iterable[AnyImage], request: Request, batch_size: int) -> Iterator[list[Reading]]:
        decoding = self.settings(request)
        for batch in _batches(images, batch_size, self.side):
            readings = self.speaker.read_images(batch, decoding, request)
            if len(readings) != len(batch):  # of a speaker of one's own: no telling whose they are
                raise BadInput(
                    f"{self.name} gave {counted(len(readings), 'reading')} of {counted(len(batch), 'picture')}: "
                    "read_images returns one for each, in order."
                )
            yield readings

    def settings(self, request: Request) -> Decoding:
        """How a request is searched for; what this model has no use for is refused by name."""
        _refuse(self.name, request.given() - self.speaker.uses)
        if self.decoding is None:
            _refuse_search(self.name, request)
        decoding = self.decoding or Decoding()
        if request.style is not None:
            longest = max(decoding.max_new_tokens, STYLES[request.style].max_new_tokens)
            decoding = replace(decoding, max_new_tokens=longest)
        return request.decoding.over(decoding)

    def prompt(self, reading: Reading, finish: Finishing) -> Prompt:
        """Clean the candidates, drop doubles, choose the best."""
        return self.prompts([reading], [finish])[0]

    def prompts(self, readings: Sequence[Reading], finishes: Sequence[Finishing]) -> list[Prompt]:
        """As `prompt`, each as it is to be finished; what has to be embedded to choose is embedded together."""
        cleaned = list(map(_Cleaned.of, readings, finishes))
        contenders = list(map(self._contenders, cleaned, finishes))
        best = map(self._best, cleaned, contenders, self._embedded(cleaned, contenders))
        return list(map(self._prompt, cleaned, best, finishes))

    def _prompt(self, cleaned: _Cleaned, best: int, finish: Finishing) -> Prompt:
        best_first = [cleaned.candidates[best], *cleaned.candidates[:best], *cleaned.candidates[best + 1 :]]
        candidates: dict[str, Candidate] = {}  # by text: where terms are replaced, two may have become one
        for candidate in best_first:
            candidates.setdefault(text := finish.dress(candidate.text), replace(candidate, text=text))
        chosen, *_ = candidates.values()
        return Prompt(
            text=chosen.text,
            score=chosen.score,
            candidates=tuple(candidates.values()),
            model=self.name,
            precision=self.precision,
            raw=cleaned.reading.candidates[cleaned.indices[best]].text,
            embed=self.embed_texts,
        )

    def _contenders(self, cleaned: _Cleaned, finish: Finishing) -> list[int]:
        """The candidates that may be the best, as far as can be told without embedding them; one alone is chosen."""
        by_consensus = self.consensus if finish.consensus is None else finish.consensus
        if not by_consensus or len(cleaned.candidates) == 1:
            return [0]
        reading = cleaned.reading
        if reading.gists is None:
            return list(range(len(cleaned.candidates)))
        nearest = consensus.order(reading.gists[cleaned.indices], cleaned.scores, reading.embedding)
        # Where they cannot be compared with what was predicted, the gist decides: to embed takes as long as to read.
        to_compare = reading.embedding is not None and self.predicts and reading.shortlist >= 2
        return nearest[: reading.shortlist] if to_compare else nearest[:1]

    def _embedded(self, cleaned: Sequence[_Cleaned], contenders: Sequence[list[int]]) -> list[np.ndarray]:
        """For each picture, its contenders' vectors; none of one alone."""
        counts = [len(indices) if len(indices) > 1 else 0 for indices in contenders]
        texts = [
            one.candidates[index].text
            for one, indices, count in zip(cleaned, contenders, counts, strict=True)
            for index in indices[:count]
        ]
        embed = self.embed_texts if any(one.reading.gists is None for one in cleaned) else self.judge
        vectors = embed(texts) if texts else np.empty((0, 0), np.float32)
        ends = np.cumsum(counts)
        return [vectors[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def _best(self, cleaned: _Cleaned, contenders: list[int], vectors: np.ndarray) -> int:
        """The index of the best candidate."""
        reading = cleaned.reading
        if len(contenders) == 1:
            return contenders[0]
        if reading.gists is None:
            return consensus.choose(vectors, cleaned.scores, self._predicted(reading))
        assert reading.embedding is not None, "contenders are compared with it"
        return contenders[int(np.argmax(vectors @ reading.embedding))]

    def _predicted(self, reading: Reading) -> np.ndarray | None:
        """What the model predicts from the pixels, where that can be compared with embedded texts."""
        return reading.embedding if self.predicts else None

    def embed(
        self,
        images: AnyImage | Iterable[AnyImage],
        request: Request | None = None,
        batch_size: int = 8,
        expected: bool = False,
        **settings: Any,
    ) -> np.ndarray:
        """Unit vectors `[n, d]` of the prompts (`[d]` of one image alone); expected: of all candidates and what was
        predicted from the pixels. Settings are as in `generate`."""
        request = _request(request).changed(**settings)
        if expected:
            self.check_expected(request)
            finish = Finish(consensus=False)
            readings = self.readings(several(images), request, batch_size)
            expectations = [self.expected(reading, finish) for reading in readings]
            vectors = np.stack(expectations) if expectations else self.embed_texts([])
        else:
            prompts = self.generate(several(images), request, batch_size=batch_size)
            vectors = self.embed_texts([prompt.text for prompt in prompts])
        return vectors[0] if is_one(images) else vectors

    def vectors(self, images: Iterable[AnyImage]) -> np.ndarray:
        """As `embed`: a text's vector does not tell how sure the model is."""
        pictures = list(several(images))
        return self.embed(pictures, batch_size=max(1, len(pictures)))

    def check_expected(self, request: Request) -> None:
        """Refuse an expected embedding of one text alone: neither of several, nor of what was predicted as well."""
        predicted = self.predicts and getattr(self.speaker, "predicts", False)
        if not predicted and self.settings(request).num_return_sequences == 1:
            remedy = "Leave" if self.decoding is None else "Raise num_candidates, or leave"
            refuse_idle(["expected"], f"{self.name} gives one candidate. {remedy} it out.")

    def expected(self, reading: Reading, finish: Finishing) -> np.ndarray:
        """The mean of all that a reading says, weighted by probability, and of what was predicted, `[d]`, length 1."""
        candidates = self.prompt(reading, finish).candidates
        vectors = self.embed_texts([candidate.text for candidate in candidates])
        scores = [candidate.score for candidate in candidates]
        return consensus.expected_embedding(vectors, scores, self._predicted(reading), weight=consensus.PREDICTED)


@dataclass(frozen=True)
class _Cleaned:
    """A reading's candidates, cleaned, each once."""

    reading: Reading
    candidates: list[Candidate]
    indices: list[int]
    """Where each stands in the reading."""

    @classmethod
    def of(cls, reading: Reading, finish: Finishing) -> _Cleaned:
        indices: dict[str, int] = {}  # cleaned text → its first candidate
        for index, candidate in enumerate(reading.candidates):
            indices.setdefault(finish.body(candidate.text, candidate.finished), index)
        cleaned = [replace(reading.candidates[index], text=text) for text, index in indices.items()]
        return cls(reading, cleaned, list(indices.values()))

    @property
    def scores(self) -> list[float]:
        return [candidate.score for candidate in self.candidates]


class DirectEmbedder:
    """A model that does not speak: pictures in, unit vectors out."""

    speaks = False
    speaker = None
    decoding = None
    precision = None

    def __init__(self, name: str, embedder: ImageEmbedder) -> None:
        self.name = name
        self.embedder = embedder

    def __repr__(self) -> str:
        return f"<DirectEmbedder {self.name}>"

    def generate(self, *asked: Any, **settings: Any) -> NoReturn:
        """It has no text to give."""
        raise BadInput(NO_TEXT.format(self.name))

    def embed(
        self,
        images: AnyImage | Iterable[AnyImage],
        request: Request | None = None,
        batch_size: int = 8,
        expected: bool = False,
        **settings: Any,
    ) -> np.ndarray:
        """Unit vectors `[n, d]`, or `[d]` of one image alone. It has no use for settings."""
        if expected:
            raise BadInput(f"{self.name} gives embeddings at once and has no candidates to take the mean of.")
        _refuse(self.name, _request(request).changed(**settings).named())
        batches = _batches(several(images), batch_size)
        vectors = np.concatenate(_some([self.embedder.embed_images(batch) for batch in batches]))
        return vectors[0] if is_one(images) else vectors

    def vectors(self, images: Iterable[AnyImage]) -> np.ndarray:
        """As `embed`, but longer where the model is surer."""
        return self.embedder.vectors(_some([open_image(image, copied=False) for image in several(images)]))


def load(
    name: str | os.PathLike[str] | None = None, options: LoadOptions | None = None, **settings: Any
) -> Captioner | DirectEmbedder:
    """Load a model by what --model of the command line takes: a zoo name, a folder, a Hub id or `openai:ADDRESS#NAME`;
    None: the default. Settings are the fields of `LoadOptions`: `load("runs/my-model", device="cpu")`."""
    if not isinstance(options, LoadOptions | None):
        raise BadInput(f"options must be a LoadOptions, not {type(options).__name__}: or name its fields one by one.")
    if not isinstance(name, str | os.PathLike | None):
        raise BadInput(f"A model is called by its name or folder, not by {type(name).__name__}.")
    check_names(settings, LoadOptions)
    loader = _Loader(replace(options or LoadOptions(), **settings))
    with openmp.set_meanwhile():
        return loader.load(zoo.default() if name is None else os.fspath(name), ())


def check(name: str, options: LoadOptions, request: Request, speaks: bool) -> None:
    """Refuse what can be told to be wrong before anything is loaded or fetched; loading and asking say the rest.

    speaks: a text is wanted.
    """
    resolved = zoo.at_hand(name)
    check_precision(options.precision)
    if resolved is None or resolved.module == "ensemble":
        return
    if not resolved.speaks:
        if speaks:
            raise BadInput(NO_TEXT.format(resolved.name))
        _refuse(resolved.name, request.named())
        return
    _refuse(resolved.name, _Loader(options).given - zoo.LOADS_WITH.get(resolved.module, frozenset()))
    _refuse(resolved.name, request.given() - zoo.asked_with(resolved.module))
    for file in request.terms or ():
        read_terms(file)
    if resolved.module in zoo.UNSEARCHED:
        _refuse_search(resolved.name, request)
    elif resolved.folder is not None and resolved.module not in DEFAULTS_OF_THEIR_OWN:
        request.decoding.over(replace(_defaults(resolved.folder, {})[0], max_new_tokens=sys.maxsize))


DEFAULTS_OF_THEIR_OWN = frozenset({"hub", "ofa", "openai", "interrogator"})
"""Architectures whose search settings are not those of the checkpoint's decoding.json alone."""
NO_TEXT = "{} gives embeddings, not text: use `captioner embed`."


_ONE_AT_A_TIME = RLock()
"""transformers changes what belongs to the whole process while it loads: of two threads both failed."""


class _Loader:
    """Loads a model and those that it is made of: each once, and none as a part of itself."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.given = {name for names in zoo.LOADS_WITH.values() for name in names if getattr(options, name)}
        """The options that not every model has a use for."""
        self.loaded: dict[zoo.Resolved, Captioner | DirectEmbedder] = {}

    def load(self, name: str, inside: tuple[zoo.Resolved, ...]) -> Captioner | DirectEmbedder:
        """inside: the models that this one is a part of, outermost first."""
        resolved = zoo.resolve(name)
        if resolved in inside:
            raise BadInput(f"{resolved.name} is a part of itself. Take it out of {inside[-1].name}.")
        if resolved not in self.loaded:
            whole = (*inside, resolved)
            if "ensemble" not in _modules(whole) and resolved.module != "interrogator":  # its captioner is loaded later
                self._check_options(resolved.name, whole)
            module = importlib.import_module(f"captioner.models.{resolved.module}")
            options = self._options(resolved)
            parts = (partial(self.load, inside=whole),) if resolved.module in zoo.COMPOSED else ()
            # Twice: what is laid out for the processor is there beside what was read.
            with _ONE_AT_A_TIME, _on_cpu(), memory.on_large_pages(2 * resolved.bytes_of_weights):
                model = module.load(resolved.source, options, *parts)
            self.loaded[resolved] = _ready(resolved, module, model, options)
            if resolved.module == "ensemble" and not inside and "interrogator" not in _modules(self.loaded):
                self._check_options(resolved.name, self.loaded)  # what one member has no use for may be another's
        return self.loaded[resolved]

    def _options(self, resolved: zoo.Resolved) -> LoadOptions:
        """The options of loading, with what "auto" means for this very model."""
        if self.options.precision != "auto" or not resolved.speaks or resolved.folder is None:
            return self.options
        if resolved.module in zoo.FP32_ALONE:
            return replace(self.options, precision="fp32")
        from captioner import compute

        if compute.device(self.options.device).type != "cpu" or not compute.bf16_agrees(resolved.folder):
            return self.options
        return replace(self.options, precision="bf16")

    def _check_options(self, name: str, models: Iterable[zoo.Resolved]) -> None:
        """Refuse what none of these has a use for."""
        _refuse(name, self.given.difference(*(zoo.LOADS_WITH.get(module, ()) for module in _modules(models))))


def _on_cpu() -> AbstractContextManager[None]:
    """Weights are read to where a model's own loader says; without torch, no default device has been set."""
    if "torch" not in sys.modules:
        return nullcontext()
    from captioner import compute

    return compute.on_cpu()


def _modules(models: Iterable[zoo.Resolved]) -> set[str]:
    return {model.module for model in models}


def _ready(resolved: zoo.Resolved, module: ModuleType, model: Any, options: LoadOptions) -> Captioner | DirectEmbedder:
    if not resolved.speaks:
        return DirectEmbedder(resolved.name, model)
    from captioner.text.embedding import DEFAULT, suits

    assert model.uses <= zoo.asked_with(resolved.module), "`check` would refuse what the model has a use for"
    of_architecture = getattr(module, "DEFAULT_DECODING", {}) | getattr(model, "own_decoding", {})
    decoding, by_consensus = _defaults(resolved.folder, of_architecture)
    if model.longest is not None:
        longest = max(1, min(decoding.max_new_tokens, model.longest))
        decoding = replace(decoding, max_new_tokens=longest, min_new_tokens=min(decoding.min_new_tokens, longest))
    own = None if resolved.module in zoo.UNSEARCHED else decoding
    predicts = suits(options.embedder, DEFAULT)
    precision = None if resolved.address is not None else _precision(options)
    embed = LazyEmbedder(options.embedder)
    return Captioner(resolved.name, model, embed, own, by_consensus, predicts, precision, resolved.side)


def _precision(options: LoadOptions) -> str:
    from captioner import compute

    return compute.precision(options.precision, compute.device(options.device))


@dataclass(frozen=True)
class LazyEmbedder:
    """A text embedder that is loaded when the first text comes: a plain caption needs none, and a prompt can be
    pickled with it."""

    name: str | None
    precision: str = "fp32"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        from captioner.text.embedding import text_embedder

        if isinstance(texts, str):  # each of its letters would be a text
            raise BadInput(f"Texts are embedded as a list, even one: [{texts[:40]!r}].")
        return text_embedder(self.name, self.precision)(texts)


def _refuse(model: str, unused: set[str]) -> None:
    if unused:
        users = zoo.users_of(unused)
        which = f", which {' and '.join(users)} {'has' if len(users) == 1 else 'have'}" if 0 < len(users) < 4 else ""
        names = " and ".join(sorted(unused))
        raise BadInput(f"{model} has no use for {names}{which}: leave it out, or name another model.")


def _refuse_search(model: str, request: Request) -> None:
    """Forbidden words alone mean something to a model that does not search."""
    if isinstance(request.decoding, DecodingChanges):
        _refuse(model, set(request.decoding.given()) - {"forbid"})


def _defaults(folder: Path | None, of_architecture: dict) -> tuple[Decoding, bool]:
    """A checkpoint's own search settings: its decoding.json over its architecture's over ours."""
    settings = dict(of_architecture)
    if folder is not None and (file := folder / "decoding.json").exists():
        settings |= _read_settings(file)
    by_consensus = settings.pop("consensus", False)
    try:
        return Decoding(**settings), by_consensus
    except BadInput as error:
        raise BadCheckpoint(f"{folder}/decoding.json: {error}") from error


def _read_settings(file: Path) -> dict:
    """Search settings of the types that `Decoding` has, within reason."""
    settings, plain = read_object(file), {"consensus": False} | asdict(Decoding())
    if unknown := settings.keys() - plain.keys():
        raise BadCheckpoint(f"{file} has settings we do not know: {', '.join(sorted(unknown))}.")
    for name, value in settings.items():
        usual = type(plain[name])
        fits = isinstance(value, _json_types(name, usual)) and (not isinstance(value, bool) or usual is bool)
        if not fits or (name in COUNTED and value > MOST) or (usual is float and not abs(value) <= sys.float_info.max):
            raise BadCheckpoint(f"{file} says {name} = {value!r}, which cannot be.")
        settings[name] = tuple(map(str, value)) if usual is tuple else value
    return settings


def _json_types(name: str, usual: type) -> tuple[type, ...]:
    """The types that a field whose default is of the usual type may have in JSON."""
    several: dict[str, tuple[type, ...]] = {"early_stopping": (bool, str), "seed": (int, NoneType)}
    return {tuple: (list,), float: (int, float)}.get(usual) or several.get(name, (usual,))


COUNTED = frozenset({"num_beams", "num_return_sequences", "max_new_tokens", "min_new_tokens"})
MOST = 10_000
"""Beams, candidates or tokens that a file may ask for on its own."""


def _request(request: Request | None) -> Request:
    if not isinstance(request, Request | None):
        kind = type(request).__name__
        raise BadInput(f"request must be a Request, not {kind}: name its settings one by one, e.g. num_beams=2.")
    return request or PLAIN_REQUEST


def _finish(finish: Finishing | None) -> Finishing:
    if not isinstance(finish, Finishing | None) or isinstance(finish, type):  # a class has all that its objects have
        raise BadInput(f"finish must be a captioner.Finish, not {type(finish).__name__}.")
    return finish or Finish()


def is_one(images: AnyImage | Iterable[AnyImage]) -> TypeGuard[AnyImage]:
    """A single image, not a list of them."""
    if isinstance(images, np.ndarray):
        return images.ndim in (0, 2, 3)  # of four, several pictures; of one, several paths
    plain = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image | Mapping)
    return plain or is_readable(images)


def several(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """Images, whatever was given. Those of a generator, or of a column that decodes as it is read, come when needed."""
    # What is no picture either is told as it is opened; so is a table, whose list would be its columns' names.
    if is_one(images) or not isinstance(images, Iterable) or hasattr(images, "columns"):
        return [cast("AnyImage", images)]
    return cast("Iterable[AnyImage]", images)


def _some(of_images: list[Any]) -> list[Any]:
    """What was made of images, if there were any: of none there is no telling how long a vector would be."""
    if not of_images:
        raise BadInput("There is no picture to embed: give at least one.")
    return of_images


def _batches(images: Iterable[AnyImage], size: int, side: int | None = None) -> Iterator[list[Image]]:
    check_whole("batch_size", size, 1)
    waiting = iter(images)
    while batch := [open_image(image, side=side, copied=False) for image in islice(waiting, size)]:
        yield batch
