"""`POST /` as huggingface_hub's InferenceClient asks an endpoint of the task image-to-text."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from captioner.serving.engine import Picture
from captioner.web import inputs
from captioner.web.bodies import of_types, parsed, schema_of
from captioner.web.context import Context
from captioner.web.ranges import Longest, Search


class Parameters(BaseModel):
    """What an endpoint is asked beside the picture; both names of the settings are in use."""

    max_new_tokens: Longest = None
    generation_parameters: Search | None = None
    generate_kwargs: Search | None = None

    def settings(self) -> dict[str, Any]:
        """By the names of `DecodingChanges`."""
        given = self.generation_parameters or self.generate_kwargs or Search()
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
