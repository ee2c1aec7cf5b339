"""Review over HTTP: what is refused, what is never reached, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captioner.review import Review
from captioner.review.journal import journal_path
from captioner.serving.engine import Engine
from captioner.styles import STYLES
from captioner.web.captioning import Captioning
from captioner.web.routes.review import state_of
from tests.chat_server import ChatServer, serving
from tests.review.folders import picture, snapshot, write_rows
from tests.web.served import call, refusal, served

MANY = 120


@pytest.fixture(scope="module")
def idle() -> Iterator[Engine]:
    """An engine that no model is loaded into: nobody asks it here."""
    engine = Engine(["mini"])
    yield engine
    engine.close()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        picture(folder / f"{number}.png", number)
    write_rows(folder / "captions.jsonl", [f"{number}.png" for number in range(3)], score=-1.0)
    return folder


@pytest.fixture
def api(photos: Path, idle: Engine) -> Iterator[str]:
    with served(photos, idle) as address:
        yield f"{address}/review/api/"


def test_a_folder_is_listed_edited_and_taken_back(api: str, photos: Path) -> None:
    before = snapshot(photos)
    view = call(api + "view", {"filter": "", "sort": "name"})
    assert view["names"] == ["0.png", "1.png", "2.png", "3.png"]
    assert (view["state"]["total"], view["state"]["empty"]) == (4, 1)
    (row,) = call(api + "rows", {"names": ["1.png", "gone.png"]})["rows"]
    assert (row["text"], row["score"], row["tokens"]) == ("text of 1", -1.0, 5)
    whole = call(api + "row", {"name": "1.png"})
    assert [one["text"] for one in whole["candidates"]] == ["text of 1", "another of 1"]
    assert whole["places"] == ["captions.jsonl"]
    answer = call(api + "edit", {"name": "1.png", "text": "a dog", "before": "text of 1"})
    assert (answer["row"]["text"], answer["row"]["original"], answer["state"]["unwritten"]) == ("a dog", "text of 1", 0)
    assert "a dog" in (photos / "captions.jsonl").read_text()
    conflict = call(api + "edit", {"name": "1.png", "text": "a hen", "before": "text of 1"})
    assert conflict["row"]["text"] == "a dog"
    assert call(api + "undo", {})["examples"][0]["after"] == "text of 1"
    assert snapshot(photos) == before
    assert call(api + "state")["redo"] == "Edit 1.png"
    assert call(api + "count", {"text": "word " * 100}) == {"tokens": 102, "cut": 375}


def test_many_at_once_and_what_is_wrong_with_it(api: str) -> None:
    replace = {"kind": "replace", "find": "text", "replacement": "words"}
    assert call(api + "preview", {"operation": replace})["pictures"] == 3
    assert call(api + "apply", {"operation": replace, "names": ["0.png", "2.png"]})["pictures"] == 2
    assert [step["title"] for step in call(api + "history")["steps"]] == ["Replace “text” by “words” in 2 texts"]
    assert {"text": "words of 0", "count": 1} in call(api + "terms", {})["terms"]
    assert call(api + "terms", {"most": 1, "by_name": True})["terms"] == [{"text": "text of 1", "count": 1}]
    for body, words in (
        ({"operation": {**replace, "find": "(", "is_pattern": True}}, "not valid"),
        ({"operation": replace, "filter": "a ("}, "missing"),
    ):
        error = call(api + "preview", body)["error"]
        assert words in error["message"]
        assert error["start"] is not None


def test_what_is_refused(api: str, photos: Path) -> None:
    before = snapshot(photos)
    edit = {"name": "1.png", "text": "a dog"}
    for name in ("../x.png", "/etc/passwd", "..", "captions.jsonl", "a\0b"):
        assert refusal(api + "edit", {**edit, "name": name})[0] == 404
        assert refusal(api + "ask", {"name": name})[0] == 404
    assert refusal(api + "small?name=../../etc/passwd")[0] == 404
    assert refusal(api + "edit", json.dumps(edit).encode(), Content_Type="text/plain")[0] == 422
    assert refusal(api + "edit", edit, Origin="http://elsewhere.example")[0] == 403
    assert refusal(api + "edit", {**edit, "nmae": 1})[0] == 422
    assert refusal(api + "edit", {**edit, "text": "a" * 100_001})[0] == 422
    assert refusal(api + "undo", {}) == (422, "There is nothing to undo.")
    assert refusal(api + "view", {"sort": "colour"})[0] == 422
    (photos / "broken.png").write_bytes(b"no picture")
    call(api + "look-again", {})
    assert refusal(api + "large?name=broken.png")[0] == 422
    assert call(api + "view", {"filter": "is:failed"})["names"] == ["broken.png"]
    (photos / "broken.png").unlink()
    assert snapshot(photos) == before


def test_captioning_goes_on_without_a_page(api: str, photos: Path, idle: Engine) -> None:
    before = snapshot(photos)
    assert call(api + "captioning") == {"total": 0, "over": True}
    assert refusal(api + "caption", {"names": ["../x.png"]})[0] == 404
    assert refusal(api + "caption", {"names": ["1.png"], "model": "blip"})[0] == 404
    assert call(api + "caption", {"names": ["1.png", "2.png"]})["total"] == 2
    assert refusal(api + "caption", {"names": ["1.png"]})[0] == 409
    assert call(api + "captioning")["over"] is False  # no model has been loaded: they wait
    call(api + "stop", {})  # which comes before, while or after they are read
    told = call(api + "captioning")
    assert (told["stopped"], told["over"], told["done"], told["rows"]) == (True, True, 0, [])
    assert snapshot(photos) == before


def test_a_stop_while_pictures_are_being_read(photos: Path, idle: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    with Review(photos) as review:
        read = review.content
        monkeypatch.setattr(review, "content", lambda name: read(name) if stopped.wait(60) else b"")

        async def ended() -> dict:
            run = Captioning(review, idle, ["0.png", "1.png"], idle.ask())
            run.start()
            await asyncio.sleep(0.02)
            run.stop()
            stopped.set()
            await asyncio.wait_for(run.end(), 20)
            return run.state()

        assert asyncio.run(ended()) == {
            "total": 2,
            "done": 0,
            "failed": 0,
            "stopped": True,
            "refused": None,
            "over": True,
            "changed": [],
        }


def test_a_picture_may_wait_for_a_slow_model_longer_than_a_request(photos: Path) -> None:
    engine = Engine(["mini"], timeout=0.0)  # every request would be late at once
    with Review(photos) as review:

        async def ended() -> dict:
            run = Captioning(review, engine, ["3.png"], engine.ask())
            run.start()
            while not engine.scheduler.waiting:
                await asyncio.sleep(0.01)
            engine.start()
            while not run.over:
                await asyncio.sleep(0.01)
            return run.state()

        state = asyncio.run(ended())
        assert (state["done"], state["failed"], review.row("3.png").problem) == (1, 0, None)
    engine.close()


@pytest.fixture
def chat(photos: Path) -> Iterator[tuple[str, ChatServer]]:
    """Review of a server whose model is asked in words, and who answers for it."""
    with serving() as server:
        engine = Engine([f"openai:{server.address}#painter"])
        engine.start()
        with served(photos, engine) as address:
            yield f"{address}/review/api/", server
        engine.close()


def captioned(api: str, **asked: Any) -> dict[str, Any]:
    """How a run ends."""
    call(api + "caption", asked)
    while not (told := call(api + "captioning"))["over"]:
        time.sleep(0.01)
    return told


def instructions(server: ChatServer) -> set[str]:
    return {part["text"] for body in server.bodies for part in body["messages"][0]["content"] if part["type"] == "text"}


def test_a_model_is_asked_by_the_settings_of_generate(chat: tuple[str, ChatServer], photos: Path) -> None:
    api, server = chat
    said = call(api + "ask", {"name": "0.png", "style": "tags", "prefix": "sks style"})
    assert said["text"] == "sks style, a black square, oil on canvas"
    assert [one["text"] for one in call(api + "row", {"name": "0.png"})["candidates"]] == [said["text"]]
    assert instructions(server) == {STYLES["tags"].instruction}
    server.bodies.clear()
    told = captioned(api, names=["1.png", "3.png"], instruction="Which colour?", suffix="8k")
    assert {row["text"] for row in told["rows"]} == {"a black square, oil on canvas, 8k"}
    assert instructions(server) == {"Which colour?"}
    assert refusal(api + "ask", {"name": "0.png", "style": "poem"})[0] == 422


def test_what_is_asked_and_written_may_name_the_picture(chat: tuple[str, ChatServer], photos: Path) -> None:
    """And its folder, and the text that Review has of it, but no file beside it, which may lead anywhere."""
    api, server = chat
    (photos / "1.txt").symlink_to("/etc/hostname")
    asked = {"prefix": "{concept}", "instruction": "{name} <{tags}>?"}
    said = "photos, a black square, oil on canvas"
    assert call(api + "ask", {"name": "1.png", **asked})["text"] == said
    told = captioned(api, names=["2.png", "3.png"], **asked)
    assert [row["text"] for row in told["rows"]] == [said] * 2
    assert instructions(server) == {"1 <text of 1>?", "2 <text of 2>?", "3 <>?"}
    call(api + "edit", {"name": "3.png", "text": "by hand {x}"})
    assert call(api + "ask", {"name": "3.png", "prefix": "{tags}"})["text"] == said.replace("photos", "by hand {x}")


def test_texts_that_are_there_stay_or_are_added_to(chat: tuple[str, ChatServer], photos: Path) -> None:
    api, server = chat
    before = snapshot(photos)
    said = "a black square, oil on canvas"
    for on_existing, text in (("append", f"text of 0, {said}"), ("prepend", f"{said}, text of 0"), ("overwrite", said)):
        told = captioned(api, names=["0.png", "3.png"], on_existing=on_existing)
        assert {row["name"]: row["text"] for row in told["rows"]} == {"0.png": text, "3.png": said}
        call(api + "undo", {})
        assert snapshot(photos) == before
    server.bodies.clear()
    told = captioned(api, names=["0.png", "3.png"], on_existing="skip")
    assert [(row["name"], row["text"]) for row in told["rows"]] == [("3.png", said)]
    assert (told["total"], len(server.bodies)) == (1, 1)


def captioned_by(model: str, photos: Path) -> dict:
    """What has become of a run of 40 pictures."""
    with serving() as server, Review(photos) as review:
        engine = Engine([f"openai:{server.address}#{model}"], batch_size=1)
        engine.start()

        async def ended() -> dict:
            run = Captioning(review, engine, [f"{number}.png" for number in range(4)] * 10, engine.ask())
            run.start()
            while not run.over:
                await asyncio.sleep(0.01)
            return run.state()

        state = asyncio.run(ended())
        engine.close()
    return state


def test_a_server_that_refuses_the_first_pictures_ends_a_run(photos: Path) -> None:
    state = captioned_by("blind", photos)
    assert (state["done"], state["stopped"]) == (0, True)
    assert state["refused"].endswith("answers 400 (image input is not supported by this model).")
    assert 3 <= state["failed"] < 20


def test_a_model_that_will_not_speak_of_some_pictures_is_asked_about_the_others(photos: Path) -> None:
    state = captioned_by("unwilling", photos)
    assert (state["failed"], state["stopped"], state["refused"]) == (40, False, None)


def test_a_setting_that_the_model_refuses_ends_a_run_and_is_told(chat: tuple[str, ChatServer]) -> None:
    api, _ = chat
    assert "has no use for quality" in refusal(api + "ask", {"name": "0.png", "quality": "fast"})[1]
    told = captioned(api, names=["0.png", "3.png"], quality="fast")
    assert (told["done"], told["failed"], told["stopped"]) == (0, 0, True)
    assert "has no use for quality" in told["refused"]
    assert call(api + "view", {"filter": "is:failed"})["names"] == []
    forbidden = {"names": ["0.png"], "forbid": ["cat"], "require": ["cat"]}
    assert refusal(api + "caption", forbidden) == (422, "Forbidden and required at once: cat.")


def test_a_text_that_is_written_while_a_run_waits_is_left_alone(photos: Path, idle: Engine) -> None:
    with Review(photos) as review:

        async def begun() -> Captioning:
            run = Captioning(review, idle, ["0.png", "3.png"], idle.ask(), "skip")
            review.edit("3.png", "by hand")
            run.start()
            while not (run.over or idle.scheduler.waiting):
                await asyncio.sleep(0.01)
            await run.end()
            return run

        run = asyncio.run(begun())
        assert (run.total, run.stopped, review.row("3.png").text) == (1, False, "by hand")


def test_a_bug_while_a_picture_is_captioned_ends_no_run(
    photos: Path, idle: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Review(photos) as review:
        monkeypatch.setattr(review, "content", lambda name: {}[name])

        async def ended() -> dict:
            run = Captioning(review, idle, ["0.png", "1.png"], idle.ask())
            run.start()
            while not run.over:
                await asyncio.sleep(0.01)
            return run.state()

        state = asyncio.run(ended())
        assert (state["done"], state["failed"], state["stopped"]) == (0, 2, False)
        assert review.row("0.png").problem == "This is a bug in captioner; the server's log says more."
    assert "KeyError: '1.png'" in caplog.text


def test_tables_that_are_not_read_are_named(api: str, photos: Path) -> None:
    (photos / "texts.csv").write_text("file,text\n0.png,a cat\n")
    assert call(api + "look-again", {})["unread"] == ["texts.csv"]


def test_a_history_with_gaps_is_said(photos: Path) -> None:
    with Review(photos) as review:
        review.edit("0.png", "a dog")
        assert state_of(review)["damaged"] is None
    path = journal_path(photos)
    path.write_bytes(path.read_bytes().replace(b'{"edit": 1', b'{"edit: 1'))
    with Review(photos) as review:
        assert state_of(review)["damaged"].startswith("The history of edits has 1 damaged line: ")


def test_without_a_folder_there_is_no_review(idle: Engine) -> None:
    with served(None, idle) as address:
        status, words = refusal(address + "/review/api/state")
    assert (status, "without a folder" in words) == (422, True)


def test_a_folder_that_another_server_corrects(api: str, photos: Path, idle: Engine) -> None:
    call(api + "state")
    with served(photos, idle) as second:
        assert refusal(second + "/review/api/state")[0] == 409


def test_a_kill_loses_nothing_that_was_said_to_be_saved(photos: Path, tmp_path: Path) -> None:
    """Edits without a pause, and SIGKILL amid them: every one that was answered is there, and can be taken back."""
    for number in range(MANY):
        picture(photos / f"{number}.png", number)
        (photos / f"{number}.txt").write_text(f"text of {number}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "captioner", "serve", str(photos), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            answers(port, process)  # before any model is loaded
            saved = edit_until_it_dies(f"http://127.0.0.1:{port}/review/api/", process)
        finally:
            process.kill()
    assert len(saved) >= 20
    with Review(photos) as review:
        review.flush()
        texts = {row.name: row.text for row in review.view()}
        assert {name: texts[name] for name in saved} == saved
        assert all((photos / name).with_suffix(".txt").read_text() == f"{text}\n" for name, text in saved.items())
        while review.journal.done:
            review.undo()
        review.flush()
        assert all((photos / f"{n}.txt").read_text() == f"text of {n}\n" for n in range(3, MANY))


def answers(port: int, process: subprocess.Popen) -> None:
    """Until it listens."""
    while process.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("it has ended")


def edit_until_it_dies(api: str, process: subprocess.Popen) -> dict[str, str]:
    """Name → the text of every edit that was answered before the kill."""
    saved = {}
    append = {"operation": {"kind": "append", "words": "8k"}, "names": [f"{number}.png" for number in range(80, MANY)]}
    call(api + "apply", append)
    saved |= {name: f"text of {name.partition('.')[0]}, 8k" for name in append["names"]}
    for number in range(3, 80):
        if number == 25:
            process.send_signal(signal.SIGKILL)
        try:
            text = f"kept {number}"
            answer = call(api + "edit", {"name": f"{number}.png", "text": text})
            saved[f"{number}.png"] = answer["row"]["text"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return saved
    raise AssertionError("it did not die")
