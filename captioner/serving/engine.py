"""Models that stay loaded, and answer many at once: what the service and its routes call.

    engine = Engine(["mini"])
    engine.start()
    future = engine.submit(Picture(data), engine.ask(num_beams=2))
    future.result()["text"]

A row is shaped as those of `captioner generate --json`. One worker thread a device asks the models; pictures are opened
in other threads. Only the models that were named at the start are ever loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from captioner import zoo
from captioner.contracts import PLAIN_REQUEST, LoadOptions, MetadataUse, Request
from captioner.errors import BadImage, CaptionerError, MissingModel, one_line, printable
from captioner.images import MAX_PIXELS, Source
from captioner.images.metadata import read_parameters
from captioner.images.open import bytes_of, open_named
from captioner.run import templates
from captioner.serving.kinds import JOINED, AsOpened, Call, OfPictures, OfTexts, Similar
from captioner.serving.memories import Memories
from captioner.serving.metrics import SECONDS, SIZES, Histogram
from captioner.serving.scheduler import Closed, Opened, Scheduler, Unit
from captioner.sinks import Row
from captioner.text.finish import Finish

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.serving.bench import Bench, Model

MEMORY_BYTES = 256_000_000
"""Of encoded pictures."""
QUEUE = 256
TIMEOUT = 120.0
"""Seconds for a whole request."""
TEXTS = 256
"""Texts embedded in one piece."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture as a client sent it."""

    data: bytes = field(repr=False)
    name: str = "-"
    """What its row calls it."""
    path: Path | None = None
    """Where it lies, if it is a file of the server's own."""
    tags: str = ""
    """The text that it has by now, where whoever asks knows one. What lies beside a file is not read for a client."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return "The picture" if self.name == "-" else printable(self.name)

    @cached_property
    def digest(self) -> bytes:
        """What its content is known by."""
        return hashlib.sha256(self.data).digest()


@dataclass(frozen=True)
class Ask:
    """What is asked about a picture."""

    model: str
    request: Request = PLAIN_REQUEST
    finish: Finish = field(default_factory=Finish)
    wants: Literal["prompt", "embedding"] = "prompt"
    """A whole row, or the embedding alone, as `captioner embed` gives it."""
    embed: bool = False
    """With the text's embedding in the row."""
    expected: bool = False
    """Where it wants the embedding alone: the mean of all that the model might say."""
    metadata: MetadataUse = "ignore"

    def embeds(self, row: Row) -> bool:
        """Whether this row still lacks its embedding."""
        return "embedding" not in row and (self.embed or self.wants == "embedding")


class Engine:
    """One worker a device; see the module."""

    def __init__(
        self,
        models: Sequence[str] = (),
        options: LoadOptions | None = None,
        *,
        index: Path | None = None,
        queue: int = QUEUE,
        timeout: float = TIMEOUT,
        batch_size: int | None = None,
    ) -> None:
        """models: those that may be asked; the first is the default. options.device may list several, by commas."""
        self.models = tuple(dict.fromkeys(models)) or (zoo.default(),)
        self.options = options or LoadOptions()
        self.index = index
        self.timeout = timeout
        self.batch_size = batch_size
        self.memories = Memories(MEMORY_BYTES)
        self.scheduler = Scheduler(queue)
        self.batches = Histogram("captioner_batch_size", "Questions asked of a model at once.", SIZES)
        self.seconds = Histogram("captioner_batch_seconds", "Seconds that a batch took.", SECONDS)
        self.failure: BaseException | None = None
        """Why it will never be ready."""
        self.benches: list[Bench] = []
        self.stopping = False
        self.threads = [
            threading.Thread(target=self._work, args=(device.strip(),), name=f"model {device}", daemon=True)
            for device in self.options.device.split(",")
        ]
        self._settled = threading.Event()

    # --- its life ----------------------------------------------------------------------------------------------------

    @property
    def default(self) -> str:
        """The model that answers where none is named."""
        return self.models[0]

    @property
    def ready(self) -> bool:
        """Whether every device has its model loaded, and it is not stopping."""
        return self._settled.is_set() and self.failure is None and not (self.stopping or self.scheduler.closed)

    def start(self) -> None:
        """Begin to load the default model; `wait_ready` waits for it."""
        for thread in self.threads:
            thread.start()

    def wait_ready(self, seconds: float | None = None) -> None:
        """Until the default model is loaded; what it fails with is raised."""
        self._settled.wait(seconds)
        if self.failure is not None:
            raise self.failure

    def fail(self, error: BaseException) -> None:
        """It will never be ready: whoever waits is told why."""
        self.failure = error
        self._settled.set()

    def close(self, seconds: float = 10.0) -> None:
        """Take nothing new and finish what waits, but for no longer than this."""
        until = time.monotonic() + seconds
        self.scheduler.close()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self.scheduler.abandon()
        if not self._settled.is_set():
            self.fail(Closed())  # threads that wait for the model would keep the process

    # --- questions ---------------------------------------------------------------------------------------------------

    def known(self, model: str | None) -> str:
        """A model that may be asked; None is the default."""
        if model is None or model in self.models:
            return model or self.default
        raise MissingModel(f"There is no model {model!r} here, only {', '.join(self.models)}.")

    def ask(self, model: str | None = None, finish: Finish | None = None, **settings: Any) -> Ask:
        """A question in the words of `Request` and `DecodingChanges`."""
        return Ask(self.known(model), PLAIN_REQUEST.changed(**settings), finish or Finish())

    def submit(self, picture: Picture, ask: Ask, timeout: float | None = None) -> Future[Row]:
        """The row of one picture."""
        return self.submit_all([picture], ask, timeout)[0]

    def submit_all(self, pictures: Sequence[Picture], ask: Ask, timeout: float | None = None) -> list[Future[Row]]:
        """A row for each picture; all are taken, or none (`Busy`)."""
        self.known(ask.model)
        ask.request.decoding.check()
        request, varies = templates.parse(ask.request)
        finish, dresses = templates.parse(ask.finish)
        ask = replace(ask, request=request, finish=finish)
        deadline = self._deadline(timeout)
        return self._put([self._of_picture(picture, ask, varies or dresses, deadline) for picture in pictures])

    def _of_picture(self, picture: Picture, ask: Ask, varies: bool, deadline: float) -> Unit:
        """What is asked about one picture. varies: in words of its own (see `run/templates.py`); where they cannot be
        read of it, that is its answer, and all others are asked."""
        try:
            one = _filled(ask, picture) if varies else ask
            opening = partial(self._open, one, picture)
        except BadImage as error:
            one, opening = ask, partial(_refused, error)
        return Unit((one, picture), OfPictures(one.model, one.request, one.expected), opening, deadline)

    def embed_texts(self, texts: Sequence[str]) -> list[Future[list[list[float]]]]:
        """Unit vectors of texts: one future for each `TEXTS` of them."""
        parts = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return self._put([Unit(part, OfTexts(len(part) > JOINED), _nothing, self._deadline()) for part in parts])

    def similar(self, pictures: Sequence[Picture], count: int = 5) -> list[Future[Row]]:
        """The reference pictures that look most like each; needs an index."""
        opened = [partial(self._open_image, picture) for picture in pictures]
        return self._put([Unit(None, Similar(count), opening, self._deadline()) for opening in opened])

    def read(self, picture: Picture) -> Future[Row]:
        """The generation parameters that a picture carries."""
        return self._put([Unit(None, AsOpened(), partial(_read, picture), self._deadline())])[0]

    def call(
        self,
        function: Callable[[Model, list[Image]], Any],
        pictures: Sequence[Picture] = (),
        model: str | None = None,
    ) -> Future[Any]:
        """Whatever else a route wants of a model: `function(model, images)`, run where the model is."""
        opened = partial(self._open_images, pictures)
        return self._put([Unit(function, Call(self.known(model)), opened, self._deadline())])[0]

    @staticmethod
    async def answers(futures: Sequence[Future[Any]]) -> list[Any]:
        """What these become, in order; a `CaptionerError` stands in its own place. Cancelled, they are dropped."""
        waiting = [asyncio.wrap_future(future) for future in futures]
        try:
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, CaptionerError):
                raise answer
        return list(answers)

    def _deadline(self, timeout: float | None = None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _put(self, units: list[Unit]) -> list[Future]:
        self.scheduler.put(units)
        return [unit.future for unit in units]

    # --- reading, in threads -----------------------------------------------------------------------------------------

    def _open(self, ask: Ask, picture: Picture, admit: Callable[[int], object]) -> Opened:
        self._settled.wait()  # whoever comes before the model is loaded waits here, undecoded
        if self.failure is not None:
            raise self.failure
        return self.benches[0].open(ask, picture, admit)

    def _open_image(self, picture: Picture, admit: Callable[[int], object]) -> Opened:
        image = open_named(picture.data, picture.title, MAX_PIXELS, admit)
        return Opened(image, bytes_of(image))

    def _open_images(self, pictures: Sequence[Picture], admit: Callable[[int], object]) -> Opened:
        opened = [self._open_image(picture, admit) for picture in pictures]
        return Opened([one.value for one in opened], sum(one.bytes for one in opened))

    # --- answering, in the thread of a device ------------------------------------------------------------------------

    def _work(self, device: str) -> None:
        try:
            from captioner.serving.bench import Bench  # torch, which takes a second to import

            bench = Bench(replace(self.options, device=device), self.memories, self.index, self.batch_size)
            bench.load(self.default)
            self.benches.append(bench)
        except BaseException as error:
            self.fail(error)
            return
        if len(self.benches) == len(self.threads):
            self._settled.set()
        while units := self.scheduler.take(lambda kind: kind.size(bench)):
            began = time.monotonic()
            self._answer(bench, units)
            seconds = time.monotonic() - began
            self.scheduler.done(units, seconds)
            self.batches.see(len(units))
            self.seconds.see(seconds)

    def _answer(self, bench: Bench, units: Sequence[Unit]) -> None:
        """Every unit gets its answer; one that the model fails on is found by halving."""
        try:
            answers = units[0].kind.answers(bench, units)
        except CaptionerError as error:
            if isinstance(error, BadImage) and len(units) > 1:
                self._halve(bench, units)
            else:
                for unit in units:
                    unit.fail(error)
        except Exception as error:
            if len(units) > 1:
                self._halve(bench, units)
            else:
                logger.debug("the model failed", exc_info=error)
                kind = type(error).__name__
                units[0].fail(BadImage(f"The model failed on this picture ({kind}: {one_line(error)})."))
        else:
            for unit, answer in zip(units, answers, strict=True):
                if isinstance(answer, CaptionerError):
                    unit.fail(answer)
                else:
                    unit.succeed(answer)

    def _halve(self, bench: Bench, units: Sequence[Unit]) -> None:
        half = (len(units) + 1) // 2
        self._answer(bench, units[:half])
        self._answer(bench, units[half:])


def _filled(ask: Ask, picture: Picture) -> Ask:
    """Asked in the words of this picture."""
    source = Source(picture.name, path=picture.path, data=picture.data, caption=lambda: picture.tags)
    return replace(ask, request=templates.filled(ask.request, source), finish=templates.filled(ask.finish, source))


def _refused(error: BadImage, admit: Callable[[int], object]) -> Opened:
    raise error


def _nothing(admit: Callable[[int], object]) -> Opened:
    """A text needs no opening."""
    return Opened(None)


def _read(picture: Picture, admit: Callable[[int], object]) -> Opened:
    parameters = read_parameters(picture.data, picture.title)
    if parameters is None:
        raise BadImage(f"{picture.title} carries no generation parameters.")
    return Opened({"file": picture.name} | parameters.to_dict())
