"""What Review asks: the pictures of the server's folder and their texts, edits and the way back.

The page alone calls these, and only where the server was given a folder. Bodies are JSON, which no page of another site
can send unasked; a picture is named as the server itself has listed it, never by a path.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from captioner.errors import BadInput, BadOutput, counted, one_line
from captioner.review import BadFilter, BadPattern, Conflict, Review, Row, Scope, Unknown, operations
from captioner.review.review import MOST_TERMS
from captioner.serving.engine import Picture
from captioner.text.length import clip_length
from captioner.web import inputs
from captioner.web.captioning import Captioning
from captioner.web.context import Context
from captioner.web.errors import Json
from captioner.web.routes.native import Generate

MOST_ROWS = 200
"""Of one request."""
MOST_COMPARED = 2_000
"""Texts before and after."""
MOST_NAMES = 200_000
PATIENCE = 2.0
"""Seconds that an edit waits for its file: whoever sees "saved" can open the file."""
KEPT = {"Cache-Control": "private, max-age=3600"}
"""Of pictures, whose address changes with their content."""

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Text = Annotated[str, Field(max_length=operations.LONGEST_TEXT)]
Words = Annotated[str, Field(max_length=operations.LONGEST_PATTERN)]
Filter = Annotated[str, Field(max_length=10_000)]


class Strict(BaseModel):
    """What is misspelt is said, not passed over."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few(cls, fields: Any) -> Any:
        """Each unknown one is an error of its own, and a body may hold millions."""
        if isinstance(fields, dict) and len(fields) > inputs.MAX_FIELDS:
            raise ValueError("there are too many fields")
        return fields


class View(Strict):
    """Which pictures, in which order."""

    filter: Filter = ""
    sort: Literal["name", "score", "chars", "tokens"] = "name"
    descending: bool = False


class Rows(Strict):
    """Pictures by their names."""

    names: Annotated[list[Name], Field(max_length=MOST_ROWS)]


class One(Strict):
    """A picture by its name."""

    name: Name


class Edit(Strict):
    """Another text. before: what the user saw; group: what is taken back together with it."""

    name: Name
    text: Text
    before: Text | None = None
    group: Annotated[str, Field(max_length=100)] | None = None
    title: Annotated[str, Field(max_length=200)] | None = None


class Ask(Generate, Strict):
    """A model about a picture, with the settings of /v1/generate."""

    name: Name


class Count(Strict):
    """A text that is being typed."""

    text: Text


class Caption(Generate, Strict):
    """Pictures for a model, with the settings of /v1/generate; on_existing: what becomes of texts that are there."""

    names: Annotated[list[Name], Field(min_length=1, max_length=MOST_NAMES)]
    on_existing: Literal["skip", "overwrite", "append", "prepend"] = "overwrite"


class Failed(Strict):
    """Why a picture has no text."""

    name: Name
    reason: Annotated[str, Field(max_length=2000)]


class Terms(Strict):
    """Which comma terms: of the pictures of a filter, and those that contain a word."""

    filter: Filter = ""
    contains: Words = ""
    by_name: bool = False
    most: Annotated[int, Field(ge=1, le=50_000)] = MOST_TERMS


class Replace(Strict):
    """Find and replace."""

    kind: Literal["replace"]
    find: Words
    replacement: Words = ""
    is_pattern: bool = False
    match_case: bool = False
    whole_words: bool = False


class Around(Strict):
    """Words before or after every text."""

    kind: Literal["prepend", "append"]
    words: Words


class Delete(Strict):
    """A comma term taken out."""

    kind: Literal["delete"]
    term: Words


class Bulk(Strict):
    """An operation, and the pictures that it is for: of a filter, and of these those that are named."""

    operation: Annotated[Replace | Around | Delete, Field(discriminator="kind")]
    filter: Filter = ""
    names: Annotated[list[Name], Field(max_length=MOST_NAMES)] | None = None

    def made(self) -> operations.Operation:
        given = self.operation.model_dump()
        return operations.OPERATIONS[given.pop("kind")](**given)

    def scope(self) -> Scope:
        return Scope(self.filter, None if self.names is None else tuple(self.names))


class Polite(APIRoute):
    """Errors of this room by their status; what is wrong with what is being typed is an answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def polite(request: Request) -> Response:
            try:
                return await handle(request)
            except (BadFilter, BadPattern) as error:
                return Json({"error": where_of(error)})
            except Unknown as error:
                raise HTTPException(404, one_line(error)) from error
            except BadOutput as error:
                raise HTTPException(409, one_line(error)) from error

        return polite


class Opening:
    """The review of the server's folder, opened when it is first asked for."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.lock = threading.Lock()
        self.review: Review | None = None

    def __call__(self) -> Review:
        if self.root is None:
            raise BadInput("This server was started without a folder: captioner serve FOLDER.")
        with self.lock:
            if self.review is None:
                self.review = Review(self.root)
            return self.review

    def close(self) -> None:
        with self.lock:
            if self.review is not None:
                self.review.close()


class Runs:
    """Captioning the folder: one run at a time."""

    def __init__(self) -> None:
        self.current: Captioning | None = None

    def start(self, run: Captioning) -> None:
        """Begin one, unless another is on its way."""
        if self.current is not None and not self.current.over:
            raise BadOutput("The folder is being captioned already: wait, or stop that first.")
        self.current = run
        run.start()

    async def end(self) -> None:
        """Stop what runs."""
        if self.current is not None:
            await self.current.end()


def router(context: Context) -> APIRouter:
    """The routes of this module."""
    review, runs = Opening(context.settings.root), Runs()

    @asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        yield
        await runs.end()
        await run_in_threadpool(review.close)

    routes = APIRouter(prefix="/review/api", include_in_schema=False, route_class=Polite, lifespan=life)

    @routes.get("/state")
    def state() -> Any:
        return state_of(review())

    @routes.post("/view")
    def view(asked: View) -> Any:
        rows = review().view(asked.filter, asked.sort, asked.descending)
        return {"names": [row.name for row in rows], "state": state_of(review())}

    @routes.post("/rows")
    def rows(asked: Rows) -> Any:
        known = review().rows
        return {"rows": [brief(known[name]) for name in asked.names if name in known]}

    @routes.post("/row")
    def row(asked: One) -> Any:
        return whole(review(), review().row(asked.name))

    @routes.post("/edit")
    def edit(asked: Edit) -> Any:
        return edited(review(), asked)

    @routes.post("/ask")
    async def ask(request: Request, asked: Ask) -> Any:
        content = await run_in_threadpool(lambda: review().content(asked.name))
        known = review().row(asked.name)
        picture = Picture(content, asked.name, known.path, known.text or "")
        row = await context.prompt(request, picture, asked.ask(context.engine))
        await run_in_threadpool(lambda: review().said(asked.name, row))
        return row

    @routes.post("/caption")
    async def caption(asked: Caption) -> Any:
        ask = asked.ask(context.engine)
        run = await run_in_threadpool(lambda: Captioning(review(), context.engine, asked.names, ask, asked.on_existing))
        runs.start(run)
        return run.state()

    @routes.get("/captioning")
    def captioning(since: Annotated[int, Field(ge=0)] = 0) -> Any:
        run = runs.current
        if run is None:
            return {"total": 0, "over": True}
        told = run.state(since)
        known, changed = review().rows, told.pop("changed")
        names = changed[:MOST_ROWS]
        return {
            **told,
            "over": told["over"] and names == changed,
            "rows": [brief(known[name]) for name in names if name in known],
            "since": since + len(names),
        }

    @routes.post("/stop")
    async def stop() -> Any:
        await runs.end()
        return {"stopped": runs.current is not None}

    @routes.post("/count")
    def count(asked: Count) -> Any:
        tokens, cut = clip_length(asked.text)
        return {"tokens": tokens if asked.text.strip() else 0, "cut": cut}

    @routes.post("/fail")
    def fail(asked: Failed) -> Any:
        review().fail(asked.name, asked.reason)
        return brief(review().row(asked.name))

    @routes.post("/preview")
    def preview(asked: Bulk) -> Any:
        return asdict(review().preview(asked.made(), asked.scope()))

    @routes.post("/apply")
    def apply(asked: Bulk) -> Any:
        return settled(review(), asdict(review().apply(asked.made(), asked.scope())))

    @routes.post("/undo")
    def undo() -> Any:
        return settled(review(), asdict(review().undo()))

    @routes.post("/redo")
    def redo() -> Any:
        return settled(review(), asdict(review().redo()))

    @routes.get("/history")
    def history() -> Any:
        steps = review().history()
        return {
            "steps": [
                {"title": step.title, "time": step.time, "texts": step.texts, "stands": stands}
                for step, stands in steps
            ]
        }

    @routes.get("/edited")
    def edited_texts() -> Any:
        rows = [row for row in review().rows.values() if row.is_edited][:MOST_COMPARED]
        return {"rows": [{"file": row.name, "before": row.original or "", "after": row.text or ""} for row in rows]}

    @routes.post("/terms")
    def terms(asked: Terms) -> Any:
        terms = review().terms(asked.filter, asked.contains, asked.by_name, asked.most)
        return Json({"terms": [vars(term) for term in terms]})  # FastAPI's way takes a second for 50,000

    @routes.get("/tags")
    def tags() -> Any:
        return Json({"tags": context.settings.tags})

    @routes.post("/look-again")
    def look_again() -> Any:
        review().look_again()
        return state_of(review())

    @routes.post("/retry")
    def retry() -> Any:
        review().writer.retry()
        return settled(review(), {})

    @routes.get("/small")
    def small(name: Name) -> Response:
        return Response(review().small(name), media_type="image/jpeg", headers=KEPT)

    @routes.get("/large")
    def large(name: Name) -> Response:
        return Response(review().large(name), media_type="image/jpeg", headers=KEPT)

    return routes


def state_of(review: Review) -> dict[str, Any]:
    """What the head of the page shows."""
    rows = list(review.rows.values())
    done, undone = review.journal.done, review.journal.undone
    return {
        "root": review.root.name,
        "total": len(rows),
        "empty": sum(not row.text for row in rows),
        "failed": sum(row.problem is not None for row in rows),
        "edited": sum(row.is_edited for row in rows),
        "scored": any(row.score is not None for row in rows),
        "unread": review.unread[:3],
        "damaged": damaged_of(review),
        "unwritten": len(review.writer.waiting),
        "stuck": next(iter(review.writer.stuck.values()), None),
        "undo": done[-1].title if done else None,
        "redo": undone[-1].title if undone else None,
    }


def damaged_of(review: Review) -> str | None:
    """That the history has gaps, where it has."""
    if not review.journal.damaged:
        return None
    lines = counted(review.journal.damaged, "damaged line")
    return f"The history of edits has {lines}: what is around is kept, these edits cannot be undone."


def brief(row: Row) -> dict[str, Any]:
    """A row of the list."""
    return {
        "name": row.name,
        "text": row.text,
        "score": row.score,
        "tokens": row.tokens,
        "problem": row.problem,
        "edited": row.is_edited,
    }


def whole(review: Review, row: Row) -> dict[str, Any]:
    """All about a picture."""
    return {
        **brief(row),
        "original": row.original if row.was_edited else row.text,
        "candidates": [candidate._asdict() for candidate in review.candidates(row)],
        "places": review.places(row),
    }


def edited(review: Review, asked: Edit) -> dict[str, Any]:
    """What became of an edit; somebody else's text stands as `conflict`."""
    try:
        row = review.edit(asked.name, asked.text, before=asked.before, group=asked.group, title=asked.title)
    except Conflict as error:
        return {"conflict": one_line(error), "row": whole(review, error.row), "state": state_of(review)}
    return settled(review, {"row": whole(review, row)})


def settled(review: Review, answer: dict[str, Any]) -> dict[str, Any]:
    """With the state once the files are written, or soon."""
    review.flush(PATIENCE)
    return {**answer, "state": state_of(review)}


def where_of(error: BadFilter | BadPattern) -> dict[str, Any]:
    """A sentence, and the characters that it is about."""
    if isinstance(error, BadFilter):
        return {"message": one_line(error), "start": error.start, "end": error.end}
    return {"message": one_line(error), "start": error.position, "end": error.position}
