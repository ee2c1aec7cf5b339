"""Fetch the bytes behind an http(s) address: bounded in time, size and redirects."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TypeVar

from captioner import __version__
from captioner.errors import BadImage, one_line, printable
from captioner.files.names import is_url

T = TypeVar("T")
Take = Callable[[int], object]
"""Counts bytes in memory."""

MAX_BYTES = 50_000_000
"""The most that is taken from one http answer."""
MAX_REDIRECTS = 5


def fetch_image(
    url: str,
    *,
    max_bytes: int = MAX_BYTES,
    timeout: float = 20.0,
    handlers: Sequence[type[urllib.request.BaseHandler]] = (),
    take: Take | None = None,
) -> bytes:
    """The bytes behind an http(s) address. `timeout` is for the whole transfer, name look-up and redirects included.

    handlers: take the place of urllib's own, e.g. to connect to some addresses alone. take: see `read_body`.
    """
    deadline = time.monotonic() + timeout
    try:
        # A socket's own timeout starts anew with every byte, so the wait is bounded from outside.
        return in_thread(lambda: _download(url, max_bytes, deadline, handlers, take)).result(timeout)
    except (TimeoutError, WaitTimeout) as error:  # one class since Python 3.11
        raise BadImage(f"{shown(url)} did not answer in full within {timeout:g} seconds.") from error


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Work whose end one may stop to wait for; what is left of it then is one thread that gives up by itself."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="fetch").start()
    return future


class _ByHand(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to us: the standard handler reads the whole (perhaps endless) body before it follows one."""

    def redirect_request(self, *_) -> None:
        return None


def _download(
    url: str,
    max_bytes: int,
    deadline: float,
    handlers: Sequence[type[urllib.request.BaseHandler]],
    take: Take | None,
) -> bytes:
    name = shown(url)
    opener = urllib.request.build_opener(_ByHand, *handlers)
    for _ in range(MAX_REDIRECTS + 1):
        if not is_url(url):
            raise BadImage(f"{name} leads to {shown(url)}, which is not an http or https address.")
        try:
            with opener.open(_request(url), timeout=max(deadline - time.monotonic(), 0.01)) as response:
                return _read_answer(response, name, max_bytes, deadline, take)
        except urllib.error.HTTPError as answer:
            answer.close()
            # Python reads headers as Latin-1; what servers do not escape is UTF-8.
            location = (answer.headers["Location"] or "").encode("latin-1").decode(errors="surrogateescape")
            if not (300 <= answer.code < 400 and location):
                raise BadImage(f"{name} answers {answer.code} {one_line(answer.reason)}.") from answer
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address at all
            raise BadImage(f"{name} cannot be fetched ({_cause(error)}).") from error
        try:
            url = urllib.parse.urljoin(url, location)
        except ValueError as error:
            raise BadImage(f"{name} leads to {shown(location)}, which is not an address.") from error
    raise BadImage(f"{name} redirects more than {MAX_REDIRECTS} times.")


def _request(url: str) -> urllib.request.Request:
    """Letters that an address may not hold are escaped; a user and password before the host become a header."""
    parts = urllib.parse.urlsplit(_CREDENTIALS.sub(r"\1", url, count=1))
    safe = "%/?:@!$&'()*+,;=~|"
    path, query = (urllib.parse.quote(part, safe, errors="surrogateescape") for part in (parts.path, parts.query))
    address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))
    request = urllib.request.Request(address, headers={"User-Agent": f"captioner/{__version__}", "Accept": "image/*"})
    if match := _CREDENTIALS.match(url):
        secret = base64.b64encode(urllib.parse.unquote_to_bytes(match[2])).decode("ascii")
        request.add_header("Authorization", f"Basic {secret}")
    return request


def _cause(error: Exception) -> str:
    """Why there is no answer, in words."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return "the name of its server is not known; no network?"
    if isinstance(reason, OSError) and reason.strerror and not isinstance(reason, ssl.SSLError):
        return one_line(reason.strerror)
    return one_line(reason)


def _read_answer(
    response: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float, take: Take | None
) -> bytes:
    kind = response.headers.get_content_type() if response.headers["Content-Type"] else "image/*"
    if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        raise BadImage(f"{name} answers with {printable(kind)}, not a picture.")
    try:
        return read_body(response, max_bytes, deadline, take)
    except TooLong as error:
        raise BadImage(f"{name} is larger than {max_bytes:,} bytes.") from error
    except BrokenOff as error:
        raise BadImage(f"{name} broke off after {error.received:,} bytes.") from error


class TooLong(OSError):
    """More bytes than are taken."""


class BrokenOff(ConnectionError):
    """Fewer bytes than a server promised."""

    def __init__(self, received: int) -> None:
        super().__init__(f"it broke off after {received:,} bytes")
        self.received = received


def read_body(response: http.client.HTTPResponse, max_bytes: int, deadline: float, take: Take | None = None) -> bytes:
    """All that a server sends: of a bounded length, whole, and by `deadline` on the monotonic clock.

    take: counts the bytes that lie in memory. It is told of each piece before that is kept, and may refuse it by an
    error; where nothing comes of it all, it is told of so many less.
    """
    received = bytearray()
    try:
        while piece := response.read1(1 << 16):  # at most one wait on the network each
            if take is not None:
                take(len(piece))
            received += piece
            if len(received) > max_bytes:
                raise TooLong
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise BrokenOff(len(received))
    except BaseException:
        if take is not None:
            take(-len(received))
        raise
    return bytes(received)


_CREDENTIALS = re.compile(r"(https?://)([^/?#]*)@", re.IGNORECASE)


def shown(url: str) -> str:
    """An address as it may be printed and kept: on one line, without a user's name and password."""
    return printable(_CREDENTIALS.sub(r"\1", url, count=1))
