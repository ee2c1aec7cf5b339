"""A booru tagger behind the service: its own settings, and clients that send those of a search unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import captioner
from captioner.serving.engine import Engine
from tests.web.routes.conftest import COFFEE, DATA, DATA_URL, Service
from tests.web.served import served


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("tagger")


@pytest.fixture(scope="module")
def tagging(folder: Path) -> Iterator[Service]:
    engine = Engine([str(folder)])
    engine.start()
    with served(None, engine) as address:
        yield Service(address)
    engine.close()


def test_thresholds(tagging: Service, folder: Path) -> None:
    tagger = captioner.load(folder)
    for settings in ({}, {"threshold": 0.6}, {"threshold": 0, "character_threshold": 0.1}):
        row = tagging.post("/v1/generate", {"image": DATA, **settings}).json()
        assert (row["text"], row["precision"]) == (tagger.generate(COFFEE, **settings).text, "fp32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 2}, "threshold"),
        ({"character_threshold": "x"}, "character_threshold"),
        ({"num_beams": 2}, "has no use for num_beams"),
    ],
)
def test_what_is_refused(tagging: Service, settings: dict[str, object], message: str) -> None:
    answer = tagging.post("/v1/generate", {"image": DATA, **settings})
    assert answer.status_code == 422
    assert message in answer.text


def test_the_page_offers_no_search(tagging: Service, folder: Path) -> None:
    described = tagging.get(f"/page/model?name={folder}").json()
    assert described["uses"] == ["character_threshold", "rating", "threshold"]
    assert described["decoding"] is None


def test_a_chat(tagging: Service, folder: Path) -> None:
    content = [{"type": "text", "text": "Tags?"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 300, "temperature": 0.7, "n": 2}
    choices = tagging.post("/v1/chat/completions", asked).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == [captioner.load(folder).generate(COFFEE).text] * 2
