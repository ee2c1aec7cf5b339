"""The service in a thread, for tests that ask it over a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from captioner.serving.engine import Engine
from captioner.web.app import make_app
from captioner.web.server import Service, address_of, listening
from captioner.web.settings import Settings


@contextmanager
def served(engine: Engine, settings: Settings | None = None) -> Iterator[str]:
    """The address of a service around an engine that runs already."""
    listener = listening("127.0.0.1", 0)
    config = uvicorn.Config(make_app(engine, settings or Settings()), log_config=None, access_log=False, ws="none")
    service = Service(config, engine, lambda: None)
    thread = threading.Thread(target=service.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address_of(listener) + "/"
    finally:
        service.force_exit = service.should_exit = True
        thread.join(20)
        listener.close()
