"""Our own routes, as a client sees them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

import captioner
from captioner.serving.engine import Engine
from tests.web.conftest import CAT, CAT_URL, PICTURES

GENERATE = "/v1/generate"


def test_json_and_form_give_the_row_of_generate(client: TestClient) -> None:
    expected = captioner.load("mini").generate(CAT, num_beams=2, quality="fast")
    by_json = client.post(GENERATE, json={"image": CAT_URL, "num_beams": 2})
    by_form = client.post(GENERATE, files={"image": ("cat.jpg", CAT)}, data={"num_beams": "2"})
    by_body = client.post(f"{GENERATE}?num_beams=2", content=CAT, headers={"content-type": "image/jpeg"})
    assert [answer.status_code for answer in (by_json, by_form, by_body)] == [200, 200, 200]
    assert by_form.json()["file"] == "cat.jpg"
    for answer in (by_json, by_form, by_body):
        assert answer.json()["text"] == expected.text
        assert answer.json().keys() == {"file", "text", "score", "model", "precision", "source", "raw", "candidates"}


def test_settings_of_every_kind(client: TestClient) -> None:
    fields = {
        "image": base64.b64encode(CAT).decode(),
        "num_candidates": 3,
        "num_beams": 3,
        "max_new_tokens": 9,
        "prefix": "sks style",
        "require": ["moody"],
        "forbid": ["cute"],
        "consensus": True,
        "embed": True,
    }
    row = client.post(GENERATE, json=fields).json()
    assert row["text"].startswith("sks style, ")
    assert "moody" in row["text"]
    assert "cute" not in row["text"]
    assert len(row["candidates"]) > 1
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-4)
    listed = {**fields, "image": ("cat.jpg", CAT), "require": '["moody"]', "forbid": "cute, ugly"}
    form = client.post(GENERATE, files={"image": listed.pop("image")}, data={k: str(v) for k, v in listed.items()})
    assert form.json()["text"] == row["text"]


def test_terms_are_replaced(client: TestClient) -> None:
    def answer(**settings: Any) -> dict[str, Any]:
        return client.post(GENERATE, json={"image": CAT_URL, "num_beams": 1, **settings}).json()

    first, *others = answer()["text"].split(", ")
    for replace in ([f"{first}=a lynx", "zebra="], f"{first}=a lynx, zebra="):
        assert answer(replace=replace)["text"] == ", ".join(["a lynx", *others])
    assert answer(replace=["cat"])["detail"].startswith("replace must be OLD=NEW, ")
    assert "Set metadata to first or only." in answer(plain=True)["detail"]
    assert answer(require=["fate (series)"], escape=True)["text"].endswith(r", fate \(series\)")


def test_a_setting_of_the_query_that_comes_twice_is_a_list(client: TestClient) -> None:
    query = "?num_beams=1&max_new_tokens=4&require=zebra&require=piano"
    text = client.post(GENERATE + query, content=CAT, headers={"content-type": "image/jpeg"}).json()["text"]
    assert "zebra" in text
    assert "piano" in text


@pytest.mark.parametrize("kind", ["form", "json", "picture"])
def test_settings_of_the_address_hold_for_every_body(client: TestClient, kind: str) -> None:
    """Those beside a form or JSON were passed over without a word."""
    bodies: dict[str, dict[str, Any]] = {
        "form": {"files": {"image": ("cat.jpg", CAT)}},
        "json": {"json": {"image": CAT_URL}},
        "picture": {"content": CAT, "headers": {"content-type": "image/jpeg"}},
    }
    row = client.post(f"{GENERATE}?num_beams=1&max_new_tokens=1&embed=true", **bodies[kind]).json()
    assert (row["text"], len(row["embedding"])) == ("a", 384)
    refused = client.post(f"{GENERATE}?nonsense=1", **bodies[kind])
    assert (refused.status_code, refused.json()["detail"]) == (422, "nonsense: there is no such field")
    twice = client.post(f"{GENERATE}?image=x", **bodies[kind])
    assert (twice.status_code, twice.json()["detail"][:50]) == (
        422,
        "image stands in the address and in the body: leave",
    )


def test_several_pictures_where_one_is_bad(client: TestClient) -> None:
    files = [
        ("image", ("a.jpg", PICTURES[0].read_bytes())),
        ("image", ("b.jpg", b"nothing")),
        ("image", ("c.jpg", CAT)),
    ]
    first, second, third = client.post(GENERATE, files=files).json()["results"]
    assert (first["file"], third["file"]) == ("a.jpg", "c.jpg")
    assert first["text"]
    assert second == {"file": "b.jpg", "error": second["error"]}
    assert "is not a picture" in second["error"]


@pytest.mark.parametrize("path", [GENERATE, "/v1/embed", "/v1/read"])
def test_one_of_several_that_cannot_even_be_had(client: TestClient, path: str) -> None:
    """No base64, an address, a number: it costs none of the others their answers."""
    answer = client.post(path, json={"images": ["no/picture!", CAT_URL, "http://a.example/b.png", 5]})
    assert answer.status_code == 200
    none, cat, address, number = answer.json()["results"]
    assert "neither base64 nor a data URL" in none["error"]
    assert "carries no" in cat["error"] if path == "/v1/read" else cat["embedding" if path == "/v1/embed" else "text"]
    assert "Addresses are not fetched here" in address["error"]
    assert "There is no picture" in number["error"]
    assert client.post(path, json={"images": [5]}).json()["results"] == [{"file": "-", "error": number["error"]}]


def test_embeddings_of_texts_and_pictures(client: TestClient) -> None:
    model = captioner.load("mini")
    rows = client.post("/v1/embed", json={"texts": ["a castle", "a dog"]}).json()["results"]
    assert [row["text"] for row in rows] == ["a castle", "a dog"]
    assert np.allclose([row["embedding"] for row in rows], model.embed_texts(["a castle", "a dog"]), atol=1e-5)
    row = client.post("/v1/embed", json={"image": CAT_URL, "expected": True}).json()
    assert np.allclose(row["embedding"], model.embed(CAT, quality="fast", expected=True), atol=1e-4)


def test_what_a_picture_carries(client: TestClient) -> None:
    answer = client.post("/v1/read", files={"image": ("cat.jpg", CAT)})
    assert (answer.status_code, answer.json()) == (422, {"detail": "cat.jpg carries no generation parameters."})


def test_what_the_service_says_of_itself(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mini"]
    assert client.get("/v1/about").json()["default"] == "mini"
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in ("requests_total", "request_seconds_count", "batch_size_sum", "batch_seconds_sum", "queue", "ready"):
        assert f"\ncaptioner_{name}" in metrics.text


def test_the_documentation_needs_no_network(client: TestClient) -> None:
    page = client.get("/docs")
    assert "/v1/generate" in page.text
    assert "http" not in page.text.replace("httpx", "")
    assert "<script" not in page.text
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/v1/generate"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"]["properties"]["num_beams"]["anyOf"][0]["maximum"] == 32
    assert body["multipart/form-data"]["schema"]["properties"]["image"]["items"]["format"] == "binary"


WRONG = {
    "no picture": ({}, 422, "Give a picture as `image`"),
    "an unknown model": ({"image": CAT_URL, "model": "blip"}, 404, "There is no model 'blip' here"),
    "a setting that is none": ({"image": CAT_URL, "beams": 3}, 422, "beams: there is no such field"),
    "a wrong type": ({"image": CAT_URL, "num_beams": "many"}, 422, "num_beams: not a whole number"),
    "a huge search": ({"image": CAT_URL, "num_beams": 10_000}, 422, "less than or equal to 32"),
    "settings against each other": (
        {"image": CAT_URL, "num_beams": 2, "temperature": 2.0},
        422,
        "would change nothing",
    ),
    "no base64": ({"image": "/etc/passwd.png"}, 422, "neither base64 nor a data URL"),
    "an address": ({"image": "http://example.com/cat.png"}, 422, "or start the server with --allow-urls."),
    "a data URL of text": ({"image": "data:image/svg+xml,<svg/>"}, 422, "A data URL holds a picture as base64"),
    "a number": ({"image": 5}, 422, "There is no picture"),
    "too many pixels": (
        {"image": base64.b64encode(b"P6 20000 20000 255\n").decode()},
        422,
        "The picture has 20000×20000 pixels, above the limit of 100,000,000. Make it smaller, or, if",
    ),
    "an unfinished brace": ({"image": CAT_URL, "prompt": "a {"}, 422, "a brace without its other half"),
    "a lone surrogate": ({"image": CAT_URL, "model": "\ud800"}, 422, "model: not a text, for it holds half a"),
    "not a list of pictures": ({"images": "x"}, 422, "neither base64"),
    "no pictures at all": ({"images": []}, 422, "Give 1 to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(client: TestClient, name: str) -> None:
    fields, status, words = WRONG[name]
    answer = client.post(GENERATE, content=json.dumps(fields), headers={"content-type": "application/json"})
    assert words in answer.json()["detail"]
    assert answer.status_code == status


def test_where_nothing_is_and_where_something_is_asked_for_otherwise(client: TestClient) -> None:
    opened = client.get(GENERATE)
    assert (opened.status_code, opened.headers["allow"]) == (405, "POST")
    assert opened.json()["detail"] == f"{GENERATE} takes POST, not GET: /docs tells how."
    answer = client.get("/nothing")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "There is nothing at /nothing: /docs lists what there is."
    answer = client.get("/v1/nothing")  # whoever asks for it speaks OpenAI's
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is nothing at /v1/nothing: /docs lists what there is."
    error = client.get("/v1/chat/completions").json()["error"]
    assert error["message"].startswith("/v1/chat/completions takes POST")
    assert error["type"] == "invalid_request_error"
    for method, path, taken in (
        ("PUT", "/mcp", "POST"),  # no page of the documentation has it
        ("DELETE", "/mcp", "POST"),
        ("GET", "/review/api/view", "POST"),
        ("POST", "/review/api/state", "GET"),
        ("POST", "/v1/models/mini", "GET"),  # a part of its path is anything
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, taken), (method, path)
        assert f"{path} takes {taken}, not {method}: /docs tells how." in answer.text


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": 1}, "input: not a text, not a list"),
        ("/embed", {"inputs": {}}, "inputs: not a text, not a list"),
        (
            "/v1/generate",
            {"image": CAT_URL, "Model": "mini", "str": 1},
            "Model: there is no such field; str: there is no",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"content": [{"image_url": {"url": 1}}]}, {"content": 2}]},
            "messages.0.content: not a text; messages.0.content.0.image_url.url: not a text; "
            "messages.0.content.0.image_url: not a text; messages.1.content: not a text, not a list",
        ),
    ],
)
def test_what_is_wrong_with_a_field_is_told_without_pythons_types(
    client: TestClient, path: str, body: object, words: str
) -> None:
    answer = client.post(path, json=body).json()
    error = answer.get("detail") or answer["error"]
    assert (error if isinstance(error, str) else error["message"]).startswith(words)


def test_a_field_of_an_address_is_told_by_its_name(client: TestClient) -> None:
    assert client.get("/page/file").json()["detail"] == "path: is missing"


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/nothing", GENERATE])
def test_head_is_answered_as_get_without_a_body(server: str, path: str) -> None:
    """Monitors and load balancers ask so."""
    told, whole = httpx.head(f"{server}{path}"), httpx.get(f"{server}{path}")
    assert (told.status_code, told.content) == (whole.status_code, b"")
    assert told.headers["content-length"] == whole.headers["content-length"]


def test_bodies_that_are_no_json(client: TestClient) -> None:
    for body in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"image": ' + b"9" * 5000 + b"}"):
        answer = client.post(GENERATE, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, body[:20]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "x" * 99):
        answer = client.post(GENERATE, content=b"--x\r\nrubbish", headers={"content-type": kind})
        assert answer.status_code == 422, kind


def test_similar_pictures_need_an_index(client: TestClient) -> None:
    assert client.post("/v1/similar", json={"image": CAT_URL}).status_code == 422


def test_attention_needs_a_model_that_attends(client: TestClient) -> None:
    answer = client.post("/v1/attention", json={"image": CAT_URL, "text": "a cat"})
    assert "no attention over the picture" in answer.json()["detail"]


def test_a_full_queue_and_a_late_answer(engine: Engine, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "limit", 0)
    busy = client.post(GENERATE, json={"image": CAT_URL})
    assert (busy.status_code, int(busy.headers["retry-after"]) >= 1) == (429, True)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "timeout", 0.0)
    assert client.post(GENERATE, json={"image": CAT_URL}).status_code == 504


def test_similar_pictures(
    client_with: Callable[..., TestClient], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    monkeypatch.setattr(engine, "index", Path("index"))
    monkeypatch.setattr(engine.benches[0], "similar", lambda images, count: [{"similar": [count]} for _ in images])
    answer = client_with().post("/v1/similar", json={"image": CAT_URL, "count": 2})
    assert answer.json() == {"similar": [2]}
