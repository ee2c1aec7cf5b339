"""A full queue, as each kind of client is told of it: 429, when to come again, and a sentence in the client's form."""

from __future__ import annotations

import httpx
import openai
import pytest

from captioner.serving.engine import Engine
from tests.web.routes.conftest import DATA, DATA_URL, Service

WORDS = "The server has as much to do as it takes. Ask again in a little while."
CHAT = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}]}


@pytest.fixture
def full(service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Nothing more may wait; a chat has been answered before, so that what its model can be asked is known."""
    service.post("/v1/chat/completions", CHAT | {"max_tokens": 1, "n": 1})
    monkeypatch.setattr(engine.scheduler, "limit", 0)
    return service


ROUTES = {
    "/v1/generate": {"image": DATA},
    "/v1/embed": {"texts": ["a cat"]},
    "/v1/read": {"image": DATA},
    "/v1/chat/completions": CHAT,
    "/v1/embeddings": {"input": "a cat"},
    "/sdapi/v1/interrogate": {"image": DATA},
    "/interrogator/prompt": {"image": DATA},
    "/embed": {"inputs": "a cat"},
    "/": {"inputs": DATA},
}


def test_every_route_says_when_to_come_again(full: Service) -> None:
    for path, body in ROUTES.items():
        answer = full.post(path, body)
        assert answer.status_code == 429, path
        assert int(answer.headers["retry-after"]) >= 1, path
        assert sentence(answer) in (WORDS, "Model is overloaded"), path  # TEI's own words


def sentence(answer: httpx.Response) -> str:
    """Where this client looks for it."""
    said = answer.json()
    error = said.get("error")
    return error["message"] if isinstance(error, dict) else said.get("detail") or error


def test_a_language_model_is_told(full: Service) -> None:
    call = {"name": "caption_image", "arguments": {"path": "coffee.jpg"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    answer = full.post("/mcp", body, Accept="application/json, text/event-stream").json()["result"]
    assert answer["isError"]
    assert WORDS in answer["content"][0]["text"]


def test_openais_client_raises_it_as_what_it_is(full: Service) -> None:
    client = openai.OpenAI(base_url=f"{full.address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError, match=WORDS) as error:
        client.embeddings.create(model="mini", input="a cat")
    assert int(error.value.response.headers["retry-after"]) >= 1
