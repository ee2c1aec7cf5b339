"""`POST /` as huggingface_hub's InferenceClient asks an endpoint of the task image-to-text."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from captioner.serving.engine import Picture
from captioner.web import inputs
from captioner.web.bodies import of_types, parsed, schema_of
from captioner.web.context import Context


class Generation(BaseModel):
    """Settings of the search, of those that transformers knows."""

    num_beams: Annotated[int | None, Field(ge=1, le=32)] = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None


class Parameters(BaseModel):
    """What an endpoint is asked beside the picture; both names of the settings are in use."""

    max_new_tokens: int | None = None
    generation_parameters: Generation | None = None
    generate_kwargs: Generation | None = None

    def settings(self) -> dict[str, Any]:
        """By the names of `DecodingChanges`."""
        given = self.generation_parameters or self.generate_kwargs or Generation()
        length = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        return given.model_dump(exclude_none=True) | length


class ImageToText(BaseModel):
    """`POST /` with parameters."""

    inputs: str
    parameters: Parameters | None = None


def error(status: int, message: str) -> dict[str, Any]:
    """As an endpoint words it."""
    return {"error": message}


ERRORS = {"/": error}


def router(context: Context) -> APIRouter:
    """The one route."""
    routes = APIRouter(tags=["huggingface_hub"])

    @routes.post("/", openapi_extra=BODIES)
    async def image_to_text(request: Request) -> Any:
        """The text of a picture: its bytes, or JSON with `inputs` and `parameters`."""
        if inputs.content_type(request) == "application/json":
            asked = await parsed(request, context.settings, ImageToText)
            picture = await inputs.picture(asked.inputs, context.settings)
            settings = (asked.parameters or Parameters()).settings()
        else:  # whatever kind it says it is: curl and others name any
            picture, settings = Picture(await request.body()), {}
        row = await context.prompt(request, picture, context.engine.ask(**settings))
        return [{"generated_text": row["text"]}]

    return routes


BODIES = of_types({"application/json": schema_of(ImageToText), "image/*": {"type": "string", "format": "binary"}})
