"""The application: limits, routes, documentation and page."""

from __future__ import annotations

import importlib
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from captioner import __version__
from captioner.serving.engine import Engine
from captioner.serving.metrics import SECONDS, Counter, Histogram
from captioner.web import docs
from captioner.web.context import Context
from captioner.web.errors import Form, Json, install
from captioner.web.limits import Limits
from captioner.web.routes import native
from captioner.web.settings import Settings

ROUTES = ("native", "page", "review", "openai", "a1111", "interrogator", "tei", "hub", "mcp")
"""Modules under captioner/web/routes/; each offers `router(context)`, and may offer `ERRORS`."""
STATIC = Path(__file__).parent / "static"


def make_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The service around an engine, which whoever calls this starts and closes."""
    context = Context(engine, settings or Settings())
    app = FastAPI(
        title="captioner",
        version=__version__,
        description="Give it an image, get the prompt that could have made it, and that prompt's embedding.",
        default_response_class=Json,
        docs_url=None,
        redoc_url=None,
    )
    answers = Counter("captioner_requests_total", "Requests that were answered.", ("route", "status"))
    times = Histogram("captioner_request_seconds", "Seconds that a request took.", SECONDS)
    forms: dict[str, Form] = {}
    for name in ROUTES:
        module = importlib.import_module(f"captioner.web.routes.{name}")
        forms |= getattr(module, "ERRORS", {})
        app.include_router(module.router(context))
    app.include_router(native.metrics_route(context, [answers, times]))
    app.include_router(docs.router(app))
    install(app, forms)
    if context.settings.page and (STATIC / "index.html").is_file():
        app.mount("/", StaticFiles(directory=STATIC, html=True))
    app.add_middleware(
        Limits, settings=context.settings, seconds=engine.timeout, forms=forms, answers=answers, times=times
    )
    return app
