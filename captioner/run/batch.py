"""Many pictures: read ahead in threads, batch, survive a bad one, resume, hand to a sink.

Memory holds a window of opened pictures, never the whole list. The batch size never changes a result, so it may shrink
when memory runs out.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from PIL.Image import Image

from captioner import memory
from captioner.errors import (
    BadAnswer,
    BadCheckpoint,
    BadImage,
    BadInput,
    BadOutput,
    CaptionerError,
    Stopped,
    Unwilling,
    missing_extra,
    one_line,
)
from captioner.images import Source, find_images
from captioner.images.ahead import read_ahead
from captioner.images.find import passed_over
from captioner.images.open import bytes_of
from captioner.run.progress import Progress, Silent, Tally, watch
from captioner.sinks import Result, Row, Sink, Stdout, file_of, groups, is_finite

if TYPE_CHECKING:
    from captioner.contracts import Request
    from captioner.text.finish import Finish

HELD_PIXELS = 100_000_000
"""Of a batch; a larger picture is asked about alone."""
TURN = 0.0001
"""Seconds after which threads take turns at Python where several ask a GPU: one that launches kernels would wait five
milliseconds each time that another is busy."""
FIRST = 3
"""A model that fails on so many pictures alike before it answers one is at fault itself: the run ends."""
DAMAGED = "The model's numbers are not finite (NaN): its weights are damaged, or the precision is too low for it."
NO_MEMORY = "There is not enough memory for {}: use fewer beams, precision bf16 or a smaller model."

logger = logging.getLogger(__name__)


class Interrupts:
    """Ctrl-C, remembered: Python drops a KeyboardInterrupt that is raised within a destructor or a callback.

    A process that was begun to ignore it, as a script's own in the background, does.
    """

    seen = False

    def __enter__(self) -> Interrupts:
        is_main = threading.current_thread() is threading.main_thread()  # elsewhere no handler may be set
        self.listens = is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        if self.listens:
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        if self.listens:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, *received: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Stop now if the user asked to."""
        if self.seen:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Asked:
    """A picture, what is asked about it, and how what is said is finished."""

    image: Image
    request: Request
    finish: Finish | None = None
    """None: as those of all pictures."""


Look = TypeVar("Look")
"""What a verb needs to know of a picture: an `Image`, one that is `Asked` about, or the row itself."""


_Tried: TypeAlias = "Sequence[Row | BadAnswer] | Exception"
"""What a batch gave: its rows, or what the model raised."""


class Answers(Protocol[Look]):
    """What is asked about each picture: one verb's own part of a run."""

    def look(self, source: Source) -> Look:
        """Open a picture, or answer at once without the model. Called in threads."""

    def batch_size(self) -> int:
        """Pictures at a time that fit into memory."""

    def at_once(self) -> int:
        """Batches that may be asked about side by side, in threads. Asked after each until it is more than one."""

    def answer(self, looks: list[Look]) -> Sequence[Row | BadAnswer]:
        """One row for each of what `look` gave, in order; or what a model said of that picture alone."""


def run_inputs(
    inputs: Sequence[str],
    answers: Answers[Look],
    open_sink: Callable[[bool], Sink],
    *,
    recursive: bool = False,
    batch_size: int | None = None,
    quiet: bool = False,
    loading: Callable[[], str] = str,
    explain: Callable[[str], str] = str,
) -> Tally:
    """`run` for what a user names; `open_sink(many)` is told whether there is more than one picture.

    loading: the name of the model that the first picture has to wait for. explain: puts what is wrong with a picture
    into the words of whoever asks.
    """
    videos: set[str] = set()
    sources = find_images(inputs, recursive=recursive, videos=videos)
    first = list(islice(sources, 2))
    many = len(first) > 1 or os.path.isdir(inputs[0])
    sink = open_sink(many)
    name = "" if quiet else loading()
    has_progress = many and not quiet and not (isinstance(sink, Stdout) and sys.stdout.isatty())
    progress = watch(inputs, recursive, name) if has_progress else Silent(name)
    tally = run(chain(first, sources), sink, answers, progress, batch_size, explain)
    if sink.resumable and not quiet:
        progress.say(f"captioner: {sink.summary(tally.done, tally.skipped, tally.failed)}")
    if videos and not quiet:
        progress.say(f"captioner: {passed_over(videos)}")
    return tally


def run(
    sources: Iterable[Source],
    sink: Sink,
    answers: Answers[Look],
    progress: Progress,
    batch_size: int | None = None,
    explain: Callable[[str], str] = str,
) -> Tally:
    """Every picture's row goes to the sink, in order; what cannot be read is reported and the run goes on."""
    threads = ThreadPoolExecutor(thread_name_prefix="asking")
    work = _Work(sink, answers, progress, batch_size, explain, threads)
    usual_turn = sys.getswitchinterval()
    try:
        with (
            Interrupts() as user,
            sink,
            progress,
            closing(read_ahead(work.wanted(sources), partial(_open, answers.look), attrgetter("bytes"))) as opened,
            threads,  # what they have begun is waited for
        ):
            for picture in opened:
                user.check()
                work.take(picture)
            user.check()
            work.finish()
    except KeyboardInterrupt:
        again = "The same again with resume goes on from there." if sink.resumable else ""
        raise Stopped(f"Stopped with {work.tally.done:,} done. {again}".strip()) from None
    finally:
        sys.setswitchinterval(usual_turn)
    return work.tally


# --- reading ahead ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened(Generic[Look]):
    """One picture as it came out of a reader."""

    source: Source
    file: str
    look: Look

    @property
    def image(self) -> Image | None:
        """The picture itself; None of a row."""
        look = self.look.image if isinstance(self.look, Asked) else self.look
        return look if isinstance(look, Image) else None

    @property
    def pixels(self) -> int:
        return 0 if self.image is None else self.image.width * self.image.height

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        picture = 0 if self.image is None else bytes_of(self.image)
        return picture + len(self.source.data or b"")


@dataclass(frozen=True)
class _Failed:
    """One that cannot be read, or whose result has no place."""

    source: Source
    file: str
    error: BadImage | BadOutput

    @property
    def bytes(self) -> int:
        return len(self.source.data or b"")


def _open(
    look: Callable[[Source], Look], source: Source | _Failed, admit: Callable[[int], None]
) -> _Opened[Look] | _Failed:
    if isinstance(source, _Failed):
        return source
    file = file_of(source)
    try:
        source = source.fetched()  # once: the sink may want the very bytes
        encoded = len(source.data or b"")
        return _Opened(source, file, look(replace(source, admit=lambda size: admit(size + encoded))))
    except BadImage as error:
        return _Failed(replace(source, data=None), file, error)


# --- asking the model, and keeping what it says ----------------------------------------------------------------------


class _Work(Generic[Look]):
    """A batch being filled, those that are asked about, and what became of the ones before."""

    def __init__(
        self,
        sink: Sink,
        answers: Answers[Look],
        progress: Progress,
        batch_size: int | None,
        explain: Callable[[str], str],
        threads: ThreadPoolExecutor,
    ) -> None:
        self.sink = sink
        self.answers = answers
        self.progress = progress
        self.batch_size = batch_size
        self.explain = explain
        self.threads = threads
        self.batch: list[_Opened[Look]] = []
        self.asked: deque[tuple[list[_Opened[Look]], Callable[[], _Tried]]] = deque()
        """Batches without their rows yet, and what waits for those."""
        self.at_once = 1
        self.is_settled = False
        """How many batches are asked about at once is no question any more."""
        self.tally = Tally()
        self.has_answered = False
        self.first_errors: list[type[Exception]] = []

    def wanted(self, sources: Iterable[Source]) -> Iterator[Source | _Failed]:
        """Pictures without a result yet. One whose result could not be kept comes with the reason."""
        for source in sources:
            try:
                if source.problem is not None or self.sink.wants(source):
                    yield source
                else:
                    self.tally.skipped += 1
                    self.progress.show(self.tally)
            except BadOutput as error:
                yield _Failed(source, file_of(source), error)

    def take(self, picture: _Opened[Look] | _Failed) -> None:
        if isinstance(picture, _Failed):
            self._fail(picture.file, picture.error)
            return
        if sum(waiting.pixels for waiting in self.batch) + picture.pixels > HELD_PIXELS:
            self.flush()
        self.batch.append(picture)
        if len(self.batch) >= self._size():
            self.flush()

    def _fail(self, file: str, error: BadImage | BadOutput) -> None:
        reason = self.explain(str(error))
        self.progress.say(f"captioner: {reason}")
        self.sink.fail(file, reason)
        self.tally.failed += 1
        self.progress.show(self.tally)

    def _size(self) -> int:
        if self.batch_size is None:
            self.batch_size = self.answers.batch_size()
        return self.batch_size

    def flush(self) -> None:
        """Ask the model about the pictures of the batch, and keep the rows of as many before it as has to be."""
        if not self.batch:
            return
        batch, self.batch = self.batch, []
        trying = partial(self._try, batch)
        self.asked.append((batch, trying if self.at_once == 1 else self.threads.submit(trying).result))
        while len(self.asked) >= self.at_once:
            self._keep()
        if self.has_answered and not self.is_settled and (at_once := self.answers.at_once()) > 1:
            self.is_settled, self.at_once = True, at_once
            sys.setswitchinterval(TURN)

    def finish(self) -> None:
        """Ask about the last pictures, and keep all rows."""
        self.flush()
        while self.asked:
            self._keep()

    def _keep(self) -> None:
        """Keep all rows of the first batch that was asked about, in order."""
        batch, tried = self.asked.popleft()
        answers = list(zip(batch, self._answers(batch, tried()), strict=True))
        self.progress.ready()
        results = [
            Result(opened.source, {"file": opened.file} | answer)
            for opened, answer in answers
            if not isinstance(answer, BadImage)
        ]
        if results:
            self.sink.write(results)
        self.tally.done += len(results)
        self.progress.show(self.tally)
        for opened, answer in answers:
            if isinstance(answer, BadImage):
                self._fail(opened.file, answer)

    def _answers(self, batch: list[_Opened[Look]], rows: _Tried) -> list[Row | BadImage]:
        """A row for each picture, if the whole batch did not give them; one that the model fails on is found by
        halving, and told with the reason."""
        answers: list[Row | BadImage] = []
        waiting = [batch]
        while True:
            part = waiting.pop(0)
            if not isinstance(rows, Exception):
                answers += [self._checked(opened, row) for opened, row in zip(part, rows, strict=True)]
            elif isinstance(rows, MemoryError) and (len(part) > 1 or self.at_once > 1):
                waiting = self._in_turn([part, *waiting])
            elif len(part) == 1:
                answers.append(self._blame(part[0], rows))
            else:
                half = (len(part) + 1) // 2
                waiting[:0] = [part[:half], part[half:]]
            del rows  # an error holds on to the tensors of its pass
            if not waiting:
                return answers
            rows = self._try(waiting[0])

    def _in_turn(self, parts: list[list[_Opened[Look]]]) -> list[list[_Opened[Look]]]:
        """What is asked about after memory ran out for the first part: in smaller ones, and from now on in turn."""
        self.is_settled, self.at_once = True, 1
        for _, other in self.asked:
            other()  # has its memory until it is done
        if len(parts[0]) == 1:
            return parts
        size = min(self._size(), (len(parts[0]) + 1) // 2)
        if size < self._size():
            self.batch_size = size
            self.progress.say(f"captioner: out of memory; going on with {size} pictures at a time.")
        return list(groups(chain.from_iterable(parts), size))

    def _try(self, part: list[_Opened[Look]]) -> _Tried:
        """The rows, or what the model raised. What is wrong with the settings or the model ends the run."""
        try:
            return self.answers.answer([opened.look for opened in part])
        except BadImage as error:
            return error
        except CaptionerError:
            raise
        except Exception as error:
            if (missing := missing_extra(error)) is not None:
                raise missing from error
            if not memory.ran_out(error):
                return error
        # Outside the handler, where the failed pass and its tensors are let go of.
        _free_memory()
        return MemoryError()

    def _checked(self, opened: _Opened[Look], row: Row | BadAnswer) -> Row | BadImage:
        if isinstance(row, BadAnswer):
            return self._blame(opened, row)
        if not is_finite(row):
            return self._blame(opened, BadCheckpoint(DAMAGED))
        self.has_answered = True
        return row

    def _blame(self, opened: _Opened[Look], error: Exception) -> BadImage:
        """What is said of a picture that the model fails on alone."""
        if isinstance(error, BadImage) and not isinstance(error, BadAnswer):
            return error
        self.has_answered |= isinstance(error, Unwilling)
        if not self.has_answered:
            self.first_errors.append(type(error))
            if len(self.first_errors) >= FIRST and len(set(self.first_errors)) == 1:  # it fails on any picture
                raise BadInput(NO_MEMORY.format("one picture")) if isinstance(error, MemoryError) else error
        name = opened.source.name
        if isinstance(error, MemoryError):
            return BadImage(f"{name}: {NO_MEMORY.format('this picture')}")
        if isinstance(error, CaptionerError):
            return BadImage(f"{name}: {error}")
        logger.debug("the model failed on %s", name, exc_info=error)
        kind = type(error).__name__
        return BadImage(f"{name}: the model failed on this picture ({kind}: {one_line(error)}).")


def _free_memory() -> None:
    if "torch" in sys.modules:  # a run that asks no model never loads it
        import torch

        torch.cuda.empty_cache()
