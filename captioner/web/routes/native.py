"""Our own routes: generate, embed, read, similar, attention, models, and how the service is doing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from captioner import contracts
from captioner.decoding import DecodingChanges
from captioner.errors import BadInput, CaptionerError, one_line, printable
from captioner.serving.engine import Ask, Engine, Picture
from captioner.serving.metrics import gauge
from captioner.sinks import Row
from captioner.styles import StyleName
from captioner.text.finish import Finish
from captioner.web import inputs
from captioner.web.bodies import of_types, schema_of, valid
from captioner.web.context import Context, one
from captioner.web.errors import plain
from captioner.web.ranges import Search

ERRORS = dict.fromkeys(
    (f"/v1/{name}" for name in ("generate", "embed", "read", "similar", "attention", "about")), plain
)
"""What else is below /v1 is OpenAI's."""
MOST_TEXTS = 2048
"""Of one request."""

Words = Annotated[str, Field(max_length=4000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Few = Annotated[list[Word], Field(max_length=200), BeforeValidator(lambda words: _listed(words))]
Image = Annotated[str, Field(description="Base64, a data URL, or (where the server allows it) an http(s) address.")]


class Asked(Search):
    """What a model is asked about a picture, as on the command line."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[
        str | None, Field(max_length=500, description="One of /v1/models; the default where left out.")
    ] = None
    prompt: Annotated[Words | None, Field(description="What the text goes on from.")] = None
    question: Annotated[Words | None, Field(description="What OFA is asked.")] = None
    instruction: Annotated[Words | None, Field(description="What a chat model is asked.")] = None
    mode: Annotated[contracts.Mode | None, Field(description="Interrogator.")] = None
    style: Annotated[StyleName | None, Field(description="Chat models: what is written.")] = None
    quality: Annotated[contracts.Quality | None, Field(description="mini: how it chooses.")] = None
    threshold: Annotated[float | None, Field(ge=0, le=1, description="Tagger: the least probability.")] = None
    character_threshold: Annotated[float | None, Field(ge=0, le=1, description="Tagger: of characters.")] = None
    rating: Annotated[contracts.Place | None, Field(description="Tagger: where the likeliest rating stands.")] = None
    num_candidates: Annotated[int | None, Field(ge=1, le=64)] = None
    early_stopping: bool | Literal["never"] | None = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    forbid: Annotated[Few | None, Field(description="Words that are never written.")] = None

    def request(self) -> contracts.Request:
        """The same in the library's terms."""
        given = self.model_dump(include={*DECODING, *ASKED})
        forbid = tuple(given.pop("forbid") or ()) or None
        return contracts.PLAIN_REQUEST.changed(**given, forbid=forbid)


DECODING = frozenset(field.name for field in fields_of(DecodingChanges))
ASKED = frozenset(field.name for field in fields_of(contracts.Request))


class Generate(Asked):
    """Settings of /v1/generate; `image` or `images` beside them."""

    raw: Annotated[bool, Field(description="The text exactly as the model said it.")] = False
    consensus: Annotated[bool | None, Field(description="Choose the candidate nearest in meaning to all.")] = None
    prefix: Words = ""
    suffix: Words = ""
    require: Annotated[Few, Field(default_factory=list, description="Words that the text contains.")]
    replace: Annotated[
        Few, Field(default_factory=list, description="OLD=NEW: a comma term in place of another; OLD= drops it.")
    ]
    plain: Annotated[bool, Field(description="With metadata: the words alone, no weights or <lora:…>.")] = False
    escape: Annotated[bool, Field(description="Brackets as \\( and \\), so that they are no weight.")] = False
    max_clip_tokens: Annotated[int | None, Field(ge=3, le=1024)] = None
    embed: Annotated[bool, Field(description="With the prompt's embedding.")] = False
    metadata: Annotated[contracts.MetadataUse, Field(description="A prompt that the picture itself carries.")] = (
        "ignore"
    )

    def finish(self) -> Finish:
        """The same in the library's terms."""
        return Finish(
            clean=not self.raw,
            consensus=self.consensus,
            prefix=self.prefix,
            suffix=self.suffix,
            max_clip_tokens=self.max_clip_tokens,
            forbid=tuple(self.forbid or ()),
            require=tuple(self.require),
            replace=tuple(self.replace),
            plain=self.plain,
            escape=self.escape,
        )

    def ask(self, engine: Engine) -> Ask:
        """All of it as the engine is asked."""
        contracts.check_plain(self.plain, self.metadata)
        return Ask(engine.known(self.model), self.request(), self.finish(), embed=self.embed, metadata=self.metadata)


class Embed(Asked):
    """Settings of /v1/embed; `texts`, `image` or `images` beside them."""

    expected: Annotated[bool, Field(description="Pictures: the mean of all that the model might say.")] = False


class Similar(BaseModel):
    """Settings of /v1/similar; `image` or `images` beside them."""

    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=1, le=100)] = 5


class Pictures(BaseModel):
    """The pictures of a JSON body."""

    image: Image | None = None
    images: Annotated[list[Image] | None, Field(max_length=inputs.MAX_PICTURES)] = None


class Attention(Asked):
    """Settings of /v1/attention; `image` beside them."""

    text: Annotated[Words | None, Field(description="What the model wrote; it is asked where left out.")] = None


def router(context: Context) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter()
    engine = context.engine

    @routes.post("/v1/generate", tags=["captioner"], openapi_extra=_bodies(Generate), responses=_ERRORS)
    async def generate(request: Request) -> Any:
        """The prompts that could have made pictures: rows as `captioner generate --json` prints them."""
        given, settings = await _asked(request, context, Generate)
        return _answer(given, await context.rows(request, given.pictures, settings.ask(engine)))

    @routes.post("/v1/embed", tags=["captioner"], openapi_extra=_bodies(Embed, texts=True), responses=_ERRORS)
    async def embed(request: Request) -> Any:
        """Unit vectors of texts, or of pictures by what a model says of them."""
        fields = await _fields(request, context)
        texts = fields.pop("texts", None)
        if texts is None:
            given, settings = await _parsed(fields, context, Embed)
            ask = Ask(engine.known(settings.model), settings.request(), wants="embedding", expected=settings.expected)
            return _answer(given, await context.rows(request, given.pictures, ask))
        if fields:
            raise BadInput("Texts are embedded as they are: leave everything else out.")
        texts = _texts(texts)
        vectors = await context.vectors(request, texts)
        rows = [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)]
        return {"results": rows}

    @routes.post("/v1/read", tags=["captioner"], openapi_extra=_bodies(_Nothing), responses=_ERRORS)
    async def read(request: Request) -> Any:
        """The generation parameters that pictures carry. Anybody can write anything there: they prove nothing."""
        given, _ = await _asked(request, context, _Nothing)
        return _answer(given, await context.wait(request, [engine.read(picture) for picture in given.pictures]))

    @routes.post("/v1/similar", tags=["captioner"], openapi_extra=_bodies(Similar), responses=_ERRORS)
    async def similar(request: Request) -> Any:
        """The reference pictures that look most like each; the server needs an index for it."""
        if engine.index is None:
            raise BadInput("This server has no index of reference pictures: start it with one.")
        given, settings = await _asked(request, context, Similar)
        return _answer(given, await context.wait(request, engine.similar(given.pictures, settings.count)))

    @routes.post("/v1/attention", tags=["captioner"], openapi_extra=_bodies(Attention), responses=_ERRORS)
    async def attention(request: Request) -> Any:
        """Where the model looked for each word: `words`, and a map of rows and columns for each."""
        given, settings = await _asked(request, context, Attention)
        if given.many:
            raise BadInput("Attention is drawn of one picture.")
        model = engine.known(settings.model)
        text = settings.text
        if text is None:
            text = (await context.prompt(request, given.pictures[0], Ask(model, settings.request())))["raw"]

        def look(model: Any, images: list[Any]) -> Any:
            from captioner.run import attention_map

            words, maps = attention_map.looked_at(model.speaker, images[0], text, settings.request())
            return {"words": words, "maps": maps.tolist()}

        return one(await context.wait(request, [engine.call(look, given.pictures, model)]))

    @routes.get("/v1/models", tags=["captioner"])
    async def models() -> Any:
        """The models that may be asked, the default first; in the form of OpenAI's list."""
        listed = [
            {"id": name, "object": "model", "created": context.began, "owned_by": "captioner"} for name in engine.models
        ]
        return {"object": "list", "data": listed}

    @routes.get("/v1/about", tags=["captioner"])
    async def about() -> Any:
        """What this server offers."""
        return context.about()

    @routes.get("/health", tags=["service"])
    async def health() -> Any:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/ready", tags=["service"], responses={503: {"description": "Not yet, or not any more."}})
    async def ready(response: Response) -> Any:
        """The default model is loaded, and new work is taken."""
        response.status_code = 200 if engine.ready else 503
        return {"ready": engine.ready}

    return routes


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": description}
    for status, description in {
        400: "The request is not valid HTTP.",
        401: "The API key is missing or wrong.",
        403: "Asked from the page of another site.",
        404: "There is no such model.",
        408: "The body was too slow.",
        413: "Larger than the server takes.",
        415: "The body is compressed.",
        421: "Asked by a name that is not the server's.",
        422: "The picture or a setting is not valid; `detail` says why.",
        429: "Too much waits already; Retry-After says when to come again.",
        503: "The server is stopping.",
        504: "Not ready in time.",
    }.items()
}


class _Nothing(BaseModel):
    """No settings."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class _Given:
    """The pictures of a request, in order; of several each stands for itself, or for what is wrong with it."""

    each: Sequence[Picture | CaptionerError]
    many: bool
    """They were given as several, though it may be one."""

    @property
    def pictures(self) -> list[Picture]:
        """Those that can be asked about."""
        return [one for one in self.each if isinstance(one, Picture)]


async def _asked(request: Request, context: Context, kind: type[Any]) -> tuple[_Given, Any]:
    return await _parsed(await _fields(request, context), context, kind)


async def _fields(request: Request, context: Context) -> dict[str, Any]:
    """Those of the body, whatever it is, and of the query."""
    fields = await inputs.body(request, context.settings)
    in_query = inputs.gathered(request.query_params.multi_items())
    if twice := fields.keys() & in_query.keys():
        raise BadInput(f"{printable(min(twice))[:100]} stands in the address and in the body: leave one of them out.")
    return fields | in_query


async def _parsed(fields: dict[str, Any], context: Context, kind: type[Any]) -> tuple[_Given, Any]:
    """The pictures and the settings."""
    one_image, images = fields.pop("image", None), fields.pop("images", None)
    if (one_image is None) == (images is None):
        raise BadInput("Give a picture as `image`, or several as `images`.")
    named = one_image if images is None else images
    listed = named if isinstance(named, list) else [named]
    if not 0 < len(listed) <= inputs.MAX_PICTURES:
        raise BadInput(f"Give 1 to {inputs.MAX_PICTURES} pictures.")
    settings = valid({name: _value(value) for name, value in fields.items()}, kind)
    each = await asyncio.gather(*(_picture(one, context) for one in listed))
    if listed is not named and isinstance(each[0], CaptionerError):
        raise each[0]
    return _Given(each, listed is named or images is not None), settings


async def _picture(given: object, context: Context) -> Picture | CaptionerError:
    """One picture, which may have to be fetched, or what is wrong with it."""
    if isinstance(given, Picture):
        return given
    try:
        return await inputs.picture(given, context.settings)
    except CaptionerError as error:
        return error


def _value(value: Any) -> Any:
    """A field of a form is text: lists and true or false are written as in JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _listed(words: Any) -> Any:
    """Words with commas between, as on the command line, are a list too."""
    return [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else words


def _texts(texts: Any) -> list[str]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("`texts` is a text, or a list of texts.")
    if not 0 < len(texts) <= MOST_TEXTS:
        raise BadInput(f"Give 1 to {MOST_TEXTS:,} texts.")
    return texts


def _answer(given: _Given, rows: Sequence[Row | CaptionerError]) -> Any:
    """One row as it is; several as `results`, where a picture that failed has its reason as `error`."""
    if not given.many:
        return one(rows)
    answers = iter(rows)
    return {"results": [_result(each, next(answers) if isinstance(each, Picture) else each) for each in given.each]}


def _result(given: Picture | CaptionerError, row: Row | CaptionerError) -> Row:
    name = given.name if isinstance(given, Picture) else "-"
    return {"file": name, "error": one_line(row)} if isinstance(row, CaptionerError) else {"file": name} | row


def _bodies(settings: type[BaseModel], texts: bool = False) -> dict[str, Any]:
    """How OpenAPI describes a body that is JSON or a form."""
    of_json = schema_of(Pictures)["properties"] | schema_of(settings)["properties"]
    if texts:
        of_json["texts"] = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_TEXTS}
    of_form = {name: kind for name, kind in of_json.items() if name not in ("image", "images", "texts")}
    of_form["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    types = {"application/json": of_json, "multipart/form-data": of_form}
    return of_types({name: {"type": "object", "properties": fields} for name, fields in types.items()})


def metrics_route(context: Context, lines: Sequence[Any]) -> APIRouter:
    """/metrics: what `lines` count, and how the engine is doing."""
    routes = APIRouter()
    engine = context.engine

    def written() -> Iterator[str]:
        for counted in (*lines, engine.batches, engine.seconds):
            yield from counted.lines()
        memories = engine.memories
        yield from gauge("captioner_queue", "Questions that wait.", len(engine.scheduler.waiting))
        yield from gauge("captioner_queue_limit", "Questions that may wait.", engine.scheduler.limit)
        yield from gauge("captioner_memory_bytes", "Bytes of encoded pictures that are kept.", memories.bytes)
        yield from gauge("captioner_memory_pictures", "Encoded pictures that are kept.", len(memories))
        yield from gauge("captioner_memory_hits", "Pictures that were not encoded again.", memories.hits)
        yield from gauge("captioner_memory_misses", "Pictures that were encoded.", memories.misses)
        yield from gauge("captioner_ready", "Whether the default model is loaded.", engine.ready)

    @routes.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    async def metrics() -> Any:
        """Counts in Prometheus' text format."""
        text = "\n".join(written()) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
