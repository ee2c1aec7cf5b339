"""OpenAI's own forms: chat completions about a picture, embeddings of texts and pictures, the list of models.

Whatever speaks with OpenAI, LM Studio or vLLM can be pointed here. A chat's picture is the last one in it; its text is
the instruction of a model that takes one, and every other model says of a picture what it always does.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field
from starlette.concurrency import run_in_threadpool

from captioner.errors import BadInput, CaptionerError, MissingModel, one_line
from captioner.run.questions import as_numbers
from captioner.run.templates import literal
from captioner.text.embedding import MINILM
from captioner.text.length import clip_tokens_of
from captioner.web import inputs
from captioner.web.bodies import described, parsed
from captioner.web.context import Context, one
from captioner.web.errors import Json, status_of

MOST_CHOICES = 32
MOST_INPUTS = 2048
"""Texts or pictures of one request for embeddings; OpenAI's own limit."""
MOST_MESSAGES = 2048
"""Of a chat; OpenAI's own limit."""
MOST_PARTS = 100
"""Of a message; and the most texts at which an answer may be told to stop. A body of 20 MB holds millions."""
MOST_TOKENS = 1024
"""New tokens, where a model knows no limit of its own. A limit above it changes nothing: no caption is so long."""
COUNTED = 100_000
"""Characters of a text whose tokens are counted."""


TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", None),
    404: ("invalid_request_error", None),
    405: ("invalid_request_error", None),
    413: ("invalid_request_error", None),
    415: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
"""By status: what OpenAI calls the type and the code of an error."""


def error(status: int, message: str) -> dict[str, Any]:
    """As OpenAI words an error."""
    kind, code = TYPES.get(status, ("server_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


ERRORS = {"/v1/": error}
"""But for our own (`native.py`): whoever asks for what is not answered here shows an error of OpenAI's form alone."""


class Route(APIRoute):
    """Names the model that is missing, and answers 400 where our own routes say 422, which OpenAI's never do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except MissingModel as missing:
                told = error(404, one_line(missing))["error"] | {"param": "model", "code": "model_not_found"}
                return Json({"error": told}, 404)
            except CaptionerError as refused:
                if status_of(refused) != 422:
                    raise
                raise HTTPException(400, one_line(refused)) from refused

        return answer


def router(context: Context) -> APIRouter:
    """Chat completions, embeddings, and one model of the list (the list itself is in `native.py`)."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=Route)
    engine, known = context.engine, {}  # model → what it can be asked

    async def abilities(request: Request, model: str) -> Abilities:
        if model not in known:
            known[model] = one(await context.wait(request, [engine.call(abilities_of, (), model)]))
        return known[model]

    @routes.post("/chat/completions", openapi_extra=described(ChatRequest))
    async def chat(request: Request) -> Any:
        """The text of the picture in a chat."""
        asked = await parsed(request, context.settings, ChatRequest)
        model, named = engine.known(asked.model or None), asked.picture()
        picture = await inputs.picture(named, context.settings)
        ask = engine.ask(model, **settings(asked, await abilities(request, model)))
        texts = choices(await context.prompt(request, picture, ask), asked.n or 1, asked.stops())
        completion = Completion(model, texts, await run_in_threadpool(usage, asked.instruction(), texts))
        if not asked.stream:
            return completion.whole()
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(completion.events(with_usage), media_type="text/event-stream", headers=headers)

    @routes.post("/embeddings", openapi_extra=described(EmbeddingsRequest))
    async def embeddings(request: Request) -> Any:
        """Unit vectors of texts; of pictures, by what the model says of them."""
        asked = await parsed(request, context.settings, EmbeddingsRequest)
        given = asked.inputs()
        model = embedding_model(asked.model, context)
        if asked.modality == "image":
            if len(given) > inputs.MAX_PICTURES:
                raise BadInput(f"Give {inputs.MAX_PICTURES} pictures at most.")
            pictures = [await inputs.picture(text, context.settings) for text in given]
            vectors, used = await context.picture_vectors(request, pictures, engine.ask(model)), 0
        else:
            vectors, used = await context.vectors(request, given), sum(await run_in_threadpool(tokens, given))
        name = asked.model or engine.default
        return embedding_list(shortened(vectors, asked.dimensions), name, asked.encoding_format == "base64", used)

    @routes.get("/models/{model:path}")
    async def one_model(model: str) -> Any:
        """One of the list."""
        return {"id": engine.known(model), "object": "model", "created": context.began, "owned_by": "captioner"}

    return routes


def embedding_model(name: str | None, context: Context) -> str | None:
    """The model that reads pictures. Clients name it, or the embedder of texts; None: the first."""
    embedder = context.engine.options.embedder
    if not name or name in ((*MINILM, embedder) if embedder in MINILM else (embedder,)):
        return None
    return context.engine.known(name)


def abilities_of(model: Any, images: Any) -> Abilities:
    """What a model can be asked; told where the model is."""
    if not model.speaks:
        raise MissingModel(f"{model.name} gives embeddings and no text: ask for /v1/embeddings, or name another model.")
    if model.decoding is None:
        return Abilities(model.speaker.uses, searches=False)
    return Abilities(
        model.speaker.uses, model.decoding.do_sample, model.decoding.num_return_sequences, model.speaker.longest
    )


# --- what is asked ---------------------------------------------------------------------------------------------------


class ImageURL(BaseModel):
    """Where a picture is: a data URL, or an address."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: str = "text"
    text: str | None = None
    image_url: ImageURL | str | None = None


class Message(BaseModel):
    """One turn of a chat."""

    role: str = "user"
    content: str | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None

    def text(self) -> str:
        """All it says."""
        if isinstance(self.content, str):
            return self.content.strip()
        return "\n".join(part.text.strip() for part in self.content or () if part.type == "text" and part.text)

    def pictures(self) -> list[str]:
        """Addresses and data URLs of its pictures."""
        parts = self.content if isinstance(self.content, list) else ()
        urls = (part.image_url for part in parts if part.image_url is not None)
        return [url if isinstance(url, str) else url.url for url in urls]


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool | None = None


Limit = Annotated[int | None, Field(ge=1), BeforeValidator(lambda limit: None if limit == -1 else limit)]
"""Of tokens. LM Studio, llama.cpp and their clients write -1 for none."""


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    model: str | None = None
    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: str | Annotated[list[str], Field(max_length=MOST_PARTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def picture(self) -> str:
        """The one that is asked about: of the last message that has any."""
        pictures = next((found for message in reversed(self.messages) if (found := message.pictures())), [])
        if not pictures:
            raise BadInput("There is no picture in the messages: put one into the content, as an image_url.")
        if len(pictures) > 1:
            raise BadInput(f"There are {len(pictures)} pictures in one message. Ask about one at a time.")
        return pictures[0]

    def instruction(self) -> str:
        """What the system and the last message of the user say."""
        standing = [message.text() for message in self.messages if message.role in ("system", "developer")]
        of_user = [message.text() for message in self.messages if message.role == "user"][-1:]
        return "\n\n".join(text for text in (*standing, *of_user) if text)

    def stops(self) -> list[str]:
        """Where a text ends."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class EmbeddingsRequest(BaseModel):
    """`POST /v1/embeddings`; pictures as infinity-emb takes them."""

    input: str | list[Any]
    """What a list holds is looked at in `inputs`: pydantic would keep an error for each of millions of numbers."""
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    modality: Literal["text", "image"] | None = None

    def inputs(self) -> list[str]:
        """Texts, or pictures."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        if not inputs:
            raise BadInput("The input is empty: give a text, or a list of them.")
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            raise BadInput(
                "The input is not a text or a list of texts; token ids are another model's (LangChain: "
                "check_embedding_ctx_length=False)."
            )
        if len(texts) > MOST_INPUTS:
            raise BadInput(
                f"The input has {len(texts):,} parts, more than the {MOST_INPUTS:,} that a request may have."
            )
        return texts


# --- how it is searched for ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Abilities:
    """What a loaded model can be asked."""

    uses: frozenset[str] = frozenset()
    samples: bool = False
    """It draws at random where nothing is said."""
    candidates: int = 1
    """So many it gives where nothing is said."""
    longest: int | None = None
    searches: bool = True
    """The settings of a search, which clients send unasked, mean something to it."""


def settings(body: ChatRequest, abilities: Abilities) -> dict[str, Any]:
    """The request in the words of `Request` and `DecodingChanges`."""
    asked = searching(body, abilities) if abilities.searches else {}
    if instruction := body.instruction():
        asked |= saying(instruction, abilities)
    return asked


def searching(body: ChatRequest, abilities: Abilities) -> dict[str, Any]:
    """How long, how many, and whether drawn at random."""
    asked: dict[str, Any] = {}
    longest = body.max_completion_tokens or body.max_tokens
    if longest is not None:
        asked["max_new_tokens"] = min(longest, max(1, abilities.longest or MOST_TOKENS))
    if (count := body.n or 1) > abilities.candidates:
        asked["num_candidates"] = count
    return asked | drawing(body, abilities)


def drawing(body: ChatRequest, abilities: Abilities) -> dict[str, Any]:
    """A temperature of 0 searches, a higher one draws at random; where none is named, the model's own way holds."""
    temperature, top_p = body.temperature, body.top_p
    if temperature is not None and temperature < 0.01:
        return {"do_sample": False}
    draws = abilities.samples or temperature is not None or (top_p is not None and top_p < 1)
    if not draws:
        return {}
    asked: dict[str, Any] = {} if abilities.samples else {"do_sample": True}
    if temperature is not None:
        asked["temperature"] = temperature
    if top_p is not None:
        asked["top_p"] = max(top_p, 0.001)
    if body.seed is not None:
        asked["seed"] = body.seed % 2**63
    return asked


def saying(instruction: str, abilities: Abilities) -> dict[str, str]:
    """What a chat says, to the model that understands it; braces are no variables."""
    if "mode" in abilities.uses:
        return {}  # the interrogator's captioner is asked its own way
    name = next((name for name in ("instruction", "question") if name in abilities.uses), None)
    return {} if name is None else {name: literal(instruction)}


# --- what is answered ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One text of an answer."""

    text: str
    finished: bool

    @property
    def reason(self) -> str:
        """Why it ends."""
        return "stop" if self.finished else "length"


def choices(row: dict[str, Any], count: int, stops: Sequence[str]) -> list[Choice]:
    """So many texts, the best first. A model that has fewer to say repeats itself."""
    texts = [cut(candidate["text"], candidate["finished"], stops) for candidate in row["candidates"]]
    return [texts[index % len(texts)] for index in range(count)]


def cut(text: str, finished: bool, stops: Sequence[str]) -> Choice:
    """The text as far as the first stop in it."""
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    return Choice(text[: min(ends)].rstrip(), True) if ends else Choice(text, finished)


def usage(asked: str, said: Sequence[Choice]) -> dict[str, int]:
    """CLIP's tokens, whatever the model: what a prompt for Stable Diffusion is counted in."""
    prompt_tokens, *of_choices = tokens([asked, *(choice.text for choice in said)])
    completion_tokens = sum(of_choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def tokens(texts: Sequence[str]) -> list[int]:
    """CLIP's tokens of each text, without the two around it. Megabytes take seconds: no work for the event loop."""
    return [count - 2 for count in clip_tokens_of([text[:COUNTED] for text in texts])]


@dataclass(frozen=True)
class Completion:
    """An answer, whole or in pieces."""

    model: str
    choices: list[Choice]
    usage: dict[str, int]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        """What every piece begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self) -> dict[str, Any]:
        """All at once."""
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self.head("chat.completion") | {"choices": listed, "usage": self.usage}

    def chunks(self, with_usage: bool) -> Iterator[dict[str, Any]]:
        """Word by word, one choice after the other."""
        for index, choice in enumerate(self.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})
            for word in re.findall(r"\s*\S+|\s+", choice.text):
                yield self._chunk(index, {"content": word})
            yield self._chunk(index, {}, choice.reason)
        if with_usage:
            yield self.head("chat.completion.chunk") | {"choices": [], "usage": self.usage}

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.head("chat.completion.chunk") | {"choices": [choice]}

    def events(self, with_usage: bool) -> Iterator[str]:
        """The chunks as server-sent events."""
        for chunk in self.chunks(with_usage):
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"


def shortened(vectors: Sequence[Sequence[float]], dimensions: int | None) -> np.ndarray:
    """float32 unit vectors `[n, d]` of so many dimensions: the first ones, scaled to length 1 again."""
    full = np.asarray(vectors, np.float32)
    if dimensions is None or dimensions == full.shape[1]:
        return full
    if dimensions > full.shape[1]:
        raise BadInput(
            f"An embedding has {full.shape[1]} dimensions here, not {dimensions:,}: ask for as many or fewer."
        )
    beginnings = full[:, :dimensions]
    norms = np.linalg.norm(beginnings, axis=1, keepdims=True)
    return beginnings / np.where(norms > 0, norms, 1)


def embedding_list(vectors: np.ndarray, model: str, as_base64: bool, prompt_tokens: int) -> dict[str, Any]:
    """The answer with these vectors `[n, d]`."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else as_numbers(vector),
        }
        for index, vector in enumerate(vectors)
    ]
    used = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": used}
