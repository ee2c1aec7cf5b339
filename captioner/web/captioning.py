"""Captioning many pictures of Review's folder: a job of the server, which goes on when the page is closed.

Several pictures are asked about at a time; each text is saved as it comes, and all of them are one step for undo. It
can be stopped; a picture that fails keeps its reason. What the model refuses whatever the picture ends it, and so does
a model that fails on the first pictures.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from captioner.errors import BadAnswer, BadInput, CaptionerError, Unwilling, counted, one_line, printable
from captioner.review import Conflict, Review, Unknown
from captioner.run.batch import FIRST
from captioner.serving.engine import Ask, Engine, Picture
from captioner.serving.scheduler import Busy, Closed
from captioner.sinks.row import OnExisting, Row, with_existing
from captioner.web.errors import BUG

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Pictures that are asked about at the same time: enough to fill a batch."""


class Captioning:
    """One run over these pictures; `start` begins it, in the running event loop."""

    def __init__(
        self, review: Review, engine: Engine, names: Sequence[str], ask: Ask, on_existing: OnExisting = "overwrite"
    ) -> None:
        rows = [review.row(name) for name in names]
        if on_existing == "skip":
            names = [row.name for row in rows if not row.text]
        self.review = review
        self.engine = engine
        self.ask = ask
        self.on_existing = on_existing
        self.total = len(names)
        self.done = 0
        self.failed = 0
        self.stopped = False
        self.refused: str | None = None
        """What is wrong with what is asked, and stopped the run."""
        self.over = False
        self.changed: list[str] = []
        """Pictures that are through, in this order."""
        self._waiting = deque(names)
        self._asking: set[asyncio.Task[Row]] = set()
        self._group = f"run-{uuid4().hex}"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Ask about nothing more; texts that have come are still saved."""
        self.stopped = self.stopped or not self.over
        for asking in self._asking:
            asking.cancel()

    async def end(self) -> None:
        """Stop, and wait for what is being saved."""
        self.stop()
        if self._task is not None:
            await self._task

    def state(self, since: int = 0) -> dict[str, Any]:
        """How far it is. since: how many of `changed` whoever asks knows of."""
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "stopped": self.stopped,
            "refused": self.refused,
            "over": self.over,
            "changed": self.changed[since:],
        }

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(self._work() for _ in range(min(AT_ONCE, self.total))))
        finally:
            self.over = True

    async def _work(self) -> None:
        while self._waiting and not self.stopped:
            name = self._waiting.popleft()
            try:
                await self._caption(name)
            except asyncio.CancelledError:
                if not self.stopped:
                    raise
            except Closed:
                self.stop()
            except Unknown:  # removed meanwhile
                self.failed += 1
            except Conflict:  # somebody wrote another text meanwhile
                self._through(name, failed=True)
            except CaptionerError as error:
                self._fail(name, one_line(error))
                fails = isinstance(error, BadAnswer) and not isinstance(error, Unwilling)
                if fails and not self.done and self.failed >= FIRST:
                    self.refused = one_line(error)
                    self.stop()
            except Exception:
                logger.exception("captioning %s failed", name)
                self._fail(name, BUG)

    async def _caption(self, name: str) -> None:
        row = await run_in_threadpool(self.review.row, name)
        before = row.text or ""
        if before and self.on_existing == "skip":  # written since the run began
            return
        picture = Picture(await run_in_threadpool(self.review.content, name), name, row.path, before)
        if self.stopped:  # while it was being read
            return
        try:
            answer = await self._asked(picture)
        except BadInput as error:
            self.refused = one_line(error)
            return self.stop()
        title = f"Caption {counted(self.total, 'picture')} with {printable(answer.get('model') or self.ask.model)}"
        await run_in_threadpool(self._save, name, before, answer, title[:200])
        self._through(name)

    def _save(self, name: str, before: str, answer: Row, title: str) -> None:
        self.review.said(name, answer)
        text = with_existing(before, answer["text"], self.on_existing)
        self.review.edit(name, text, before=before, group=self._group, title=title)

    async def _asked(self, picture: Picture) -> Row:
        """The model's row, however long that takes: nobody waits at a connection. While others fill the queue it is
        waited for."""
        asking = asyncio.create_task(self._answer(picture))
        self._asking.add(asking)
        try:
            return await asking
        finally:
            self._asking.discard(asking)

    async def _answer(self, picture: Picture) -> Row:
        while True:
            try:
                (answer,) = await self.engine.answers([self.engine.submit(picture, self.ask, math.inf)])
            except Busy as error:
                await asyncio.sleep(error.wait)
            else:
                if isinstance(answer, CaptionerError):
                    raise answer
                return answer

    def _fail(self, name: str, reason: str) -> None:
        with suppress(Unknown):  # removed meanwhile
            self.review.fail(name, reason)
        self._through(name, failed=True)

    def _through(self, name: str, failed: bool = False) -> None:
        self.done += not failed
        self.failed += failed
        self.changed.append(name)
