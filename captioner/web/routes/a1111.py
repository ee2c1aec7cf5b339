"""The two routes about a picture of AUTOMATIC1111's web UI, which bots and plugins call on port 7860."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from captioner.errors import MissingModel
from captioner.images.metadata import Parameters, read_parameters, read_texts
from captioner.serving.engine import Picture
from captioner.web import inputs
from captioner.web.bodies import described, parsed
from captioner.web.context import Context

OUR_MODEL = "clip"
"""What A1111's clients call the one that writes prompts: here, the server's first model."""


class InterrogateRequest(BaseModel):
    """`POST /sdapi/v1/interrogate`."""

    image: str | None = None
    model: str | None = None


class PngInfoRequest(BaseModel):
    """`POST /sdapi/v1/png-info`."""

    image: str | None = None


def error(status: int, message: str) -> dict[str, Any]:
    """As A1111 words an error; its clients show `detail`."""
    return {"error": "HTTPException", "detail": message, "body": "", "errors": ""}


ERRORS = {"/sdapi/": error}


async def picture_of(image: str | None, context: Context) -> Picture:
    """The picture of a request; that there is none is said in the very words that clients know."""
    if not image or not image.strip():
        raise HTTPException(404, "Image not found")
    return await inputs.picture(image, context.settings)


def router(context: Context) -> APIRouter:
    """Both routes."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])

    @routes.post("/interrogate", openapi_extra=described(InterrogateRequest))
    async def interrogate(request: Request) -> Any:
        """The prompt that could have made a picture."""
        asked = await parsed(request, context.settings, InterrogateRequest)
        model = None if asked.model in (None, "", OUR_MODEL) else asked.model
        try:
            ask = context.engine.ask(model)
        except MissingModel:
            raise HTTPException(404, "Model not found") from None
        row = await context.prompt(request, await picture_of(asked.image, context), ask)
        return {"caption": row["text"]}

    @routes.post("/png-info", openapi_extra=described(PngInfoRequest))
    async def png_info(request: Request) -> Any:
        """The generation parameters that a picture carries."""
        asked = await parsed(request, context.settings, PngInfoRequest)
        return await run_in_threadpool(info, await picture_of(asked.image, context))

    return routes


def info(picture: Picture) -> dict[str, Any]:
    """What a picture carries, in A1111's form; one that carries nothing is no error."""
    texts = read_texts(picture.data, picture.title)
    parameters = read_parameters(picture.data, picture.title)
    written = texts.pop("parameters", "")
    if not written and parameters is not None:
        written = parameters.to_text()
    return {"info": written, "items": texts, "parameters": {} if parameters is None else named(parameters)}


def named(parameters: Parameters) -> dict[str, str]:
    """The parameters by A1111's names."""
    width, _, height = (parameters.size or "").partition("x")
    prompts = {"Prompt": parameters.prompt, "Negative prompt": parameters.negative_prompt}
    settings = {
        "Steps": parameters.steps,
        "Sampler": parameters.sampler,
        "CFG scale": parameters.cfg_scale,
        "Seed": parameters.seed,
        "Size-1": width,
        "Size-2": height,
        "Model hash": parameters.model_hash,
        "Model": parameters.model,
        "Clip skip": parameters.clip_skip,
    }
    return prompts | {name: str(value) for name, value in settings.items() if value not in (None, "")}
