"""A captioner behind an address, against a real server that misbehaves in every way."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captioner
from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadAnswer, BadInput, MissingModel, Unwilling
from captioner.models import openai
from captioner.models.ensemble import ensemble
from captioner.styles import STYLES
from tests.chat_server import COLOURS, ChatServer, serving

QUICK = openai.Limits(timeout=10, tries=3, first_wait=0.01)


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in (*openai.KEYS, openai.TIMEOUT, "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def square(name: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[name])


def speaker(server: ChatServer, model: str, limits: openai.Limits = QUICK) -> openai.Server:
    return openai.Server(openai.Connection(server.address, None, limits), model)


OWN = {name: value for name, value in openai.DEFAULT_DECODING.items() if name != "consensus"}
ONE = Decoding(**OWN)


def test_pictures_are_answered_at_once_and_in_order(server):
    asked = speaker(server, "sociable")  # which answers nobody before somebody else has asked
    names = list(COLOURS) * 3
    readings = asked.read_images([square(name) for name in names], ONE)
    assert [r.candidates[0].text for r in readings] == [f"a {name} square, oil on canvas" for name in names]
    assert server.several.is_set()
    assert asked.usage == openai.Usage(15, 1500, 150)
    assert str(asked.usage) == "15 requests used 1,500 tokens of input and 150 of output"


def test_a_model_goes_to_another_process(server):
    """As those of Ray and multiprocessing do; nothing is loaded that would be laid out for this one."""
    model = pickle.loads(pickle.dumps(captioner.load(f"openai:{server.address}#painter")))
    assert model.generate(square("red")).text == "a red square, oil on canvas"


def test_what_is_asked_goes_by_the_names_of_the_interface(server):
    sampled = Decoding(**OWN | {"num_return_sequences": 3, "top_p": 0.9, "seed": 7, "max_new_tokens": 50})
    [reading] = speaker(server, "painter").read_images([square("red")], sampled, Request(instruction="Which colour?"))
    assert [c.text for c in reading.candidates] == [
        f"a red square, oil on canvas{end}" for end in ("", ", take 1", ", take 2")
    ]
    body = server.bodies[-1]
    assert body.pop("messages")[0]["content"][1] == {"type": "text", "text": "Which colour?"}
    assert body == {"model": "painter", "max_tokens": 50, "n": 3, "temperature": 0.6, "top_p": 0.9, "seed": 7}
    speaker(server, "painter").read_images([square("red")], Decoding(num_beams=1))
    body = server.bodies[-1]
    assert body.pop("messages")[0]["content"][1]["text"] == STYLES["prompt"].instruction
    assert body == {"model": "painter", "max_tokens": 48, "temperature": 0}


def test_joycaption_is_asked_in_the_words_that_it_was_trained_on(server):
    asked = speaker(server, "fancyfeast/Llama-JoyCaption-Beta-One")
    asked.read_images([square("red")], ONE, Request(style="tags"))
    system, user = server.bodies[-1]["messages"]
    assert system == {"role": "system", "content": "You are a helpful image captioner."}
    assert user["content"][1]["text"] == "Write a list of Booru-like tags for this image."
    asked.read_images([square("red")], ONE, Request(instruction="Which colour?"))
    assert server.bodies[-1]["messages"][-1]["content"][1]["text"] == "Which colour?"


@pytest.mark.parametrize("size", [(4000, 1000), (1, 1), (300, 5000)])
def test_pictures_are_sent_at_a_sane_size(size):
    import base64
    import io

    data = base64.b64decode(openai.data_url(Image.new("RGB", size)).partition(",")[2])
    sent = Image.open(io.BytesIO(data)).size
    assert max(sent) == min(max(size), 1024)
    assert sent[0] / sent[1] == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize(
    "model",
    [
        *("busy", "failing", "cut-once", "hung-up-once", "nonsense-once"),
        *("gateway", "gateway-in-words", "failed-choice-once"),
    ],
)
def test_what_may_pass_is_tried_again(server, model):
    server.tries.clear()
    [reading] = speaker(server, model).read_images([square("blue")], ONE)
    assert reading.candidates[0].text == "a blue square, oil on canvas"
    assert server.tries[model] == 3


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("down", BadAnswer, "answers 500 (the engine died)"),
        ("cut", MissingModel, "broke off after 13 bytes"),
        ("hung-up", MissingModel, "No answer from"),
        ("nonsense", BadInput, "text/html that is no JSON"),
        ("empty-object", BadInput, "does not speak OpenAI's chat completions"),
        ("endless", BadInput, "more than 10,000,000 bytes"),
        ("much-too-busy", BadInput, "may be asked again in 86,400 s"),
        ("poor", BadInput, "nothing left to spend"),
        ("blind", BadAnswer, "image input is not supported"),
        ("paintre", MissingModel, "It has painter"),
        ("gone", MissingModel, "It has painter, other: name one behind #."),
        ("lost-in-thought", BadAnswer, "raise max_new_tokens"),
        ("silent", Unwilling, "refuses to speak of this picture"),
        ("unwilling", Unwilling, "refuses to speak of this picture"),
        ("filtered", Unwilling, "answers 400 (The prompt was filtered.)"),
        ("failed-choice", BadAnswer, "failed on this picture (the provider broke off)"),
        ("gateway-refuses", BadAnswer, "answers 400 (the picture is too large)"),
        ("error-without-words", BadInput, "answers with an error."),
        ("error-in-200", BadInput, "answers with an error (Unexpected endpoint or method.)"),
        ("unpaid", BadInput, "answers 402 (Insufficient credits). The account has nothing left to spend."),
        ("moved", BadInput, "answers 307: it sends us to https://example.org/v1/chat/completions. Name the address"),
        ("no-such-path", MissingModel, "answers 405 (Method Not Allowed). It has painter"),
    ],
)
def test_what_does_not_pass_is_a_sentence(server, model, error, words):
    with pytest.raises(error) as raised:
        speaker(server, model).read_images([square("red")], ONE)
    assert words in str(raised.value)
    assert type(raised.value) is error


def test_an_address_without_the_interface_is_said_after_one_more_question(server):
    """Without its /v1, which is forgotten easily: neither the model nor the list of models is there."""
    asked = openai.Server(openai.Connection(server.address.removesuffix("/v1"), None, QUICK), "painter")
    with pytest.raises(MissingModel, match=r"answers 404 \(no such path\)\. Most such addresses end in /v1\."):
        asked.read_images([square("red")], ONE)


def test_the_address_of_requests_is_told_to_be_one():
    pasted = "http://localhost:1234/openai/v1/chat/completions/?api-version=1"
    with pytest.raises(BadInput, match="where requests go: leave /chat/completions out") as raised:
        openai.Connection.to(pasted)
    assert str(raised.value).endswith("openai:http://localhost:1234/openai/v1?api-version=1#NAME.")


@pytest.mark.parametrize("model", ["slow", "drip"])
def test_a_request_has_its_time(server, model):
    with pytest.raises(BadAnswer, match=r"did not answer within 0\.3 s"):
        speaker(server, model, openai.Limits(0.3)).read_images([square("red")], ONE)


@pytest.mark.parametrize("model", ["only-one", "one-at-a-time"])
def test_a_server_that_writes_one_text_is_asked_for_each(server, model):
    several = Decoding(**OWN | {"num_return_sequences": 3, "seed": 5})
    server.bodies.clear()
    [reading] = speaker(server, model).read_images([square("red")], several)
    assert len(reading.candidates) == 3
    assert [body["seed"] for body in server.bodies if "n" not in body] == ([6, 7] if model == "only-one" else [5, 6, 7])


def test_a_server_of_other_names_is_asked_by_them_unless_the_user_said_otherwise(server):
    asked = speaker(server, "newer")
    server.bodies.clear()
    asked.read_images([square("red")], ONE)
    asked.read_images([square("blue")], ONE)
    bodies = [body.keys() - {"model", "messages"} for body in server.bodies]
    assert bodies == [{"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"},
                      *[{"max_completion_tokens"}] * 2]  # fmt: skip
    with pytest.raises(BadAnswer, match="does not support"):
        speaker(server, "newer").read_images([square("red")], ONE, Request(DecodingChanges(temperature=0.6)))


def test_one_bad_picture_of_a_batch_costs_nothing_again(server):
    asked = speaker(server, "no-white")
    pictures = [square(name) for name in ("red", "white", "blue", "green")]
    server.bodies.clear()
    with pytest.raises(BadAnswer, match="cannot be decoded"):
        asked.read_images(pictures, ONE)
    with pytest.raises(BadAnswer, match="cannot be decoded"):
        asked.read_images(pictures[:2], ONE)
    assert [r.candidates[0].text[:6] for r in asked.read_images(pictures[2:], ONE)] == ["a blue", "a gree"]
    assert [r.candidates[0].text[:5] for r in asked.read_images(pictures[:1], ONE)] == ["a red"]
    assert len(server.bodies) == 4
    asked.read_images(pictures[:1], ONE)  # asked anew by the user, it is drawn anew
    assert len(server.bodies) == 5


def test_an_empty_candidate_is_asked_for_again(server):
    several = Decoding(**OWN | {"num_return_sequences": 3})
    [reading] = speaker(server, "sometimes-silent").read_images([square("red")], several)
    assert [bool(candidate.text) for candidate in reading.candidates] == [True] * 3


@pytest.mark.parametrize("model", ["thinker", "in-parts"])
def test_thoughts_are_no_caption_and_parts_are_one(server, model):
    [reading] = speaker(server, model).read_images([square("red")], ONE)
    assert reading.candidates[0].text == "a red square, oil on canvas"


def test_a_text_at_the_limit_is_not_finished_and_forbidden_words_are_not_in_it(server):
    [reading] = speaker(server, "long-winded").read_images([square("red")], ONE)
    assert not reading.candidates[0].finished
    [reading] = speaker(server, "painter").read_images([square("red")], Decoding(**OWN, forbid=("canvas",)))
    assert reading.candidates[0].text == "a red square"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"top_k": 5}, "top_k"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty"),
        ({"prompt": "a photo of"}, "prompt"),
        ({"question": "what?"}, "question"),
        ({"mode": "best"}, "mode"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(server, changes, name):
    with pytest.raises(BadInput, match=name):
        captioner.load(f"openai:{server.address}#painter").generate(square("red"), **changes)


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    with serving(key="secret") as server:
        name = f"openai:{server.address}#painter"
        with pytest.raises(BadInput, match=r"answers 401 .*Set CAPTIONER_API_KEY to its key"):
            captioner.load(name).generate(square("red"))
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(BadInput, match="is not the right one"):
            captioner.load(name).generate(square("red"))
        monkeypatch.setenv("CAPTIONER_API_KEY", " secret\n")
        assert captioner.load(name).generate(square("red")).text == "a red square, oil on canvas"
        with pytest.raises(BadInput, match="An address is written down"):
            captioner.load(name.replace("127", "me:secret@127"))
        monkeypatch.setenv("CAPTIONER_API_KEY", "se\ncret")
        with pytest.raises(BadInput, match="CAPTIONER_API_KEY holds characters"):
            captioner.load(name)


@pytest.mark.parametrize("address", ["", "localhost:1234/v1#m", "ftp://host/v1#m", "http://#m", "http://h:99999/v1#m"])
def test_an_address_is_http(address):
    with pytest.raises(BadInput, match="is no http or https address: name the server and its model"):
        captioner.load(f"openai:{address}")


def test_no_server_and_no_time(monkeypatch):
    with pytest.raises(MissingModel, match=r"No answer from http://127.0.0.1:9/v1 .*Start the server"):
        captioner.load("openai:http://127.0.0.1:9/v1#m").generate(square("red"))
    monkeypatch.setenv(openai.TIMEOUT, "soon")
    with pytest.raises(BadInput, match="CAPTIONER_SERVER_TIMEOUT is a number of seconds, not 'soon'"):
        openai.load("http://127.0.0.1:9/v1#m", LoadOptions())


def test_a_server_that_takes_no_connection_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(openai.connection, "CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy:
        address = busy.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # fill its queue
            one.setblocking(False)
            one.connect_ex(address)
        asked = openai.Server(openai.Connection(f"http://127.0.0.1:{address[1]}/v1", None, QUICK), "m")
        with pytest.raises(MissingModel, match="it takes no connection"):
            asked.read_images([square("red")], ONE)
        for one in waiting:
            one.close()


def test_a_model_that_is_alone_need_not_be_named(server):
    with serving(models=("painter",)) as lonely:
        assert captioner.load(f"openai:{lonely.address}/").generate(square("red")).text == "a red square, oil on canvas"
    with pytest.raises(BadInput, match=r"Which model of .* It has painter, other. Name one: openai:http"):
        captioner.load(f"openai:{server.address}")


def test_retry_after_is_seconds_or_a_date():
    assert openai.connection._retry_after("3") == 3
    assert openai.connection._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert openai.connection._retry_after("Wed, 21 Oct 2115 07:28:00 GMT") > 1e9
    assert openai.connection._retry_after("soon") is openai.connection._retry_after(None) is None


def test_several_candidates_and_an_expected_embedding(server, tmp_path):
    model = captioner.load(f"openai:{server.address}#painter")
    prompt = model.generate(square("red"), num_candidates=4)
    assert len(prompt.candidates) == 4
    file = tmp_path / "ensemble.json"
    member = ensemble.Member(f"openai:{server.address}#painter", expected=True)
    ensemble.save(file, [member])
    server.bodies.clear()
    both = captioner.load(str(file))
    [vector] = both.embed([square("red")])
    assert openai.spent(both) == "1 request used 100 tokens of input and 320 of output"
    assert openai.spent(captioner.load("mini")) is None
    assert server.bodies[0]["n"] == ensemble.SAMPLES
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert vector @ prompt.embedding > 0.8


@pytest.fixture(scope="module")
def address():
    """Of a server that is a process of its own."""
    command = [sys.executable, "-m", "tests.chat_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    yield process.stdout.readline().strip()
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def command(quick_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What `python -m` says with a module's name and words."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([quick_python, "-m", *words], capture_output=True, text=True)

    return run


def test_a_folder_is_captioned_by_a_server_of_its_own(command, address, tmp_path):
    for name in COLOURS:
        square(name).save(tmp_path / f"{name}.png")
    out = tmp_path / "out.jsonl"
    done = command("captioner", "generate", tmp_path, "--model", f"openai:{address}#no-white", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.returncode == 1
    assert {Path(row["file"]).stem: row["text"].split()[1] for row in rows} == {
        name: name for name in COLOURS if name != "white"
    }
    assert "white.png: " in done.stderr
    assert "the picture cannot be decoded" in done.stderr
    assert "captioner: 4 requests used 400 tokens of input and 40 of output" in done.stderr
    blind = command(
        "captioner", "generate", tmp_path, "--model", f"openai:{address}#blind", "--out", tmp_path / "o.csv"
    )
    assert blind.returncode == 2
    assert blind.stderr.splitlines()[-1] == (
        f"captioner: {address} answers 400 (image input is not supported by this model)."
    )
    prudish = ("--model", f"openai:{address}#prudish", "--out", tmp_path / "p.jsonl")
    assert command("captioner", "generate", tmp_path, *prudish).returncode == 1  # white is its fifth
    assert [json.loads(line)["text"] for line in (tmp_path / "p.jsonl").read_text().splitlines()] == [
        "a white square, oil on canvas"
    ]


def test_a_server_is_measured_like_any_model(command, address, pairs, tmp_path):
    names = f"openai:{address}#painter,openai:{address}#painter+expected"
    done = command("eval", "report", "--data", pairs, "--limit", "4", "--models", names, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert f"openai:{address}#painter: 4 requests used 400 tokens of input and 40 of output." in done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"openai:{address}#painter" in json.dumps(report)
