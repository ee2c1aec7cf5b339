"""/docs: the routes as OpenAPI describes them, on a page of our own that needs no network and no script."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1rem; }
details { border: 1px solid #8886; border-radius: .5rem; margin: .5rem 0; padding: .5rem 1rem; overflow: auto; }
summary { cursor: pointer; } summary code { font-weight: bold; } .method { display: inline-block; width: 4rem; }
pre { overflow: auto; background: #8882; padding: .75rem; border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .75rem .2rem 0;
vertical-align: top; border-bottom: 1px solid #8884; }
"""


def router(app: FastAPI) -> APIRouter:
    """The page; the description itself is at /openapi.json."""
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def page() -> Any:
        policy = (
            "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
        )
        return HTMLResponse(html(app.openapi()), headers={"Content-Security-Policy": policy})

    return routes


def html(schema: dict[str, Any]) -> str:
    """The description as a page."""
    about = schema["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(about['title'])} API</title><link rel=icon href=icon.svg><style>{STYLE}</style>",
        f"<main><h1>{escape(about['title'])} {escape(about['version'])}</h1>",
        f"<p>{escape(about.get('description', ''))}</p>",
        "<p>As a file for other programs: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts.append(_route(path, method, route, schema))
    return "".join(parts)


def _route(path: str, method: str, route: dict[str, Any], schema: dict[str, Any]) -> str:
    words = " ".join(str(route.get("description") or route.get("summary") or "").split())
    bodies = route.get("requestBody", {}).get("content", {})
    inside = "".join(f"<h2>{escape(kind)}</h2>{_fields(body['schema'], schema)}" for kind, body in bodies.items())
    answers = "".join(
        f"<tr><td>{escape(str(status))}<td>{escape(answer.get('description', ''))}"
        for status, answer in route.get("responses", {}).items()
    )
    return (
        f"<details><summary><span class=method>{escape(method.upper())}</span> <code>{escape(path)}</code> "
        f"{escape(words)}</summary>{inside}<h2>Answers</h2><table>{answers}</table></details>"
    )


def _fields(body: dict[str, Any], schema: dict[str, Any]) -> str:
    """A body's fields as a table."""
    if "$ref" in body:
        body = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]
    properties = body.get("properties")
    if not properties:
        return f"<pre>{escape(json.dumps(body, indent=1))}</pre>"
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(field))}<td>{escape(str(field.get('description', '')))}"
        for name, field in properties.items()
    )
    return f"<table><tr><th>field<th>type<th>what it is{rows}</table>"


def _kind(field: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = str(field.get("format") or field.get("type") or "any")
    if kind == "array":
        return f"list of {_kind(field.get('items', {}))}"
    low, high = field.get("minimum"), field.get("maximum")
    return f"{kind}, {low} to {high}" if low is not None and high is not None else kind
