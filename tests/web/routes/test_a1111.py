"""A1111's routes, as bots and plugins call them."""

from __future__ import annotations

import base64
import json

import pytest

from tests.images.test_metadata import A1111, GRAPH, png
from tests.web.routes.conftest import DATA, DATA_URL, Service


@pytest.mark.parametrize(
    "body",
    [
        {"image": DATA, "model": "clip"},
        {"image": DATA_URL},
        {"image": DATA, "model": "mini", "whatever": [1]},
    ],
)
def test_interrogate(service: Service, body: dict[str, object], prompt: str) -> None:
    answer = service.post("/sdapi/v1/interrogate", body)
    assert answer.json() == {"caption": prompt}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"image": DATA, "model": "deepdanbooru"}, 404, "Model not found"),
        ({}, 404, "Image not found"),
        ({"image": " "}, 404, "Image not found"),
        ({"image": None}, 404, "Image not found"),
        ({"image": "http://127.0.0.1/cat.png"}, 422, "Addresses are not fetched"),
        ({"image": "file:///etc/passwd"}, 422, "neither base64"),
        ({"image": 3}, 422, "image"),
        ({"image": "AAAA"}, 422, "not a picture"),
        ({"image": DATA[:2000]}, 422, "truncated"),
        ([], 422, "not a JSON object"),
    ],
)
def test_what_is_wrong(service: Service, body: object, status: int, detail: str) -> None:
    answer = service.post("/sdapi/v1/interrogate", body)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert answer.json().keys() == {"error", "detail", "body", "errors"}


def test_png_info(service: Service) -> None:
    drawn = base64.b64encode(png(parameters=A1111, Software="us")).decode()
    answer = service.post("/sdapi/v1/png-info", {"image": drawn}).json()
    assert answer["info"] == A1111
    assert answer["items"] == {"Software": "us"}
    assert answer["parameters"] == {
        "Prompt": "a castle on a hill, (sharp focus:1.2)",
        "Negative prompt": "blurry, low quality",
        "Steps": "20",
        "Sampler": "Euler a",
        "CFG scale": "7.5",
        "Seed": "1234567890",
        "Size-1": "512",
        "Size-2": "768",
        "Model hash": "abc123",
        "Model": "dream_v5",
    }
    assert service.post("/sdapi/v1/png-info", {"image": DATA_URL}).json() == {
        "info": "",
        "items": {},
        "parameters": {},
    }
    missing = service.post("/sdapi/v1/png-info", {"image": ""})
    assert (missing.status_code, missing.json()["detail"]) == (404, "Image not found")
    broken = service.post("/sdapi/v1/png-info", {"image": "AAAA"})
    assert broken.status_code == 422


def test_other_programs_parameters_are_told_in_its_form(service: Service) -> None:
    drawn = base64.b64encode(png(prompt=json.dumps(GRAPH))).decode()
    answer = service.post("/sdapi/v1/png-info", {"image": drawn}).json()
    assert answer["info"].startswith("a red fox\nNegative prompt: blurry\nSteps: 25")
    assert answer["parameters"]["Prompt"] == "a red fox"
    assert json.loads(answer["items"]["prompt"]) == GRAPH
