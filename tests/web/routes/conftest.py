"""A service on a free port, once for all routes; the bundled model answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants

import captioner
from captioner.serving.engine import Engine
from tests.web.served import served

PICTURES = Path(__file__).parents[3] / "examples" / "pictures"
COFFEE = PICTURES / "coffee.jpg"
DATA = base64.b64encode(COFFEE.read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{DATA}"


@dataclass(frozen=True)
class Service:
    """A running service."""

    address: str

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | headers
        return httpx.post(f"{self.address}{path}", content=json.dumps(body), headers=headers, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60)


@pytest.fixture(scope="session")
def service(engine: Engine) -> Iterator[Service]:
    with served(PICTURES, engine) as address:
        yield Service(address)


@pytest.fixture
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's client asks not even this machine while it is offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def said() -> captioner.Prompt:
    """What the command line says of the picture with --quality fast."""
    return captioner.load("mini").generate(COFFEE, quality="fast")


@pytest.fixture(scope="session")
def prompt(said: captioner.Prompt) -> str:
    """Its text."""
    return said.text


@pytest.fixture(scope="session")
def reason(said: captioner.Prompt) -> str:
    """Why it ends, in OpenAI's words."""
    return "stop" if said.candidates[0].finished else "length"
