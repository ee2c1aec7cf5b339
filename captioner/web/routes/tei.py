"""The routes of Hugging Face's text-embeddings-inference: embeddings of texts, and what embeds them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from captioner import __version__
from captioner.errors import BadInput
from captioner.run.questions import as_numbers
from captioner.text.embedding import DEFAULT
from captioner.web.bodies import described, parsed
from captioner.web.context import Context
from captioner.web.errors import TooLarge
from captioner.web.routes import openai

KINDS = {413: "Validation", 422: "Validation", 429: "overloaded", 503: "unhealthy", 504: "overloaded"}
"""By the status of an answer, what text-embeddings-inference calls the error."""


class EmbedRequest(BaseModel):
    """`POST /embed`. What is too long is cut and vectors are of length 1, whatever `truncate` and `normalize` say."""

    inputs: str | list[Any]
    dimensions: int | None = Field(None, ge=1)


def error(status: int, message: str) -> dict[str, Any]:
    """As text-embeddings-inference words it."""
    return {"error": "Model is overloaded" if status == 429 else message, "error_type": KINDS.get(status, "backend")}


ERRORS = {"/embed": error, "/info": error}


def router(context: Context) -> APIRouter:
    """Both routes."""
    routes = APIRouter(tags=["text-embeddings-inference"])
    engine = context.engine

    @routes.post("/embed", openapi_extra=described(EmbedRequest))
    async def embed(request: Request) -> Any:
        """Unit vectors of texts."""
        asked = await parsed(request, context.settings, EmbedRequest)
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        if not texts:
            raise BadInput("`inputs` cannot be empty")
        if not all(isinstance(text, str) for text in texts):  # pydantic would keep an error for each that is not
            raise BadInput("`inputs` is a text or a list of texts")
        if len(texts) > openai.MOST_INPUTS:
            raise TooLarge(f"batch size {len(texts)} > maximum allowed batch size {openai.MOST_INPUTS}")
        vectors = openai.shortened(await context.vectors(request, texts), asked.dimensions)
        return [as_numbers(vector) for vector in vectors]

    @routes.get("/info")
    async def info() -> Any:
        """What embeds texts here."""
        return {
            "model_id": engine.options.embedder or f"sentence-transformers/{DEFAULT}",
            "model_sha": None,
            "model_dtype": "float32",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": engine.scheduler.limit,
            "max_client_batch_size": openai.MOST_INPUTS,
            "auto_truncate": True,
            "version": __version__,
        }

    return routes
