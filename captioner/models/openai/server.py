"""One model on one server, as a speaker: what is asked, in the words of the interface, and what its answers say."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from captioner.contracts import PLAIN_REQUEST, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadAnswer, BadInput, CaptionerError, MissingModel, Unwilling, one_line
from captioner.images.fetch import in_thread
from captioner.models.openai.connection import REQUESTS, Connection, NotThere, Refused
from captioner.models.parts.instructions import CHAT, JOYCAPTION
from captioner.prompt import Candidate, Reading
from captioner.text.words import without_words

LONGEST_SIDE = 1024
"""Pixels. Vision models look at no more of a picture, and larger ones cost more tokens."""
WITHOUT_MEANING = (
    *("min_new_tokens", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size", "top_k"),
)
"""Settings that chat completions have no field for."""
PLAIN = Decoding()
MODELS = "/models"
"""The path of the list of models."""
_LOCK = threading.Lock()
"""Of what threads learn of their servers and count; one for all, so that a server goes to other processes as it is."""


@dataclass
class Usage:
    """What a server says it has read and written, of all requests so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        requests = "1 request" if self.requests == 1 else f"{self.requests:,} requests"
        return f"{requests} used {self.prompt_tokens:,} tokens of input and {self.completion_tokens:,} of output"


@dataclass(frozen=True)
class _Dialect:
    """What a server turned out to take."""

    length: str = "max_tokens"
    one_at_a_time: bool = False
    """It writes one text a request."""
    left_out: frozenset[str] = frozenset()

    def after(self, refused: Refused, count: int, asked: Collection[str]) -> _Dialect:
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
    """One model on one server."""

    uses = frozenset({"instruction", "style"})
    longest = None

    def __init__(self, connection: Connection, model: str | None) -> None:
        self.connection = connection
        self.usage = Usage()
        self._dialect = _Dialect()
        self._kept: dict[str, Reading | BadAnswer] = {}
        """Answers of a batch of which one picture failed: the run asks again for each half, and they are paid for."""
        self.model = model or self._only_model()
        self._instructions = JOYCAPTION if re.search(r"joy-?caption", self.model, re.IGNORECASE) else CHAT

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
            candidates += self._complete(url, _shifted(decoding, len(candidates)), wanted, request)
        return Reading(tuple(candidates[:count]))

    def _complete(self, url: str, decoding: Decoding, count: int, request: Request) -> list[Candidate]:
        asked = request.decoding.given() if isinstance(request.decoding, DecodingChanges) else {}
        while True:
            dialect = self._dialect
            number = 1 if dialect.one_at_a_time else count
            try:
                answer = self._ask(self._body(url, decoding, number, request, dialect))
            except Refused as refused:
                with _LOCK:
                    if self._dialect == dialect:  # else another thread has learnt something meanwhile
                        self._dialect = dialect.after(refused, number, asked)
                continue
            return self._candidates(answer, decoding)

    def _body(self, url: str, decoding: Decoding, count: int, request: Request, dialect: _Dialect) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": url}}
        instruction = request.instruction or self._instructions.of_style(request.style)
        turns: list[dict[str, Any]] = [{"role": "user", "content": [picture, {"type": "text", "text": instruction}]}]
        if self._instructions.system is not None:
            turns.insert(0, {"role": "system", "content": self._instructions.system})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": turns,
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
            raise BadInput(
                f"{self.connection.address} answers without a text: it does not speak OpenAI's chat completions."
            )
        self._count(answer)
        if not any(text for text, _ in texts):
            if any(reason == "length" for _, reason in texts):
                raise BadAnswer(
                    f"The answer of {self.model} was cut before its first word, after {decoding.max_new_tokens} "
                    "tokens of thought: raise max_new_tokens."
                )
            refused = any(
                reason == "content_filter" or choice["message"].get("refusal")
                for choice, (_, reason) in zip(choices, texts, strict=True)
            )
            if refused:
                raise Unwilling(f"{self.model} refuses to speak of this picture.")
            raise BadAnswer(f"{self.model} says nothing about this picture.")
        return [
            Candidate(without_words(text, decoding.forbid), 0.0, finished=reason != "length")
            for text, reason in texts
            if text
        ]

    def _count(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        with _LOCK:
            self.connection.is_known = True
            self.usage.requests += 1
            for name in ("prompt_tokens", "completion_tokens"):
                number = usage.get(name) if isinstance(usage, dict) else None
                if isinstance(number, int):
                    setattr(self.usage, name, getattr(self.usage, name) + number)

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.connection.ask(REQUESTS, body)
        except NotThere as error:
            raise MissingModel(f"{error}. {self._which_models()}") from error

    # --- which models there are ---------------------------------------------------------------------------------------

    def _models(self) -> list[str]:
        """The names of the server's models."""
        try:
            listed = self.connection.ask(MODELS).get("data")
        except NotThere as error:
            raise MissingModel(f"{error}. {self._no_path()}") from error
        names = [model.get("id") for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        return [one_line(name) for name in names if isinstance(name, str)]

    def _which_models(self) -> str:
        """What to do about a model that is not there."""
        try:
            names = self._models()
        except MissingModel:  # nor is there a list of them
            return self._no_path()
        except (CaptionerError, Refused):
            return "Check the address and the model's name."
        near = difflib.get_close_matches(self.model, names) or names[:5]
        return f"It has {', '.join(near)}: name one behind #." if near else "Load a model there first."

    def _no_path(self) -> str:
        """What to do about a server that does not know the interface at this address."""
        return self.connection.hint.strip() or "Check the address."

    def _only_model(self) -> str:
        """The server's model, if there is one alone."""
        try:
            names = self._models()
        except Refused as refused:
            raise refused.error from refused
        if len(names) == 1:
            return names[0]
        there = f"It has {', '.join(names[:8])}" if names else "It lists none"
        address = self.connection.address
        raise BadInput(f"Which model of {address}? {there}. Name one: openai:{address}#NAME.")


def refuse_what_has_no_meaning(decoding: Decoding, request: Request) -> None:
    """Chat completions have a length, and how to draw at random; the rest of a search is not theirs."""
    given = request.decoding.given() if isinstance(request.decoding, DecodingChanges) else {}
    unknown = [name for name in WITHOUT_MEANING if name in given or getattr(decoding, name) != getattr(PLAIN, name)]
    if not decoding.do_sample and decoding.num_beams > 1:
        unknown.append("num_beams")
    if unknown:
        raise BadInput(f"A server has no use for {' and '.join(unknown)}: leave it out, or name another model.")


def data_url(image: Image.Image) -> str:
    """A picture as a server reads it: JPEG of a sane size, in the text."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


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
