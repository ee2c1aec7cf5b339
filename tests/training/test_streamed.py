"""Training from a stream: nothing is copied, no prompt is on both sides, and a resumed run meets the same pairs."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import datasets
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from captioner.errors import BadInput
from training import blip, resnet_lstm
from training.data.sources import ROW, load_pairs
from training.streamed import StreamedPairs, set_aside, split_stream

PROMPTS = 60


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs in one parquet file, and an empty cache of `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for number in range(PROMPTS):
        file = tmp_path / "one.png"
        Image.new("RGB", (16, 16), (4 * number, 90, 90)).save(file)
        cell = {"bytes": file.read_bytes(), "path": None}
        rows.append({"image": cell, "text": f"a shade of red, number {number}", "id": str(number), "source": "reds"})
    parquet.write_table(datasets.Dataset.from_list(rows, features=ROW).with_format("arrow")[:], tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def pixels(images) -> torch.Tensor:
    return torch.tensor([image.getpixel((0, 0))[0] for image in images])


def test_every_pair_comes_once_in_each_pass_in_another_order(table: Path) -> None:
    stream = StreamedPairs(load_pairs([table], streaming=True), pixels, seed=3)
    assert str(stream) == "a stream of pairs"
    passes = list(islice(stream, 2 * PROMPTS))
    texts = [row["text"] for row in passes]
    assert len(set(texts[:PROMPTS])) == len(set(texts[PROMPTS:])) == PROMPTS
    assert texts[:PROMPTS] != texts[PROMPTS:]
    assert all(row["pixel_values"] == 4 * int(row["text"].split()[-1]) for row in passes)
    assert stream.name(passes[70]["row"]) == f"reds: {texts[70].split()[-1]}"
    assert len(stream.fingerprints()) == PROMPTS
    assert str(stream).startswith("a stream of pairs, 60 prompts")
    again = StreamedPairs(load_pairs([table], streaming=True), pixels, seed=3)
    assert [row["text"] for row in islice(again, 2 * PROMPTS)] == texts
    assert not list((table.parent / "cache").rglob("*.arrow"))


def test_no_prompt_is_on_both_sides(table: Path) -> None:
    rows, validation = split_stream(load_pairs([table], streaming=True))
    learnt = {row["text"] for row in islice(StreamedPairs(rows, pixels), PROMPTS)}
    held_back = set(validation["text"])
    assert held_back
    assert all(map(set_aside, held_back))
    assert not learnt & held_back
    assert len(learnt | held_back) == PROMPTS


def test_no_picture_is_on_both_sides(tmp_path: Path) -> None:
    for picture in "abcdefgh":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{picture}.png")
    lines = [{"file_name": f"{p}.png", "text": f"caption {n} of {p}", "id": p} for p in "abcdefgh" for n in range(5)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stream, validation = split_stream(load_pairs([tmp_path], streaming=True))
    learnt, held_back = {row["id"] for row in stream}, set(validation["id"])
    assert held_back
    assert not learnt & held_back
    assert learnt | held_back == set("abcdefgh")


def test_a_stream_of_nothing_is_an_error(table: Path) -> None:
    rows = load_pairs([table], streaming=True).filter(lambda text: False, input_columns="text")
    with pytest.raises(BadInput, match="no pair"):
        next(iter(StreamedPairs(rows, pixels)))


def test_a_resumed_run_meets_the_same_pairs(table: Path, tiny_checkpoint, tmp_path: Path) -> None:
    """Eleven steps of eight are more than one pass."""
    out = tmp_path / "run"
    options = ["--base", str(tiny_checkpoint("blip")), "--data", str(table), "--stream", "--out", str(out)]
    options += ["--max-steps", "11", "--eval-every", "6", "--save-every", "6", "--log-every", "1"]
    options += ["--batch-size", "8", "--samples", "2", "--augment"]
    blip.main(options)
    unbroken, weights = losses(out), (out / "model.safetensors").read_bytes()
    assert len(unbroken) == 11
    learnt = sum(not set_aside(f"a shade of red, number {number}") for number in range(PROMPTS))
    assert len(json.loads((out / "training_data.json").read_text())["fingerprints"]) == learnt
    assert f"a stream of pairs, {learnt} prompts of which were met" in (out / "README.md").read_text()
    blip.main([*options, "--resume"])  # no step is left: nothing is met, and nothing forgotten
    assert len(json.loads((out / "training_data.json").read_text())["fingerprints"]) == learnt
    assert f"a stream of pairs, {learnt} prompts of which were met" in (out / "README.md").read_text()
    shutil.rmtree(out / "checkpoint-11")
    blip.main([*options, "--resume"])
    assert losses(out) == unbroken
    assert (out / "model.safetensors").read_bytes() == weights


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-11" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--max-steps"),
        (["--max-steps", "1", "--workers", "2"], "leave out"),
        (["--max-steps", "1", "--by-prompt"], "leave out"),
    ],
)
def test_what_a_stream_cannot_do_is_said_first(options: list[str], said: str, table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        blip.main(["--data", str(table), "--out", str(tmp_path / "out"), "--stream", *options])


def test_a_vocabulary_needs_all_prompts(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="vocabulary"):
        resnet_lstm.main(["--data", str(table), "--out", str(tmp_path / "out"), "--stream", "--max-steps", "1"])
