"""A model behind an address that speaks OpenAI's chat completions: LM Studio, Ollama, vLLM, llama.cpp, OpenAI itself.

`openai:http://localhost:1234/v1#qwen3-vl` names the server and the model on it. Nothing is loaded here: pictures go out
as JPEG, as many requests at once as a batch has pictures. What may pass by itself (a busy or failing server, a cut
answer) is tried again; what will not is said in a sentence.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import http.client
import io
import json
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import dataclass, fields, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from PIL import Image

from captioner import __version__
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadAnswer, BadInput, CaptionerError, MissingModel
from captioner.images import printable
from captioner.images.fetch import TooLong, in_thread, read_body
from captioner.images.open import one_line
from captioner.prompt import Candidate, Reading
from captioner.styles import STYLES
from captioner.text.words import without_words

DEFAULT_DECODING = {"num_beams": 1, "do_sample": True, "temperature": 0.6, "max_new_tokens": 300, "consensus": True}
"""Servers draw at random; `consensus` because they do not tell which of several texts is the likeliest."""
KEYS = ("CAPTIONER_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key; the first that is set is sent."""
TIMEOUT = "CAPTIONER_SERVER_TIMEOUT"
"""Environment variable: seconds until a request is given up."""
LONGEST_SIDE = 1024
"""Pixels. Vision models look at no more of a picture, and larger ones cost more tokens."""
CONNECT = 20.0
"""Seconds until a connection must be there."""
MAX_ANSWER = 10_000_000
"""Bytes of one answer."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask us to wait before the next try."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may be another one next time."""
WITHOUT_MEANING = (
    *("min_new_tokens", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size", "top_k"),
)
"""Settings that chat completions have no field for."""
MODELS = "/models"
"""The path of the list of models."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How long a server may take."""

    timeout: float = 600.0
    """Seconds for one request, from the first byte sent to the last received."""
    tries: int = 6
    first_wait: float = 0.5
    """Seconds before the second try; each later wait is twice as long."""


@dataclass
class Usage:
    """What a server says it has read and written, of all requests so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        requests = "1 request" if self.requests == 1 else f"{self.requests:,} requests"
        return f"{requests} used {self.prompt_tokens:,} tokens of input and {self.completion_tokens:,} of output"


class _Again(Exception):
    """What went wrong may pass. `wait`: not before so many seconds, where the server says so."""

    def __init__(self, error: CaptionerError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class _Refused(Exception):
    """A server does not take this request: because of one of its fields, or of the picture."""

    def __init__(self, error: BadAnswer, message: str, parameter: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.parameter = parameter


@dataclass(frozen=True)
class _Dialect:
    """What a server turned out to take."""

    length: str = "max_tokens"
    one_at_a_time: bool = False
    """It writes one text a request."""
    left_out: frozenset[str] = frozenset()

    def after(self, refused: _Refused, count: int, asked: Collection[str]) -> _Dialect:
        """Without the field that was refused; what the user has asked for is not left out: that is an error."""
        message, parameter = refused.message, refused.parameter
        if self.length == "max_tokens" and (parameter == "max_tokens" or "max_completion_tokens" in message):
            return replace(self, length="max_completion_tokens")
        if count > 1 and not self.one_at_a_time and (parameter == "n" or "completion choice" in message):
            return replace(self, one_at_a_time=True)
        for name in ("temperature", "top_p"):
            if name not in asked and name not in self.left_out and (parameter == name or name in message):
                return replace(self, left_out=self.left_out | {name})
        raise refused.error


class Server:
    """One model on one server, as a speaker."""

    uses = frozenset({"instruction", "style"})
    longest = None

    def __init__(self, address: str, model: str | None, key: str | None, limits: Limits) -> None:
        self.address = address
        """Without the last slash, with the version: "http://localhost:1234/v1"."""
        self.key = key
        self.limits = limits
        self.usage = Usage()
        self.has_answered = False
        self._dialect = _Dialect()
        self._kept: dict[str, Reading | BadAnswer] = {}
        """Answers of a batch of which one picture failed: the run asks again for each half, and they are paid for."""
        self._lock = threading.Lock()
        self.model = model or ""  # unknown while the server is asked which one it has
        if not self.model:
            self.model = self._only_model()

    def read_images(
        self, images: Sequence[Image.Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        refuse_what_has_no_meaning(decoding, request)
        waiting = [in_thread(partial(self._answer, image, decoding, request)) for image in images]
        answers: dict[str, Reading | BadAnswer] = {}
        readings: list[Reading] = []
        errors: list[CaptionerError] = []
        for future in waiting:
            try:
                key, answer = future.result()
            except CaptionerError as error:  # of the server or the settings: it ends the run
                errors.append(error)
                continue
            answers[key] = answer
            if isinstance(answer, BadAnswer):
                errors.append(answer)
            else:
                readings.append(answer)
        if errors:
            if len(images) > 1:
                self._kept |= answers
            raise min(errors, key=lambda error: isinstance(error, BadAnswer))
        return readings

    def _answer(self, image: Image.Image, decoding: Decoding, request: Request) -> tuple[str, Reading | BadAnswer]:
        """What one picture is answered, and by which key that is kept."""
        url = data_url(image)
        key = hashlib.sha256(f"{url} {decoding} {request}".encode("utf-8", "surrogatepass")).hexdigest()
        if (kept := self._kept.pop(key, None)) is not None:
            return key, kept
        try:
            return key, self._read(url, decoding, request)
        except BadAnswer as error:
            return key, error

    def _read(self, url: str, decoding: Decoding, request: Request) -> Reading:
        """All candidates of one picture. A server that writes fewer at once is asked for the rest one by one."""
        count = decoding.num_return_sequences
        candidates: list[Candidate] = []
        while len(candidates) < count:
            wanted = 1 if candidates or self._dialect.one_at_a_time else count
            found = self._complete(url, _shifted(decoding, len(candidates)), wanted, request)
            candidates += found
        return Reading(tuple(candidates[:count]))

    def _complete(self, url: str, decoding: Decoding, count: int, request: Request) -> list[Candidate]:
        asked = request.decoding.given() if isinstance(request.decoding, DecodingChanges) else {}
        while True:
            dialect = self._dialect
            number = 1 if dialect.one_at_a_time else count
            try:
                answer = self._ask("/chat/completions", self._body(url, decoding, number, request, dialect))
            except _Refused as refused:
                with self._lock:
                    if self._dialect == dialect:  # else another thread has learnt something meanwhile
                        self._dialect = dialect.after(refused, number, asked)
                continue
            return self._candidates(answer, decoding)

    def _body(self, url: str, decoding: Decoding, count: int, request: Request, dialect: _Dialect) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": url}}
        text = {"type": "text", "text": request.instruction or STYLES[request.style or "prompt"].instruction}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [picture, text]}],
            dialect.length: decoding.max_new_tokens,
            "n": count,
        }
        if decoding.do_sample:
            body |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed}
        else:
            body["temperature"] = 0
        return {name: value for name, value in body.items() if name not in dialect.left_out and not _idle(name, value)}

    def _candidates(self, answer: dict[str, Any], decoding: Decoding) -> list[Candidate]:
        """The texts of an answer, in its order; all have the same score, since servers tell none."""
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice.get("index") or 0)
            texts = [(_text_of(choice["message"]), choice.get("finish_reason")) for choice in choices]
        except (KeyError, TypeError, AttributeError, IndexError):
            texts = []
        if not texts:
            raise BadInput(f"{self.address} answers without a text: it does not speak OpenAI's chat completions.")
        self._count(answer)
        if not any(text for text, _ in texts):
            if any(reason == "length" for _, reason in texts):
                raise BadAnswer(
                    f"The answer of {self.model} was cut before its first word, after {decoding.max_new_tokens} "
                    "tokens of thought: raise max_new_tokens."
                )
            refusal = any(reason == "content_filter" for _, reason in texts)
            raise BadAnswer(f"{self.model} {'refuses to speak of' if refusal else 'says nothing about'} this picture.")
        return [
            Candidate(without_words(text, decoding.forbid), 0.0, finished=reason != "length")
            for text, reason in texts
            if text
        ]

    def _count(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        with self._lock:
            self.has_answered = True
            self.usage.requests += 1
            for name in ("prompt_tokens", "completion_tokens"):
                number = usage.get(name) if isinstance(usage, dict) else None
                if isinstance(number, int):
                    setattr(self.usage, name, getattr(self.usage, name) + number)

    # --- one request, until it is answered ----------------------------------------------------------------------------

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object behind a path; what may pass by itself is tried again, after longer and longer waits."""
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
        if 200 <= status < 300:
            return self._object(content, headers)
        raise self._refused(path, status, headers, content)

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
            why = _cause(reason)
        message = MissingModel(f"No answer from {self.address} ({why}). Start the server, or mend the address.")
        is_dead = isinstance(reason, (ConnectionRefusedError, socket.gaierror, TimeoutError)) and not self.has_answered
        return message if is_dead else _Again(message)

    def _object(self, content: bytes, headers: Any) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        kind = printable(headers.get_content_type())
        hint = "" if self.address.endswith("/v1") else " Most such addresses end in /v1."
        raise _Again(BadInput(f"{self.address} answers with {kind} that is no JSON object of chat completions.{hint}"))

    def _refused(self, path: str, status: int, headers: Any, content: bytes) -> Exception:
        """What an HTTP status means, in words and as an error."""
        message, code, parameter = _error_in(content)
        told = f"{self.address} answers {status}" + (f" ({message})" if message else "")
        if status in (401, 403):
            key = f"Set {KEYS[0]} to its key" if self.key is None else "Its key in the environment is not the right one"
            return BadInput(f"{told}. {key}.")
        if status == 404 or code == "model_not_found":
            return MissingModel(f"{told}. {self._no_path() if path == MODELS else self._which_models()}")
        if code == "insufficient_quota":
            return BadInput(f"{told}. The account has nothing left to spend.")
        if (status in (400, 422) or "completion choice" in message) and code != "context_length_exceeded":
            return _Refused(BadAnswer(f"{told}."), message, parameter)
        error = BadAnswer(f"{told}. The server's own log may say why.")
        return _Again(error, _retry_after(headers.get("Retry-After"))) if status in TRANSIENT else error

    # --- which models there are ---------------------------------------------------------------------------------------

    def _models(self) -> list[str]:
        """The names of the server's models."""
        listed = self._ask(MODELS).get("data")
        names = [model.get("id") for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        return [one_line(name) for name in names if isinstance(name, str)]

    def _which_models(self) -> str:
        """What to do about a model that is not there. It asks for the list: never call it where that is missing."""
        try:
            names = self._models()
        except MissingModel:  # nor is there a list of them
            return self._no_path()
        except (CaptionerError, _Refused):
            return "Check the address and the model's name."
        near = difflib.get_close_matches(self.model, names) or names[:5]
        return f"It has {', '.join(near)}: name one behind #." if near else "Load a model there first."

    def _no_path(self) -> str:
        """What to do about a server that does not know the interface at this address."""
        return "Check the address." if self.address.endswith("/v1") else "Most such addresses end in /v1."

    def _only_model(self) -> str:
        """The server's model, if there is one alone."""
        try:
            names = self._models()
        except _Refused as refused:
            raise refused.error from refused
        if len(names) == 1:
            return names[0]
        there = f"It has {', '.join(names[:8])}" if names else "It lists none"
        raise BadInput(f"Which model of {self.address}? {there}. Name one: openai:{self.address}#NAME.")


def refuse_what_has_no_meaning(decoding: Decoding, request: Request) -> None:
    """Chat completions have a length, and how to draw at random; the rest of a search is not theirs."""
    given = request.decoding.given() if isinstance(request.decoding, DecodingChanges) else {}
    unknown = [name for name in WITHOUT_MEANING if name in given or getattr(decoding, name) != getattr(PLAIN, name)]
    if not decoding.do_sample and decoding.num_beams > 1:
        unknown.append("num_beams")
    if unknown:
        raise BadInput(f"A server has no use for {' and '.join(unknown)}: leave it out, or name another model.")


PLAIN = Decoding()


def spent(model: object) -> str | None:
    """What the servers have counted that a model has asked: its own, or those of an ensemble's members."""
    usages = list({id(server): server.usage for server in _servers(model)}.values())
    if not usages:
        return None
    return str(Usage(*(sum(getattr(usage, field.name) for usage in usages) for field in fields(Usage))))


def _servers(model: object) -> Iterator[Server]:
    from captioner.pipeline import Captioner, DirectEmbedder

    if isinstance(model, Captioner) and isinstance(model.speaker, Server):
        yield model.speaker
    elif isinstance(model, DirectEmbedder):
        from captioner.models.ensemble.ensemble import Ensemble

        if isinstance(model.embedder, Ensemble):
            for member in model.embedder.models:
                yield from _servers(member)


def data_url(image: Image.Image) -> str:
    """A picture as a server reads it: JPEG of a sane size, in the text."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


# --- loading ----------------------------------------------------------------------------------------------------------


def load(name: str, options: LoadOptions) -> Server:
    """name: "ADDRESS#MODEL"; the model may be left out where the server has one alone."""
    address, _, model = name.partition("#")
    address = address or os.environ.get("OPENAI_BASE_URL", "")
    return Server(_checked(address), urllib.parse.unquote(model) or None, _key(), Limits(timeout=_timeout()))


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
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


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


class _Connection(http.client.HTTPConnection):
    """A server that is there takes a connection soon, however long it then thinks."""

    def connect(self) -> None:
        patience, self.timeout = self.timeout, CONNECT
        super().connect()
        self.sock.settimeout(patience)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same, encrypted."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


def _with_path(address: str, path: str) -> str:
    """A path of the interface behind an address; what is asked of a gateway (`?api-version=…`) stays at the end."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path + path))


def _error_in(content: bytes) -> tuple[str, str, str]:
    """Message, code and field at fault of an error, in OpenAI's form, or in the other ones that servers have."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return one_line(re.sub(r"<[^>]{0,200}>", " ", content[:2000].decode("utf-8", "replace"))), "", ""
    error = said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(error, dict):
        return one_line(str(error)), "", ""
    message = error.get("message") or error.get("detail") or ""
    return one_line(str(message)) if message else "", str(error.get("code")), str(error.get("param"))


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


def _cause(reason: BaseException | str) -> str:
    return (
        one_line(reason.strerror)
        if isinstance(reason, OSError) and reason.strerror
        else one_line(str(reason) or type(reason).__name__)
    )


def _text_of(message: dict[str, Any]) -> str:
    """What was said: plain or in parts, without the thoughts that some models write first."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise TypeError("no text")
    content = re.sub(r"^.*</think>", "", content, flags=re.DOTALL).strip()
    return "" if content.startswith("<think>") else content


def _shifted(decoding: Decoding, number: int) -> Decoding:
    """For the candidate of this number, drawn alone: another one than the first."""
    return decoding if decoding.seed is None else replace(decoding, seed=decoding.seed + number)


def _idle(name: str, value: Any) -> bool:
    """Whether a field says what holds anyway; the fewer fields, the more servers take a request."""
    return value is None or (name == "n" and value == 1) or (name == "top_p" and value == 1)
