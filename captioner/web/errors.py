"""What goes wrong, as HTTP says it: a status, and one plain sentence in the form that the route's clients know."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Mount

from captioner.errors import BadImage, BadInput, CaptionerError, MissingModel, one_line, printable
from captioner.serving.scheduler import Busy, Closed, Late
from captioner.sinks.row import to_json

Form = Callable[[int, str], dict[str, Any]]
"""A status and a sentence → the body."""

STATUS: tuple[tuple[type[CaptionerError], int], ...] = (
    (Busy, 429),
    (Late, 504),
    (Closed, 503),
    (MissingModel, 404),
    (BadImage, 422),
    (BadInput, 422),
)

BUG = "This is a bug in captioner; the server's log says more."
"""What is said of an error that is none of ours."""


class Json(JSONResponse):
    """JSON of any text: lone surrogates are escaped, what is no number is null."""

    def render(self, content: Any) -> bytes:
        return to_json(content).encode("utf-8")


class TooLarge(BadInput):
    """A body, or a picture in it, above the limit."""


class Gone(Exception):
    """The client left before it had its answer."""


def status_of(error: CaptionerError) -> int:
    """The HTTP status of an error of the library."""
    if isinstance(error, TooLarge):
        return 413
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def plain(status: int, message: str) -> dict[str, Any]:
    """FastAPI's own form, which A1111's clients know as well."""
    return {"detail": message}


def install(app: FastAPI, forms: Mapping[str, Form]) -> None:
    """Answer every error in the form of its path; forms: path (or the beginning of one that ends with /) → form."""

    def body(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        return respond(forms, request.url.path, status, message, headers)

    @app.exception_handler(CaptionerError)
    async def of_library(request: Request, error: CaptionerError) -> Response:
        headers = {"Retry-After": str(round(error.wait))} if isinstance(error, Busy) else None
        return body(request, status_of(error), one_line(error), headers)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if error.status_code in (404, 405) and error.detail == HTTPStatus(error.status_code).phrase:
            return of_path(request)
        return body(request, error.status_code, str(error.detail), error.headers)

    def of_path(request: Request) -> Response:
        """Nothing is there, or it is asked for otherwise: an address that takes POST, opened in a browser."""
        path, methods = printable(request.url.path)[:200], methods_at(request)
        if not methods:
            return body(request, 404, f"There is nothing at {path}: /docs lists what there is.")
        allowed = ", ".join(methods)
        message = f"{path} takes {allowed}, not {printable(request.method)}: /docs tells how."
        return body(request, 405, message, {"Allow": allowed})

    @app.exception_handler(RequestValidationError)
    async def of_form(request: Request, error: RequestValidationError) -> Response:
        return body(request, 422, validation(error.errors()))

    @app.exception_handler(Gone)
    @app.exception_handler(ClientDisconnect)
    async def of_nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the log does


def methods_at(request: Request) -> list[str]:
    """What may be asked at a request's path; the page's files are not among the routes."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]

    def takes(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    return [method for method in ("DELETE", "GET", "PATCH", "POST", "PUT") if takes(method)]


def respond(
    forms: Mapping[str, Form], path: str, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error's answer."""
    form = next((form for start, form in forms.items() if path == start or _begins(path, start)), plain)
    return Json(form(status, message), status, headers=dict(headers or {}))


def _begins(path: str, start: str) -> bool:
    return start.endswith("/") and len(start) > 1 and path.startswith(start)


WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "int_parsing": "not a whole number",
    "int_type": "not a whole number",
    "int_from_float": "not a whole number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "bool_parsing": "neither true nor false",
    "bool_type": "neither true nor false",
    "string_type": "not a text",
    "string_unicode": "not a text, for it holds half a surrogate pair",
    "list_type": "not a list",
    "dict_type": "not an object",
    "model_type": "not an object",
}
"""pydantic's names of what is wrong → the same in plain words; of the others it says it well enough."""


def validation(errors: Any) -> str:
    """What pydantic has against a body, without repeating what was sent."""
    words: dict[str, list[str]] = {}
    for error in list(errors)[:5]:
        parts = [str(part) for part in error.get("loc", ())]
        parts = parts[1:] if parts[:1] in (["body"], ["query"]) else parts
        if error.get("type") != "extra_forbidden":  # its last part is what the client wrote
            parts = [part for part in parts if not _TYPE.fullmatch(part)]
        place = ".".join(parts)
        told = error.get("msg", "not valid")
        words.setdefault(place, []).append(WORDS.get(error.get("type"), told) if place else told)
    each = (
        f"{printable(place)[:100]}: {', '.join(told)}" if place else ", ".join(told) for place, told in words.items()
    )
    return printable("; ".join(each)) or "The request is not valid."


_TYPE = re.compile(r"str|int|float|bool|(list|constrained|function)\b.*|[A-Z]\w*")
"""What pydantic puts between fields: which type of several it tried. No field of ours is called so."""
