"""`POST /`, asked by huggingface_hub's client and by hand."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.web.routes.conftest import COFFEE, DATA, DATA_URL, Service


@pytest.mark.usefixtures("_online")
def test_the_hubs_client_gets_the_text(service: Service, prompt: str) -> None:
    client = InferenceClient(service.address)
    assert client.image_to_text(str(COFFEE)).generated_text == prompt
    assert client.image_to_text(COFFEE.read_bytes()).generated_text == prompt


@pytest.mark.usefixtures("_online")
def test_its_errors_are_raised_with_their_words(service: Service) -> None:
    with pytest.raises(HfHubHTTPError, match="not a picture"):
        InferenceClient(service.address).image_to_text(b"no picture")


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded", None])
def test_bytes_of_any_kind(service: Service, kind: str | None, prompt: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{service.address}/", content=COFFEE.read_bytes(), headers=headers, timeout=60)
    assert answer.json() == [{"generated_text": prompt}]


def test_parameters(service: Service, prompt: str) -> None:
    assert service.post("/", {"inputs": DATA_URL}).json() == [{"generated_text": prompt}]
    parameters = {"max_new_tokens": 4, "generation_parameters": {"do_sample": False, "num_beams": 2, "max_time": 3}}
    (answer,) = service.post("/", {"inputs": DATA, "parameters": parameters}).json()
    assert 0 < len(answer["generated_text"]) < len(prompt)
    same = {"max_new_tokens": 4, "generate_kwargs": {"do_sample": False, "num_beams": 2}}
    assert service.post("/", {"inputs": DATA, "parameters": same}).json() == [answer]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": "a text"},
        {"inputs": DATA, "parameters": {"max_new_tokens": "many"}},
        {"inputs": DATA, "parameters": {"generation_parameters": {"num_beams": 1000}}},
        {"inputs": DATA, "parameters": {"max_new_tokens": -1}},
        {"inputs": DATA, "parameters": {"max_new_tokens": 100_000}},
        {"inputs": DATA, "parameters": {"generate_kwargs": {"do_sample": False, "temperature": 0.5}}},
        3,
    ],
)
def test_what_is_wrong(service: Service, body: object) -> None:
    answer = service.post("/", body)
    assert answer.status_code == 422
    assert answer.json().keys() == {"error"}


def test_no_bytes_are_no_picture(service: Service) -> None:
    answer = httpx.post(f"{service.address}/", timeout=60)
    assert (answer.status_code, answer.json()) == (422, {"error": "The picture is empty (0 bytes)."})
