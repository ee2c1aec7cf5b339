"""Who may ask, from where, and how much."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from captioner.errors import BadInput
from captioner.web.limits import Limits
from captioner.web.settings import Settings
from tests.web.conftest import CAT_URL


def test_another_host_needs_a_key_or_a_word() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert Settings(host).is_local
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(BadInput, match="can be reached from other machines"):
            Settings(host)
        assert not Settings(host, api_key="long").is_local
        assert Settings(host, no_auth=True).host == host
    with pytest.raises(BadInput, match="api_key is empty"):
        Settings(api_key=" ")
    for key in ("schlüssel", "two\nlines"):  # clients would send it otherwise, each in its own way, or not at all
        with pytest.raises(BadInput, match="api_key has a sign"):
            Settings(api_key=key)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer right"}, 200),
        ({"authorization": "bearer right"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer rightt"}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"anybody:right").decode()}, 200),
        ({"authorization": "Basic " + base64.b64encode(b"right:wrong").decode()}, 401),
        ({"authorization": "Basic \xe9\xe9"}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()}, 401),
        ({"x-api-key": "right"}, 200),
        ({"x-api-key": "\xe9"}, 401),
    ],
)
def test_the_key(client_with: Callable[..., TestClient], headers: dict[str, str], status: int) -> None:
    client = client_with(api_key="right")
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing"):
        answer = client.get(path, headers=sent)
        assert answer.status_code == (404 if status == 200 and path == "/nothing" else status)
        assert ("www-authenticate" in answer.headers) == (status == 401)
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_a_compressed_body_is_told_as_such(client: TestClient) -> None:
    """It is no JSON and no picture, but that is not what is wrong with it."""
    body = gzip.compress(b'{"texts": ["a"]}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    for path in ("/v1/embed", "/v1/embeddings", "/embed"):
        answer = client.post(path, content=body, headers=headers)
        assert answer.status_code == 415
        assert "The body is compressed: send it as it is" in answer.text
    twice = {"content-encoding": "identity, GZIP"}
    assert client.post("/v1/embed", json={"texts": ["a"]}, headers=twice).status_code == 415
    for plain in ("identity", "utf-8", ""):  # some clients name there how the text is written
        answer = client.post("/v1/embed", json={"texts": ["a"]}, headers={"content-encoding": plain})
        assert answer.status_code == 200


def test_names_that_are_not_the_servers_are_refused(client_with: Callable[..., TestClient]) -> None:
    """A page of another site may let its own name lead to this machine, and then it is the same origin."""
    client = client_with()
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "", "127.0.0.1.evil.example", "[::1"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 421, host
    for host in ("localhost", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "localhost.", "192.168.1.5:1"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
    assert client_with(host="0.0.0.0", no_auth=True).get("/v1/models", headers={"host": "evil"}).status_code == 421
    for address in ("0.0.0.0", "127.0.0.1"):  # the second behind a proxy of this machine's
        with_key = client_with(host=address, api_key="right")
        answer = with_key.get("/v1/models", headers={"host": "captions.example", "x-api-key": "right"})
        assert answer.status_code == 200


def test_pages_of_other_sites_cannot_ask(client: TestClient) -> None:
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert client.post("/v1/generate", json={"image": CAT_URL}, headers=headers).status_code == 403, headers
    elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}  # what an <img> of theirs sends
    assert client.get("/page/model?name=mini", headers=elsewhere).status_code == 403
    link = client.get("/docs", headers={"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"})
    assert link.status_code == 200
    own = client.post("/v1/embed", json={"texts": ["a"]}, headers={"origin": "http://127.0.0.1:7860"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    preflight = client.options("/v1/generate", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers


def test_a_bug_is_answered_counted_and_told_like_anything_else(
    client_with: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_with()
    monkeypatch.setattr("captioner.web.context.Context.about", lambda self: {}["of mine"])
    answer = client.get("/v1/about")
    assert (answer.status_code, answer.json()["detail"][:13]) == (500, "This is a bug")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'captioner_requests_total{route="/v1/about",status="500"} 1' in client.get("/metrics").text
    assert "KeyError: 'of mine'" in caplog.text


def test_bodies_above_the_limit(client_with: Callable[..., TestClient]) -> None:
    client = client_with(max_bytes=1000)
    assert client.post("/v1/embed", json={"texts": ["a" * 1000]}).status_code == 413

    def parts():  # without a length that is told before
        for _ in range(20):
            yield b"x" * 100

    for kind in ("application/json", "image/png", "multipart/form-data; boundary=x"):
        answer = client.post("/v1/generate", content=parts(), headers={"content-type": kind})
        assert (answer.status_code, answer.headers["connection"]) == (413, "close"), kind


def test_too_much_at_once(client_with: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.web.held.BYTES_AT_ONCE", 10)
    answer = client_with(max_bytes=20).post("/v1/embed", json={"texts": ["a"]})
    assert answer.status_code == 200  # one alone may always be as large as a body may be
    client = client_with(max_bytes=20)
    assert client.get("/health").status_code == 200  # which puts the layers together
    limits = client.app.middleware_stack  # type: ignore[attr-defined]
    while not isinstance(limits, Limits):
        limits = limits.app
    limits.held.bytes = 15
    answer = client.post("/v1/embed", json={"texts": ["a"]})
    assert (answer.status_code, answer.headers["retry-after"], limits.held.bytes) == (429, "1", 15)


def test_headers_of_every_answer(client: TestClient) -> None:
    for path in ("/health", "/nothing", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
