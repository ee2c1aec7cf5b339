"""Steps at fixed places write what steps write that take their memory as they go; on a GPU, recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import captioner
from captioner import compute
from captioner.decoding import Decoding
from captioner.models.parts.recording import Recordings
from captioner.search import search as search_module
from captioner.search.search import Hypothesis, search
from tests.decoders import DEVICES, pictures

LONG = Decoding(num_beams=3, max_new_tokens=Recordings.ROOM + 8, min_new_tokens=Recordings.ROOM + 4)
WAYS = [
    LONG,
    Decoding(num_beams=1, max_new_tokens=20, no_repeat_ngram_size=2),
    Decoding(num_return_sequences=3, max_new_tokens=20, do_sample=True, seed=3, top_p=0.9),
]


def same(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> None:
    assert [[text.ids for text in texts] for texts in ours] == [[text.ids for text in texts] for texts in theirs]
    scores = [torch.tensor([text.score for texts in found for text in texts]) for found in (ours, theirs)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["blip", "clip_prefix"])
@torch.inference_mode()
def test_texts_are_those_of_plain_steps(
    tiny_checkpoint: Callable[[str], Path], kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = captioner.load(str(tiny_checkpoint(kind)), device=device, precision="float64").speaker
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double().to(device)
    searches = [(decoding, images) for decoding in WAYS for images in (5, 2, 5)]

    def texts() -> list[list[list[Hypothesis]]]:
        found = []
        for decoding, images in searches:
            memory = speaker.model.read(pixels[:images])
            found.append(search(speaker.model, memory, speaker.processor, decoding, range(images)))
        return found

    monkeypatch.setattr(search_module, "_asks_at_once", lambda device: False)  # as on a GPU
    monkeypatch.setattr(compute, "pays_to_record", lambda x: False)
    plain = texts()
    monkeypatch.setattr(compute, "pays_to_record", lambda x: True)
    for ours, theirs in zip(texts(), plain, strict=True):
        same(ours, theirs)
    rooms = [(len(step.order), step.room) for step in speaker.model._recordings.lending.waiting]  # those given back
    assert sorted(rooms) == [(2, 32), (5, 32), (6, 32), (6, 64), (15, 32), (15, 64)]
    assert len({tuple(text.ids) for texts in plain[0] for text in texts}) > 1


@pytest.mark.parametrize("kind", ["blip", "clip_prefix"])
@torch.inference_mode()
def test_a_picture_that_gives_no_numbers_spoils_no_other(
    tiny_checkpoint: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its texts left at the places of a recording is not seen by those of the next."""
    speaker = captioner.load(str(tiny_checkpoint(kind)), device="cpu", precision="float64").speaker
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    monkeypatch.setattr(search_module, "_asks_at_once", lambda device: False)
    monkeypatch.setattr(compute, "pays_to_record", lambda x: True)
    first, broken, again = (
        search(speaker.model, speaker.model.read(given), speaker.processor, WAYS[0])
        for given in (pixels, pixels * torch.nan, pixels)
    )
    assert again == first
    assert not any(math.isfinite(text.score) for text in broken[0])


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_a_picture_alone_is_encoded_at_its_place(
    tiny_checkpoint: Callable[[str], Path], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = captioner.load(str(tiny_checkpoint("blip")), device=device, precision="float64").speaker.model
    pictures = torch.rand(3, 1, 3, 32, 32, dtype=torch.float64).to(device)
    plain = [model._encode(picture) for picture in pictures]
    monkeypatch.setattr(compute, "pays_to_record", lambda x: True)
    recorded = [model.encode(picture) for picture in pictures]
    torch.testing.assert_close(recorded, plain)
    assert len(model._encode_alone.lending.waiting) == 1


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_texts_side_by_side_have_steps_of_their_own(tiny_checkpoint: Callable[[str], Path], device: str) -> None:
    model = captioner.load(str(tiny_checkpoint("blip")), device=device, precision="float64").speaker.model
    memory = model.read(torch.rand(2, 3, 32, 32, dtype=torch.float64).to(device))
    tokens = torch.arange(20, 26).view(3, 2, 1).to(device)
    plain, *pasts = (model._begin(2) for _ in range(3))
    for past in (plain, *pasts):
        model._read_on(tokens[0], memory, past)
    recordings = Recordings(model._write)
    for word in tokens[1:]:
        expected = model.text_decoder.cls(model._read_on(word, memory, plain)[:, -1])
        for index in (0, 1):
            logits, pasts[index] = recordings.step(word, 2, memory.tensors(), pasts[index])
            torch.testing.assert_close(logits, expected)
    assert not recordings.lending.waiting
    pasts.clear()
    assert len(recordings.lending.waiting) == 2


@torch.inference_mode()
def test_fewer_texts_leave_the_recording(tiny_checkpoint: Callable[[str], Path]) -> None:
    model = captioner.load(str(tiny_checkpoint("blip")), device="cpu", precision="float64").speaker.model
    memory = model.read(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    tokens = torch.arange(20, 38).view(3, 6, 1)  # three texts of each picture
    recordings, plain = Recordings(model._write), model.step(tokens[0], memory, None)[1]
    _, past = recordings.step(tokens[1], 2, memory.tensors(), model.step(tokens[0], memory, None)[1])
    model.step(tokens[1], memory, plain)
    moved, fewer = torch.tensor([1, 2, 0, 5, 3, 5]), torch.tensor([0, 2, 3, 4])
    word = tokens[2, fewer]
    logits, _ = recordings.step(word, 2, memory.tensors(), past.select(moved).select(fewer))
    torch.testing.assert_close(logits, model.step(word, memory, plain.select(moved[fewer]))[0])


@pytest.mark.parametrize("kind", ["blip", "clip_prefix", "ofa", "resnet_lstm"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_gpu_writes_what_a_cpu_writes(
    tiny_checkpoint: Callable[[str], Path], kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does, as far as a CPU can do the same."""
    images = pictures(3)
    speaker = captioner.load(str(tiny_checkpoint(kind)), device="cpu", precision="float64").speaker
    expected = [speaker.read_images(images, decoding) for decoding in WAYS]
    speaker = captioner.load(str(tiny_checkpoint(kind)), device=device, precision="float64").speaker
    monkeypatch.setattr(search_module, "_asks_at_once", lambda device: False)
    monkeypatch.setattr(compute, "pays_to_record", lambda x: True)
    for decoding, theirs in zip(WAYS, expected, strict=True):
        for ours, their in zip(speaker.read_images(images, decoding), theirs, strict=True):
            assert [one.text for one in ours.candidates] == [one.text for one in their.candidates]
            scores = [[one.score for one in reading.candidates] for reading in (ours, their)]
            assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["blip", "clip_prefix", "ofa", "resnet_lstm"])
def test_pixels_do_not_depend_on_the_batch(tiny_checkpoint: Callable[[str], Path], kind: str) -> None:
    """For a GPU they are made picture by picture."""
    processor = captioner.load(str(tiny_checkpoint(kind)), device="cpu").speaker.processor
    images = pictures(3)
    assert torch.equal(processor.preprocess(images), torch.cat([processor.preprocess([image]) for image in images]))
