"""The recipe on other data than mini's own: every stage in its turn, on few pictures and for few steps.

Stage `head` is tested where its parts are (tests/models/prefix/test_mini.py): its axes alone take longer than the rest.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from captioner.errors import BadInput
from captioner.models.prefix.layers import JointHead
from training.mini import language, reward, split
from training.mini.__main__ import main
from training.mini.head import report
from training.mini.quick import surprise
from training.mini.saving import save_arrays, save_state

COLOURS = ("red", "green", "blue", "gold")
THINGS = ("dragon", "teapot", "lighthouse", "waterfall", "robot", "violin", "mushroom forest", "steam engine")
SUBJECTS = ("a castle by the sea", "a fox in the snow", "a bowl of fruit, oil painting", "a city at night, neon")
RANK = 4


def rows(texts: list[str]) -> pyarrow.Table:
    """Pairs as the recipe reads them."""
    images = []
    for number in range(len(texts)):
        file = io.BytesIO()
        Image.new("RGB", (24, 24), COLOURS[number % len(COLOURS)]).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    of_all = {"source": ["own"] * len(texts), "kind": ["sd-prompt"] * len(texts)}
    return pyarrow.table({"image": images, "text": texts, **of_all})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("pairs", "prompts", "heldout-dev"):
        (folder / name).mkdir()
    parquet.write_table(
        rows([f"{subject}, {colour}" for subject in SUBJECTS for colour in COLOURS]), folder / "pairs/own.parquet"
    )
    parquet.write_table(rows(["a ship in a bottle", "the moon, woodcut"]), folder / "heldout-dev/mine.parquet")
    with gzip.open(folder / "prompts/list.txt.gz", "wt") as lines:
        lines.writelines(f"{colour} {thing}, highly detailed\n" for colour in COLOURS for thing in THINGS)
        lines.write("The moon, woodcut\n")
    return folder


@pytest.fixture(scope="module")
def work(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before `gist` leave; in the head's place one of random weights."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(split, "CHOSEN_FROM_PROMPTS", 4)
        for stage in ("texts", "features", "split"):
            run(stage, data, folder)
    width = np.load(folder / "features/own.npy").shape[1]
    for name in ("head", "head-without-validation"):
        save_state(folder / f"{name}.pt", JointHead(width, 384, RANK, 5).state_dict())
    guesses = np.random.default_rng(0).normal(size=(16, 384)).astype(np.float16)
    save_arrays(folder / "guesses.npz", guesses=guesses / np.linalg.norm(guesses, axis=1, keepdims=True))
    save_arrays(folder / "blur.npz", keep=np.eye(384), offset=np.zeros(384), noise=np.eye(384) * 0.02)
    run("language", data, folder, "--steps", "6")
    return folder


def run(stage: str, data: Path, work: Path, *more: str) -> None:
    main([stage, "--data", str(data), "--work", str(work), *more])


def test_what_is_near_a_held_out_prompt_is_not_learnt_from(work: Path) -> None:
    texts = json.loads((work / "prompts.json").read_text())
    assert len(texts["text"]) == len(np.load(work / "prompts.npy")) == 32
    assert set(texts["source"]) == {"list"}


def test_whole_groups_of_prompts_are_held_back(work: Path) -> None:
    validation = np.load(work / "validation.npy")
    lines = json.loads((work / "pair-texts.json").read_text())["text"]
    held_back = {line.partition(",")[0] for line, is_held in zip(lines, validation, strict=True) if is_held}
    assert len(held_back) == 1
    assert sum(line.partition(",")[0] in held_back for line in lines) == validation.sum() == 4


def test_data_of_which_nothing_is_left_to_learn_from_are_refused(data: Path, work: Path) -> None:
    with pytest.raises(BadInput, match="All 16 prompts would be held back"):
        split.split(data, work)


def test_the_decoder_learns_the_texts(work: Path) -> None:
    tokenizer = language.load_tokenizer(work)
    _, lines, embeddings = language.load_texts(work)
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.ids) for one in tokenizer.encode_batch(lines)], True, -100
    )
    torch.manual_seed(7)  # as the stage begins
    model = language.new_model(tokenizer)
    language.begin_with_meanings(model, tokenizer)
    parts = torch.nn.ModuleList([model.mapper, model.gpt])
    lost = []
    for learnt in (parts.state_dict(), torch.load(work / "language.pt", weights_only=True)["parts"]):
        parts.load_state_dict(learnt)
        with torch.no_grad():
            lost.append(surprise(model, torch.from_numpy(embeddings).float(), tokens).sum().item())
    assert lost[1] < lost[0]


def test_from_gist_to_a_measured_model(
    data: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mini"
    run("gist", data, work)
    run("reward", data, work, "--steps", "1")
    learnt = [torch.load(work / f"{name}.pt", weights_only=True)["parts"] for name in ("language", "reward")]
    assert any((before != after).any() for before, after in zip(*(parts.values() for parts in learnt), strict=True))
    run("choose", data, work, "--count", "1")
    told = capsys.readouterr().out
    assert "1 prompt; the predicted embedding itself" in told
    assert told.count("sampled at 0.7, ") == 7
    run("export", data, work, "--out", str(out))
    run("measure", data, work, "--out", str(out))
    measured = json.loads((work / "measured.json").read_text())
    assert measured.keys() == {"mine"}
    assert (measured["mine"]["pictures"], len(measured["mine"]["text"])) == (2, 3)


def test_kinds_that_the_data_have_not_are_left_out(data: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = split.load_pairs(data, work)
    report(pairs, JointHead(pairs.features.shape[1], 384, RANK, 5))
    assert capsys.readouterr().out.startswith("generated: ")


def test_a_resumed_reward_draws_the_same(data: Path, work: Path) -> None:
    _, processor = reward.assembled(work, "head-without-validation.pt", "language.pt")
    first, second = (reward.Tasks(split.load_pairs(data, work), work, processor, 7) for _ in range(2))
    assert torch.equal(first.guesses(3).wanted, second.guesses(3).wanted)
    assert not torch.equal(first.guesses(3).wanted, second.guesses(4).wanted)
