"""The service on the bundled model: within the process, and on a socket of this machine."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from captioner.serving.engine import Ask, Engine, Picture
from captioner.sinks import Row
from captioner.web.app import make_app
from captioner.web.settings import Settings
from tests.browser import Browser
from tests.web.served import served

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.jpg"))
CAT = next(file for file in PICTURES if file.stem == "cat").read_bytes()
CAT_URL = f"data:image/jpeg;base64,{base64.b64encode(CAT).decode()}"


class Quick(Engine):
    """mini writes four texts where a test asks for nothing else: sixteen would prove no more about the service.
    tests/serving asks as `captioner generate` does."""

    def submit_all(self, pictures: Sequence[Picture], ask: Ask, timeout: float | None = None) -> list[Future[Row]]:
        if ask.model == "mini" and ask.request.quality is None:
            ask = replace(ask, request=ask.request.changed(quality="fast"))
        return super().submit_all(pictures, ask, timeout)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = Quick(["mini"], timeout=60)
    engine.start()
    engine.wait_ready(60)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One process; every page of it has its own storage."""
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="session")
def client(engine: Engine) -> TestClient:
    """The application as it is by default, without a socket."""
    return client_of(engine)


@pytest.fixture(scope="session")
def client_with(engine: Engine) -> Callable[..., TestClient]:
    """`client_with(api_key="…")` → a client of the service with these settings."""
    return lambda **settings: client_of(engine, **settings)


def client_of(engine: Engine, **settings: Any) -> TestClient:
    app = make_app(engine, Settings(**settings))
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[str]:
    """The address of a real server with the default settings."""
    with served(None, engine) as address:
        yield address
