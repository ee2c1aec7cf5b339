"""The bundled model behind an engine, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.serving.engine import Engine, Picture

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.jpg"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = Engine(["mini"], timeout=60)
    engine.start()
    engine.wait_ready(60)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def photos() -> list[Picture]:
    """The examples as a client would send them."""
    return [Picture(file.read_bytes(), file.name) for file in PICTURES]
