"""A server in this process, for tests that speak to it as a browser or a client would."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from captioner.serving.engine import Engine
from captioner.web import server
from captioner.web.settings import Settings


@contextmanager
def served(root: Path | None, engine: Engine, **settings: Any) -> Iterator[str]:
    """The address of a service around an engine, which whoever calls this starts."""
    listener = server.listening("127.0.0.1", 0)
    service = uvicorn.Server(server.config_of(engine, Settings(root=root, **settings)))
    thread = threading.Thread(target=service.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server.address_of(listener)
    finally:
        service.should_exit = True
        thread.join(30)
        listener.close()


def call(address: str, body: Any = None, **headers: str) -> Any:
    """The JSON that is answered; a body makes it a POST."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=60) as answer:
        return json.loads(answer.read())


def refusal(address: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """The status and the sentence of a request that is refused."""
    try:
        call(address, body, **headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["detail"]
    raise AssertionError("it was not refused")
