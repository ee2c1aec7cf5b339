"""The engine's answers are the command line's, whatever is joined with what; pictures are encoded once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captioner
from captioner.contracts import PLAIN_REQUEST, LoadOptions
from captioner.errors import BadImage, BadInput, MissingModel
from captioner.pipeline import Captioner, DirectEmbedder
from captioner.run import questions
from captioner.serving.bench import Bench
from captioner.serving.engine import Ask, Engine, Picture
from captioner.serving.memories import Memories
from captioner.serving.scheduler import Busy, Closed
from captioner.text.finish import Finish


@pytest.fixture
def encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the encoder was given each time; nothing is remembered at the beginning."""
    counts: list[int] = []
    bench = engine.benches[0]
    memories = Memories(engine.memories.limit)
    monkeypatch.setattr(engine, "memories", memories)
    monkeypatch.setattr(bench, "memories", memories)
    model = bench.load("mini").speaker.model
    whole = model.encode
    monkeypatch.setattr(model, "encode", lambda pixels: counts.append(len(pixels)) or whole(pixels))
    return counts


@pytest.fixture(scope="module")
def mini() -> Captioner:
    model = captioner.load("mini")
    assert isinstance(model, Captioner)
    return model


def test_rows_are_those_of_generate(engine: Engine, mini: Captioner, photos: list[Picture]) -> None:
    few = photos[:2]
    expected = [questions.row_of(prompt) for prompt in mini.generate([photo.data for photo in few], batch_size=1)]
    rows = [future.result(60) for future in engine.submit_all(few, engine.ask())]
    for row, wanted, photo in zip(rows, expected, few, strict=True):
        assert row.pop("file") == photo.name
        assert row["text"] == wanted["text"]
        assert row.keys() == wanted.keys()
        assert row["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert [c["text"] for c in row["candidates"]] == [c["text"] for c in wanted["candidates"]]


def test_different_questions_at_once_get_their_own_answers(
    engine: Engine, mini: Captioner, photos: list[Picture]
) -> None:
    asks = [
        engine.ask(num_beams=2, max_new_tokens=12),
        engine.ask(num_beams=2, max_new_tokens=12, finish=Finish(prefix="sks style")),
        engine.ask(seed=5, num_candidates=2, max_new_tokens=12),
        engine.ask(prompt="a painting of", num_beams=1, max_new_tokens=12),
    ]
    futures = [[engine.submit(photo, ask) for ask in asks] for photo in photos[:2]]  # in turns, so that batches mix
    for photo, answers in zip(photos, futures, strict=False):
        texts = [answer.result(60)["text"] for answer in answers]
        assert texts == [mini.generate(photo.data, ask.request, ask.finish).text for ask in asks]


def test_a_picture_is_encoded_once_whatever_is_asked(engine: Engine, encoded: list[int], photos: list[Picture]) -> None:
    short = {"max_new_tokens": 3, "num_candidates": 2}
    searched, drawn = engine.ask(num_beams=2, **short), engine.ask(seed=3, **short)
    for ask in (engine.ask(), searched, drawn, replace(drawn, wants="embedding")):
        for future in engine.submit_all([*photos[:2], photos[0]], ask):  # one of them twice in a batch
            future.result(60)
    assert sum(encoded) == 2
    assert engine.memories.hits >= 6
    for name in ("one", "another"):
        engine.submit(Picture(photos[2].data, name), searched).result(60)
    assert sum(encoded) == 3  # by content, not by name


def test_what_was_opened_before_it_was_encoded_is_not_encoded_again(
    engine: Engine, encoded: list[int], photos: list[Picture]
) -> None:
    bench, ask = engine.benches[0], engine.ask(num_beams=1, max_new_tokens=3, num_candidates=1)
    opened = [bench.open(ask, photos[0], lambda size: None).value for _ in range(2)]
    first, second = (bench.answer_pictures([ask], photos[:1], [value]) for value in opened)
    assert first == second
    assert encoded == [1]


def test_embeddings_are_those_of_embed(engine: Engine, mini: Captioner, photos: list[Picture]) -> None:
    images, fast = [photo.data for photo in photos[:2]], PLAIN_REQUEST.changed(quality="fast")
    for expected in (False, True):
        ask = Ask("mini", fast, wants="embedding", expected=expected)
        rows = [future.result(60) for future in engine.submit_all(photos[:2], ask)]
        assert [set(row) for row in rows] == [{"file", "embedding"}] * 2
        vectors = mini.embed(images, fast, expected=expected)
        assert np.allclose([row["embedding"] for row in rows], vectors, atol=1e-4)
    whole = engine.submit(photos[0], replace(engine.ask(quality="fast"), embed=True)).result(60)
    assert np.allclose(whole["embedding"], mini.embed_texts([whole["text"]])[0], atol=1e-5)


def test_an_expected_embedding_of_one_text_is_refused(photos: list[Picture]) -> None:
    bench = Bench(LoadOptions(embedder="tests/none"), Memories(0), None)  # what is predicted is no second
    ask = Ask("mini", PLAIN_REQUEST.changed(num_candidates=1), wants="embedding", expected=True)
    opened = bench.open(ask, photos[0], lambda size: None).value
    with pytest.raises(BadInput, match=r"expected would change nothing: mini gives one candidate\."):
        bench.answer_pictures([ask], photos[:1], [opened])


def test_texts_are_embedded_in_pieces(engine: Engine, mini: Captioner) -> None:
    texts = [f"a cat, number {number}" for number in range(300)]
    parts = [future.result(60) for future in engine.embed_texts(texts)]
    assert [len(part) for part in parts] == [256, 44]
    assert np.allclose(parts[1][-1], mini.embed_texts(texts[-1:])[0], atol=1e-5)


def test_a_bad_picture_fails_alone(engine: Engine, photos: list[Picture]) -> None:
    good, cut, none = engine.submit_all(
        [photos[0], Picture(photos[1].data[:2000], "cut.jpg"), Picture(b"no picture", "x.png")],
        engine.ask(num_beams=1, max_new_tokens=3),
    )
    assert good.result(60)["text"]
    with pytest.raises(BadImage, match=r"cut\.jpg"):
        cut.result(60)
    with pytest.raises(BadImage, match=r"x\.png is not a picture"):
        none.result(60)


def test_where_what_is_asked_cannot_be_read_of_a_picture_it_fails_alone(engine: Engine, photos: list[Picture]) -> None:
    short = {"num_beams": 1, "max_new_tokens": 3}
    none, good = engine.submit_all([Picture(b"no", "x.png"), photos[0]], engine.ask(prompt="a {metadata}", **short))
    assert good.result(60)["text"] == engine.submit(photos[0], engine.ask(prompt="a ", **short)).result(60)["text"]
    with pytest.raises(BadImage, match=r"x\.png is not a picture"):
        none.result(60)


def test_only_models_that_were_named_may_be_asked(engine: Engine) -> None:
    for name in ("blip", "Salesforce/blip-image-captioning-large", "/etc", "openai:http://localhost:1#x"):
        with pytest.raises(MissingModel, match="only mini"):
            engine.ask(name)


def test_settings_that_mean_nothing_are_refused(engine: Engine, photos: list[Picture]) -> None:
    with pytest.raises(BadInput, match="no use for question"):
        engine.submit(photos[0], engine.ask(question="What?")).result(60)
    with pytest.raises(BadInput, match="num_beams must be a whole number"):
        engine.submit(photos[0], engine.ask(num_beams=0))


def test_a_model_that_fails_on_one_picture_is_found_by_halving(
    engine: Engine, photos: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = engine.benches[0]
    whole = bench.answer_pictures

    def fails(asks: object, pictures: list[Picture], opened: object) -> object:
        if any(picture.name == "bad" for picture in pictures):
            raise RuntimeError("Something odd.")
        return whole(asks, pictures, opened)

    monkeypatch.setattr(bench, "answer_pictures", fails)
    futures = engine.submit_all([photos[0], Picture(photos[1].data, "bad"), *photos[2:4]], engine.ask(num_beams=1))
    with pytest.raises(BadImage, match="The model failed on this picture"):
        futures[1].result(60)
    assert all(future.result(60)["text"] for future in (futures[0], *futures[2:]))


def test_what_a_picture_carries_may_come_first(engine: Engine, photos: list[Picture], tmp_path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", "a castle in the clouds\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn.png", pnginfo=texts)
    drawn = Picture((tmp_path / "drawn.png").read_bytes(), "drawn.png")
    row = engine.submit(drawn, replace(engine.ask(), metadata="first", embed=True)).result(60)
    assert (row["text"], row["source"], len(row["embedding"])) == ("a castle in the clouds", "metadata", 384)
    assert engine.read(drawn).result(60)["steps"] == 20
    with pytest.raises(BadImage, match="carries no"):
        engine.submit(photos[0], replace(engine.ask(), metadata="only")).result(60)


def test_whatever_else_is_wanted_of_a_model(engine: Engine, photos: list[Picture]) -> None:
    name, size = engine.call(lambda model, images: (model.name, images[0].size), photos[:1]).result(60)
    assert name == "mini"
    assert min(size) > 100


def test_a_caller_that_is_cancelled_drops_its_questions(photos: list[Picture]) -> None:
    async def cancelled() -> None:
        engine = Engine(["mini"])  # not started: all of it waits
        futures = engine.submit_all(photos, engine.ask())
        waiting = asyncio.ensure_future(engine.answers(futures))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert all(future.cancelled() for future in futures)
        assert not engine.scheduler.waiting
        engine.close()

    asyncio.run(cancelled())


def test_a_full_queue_refuses(photos: list[Picture]) -> None:
    engine = Engine(["mini"], queue=2)
    waiting = engine.submit_all(photos[:2], engine.ask())
    with pytest.raises(Busy):
        engine.submit(photos[2], engine.ask())
    engine.close()  # before any model has been loaded: its readers wait no longer
    assert all(isinstance(future.exception(5), Closed) for future in waiting)
    engine.scheduler.readers.shutdown(wait=True)


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    engine = Engine([str(tmp_path)], LoadOptions(device="cpu"))
    engine.start()
    with pytest.raises(captioner.errors.CaptionerError, match="no checkpoint"):
        engine.wait_ready(60)
    assert not engine.ready
    engine.close()


def test_each_device_has_its_worker(mini: Captioner, photos: list[Picture]) -> None:
    engine = Engine(["mini"], LoadOptions(device="cpu,cpu"), batch_size=1, timeout=60)
    engine.start()
    engine.wait_ready(60)
    assert (len(engine.benches), engine.ready) == (2, True)
    ask = engine.ask(num_beams=1, max_new_tokens=8)
    texts = [future.result(60)["text"] for future in engine.submit_all(photos[:4], ask)]
    assert texts == [mini.generate(photo.data, ask.request).text for photo in photos[:4]]
    engine.close()
    assert not any(thread.is_alive() for thread in engine.threads)


def test_a_prompt_of_a_model_without_text_fails_alone(engine: Engine, photos: list[Picture]) -> None:
    """It may be in one batch with what others ask for."""

    class Embedder:
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            return np.full((len(images), 384), 384**-0.5, np.float32)

        vectors = embed_images

    bench = Bench(LoadOptions(), engine.memories, None)
    bench.load = lambda name: DirectEmbedder("direct", Embedder())  # type: ignore[method-assign]
    asks = [Ask("direct"), Ask("direct", wants="embedding")]
    images = [Image.new("RGB", (8, 8))] * 2
    refused, row = bench.answer_pictures(asks, photos[:2], images)
    assert isinstance(refused, BadInput)
    assert isinstance(row, dict)
    assert len(row["embedding"]) == 384


def test_of_many_texts_that_nobody_waits_for_any_more_the_rest_is_not_embedded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left = threading.Event(), threading.Event()
    embedded: list[int] = []

    def slow(texts: Sequence[str]) -> list[list[float]]:
        embedded.append(len(texts))
        begun.set()
        left.wait(60)
        return [[0.0]] * len(texts)

    monkeypatch.setattr(engine.benches[0], "embed_texts", slow)
    futures = engine.embed_texts(["a"] * 1000)
    assert begun.wait(60)
    for future in futures:
        future.cancel()
    left.set()
    monkeypatch.undo()
    engine.embed_texts(["a"])[0].result(60)
    assert embedded == [256]
