"""The routes of clip-interrogator's extension for the web UI.

Where the interrogator is among the models, it answers. Without it, another model's prompt answers whoever asks for a
prompt, which is what they are after; the negative mode and the analysis are the interrogator's alone.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, Field

from captioner.contracts import MODES
from captioner.errors import BadInput, MissingModel
from captioner.web.bodies import described, parsed
from captioner.web.context import Context, one
from captioner.web.routes import a1111

ERRORS = {"/interrogator/": a1111.error}
NAME = "interrogator"
ITS_CLIP = "ViT-L-14/openai"
"""Open CLIP's name of the weights that the interrogator ranks by; it is meant where nothing is named."""
TERMS = 5
KINDS = ("mediums", "artists", "movements", "trending", "flavors")
"""Of terms, in the order of an analysis, which names each without its s."""
REMEDY = "start the server with the interrogator among its models."


class AnalyzeRequest(BaseModel):
    """`POST /interrogator/analyze`. Callers also write `model` for `clip_model_name`."""

    image: str | None = None
    clip_model_name: str | None = Field(None, validation_alias=AliasChoices("clip_model_name", "model"))


class PromptRequest(AnalyzeRequest):
    """`POST /interrogator/prompt`."""

    mode: str | None = None


def router(context: Context) -> APIRouter:
    """All three routes."""
    routes = APIRouter(prefix="/interrogator", tags=["clip-interrogator"])
    engine = context.engine

    @routes.get("/models")
    async def models() -> Any:
        """What may be named as `clip_model_name`."""
        return names(context)

    @routes.post("/prompt", openapi_extra=described(PromptRequest))
    async def prompt(request: Request) -> Any:
        """The prompt of a picture, in one of the interrogator's modes."""
        asked = await parsed(request, context.settings, PromptRequest)
        model, mode = model_of(asked.clip_model_name, context), asked.mode or "fast"
        if mode not in MODES:
            raise BadInput(f"There is no such mode: use one of {', '.join(MODES)}.")
        if mode == "negative" and model != NAME:
            raise BadInput(f"{model} writes no negative prompt: {REMEDY}")
        ask = engine.ask(model, mode=mode) if model == NAME else engine.ask(model)
        row = await context.prompt(request, await a1111.picture_of(asked.image, context), ask)
        return {"prompt": row["text"]}

    @routes.post("/analyze", openapi_extra=described(AnalyzeRequest))
    async def analyze(request: Request) -> Any:
        """The nearest terms of every kind, with their similarity."""
        asked = await parsed(request, context.settings, AnalyzeRequest)
        model = model_of(asked.clip_model_name, context)
        if model != NAME:
            raise MissingModel(f"{model} ranks no terms: {REMEDY}")
        picture = await a1111.picture_of(asked.image, context)
        return one(await context.wait(request, [engine.call(ranked, [picture], model)]))

    return routes


def names(context: Context) -> list[str]:
    """The CLIP that the interrogator ranks by, as its callers name it; without it, the models that there are."""
    if NAME in context.engine.models:
        return [context.engine.options.clip_model or ITS_CLIP]
    return list(context.engine.models)


def model_of(name: str | None, context: Context) -> str:
    """The model that answers."""
    if name in (None, "", ITS_CLIP) or name in names(context):
        return (
            NAME if NAME in context.engine.models else context.engine.known(None if name == ITS_CLIP else name or None)
        )
    return context.engine.known(name)


def ranked(model: Any, images: list[Any]) -> dict[str, dict[str, float]]:
    """The analysis of one picture; asked where the model is."""
    (analysis,) = model.speaker.analyze(images, TERMS)
    return {kind.removesuffix("s"): analysis.get(kind, {}) for kind in KINDS}
