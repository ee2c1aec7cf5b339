"""A connection with a server: one request after another, each until it is answered.

What may pass by itself (a busy or failing server, a cut answer) is tried again; what will not is said in a sentence.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from captioner import __version__
from captioner.errors import BadAnswer, BadInput, CaptionerError, MissingModel, Unwilling, one_line, printable
from captioner.images.fetch import TooLong, in_thread, read_body

KEYS = ("CAPTIONER_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key; the first that is set is sent."""
TIMEOUT = "CAPTIONER_SERVER_TIMEOUT"
"""Environment variable: seconds until a request is given up."""
CONNECT = 20.0
"""Seconds until a connection must be there."""
MAX_ANSWER = 10_000_000
"""Bytes of one answer."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask us to wait before the next try."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may be another one next time."""
REQUESTS = "/chat/completions"
"""The path of requests, behind a server's address."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How long a server may take."""

    timeout: float = 600.0
    """Seconds for one request, from the first byte sent to the last received."""
    tries: int = 6
    first_wait: float = 0.5
    """Seconds before the second try; each later wait is twice as long."""


class _Again(Exception):
    """What went wrong may pass. `wait`: not before so many seconds, where the server says so."""

    def __init__(self, error: CaptionerError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class Refused(Exception):
    """A server does not take this request: because of one of its fields, or of the picture."""

    def __init__(self, error: BadAnswer, message: str, parameter: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.parameter = parameter


class NotThere(Exception):
    """A server does not know the model, or the path. Whoever asked for it can say what to do."""


class Connection:
    """With one server, by its address and key."""

    def __init__(self, address: str, key: str | None, limits: Limits) -> None:
        self.address = address
        """Without the last slash, with the version: "http://localhost:1234/v1"."""
        self.key = key
        self.limits = limits
        self.is_known = False
        """The server has answered about a picture: where it is gone now, it may come back."""

    @classmethod
    def to(cls, address: str) -> Connection:
        """As the environment says: the key, and how long a request may take."""
        return cls(_checked(address), _key(), Limits(timeout=_timeout()))

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object behind a path; what may pass by itself is tried again, after longer and longer waits.

        Beside a `CaptionerError` it raises what only who asks can answer: `Refused` and `NotThere`.
        """
        backoff = self.limits.first_wait
        for _ in range(self.limits.tries - 1):
            try:
                return self._once(path, body)
            except _Again as failed:
                if failed.wait is not None and failed.wait > LONGEST_WAIT:
                    raise BadInput(f"{failed.error} It may be asked again in {failed.wait:,.0f} s.") from failed
                # Not all threads at one moment.
                time.sleep(backoff * random.uniform(0.5, 1) + (failed.wait or 0))
                backoff *= 2
        try:
            return self._once(path, body)
        except _Again as failed:
            raise failed.error from failed

    def _once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            status, headers, content = in_thread(lambda: self._send(path, body)).result(self.limits.timeout)
        except (TimeoutError, WaitTimeout) as error:  # one class since Python 3.11
            raise BadAnswer(
                f"{self.address} did not answer within {self.limits.timeout:g} s. Ask for less at once (a smaller "
                f"batch), or set {TIMEOUT} to more seconds."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        if not 200 <= status < 300:
            raise self._refused(status, headers, content)
        answer = self._object(content, headers)
        if answer.get("error") and not answer.get("choices"):  # gateways tell so what the server behind them said
            raise self._refused(_status_in(answer["error"]), headers, content)
        if failed := _failed_choice(answer):
            said = f" ({message})" if (message := _told_in(failed)) else ""
            told = BadAnswer(f"{self.address} failed on this picture{said}.")
            raise _Again(told) if _status_in(failed) in TRANSIENT else told
        return answer

    def _send(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        headers = {"User-Agent": f"captioner/{__version__}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(_with_path(self.address, path), data, headers)
        deadline = time.monotonic() + self.limits.timeout
        with _opener(self.address).open(request, timeout=self.limits.timeout) as response:
            return response.status, response.headers, read_body(response, MAX_ANSWER, deadline)

    def _unreachable(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TooLong):
            return BadInput(f"{self.address} answers with more than {MAX_ANSWER:,} bytes: no caption is so long.")
        if isinstance(reason, TimeoutError):
            why = "it takes no connection"
        elif isinstance(reason, socket.gaierror):
            why = "its name is not known; no network?"
        else:
            why = one_line(reason.strerror if isinstance(reason, OSError) and reason.strerror else reason)
        message = MissingModel(f"No answer from {self.address} ({why}). Start the server, or mend the address.")
        is_dead = isinstance(reason, (ConnectionRefusedError, socket.gaierror, TimeoutError)) and not self.is_known
        return message if is_dead else _Again(message)

    def _object(self, content: bytes, headers: Any) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        kind = printable(headers.get_content_type())
        told = f"{self.address} answers with {kind} that is no JSON object of chat completions."
        raise _Again(BadInput(told + self.hint))

    @property
    def hint(self) -> str:
        """What may be wrong with the address."""
        return "" if self.address.endswith("/v1") else " Most such addresses end in /v1."

    def _refused(self, status: int, headers: Any, content: bytes) -> Exception:
        """What an HTTP status means, in words and as an error."""
        message, code, parameter = _error_in(content)
        said = f" ({message})" if message else ""
        if status == 200:
            return BadInput(f"{self.address} answers with an error{said}.{self.hint}")
        told = f"{self.address} answers {status}{said}"
        if 300 <= status < 400:
            to = printable(headers.get("Location", "elsewhere"))
            return BadInput(f"{told}: it sends us to {to}. Name the address that it means.")
        if status in (401, 403):
            key = f"Set {KEYS[0]} to its key" if self.key is None else "Its key in the environment is not the right one"
            return BadInput(f"{told}. {key}.")
        if status in (404, 405) or code == "model_not_found":
            return NotThere(told)
        if status == 402 or code == "insufficient_quota":
            return BadInput(f"{told}. The account has nothing left to spend.")
        if code in ("content_filter", "content_policy_violation"):
            return Unwilling(f"{told}.")
        if (status in (400, 422) or "completion choice" in message) and code != "context_length_exceeded":
            return Refused(BadAnswer(f"{told}."), message, parameter)
        error = BadAnswer(f"{told}. The server's own log may say why.")
        return _Again(error, _retry_after(headers.get("Retry-After"))) if status in TRANSIENT else error


# --- what a user gives ------------------------------------------------------------------------------------------------


def _checked(address: str) -> str:
    example = "e.g. openai:http://localhost:1234/v1#qwen3-vl"
    try:
        parts = urllib.parse.urlsplit(address)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or not address.isprintable() or " " in address:
        raise BadInput(f"{printable(address)!r} is no http or https address: name the server and its model, {example}.")
    if parts.username is not None or parts.password is not None:
        raise BadInput(f"An address is written down with the results: put a server's key into {KEYS[0]} instead.")
    path = parts.path.rstrip("/")
    if path.endswith(REQUESTS):
        begins = urllib.parse.urlunsplit(parts._replace(path=path.removesuffix(REQUESTS), fragment=""))
        raise BadInput(f"{printable(address)} is where requests go: leave {REQUESTS} out, openai:{begins}#NAME.")
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


def _key() -> str | None:
    """The server's key, if the environment holds one."""
    name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput(f"The key in {name} holds characters that no key has. Set it again.")
    return key


def _timeout() -> float:
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given) if given else Limits.timeout
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise BadInput(f"{TIMEOUT} is a number of seconds, not {given!r}.")
    return seconds


# --- parts of HTTP ----------------------------------------------------------------------------------------------------


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Answers as they are, whatever their status, and no redirects: a key goes to the server that was named alone."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [_Http(), _Https()]
    if urllib.parse.urlsplit(address).hostname not in LOOPBACK:
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


class _HTTPConnection(http.client.HTTPConnection):
    """A server that is there takes a connection soon, however long it then thinks."""

    def connect(self) -> None:
        patience, self.timeout = self.timeout, CONNECT
        super().connect()
        self.sock.settimeout(patience)


class _HTTPSConnection(_HTTPConnection, http.client.HTTPSConnection):
    """The same, encrypted."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req)


def _with_path(address: str, path: str) -> str:
    """A path of the interface behind an address; what is asked of a gateway (`?api-version=…`) stays at the end."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path + path))


def _error_in(content: bytes) -> tuple[str, str, str]:
    """Message, code and field at fault of an error, in OpenAI's form, or in the other ones that servers have."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return _told_in(re.sub(r"<[^>]{0,200}>", " ", content[:2000].decode("utf-8", "replace"))), "", ""
    error = said.get("error", said) if isinstance(said, dict) else said
    code, parameter = (str(error.get("code")), str(error.get("param"))) if isinstance(error, dict) else ("", "")
    return _told_in(error), code, parameter


def _failed_choice(answer: dict[str, Any]) -> object:
    """The error of an answer's first choice, where all have one."""
    choices = answer.get("choices")
    listed = choices if isinstance(choices, list) else []
    errors = [choice.get("error") if isinstance(choice, dict) else None for choice in listed]
    return errors[0] if errors and all(errors) else None


def _told_in(error: object) -> str:
    """The message of an error, an object or a text."""
    message = error.get("message") or error.get("detail") or "" if isinstance(error, dict) else error
    return one_line(str(message)) if message and str(message).strip() else ""


def _status_in(error: object) -> int:
    """The HTTP status that an error inside an answer names as its code, a number or a text; 200: none."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch("[45][0-9][0-9]", code) else 200


def _retry_after(header: str | None) -> float | None:
    """Seconds: as they are, or until a date."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return None
