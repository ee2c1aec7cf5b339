"""Bodies in JSON as pydantic models describe them: what a client sends beside the known fields is ignored."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from captioner.errors import BadInput
from captioner.web import inputs
from captioner.web.errors import validation
from captioner.web.settings import Settings

Body = TypeVar("Body", bound=BaseModel)


async def parsed(request: Request, settings: Settings, kind: type[Body]) -> Body:
    """The body of a request. FastAPI's own way would answer 400 for one that is too large or too slow."""
    return valid(await inputs.body(request, settings), kind)


def valid(fields: dict[str, Any], kind: type[Body]) -> Body:
    """What pydantic has against it is said without repeating it."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise BadInput(validation(details)) from error


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """For OpenAPI, as a route's `openapi_extra`."""
    return of_types({"application/json": schema_of(kind)})


def of_types(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """As `described`, of bodies of several types."""
    content = {name: {"schema": schema} for name, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """A body's fields, each whole, without pydantic's own titles, which say each name twice."""
    schema = kind.model_json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """With the definitions at their places; none of them holds itself."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    return {
        name: _inlined(part, definitions) for name, part in schema.items() if name != "title" or isinstance(part, dict)
    }
