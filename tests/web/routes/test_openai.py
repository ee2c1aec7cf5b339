"""OpenAI's forms, asked by its own client, by ours, and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

import captioner
from captioner.errors import BadInput, MissingModel
from captioner.text.embedding import text_embedder
from captioner.text.length import clip_tokens_of
from captioner.web.routes.openai import (
    Abilities,
    ChatRequest,
    Choice,
    Completion,
    EmbeddingsRequest,
    choices,
    cut,
    settings,
    shortened,
    usage,
)
from tests.web.routes.conftest import COFFEE, DATA, DATA_URL, PICTURES, Service

SEES = [
    {"type": "text", "text": "What is this {thing}?"},
    {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
]


def chat(*content: object, **more: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": list(content) or SEES}], **more})


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0)


# --- its own client ---------------------------------------------------------------------------------------------------


def test_chat_says_what_the_command_line_says(client: openai.OpenAI, prompt: str, reason: str) -> None:
    answer = client.chat.completions.create(
        model="mini", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": SEES}]
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", prompt, reason)
    assert (answer.object, answer.model) == ("chat.completion", "mini")
    used = answer.usage
    assert used.prompt_tokens == 3 + 7  # CLIP's, of both texts
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.completion_tokens > 3


def test_chat_is_streamed_word_by_word(client: openai.OpenAI, prompt: str, reason: str) -> None:
    stream = client.chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": SEES}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *pieces, last = chunks
    words = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(words) == prompt
    assert len(words) > 4
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, reason]
    assert last.choices == []
    assert last.usage.completion_tokens > 3


def test_several_choices_a_temperature_and_a_seed(client: openai.OpenAI) -> None:
    def ask(**more: object) -> list[str]:
        answer = client.chat.completions.create(
            model="mini", messages=[{"role": "user", "content": SEES}], max_completion_tokens=12, **more
        )
        return [choice.message.content for choice in answer.choices]

    drawn = ask(n=6, temperature=1.2, top_p=0.95, seed=7)
    assert len(drawn) == 6
    assert len(set(drawn)) > 1
    assert ask(n=6, temperature=1.2, top_p=0.95, seed=7) == drawn
    assert ask(temperature=0) == ask(temperature=0, seed=3, top_p=0.5)


def test_a_stop_and_a_limit_end_the_text(client: openai.OpenAI, prompt: str) -> None:
    messages = [{"role": "user", "content": SEES}]
    stop = prompt.split()[2]
    (choice,) = client.chat.completions.create(model="mini", messages=messages, stop=[stop]).choices
    assert choice.message.content == prompt[: prompt.index(stop)].rstrip()
    assert choice.finish_reason == "stop"
    (choice,) = client.chat.completions.create(model="mini", messages=messages, max_tokens=3, temperature=0).choices
    assert choice.finish_reason == "length"
    (choice,) = client.chat.completions.create(model="mini", messages=messages, max_tokens=-1).choices
    assert choice.message.content == prompt  # as LM Studio's clients say "no limit"


def test_models_are_listed_and_told(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.owned_by) == ("mini", "captioner")
    assert client.models.retrieve("mini") == listed
    with pytest.raises(openai.NotFoundError, match="only mini"):
        client.models.retrieve("gpt-4o")


def test_texts_are_embedded(client: openai.OpenAI) -> None:
    texts = ["a cat", "a castle in the clouds, oil painting"]
    expected = text_embedder()(texts)
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)  # the client asks for base64
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-6)
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.usage.total_tokens == 2 + 8
    one = client.embeddings.create(model="mini", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(one.data[0].embedding, expected[0], atol=1e-6)
    short = client.embeddings.create(model="mini", input=texts, dimensions=64)
    beginnings = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose([item.embedding for item in short.data], beginnings, rtol=1e-6)


def test_tokens_are_counted_beside_the_event_loop(
    client_with: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of megabytes take seconds, in which nobody else would be answered."""
    counted: list[int] = []

    def tokens_of(texts: Sequence[str]) -> list[int]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        counted.append(len(texts))
        return clip_tokens_of(texts)

    monkeypatch.setattr("captioner.web.routes.openai.clip_tokens_of", tokens_of)
    asking = client_with()
    answer = asking.post("/v1/embeddings", json={"input": ["a cat", "two dogs"]})
    assert answer.json()["usage"]["total_tokens"] == 4
    answer = asking.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": SEES}]})
    assert answer.json()["usage"]["prompt_tokens"] == 7
    assert counted == [2, 2]


def test_pictures_are_embedded(client: openai.OpenAI, prompt: str) -> None:
    answer = client.embeddings.create(model="mini", input=[DATA_URL, DATA], extra_body={"modality": "image"})
    (expected,) = text_embedder()([prompt])
    for item in answer.data:
        np.testing.assert_allclose(item.embedding, expected, atol=1e-6)


def test_its_errors_are_raised_as_what_they_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": SEES}])
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4o")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="no picture in the messages"):
        client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "Hello?"}])
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="mini", input=[[1, 2], [3]])


@pytest.mark.parametrize("path", ["/v1/chat/nothing", "/v1/responses", "/v1/images/generations"])
def test_a_path_that_is_not_answered_is_no_missing_model(client: openai.OpenAI, path: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"There is nothing at {path}:") as missing:
        client.post(path.removeprefix("/v1"), body={"model": "mini"}, cast_to=object)
    error = missing.value
    assert (error.type, error.code, error.param) == ("invalid_request_error", None, None)


# --- our client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/mini", "/v1/chat/completions", "/v1/embeddings"])
def test_a_wrong_key_is_told_in_openais_form(client_with: Callable[..., TestClient], path: str) -> None:
    answer = client_with(api_key="right").get(path, headers={"authorization": "Bearer wrong"})
    assert answer.status_code == 401
    assert answer.json() == {
        "error": {
            "message": "The API key is missing or wrong.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }


def test_our_own_client_asks_our_own_server(service: Service, prompt: str) -> None:
    remote = captioner.load(f"openai:{service.address}/v1")  # the only model needs no name
    answer = remote.generate([COFFEE, PICTURES / "rocket.jpg"], num_candidates=3, seed=1, max_new_tokens=20)
    assert all(1 < len(prompt.candidates) <= 3 for prompt in answer)  # doubles are dropped
    assert answer[0].text != answer[1].text
    again = remote.generate(COFFEE, num_candidates=3, seed=1, max_new_tokens=20)
    assert again.text == answer[0].text
    with pytest.raises(MissingModel, match="It has mini"):
        captioner.load(f"openai:{service.address}/v1#mimi").generate(COFFEE)


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_url", [DATA_URL, {"url": DATA_URL}, {"url": DATA}])
def test_a_picture_as_object_or_string(service: Service, image_url: object, prompt: str) -> None:
    content = [{"type": "image_url", "image_url": image_url}]
    answer = service.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "tools": []})
    assert answer.json()["choices"][0]["message"]["content"] == prompt


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", {}, 400),
        ("chat/completions", {"messages": []}, 400),
        ("chat/completions", {"messages": "hello"}, 400),
        ("chat/completions", {"messages": [{"content": [{"type": "image_url", "image_url": 3}]}]}, 400),
        ("chat/completions", {"messages": [{"content": [{"type": "image_url", "image_url": "?"}]}]}, 400),
        ("chat/completions", {"messages": [{"content": [{"image_url": "http://127.0.0.1/a.png"}]}]}, 400),
        ("chat/completions", {"messages": [{"content": [{"image_url": "data:image/png;base64,AAAA"}]}]}, 400),
        ("chat/completions", {"messages": [{"content": SEES}], "n": 1000}, 400),
        ("chat/completions", {"messages": [{"content": SEES}], "temperature": "hot"}, 400),
        ("chat/completions", {"messages": [{"content": SEES}], "model": "\ud800"}, 404),
        ("chat/completions", [], 400),
        ("embeddings", {}, 400),
        ("embeddings", {"input": []}, 400),
        ("embeddings", {"input": "a", "dimensions": 5000}, 400),
        ("embeddings", {"input": "a", "dimensions": 0}, 400),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, 400),
        ("embeddings", {"input": ["a"] * 3000}, 400),
        ("embeddings", {"input": "no picture", "modality": "image"}, 400),
        ("embeddings", {"input": "a", "model": "text-embedding-3-small"}, 404),
    ],
)
def test_what_is_wrong_is_said_in_its_own_form(service: Service, path: str, body: object, status: int) -> None:
    answer = service.post(f"/v1/{path}", body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


# --- what it becomes --------------------------------------------------------------------------------------------------


def test_settings_of_the_search() -> None:
    plain, drawing = Abilities(), Abilities(samples=True, candidates=4, longest=30)
    assert settings(chat(), plain) == {}
    assert settings(chat(n=3), plain) == {"num_candidates": 3}
    assert settings(chat(n=3), drawing) == {}  # it gives four by itself
    assert settings(chat(max_tokens=300), plain) == {"max_new_tokens": 300}
    assert settings(chat(max_tokens=300), drawing) == {"max_new_tokens": 30}
    assert settings(chat(max_completion_tokens=5, max_tokens=9), drawing) == {"max_new_tokens": 5}
    assert settings(chat(temperature=0, seed=1), drawing) == {"do_sample": False}
    assert settings(chat(temperature=0.5), plain) == {"do_sample": True, "temperature": 0.5}
    assert settings(chat(temperature=0.5, top_p=0), drawing) == {"temperature": 0.5, "top_p": 0.001}
    assert settings(chat(top_p=1, seed=3), plain) == {}
    assert settings(chat(seed=-1), drawing) == {"seed": 2**63 - 1}
    assert settings(chat(n=3, max_tokens=9, temperature=1, seed=3), Abilities(searches=False)) == {}


def test_a_text_is_said_to_the_model_that_understands_it() -> None:
    understands = Abilities(frozenset({"instruction", "style"}))
    assert settings(chat(), understands) == {"instruction": "What is this {{thing}}?"}
    assert settings(chat(), Abilities(frozenset({"question"}))) == {"question": "What is this {{thing}}?"}
    for deaf in (frozenset({"prompt"}), frozenset({"mode", "question", "instruction"})):
        assert settings(chat(), Abilities(deaf)) == {}
    turns = [
        {"role": "system", "content": "In German."},
        {"role": "user", "content": [{"type": "image_url", "image_url": "a"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "Ein Hund."},
        {"role": "user", "content": "Which breed?"},
    ]
    asked = ChatRequest.model_validate({"messages": turns})
    assert asked.picture() == "a"
    assert asked.instruction() == "In German.\n\nWhich breed?"


def test_one_picture_at_a_time() -> None:
    picture = {"type": "image_url", "image_url": "a"}
    with pytest.raises(BadInput, match="2 pictures in one message"):
        chat(picture, picture).picture()


def test_a_text_is_cut_at_the_first_stop() -> None:
    assert cut("a cat, art", True, ["art", ","]) == Choice("a cat", True)
    assert cut("a cat", False, ["dog"]) == Choice("a cat", False)
    assert chat(stop="").stops() == []
    row = {"candidates": [{"text": "a", "finished": True}, {"text": "b", "finished": False}]}
    assert [choice.text for choice in choices(row, 3, ())] == ["a", "b", "a"]
    assert usage("", [Choice("a cat", True), Choice("a dog", True)])["completion_tokens"] == 4


def test_events_are_the_whole_text_again() -> None:
    text = "two  lines\n\nand “quotes”\n"
    completion = Completion("mini", [Choice(text, True), Choice("", False)], {})
    chunks = list(completion.chunks(with_usage=False))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if not chunk["choices"][0]["index"]]
    assert "".join(pieces) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    events = list(completion.events(with_usage=False))
    assert events[-1] == "data: [DONE]\n\n"
    assert all(event.startswith("data: {") and event.count("\n") == 2 for event in events[:-1])


def test_inputs_and_dimensions() -> None:
    with pytest.raises(BadInput, match="token ids"):
        EmbeddingsRequest.model_validate({"input": [1, 2]}).inputs()
    assert EmbeddingsRequest.model_validate({"input": "a"}).inputs() == ["a"]
    assert shortened([[0.0, 0.0, 1.0]], 2).tolist() == [[0.0, 0.0]]
