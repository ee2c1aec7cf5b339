"""clip-interrogator's routes, with the interrogator and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import captioner
from captioner.contracts import LoadOptions
from captioner.serving.engine import Engine
from tests.models.interrogator.test_interrogator import LISTS
from tests.web.routes.conftest import COFFEE, DATA, Service
from tests.web.served import served

KINDS = {"medium": "mediums", "artist": "artists", "movement": "movements", "flavor": "flavors"}


@pytest.fixture(scope="module")
def interrogator(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of the interrogator with a small CLIP, and lists as clip-interrogator ships them."""
    folder = tmp_path_factory.mktemp("site") / "clip_interrogator"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for kind, terms in LISTS.items():
        (folder / "data" / f"{kind}.txt").write_text("\n".join(terms) + "\n", encoding="utf-8")
    options = LoadOptions(caption_model="mini", clip_model=str(tiny_checkpoint("clip")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder.parent)
        patch.setenv("CAPTIONER_CACHE", str(tmp_path_factory.mktemp("cache")))
        engine = Engine(["interrogator"], options)
        engine.start()
        with served(None, engine) as address:
            yield Service(address)
        engine.close()


def test_prompt_in_its_modes(interrogator: Service) -> None:
    (name,) = interrogator.get("/interrogator/models").json()

    def ask(**body: object) -> str:
        answer = interrogator.post("/interrogator/prompt", {"image": DATA, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()["prompt"]

    fast = ask(clip_model_name=name, mode="fast")
    caption = captioner.load("mini").generate(COFFEE, num_candidates=1).text
    assert fast.startswith(caption.split(",")[0])
    assert fast == ask() == ask(model="ViT-L-14/openai") == ask(clip_model_name="interrogator")
    assert ask(mode="classic").startswith(caption.split(",")[0])
    assert set(ask(mode="negative").split(", ")) <= {*LISTS["flavors"], *LISTS["negative"]}


def test_analysis(interrogator: Service) -> None:
    analysis = interrogator.post("/interrogator/analyze", {"image": DATA, "clip_model_name": "ViT-L-14/openai"}).json()
    assert list(analysis) == ["medium", "artist", "movement", "trending", "flavor"]
    for kind, terms in analysis.items():
        assert 0 < len(terms) <= 5
        assert list(terms.values()) == sorted(terms.values(), reverse=True)
        if kind in ("medium", "flavor"):
            assert set(terms) <= set(LISTS[KINDS[kind]])
    assert all(term.startswith(("by ", "inspired by ")) for term in analysis["artist"])


def test_a_chat_with_the_interrogator(interrogator: Service) -> None:
    content = [{"type": "text", "text": "Which {style}?"}, {"type": "image_url", "image_url": DATA}]
    answer = interrogator.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "n": 2})
    assert len(answer.json()["choices"]) == 2


def test_without_it_the_model_that_is_there_writes_the_prompt(service: Service, prompt: str) -> None:
    assert service.get("/interrogator/models").json() == ["mini"]
    for named in ({}, {"clip_model_name": "ViT-L-14/openai", "mode": "best"}, {"model": "mini", "mode": "classic"}):
        assert service.post("/interrogator/prompt", {"image": DATA} | named).json() == {"prompt": prompt}


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("prompt", {}, 404, "Image not found"),
        ("prompt", {"image": "http://127.0.0.1/cat.png"}, 422, "Addresses are not fetched"),
        ("prompt", {"image": DATA, "mode": "slow"}, 422, "one of best, fast"),
        ("prompt", {"image": DATA, "mode": "negative"}, 422, "with the interrogator among its models"),
        ("prompt", {"image": DATA, "clip_model_name": "ViT-H-14/laion2b_s32b_b79k"}, 404, "only mini"),
        ("prompt", {"image": DATA, "clip_model_name": ["a"]}, 422, "clip_model_name"),
        ("analyze", {"image": DATA}, 404, "with the interrogator among its models"),
        ("analyze", "no object", 422, "not a JSON object"),
    ],
)
def test_what_is_wrong(service: Service, path: str, body: object, status: int, detail: str) -> None:
    answer = service.post(f"/interrogator/{path}", body)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
