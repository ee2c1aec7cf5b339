"""What a module of routes is handed: the engine, the settings, and how to wait for answers.

    def router(context: Context) -> APIRouter:
        routes = APIRouter()

        @routes.post("/caption")
        async def caption(request: Request) -> Any:
            fields = await inputs.body(request, context.settings)
            picture = await inputs.picture(fields.get("image"), context.settings)
            row = await context.prompt(request, picture, context.engine.ask(num_beams=2))
            return {"caption": row["text"]}

        return routes

Whatever raises a `CaptionerError` is answered by its status and sentence (`errors.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from captioner import __version__
from captioner.errors import CaptionerError
from captioner.serving.engine import Ask, Engine, Picture
from captioner.serving.scheduler import Late
from captioner.sinks import Row
from captioner.web.errors import Gone
from captioner.web.limits import BEGAN
from captioner.web.settings import Settings


@dataclass(frozen=True)
class Context:
    """The service as routes see it."""

    engine: Engine
    settings: Settings
    began: int = field(default_factory=lambda: int(time.time()))
    """When its models came to be, as OpenAI's lists tell it."""

    def about(self) -> dict[str, Any]:
        """What this server offers."""
        root = self.settings.root
        return {
            "version": __version__,
            "models": list(self.engine.models),
            "default": self.engine.default,
            "similar": self.engine.index is not None,
            "urls": self.settings.allow_urls,
            "root": None if root is None else root.resolve().name,
            "max_bytes": self.settings.max_bytes,
            "timeout": self.engine.timeout,
        }

    async def prompt(self, request: Request, picture: Picture, ask: Ask) -> Row:
        """One picture's row, as `captioner generate --json` gives it."""
        return one(await self.rows(request, [picture], ask))

    async def rows(self, request: Request, pictures: Sequence[Picture], ask: Ask) -> list[Row | CaptionerError]:
        """A row for each picture, or what is wrong with it."""
        futures = await run_in_threadpool(self.engine.submit_all, pictures, ask)  # it may read what each carries
        return await self.wait(request, futures)

    async def vectors(self, request: Request, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of texts."""
        parts = await self.wait(request, self.engine.embed_texts(texts))
        return [vector for part in parts for vector in one([part])]

    async def picture_vectors(self, request: Request, pictures: Sequence[Picture], ask: Ask) -> list[list[float]]:
        """The embeddings of the prompts of pictures, or what an embedder gives at once."""
        rows = await self.rows(request, pictures, replace(ask, wants="embedding"))
        return [one([row])["embedding"] for row in rows]

    async def wait(self, request: Request, futures: Sequence[Future[Any]]) -> list[Any]:
        """The answers of what was submitted, in order; an error that concerns one of them stands in its place.

        What is still waiting is dropped when the client leaves (`Gone`), or the time is over (`Late`).
        """
        seconds = self.engine.timeout - (time.monotonic() - request.scope.get(BEGAN, time.monotonic()))
        answers = asyncio.ensure_future(self.engine.answers(futures))
        left = asyncio.ensure_future(until_left(request.receive))
        try:
            await asyncio.wait({answers, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            raise Gone if left.done() else Late
        finally:
            answers.cancel()
            left.cancel()


def one(answers: Sequence[Any]) -> Any:
    """The only answer; what is wrong with it is raised."""
    (answer,) = answers
    if isinstance(answer, CaptionerError):
        raise answer
    return answer


async def until_left(receive: Receive) -> None:
    """Until the client closes the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
