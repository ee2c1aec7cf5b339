"""Requests that were made to break it: never a 500, no growth of memory, no file written.

A few of each here; `HOSTILE=1000 pytest tests/web/test_hostile.py` sends a thousand.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
import schemathesis
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from captioner.serving.engine import Engine
from captioner.web.app import make_app
from captioner.web.routes.openai import ChatRequest
from captioner.web.routes.review import View
from captioner.web.settings import Settings
from tests.images.test_hostile_pictures import bad, good
from tests.web.conftest import CAT, CAT_URL

COUNT = int(os.environ.get("HOSTILE", "30"))
SHORT = {"num_beams": "1", "num_candidates": "1", "max_new_tokens": "1"}
GROWTH = 150_000_000
"""Bytes that the process may grow by; the allocator keeps what the largest picture took."""


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither where the server was started nor among temporary files."""
    temporary, here = tmp_path / "tmp", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(here)
    yield
    assert [*temporary.iterdir(), *here.iterdir()] == []


def test_pictures_of_all_kinds(client: TestClient) -> None:
    sound = [(name, content, SHORT) for name, content in good().items()]
    for name, content, settings in sound[:: max(1, 120 // COUNT)]:
        files = {"image": (name.encode("utf-8", "replace").decode(), content)}
        answer = client.post("/v1/generate", files=files, data=settings)
        assert answer.status_code == 200, (name, answer.text)
    for name, (content, says) in bad().items():
        answer = client.post("/v1/generate", files={"image": (name, content)})
        assert answer.status_code == 422, name
        assert (says if content else "") in answer.json()["detail"]


def test_damaged_pictures_do_not_make_it_grow(client: TestClient) -> None:
    generator = random.Random(0)
    process = psutil.Process()

    def damaged() -> bytes:
        data = bytearray(CAT[: generator.randrange(1, len(CAT))] if generator.random() < 0.5 else CAT)
        for _ in range(generator.randrange(20)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        return bytes(data)

    def send(count: int) -> None:
        for _ in range(count):
            settings = SHORT
            answer = client.post("/v1/generate", files={"image": ("x.jpg", damaged())}, data=settings)
            assert answer.status_code in (200, 422)

    send(COUNT // 4)
    before = process.memory_info().rss
    send(COUNT)
    assert process.memory_info().rss - before < GROWTH


def test_a_form_that_is_cut_off_is_told_as_such(client: TestClient) -> None:
    """The part it ends in is lost: that there is no picture would be said of what was sent."""
    settings = b'--X\r\nContent-Disposition: form-data; name="num_beams"\r\n\r\n1\r\n'
    file = b'--X\r\nContent-Disposition: form-data; name="image"; filename="cat.jpg"\r\n\r\n' + CAT
    headers = {"content-type": "multipart/form-data; boundary=X"}
    whole = settings + file + b"\r\n--X--\r\n"
    assert client.post("/v1/generate?max_new_tokens=1", content=whole, headers=headers).status_code == 200
    for cut in (settings + file[:30], settings + file[:100], settings + file[:-500]):
        answer = client.post("/v1/generate", content=cut, headers=headers)
        assert (answer.status_code, answer.json()) == (
            422,
            {"detail": "The form cannot be read: it is cut off before its end"},
        )


def test_forms_and_bodies_of_the_wrong_shape(client: TestClient) -> None:
    shapes: tuple[object, ...] = (
        *(None, True, 0, -1, 1e308, "", "x", [], {}, [[]], ["x"] * 100, {"a": {"b": []}}, "\ud800", "\0", "🐱" * 3000),
        *(float("nan"), float("inf"), 2**70, "a" * 100_000),
    )
    fields = (
        "image",
        "images",
        "model",
        "prompt",
        "num_beams",
        "seed",
        "forbid",
        "require",
        "prefix",
        "early_stopping",
    )
    for field in fields:
        for shape in shapes:
            body = json.dumps({"image": CAT_URL, "max_new_tokens": "x"} | {field: shape})  # never reaches the model
            answer = client.post("/v1/generate", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 422, (field, shape)
    for name in ('"; x="', "a\r\nb", "../../etc/passwd", "\0", "é" * 300):
        answer = client.post("/v1/read", files={"image": (name, CAT)})
        assert answer.status_code == 422
    many = [("image", (f"{n}.jpg", b"x")) for n in range(70)]
    assert client.post("/v1/read", files=many).status_code == 422
    assert client.post("/v1/read", data={f"x{n}": "y" for n in range(300)}, files=many[:1]).status_code == 422


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatRequest, {"messages": [{}] * 3000}),
        (ChatRequest, {"messages": [{"content": [{}] * 3000}]}),
        (ChatRequest, {"messages": [{}], "stop": [0] * 3000}),
        (View, {str(number): 0 for number in range(3000)}),
    ],
)
def test_of_many_small_things_neither_each_is_kept_nor_an_error_for_each(kind: type[BaseModel], body: object) -> None:
    """20 MB hold seven million of them: they took 20 GB and stopped the server for minutes."""
    with pytest.raises(ValidationError) as wrong:
        kind.model_validate(body)
    assert wrong.value.error_count() < 4


def test_many_small_things_are_refused_in_a_sentence(client: TestClient) -> None:
    for wrong in (0, [0], {}):
        answer = client.post("/v1/embeddings", json={"input": [wrong] * 3000})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("The input is not a text or a list of texts;")
        assert client.post("/embed", json={"inputs": [wrong] * 3000}).json() == {
            "error": "`inputs` is a text or a list of texts",
            "error_type": "Validation",
        }
    answer = client.post("/v1/generate", json={"image": CAT_URL} | {str(number): 0 for number in range(3000)})
    assert answer.json() == {"detail": "The body has 3,001 fields, more than the 200 that a request may have."}
    refused = "The body has more than 500,000 commas and brackets: send fewer things at a time."
    for part in ("[]", "{}", "1", '"a"'):
        text = '{"input": [' + ", ".join([part] * 500_001) + "]}"
        answer = client.post("/v1/embeddings", content=text, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, refused)
        answer = client.post("/mcp", content=text, headers={"content-type": "application/json"})
        assert answer.json()["error"] == {"code": -32600, "message": refused}
    form = dict.fromkeys("abc", "[" + "[]," * 99_999 + "[]]")  # each is no larger than a field may be
    answer = client.post("/v1/generate", data=form, files={"image": b"none"})
    assert (answer.status_code, answer.json()) == (422, {"detail": refused})


def test_what_schemathesis_thinks_of(engine: Engine) -> None:
    app = make_app(engine, Settings(page=False))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})
    operations = [one.ok() for one in schema.get_all_operations()]
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=max(3, COUNT // len(operations)),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        def send(case: schemathesis.Case) -> None:
            headers = {**(case.headers or {}), "host": "localhost"}
            assert case.call(headers=headers).status_code < 500

        send()
    assert len(operations) > 8
