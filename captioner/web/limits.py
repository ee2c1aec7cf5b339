"""What stands before every route: who may ask, from where, how much, and how slowly."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.serving.metrics import Counter, Histogram
from captioner.serving.scheduler import Busy
from captioner.web.errors import BUG, Form, respond
from captioner.web.held import OF_REQUEST, Held, Share
from captioner.web.settings import Settings

BODY_SECONDS = 60.0
"""For the whole body of a request."""
BEGAN = "captioner.began"
"""Where a request's scope says when it came, on the monotonic clock."""
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Answered without a key: they tell nothing."""
COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})
"""What a Content-Encoding may say of a body. Others change nothing: "identity", and the "utf-8" of some clients."""
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)
"""With every answer."""


logger = logging.getLogger(__name__)


class _Refused(HTTPException):
    """Raised while a body is read it goes through the routes' own code, which lets FastAPI's exceptions pass."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        # What is left of the body is not read, so the connection cannot go on.
        super().__init__(status, message, {"Connection": "close", **(headers or {})})


class Limits:
    """One middleware for all of it, so that the order is plain to see."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        seconds: float,
        forms: Mapping[str, Form],
        answers: Counter,
        times: Histogram,
    ) -> None:
        """seconds: for a whole request. answers, times: what is counted of each."""
        self.app = app
        self.settings = settings
        self.seconds = seconds
        self.forms = forms
        self.answers = answers
        self.times = times
        self.held = Held(settings.max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # there are no web sockets here
        # An answer to HEAD is one to GET, of which the server sends the headers alone.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        answered: list[int] = []

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])
                message["headers"] = [*message.get("headers", ()), *_missing(message.get("headers", ()))]
            await send(message)

        began = time.monotonic()
        asked[BEGAN] = began
        share = Share(self.held)
        OF_REQUEST.set(share)  # each request is a task of its own
        body = _Body(self, share, receive, began + min(BODY_SECONDS, self.seconds))
        try:
            try:
                self._check(scope)
            except _Refused as refused:
                response = respond(self.forms, scope["path"], refused.status_code, refused.detail, refused.headers)
                await response(scope, receive, send_with_headers)
            else:
                await self.app(asked, body.receive, send_with_headers)
        except Exception as error:
            logger.error("%s failed", scope["path"], exc_info=error)
            if answered:
                raise  # half an answer cannot be another one: the connection ends
            await respond(self.forms, scope["path"], 500, BUG)(scope, receive, send_with_headers)
        finally:
            share.end()
            self.answers.add(_route(asked), str(answered[0] if answered else 499))
            self.times.see(time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(scope, headers)
        if self.settings.api_key is not None and scope["path"] not in OPEN_PATHS:
            self._check_key(headers, self.settings.api_key)
        if not COMPRESSED.isdisjoint(re.findall(r"[\w-]+", headers.get("content-encoding", "").lower())):
            raise _Refused(415, "The body is compressed: send it as it is, without a Content-Encoding.")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 15:
            raise _Refused(400, "Content-Length is not a number.")
        if int(length) > self.settings.max_bytes:
            raise self.too_large()

    def _check_host(self, headers: Headers) -> None:
        """A page of another site can point a name of its own to this machine; it cannot make it an IP address."""
        if self.settings.api_key is not None:
            return  # any name may lead here, and without the key it is of no use
        host = _hostname(headers.get("host", ""))
        if host not in ("localhost", self.settings.host.lower()) and not _is_address(host):
            raise _Refused(421, "This server is not known by that name: use its address, or localhost.")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A page of another site may send forms and ask for pictures here without asking; it must not change or cost
        anything. A link may lead here."""
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            refused = elsewhere and headers.get("sec-fetch-dest") != "document"
        else:
            origin = headers.get("origin")
            own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
            refused = elsewhere or not own
        if refused:
            raise _Refused(403, "Requests from the pages of other sites are refused.")

    def _check_key(self, headers: Headers, key: str) -> None:
        given = _key_in(headers)
        if given is None or not hmac.compare_digest(given.encode("utf-8", "replace"), key.encode("utf-8")):
            challenge = {"WWW-Authenticate": 'Basic realm="captioner", charset="UTF-8"'}
            raise _Refused(401, "The API key is missing or wrong.", challenge)

    def too_large(self) -> _Refused:
        return _Refused(413, f"The body is larger than {self.settings.max_bytes:,} bytes.")


class _Body:
    """A request's body as it comes in: of a bounded length, in a bounded time."""

    def __init__(self, limits: Limits, share: Share, receive: Receive, until: float) -> None:
        self.limits = limits
        self.share = share
        self.source = receive
        self.until = until
        self.whole = False
        self.bytes = 0

    async def receive(self) -> Message:
        if self.whole:  # only the end of the connection is left to come, however long that takes
            return await self.source()
        try:
            message = await asyncio.wait_for(self.source(), max(0.0, self.until - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise _Refused(408, "The body did not come in full in time.") from error
        if message["type"] == "http.request":
            self._take(len(message.get("body", b"")))
            self.whole = not message.get("more_body", False)
        return message

    def _take(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limits.settings.max_bytes:
            raise self.limits.too_large()
        try:
            self.share.take(size)
        except Busy as error:
            raise _Refused(429, str(error), {"Retry-After": f"{error.wait:.0f}"}) from error


def _key_in(headers: Headers) -> str | None:
    """The key of a request: as a bearer's token, as the password of any user, or in a header of its own."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() == "basic":
        try:
            pair = base64.b64decode(given.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        return pair.partition(":")[2]
    return headers.get("x-api-key")


def _hostname(host: str) -> str:
    """Without the port."""
    host = host.strip().lower()
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*?)\.?)(?::\d*)?", host)
    return (match[1] or match[2] or "") if match else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _missing(headers: object) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in headers}  # type: ignore[attr-defined]
    return [(name, value) for name, value in SECURITY_HEADERS if name not in there]


def _route(scope: Scope) -> str:
    """The route's own path, never what a client made up: labels stay few."""
    return getattr(scope.get("route"), "path", "other")
