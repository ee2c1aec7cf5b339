"""Training of direct models: cached features, the mean to begin with, statistics, one picture a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import captioner
from captioner.errors import BadInput
from captioner.models.parts.adapters import merge
from captioner.models.parts.backbones import backbones
from captioner.pairs.fingerprint import fingerprint
from captioner.text.embedding import text_embedder
from training import direct, vectors
from training.batches import Pairs


def run(pairs: Path, tower: Path, out: Path, *more: str) -> Path:
    """With the tower frozen, but for an adapter."""
    direct.main(
        [
            *("--data", str(pairs), "--out", str(out), "--weights", str(tower)),
            *([] if "--lora" in more else ["--freeze", "backbone"]),
            *("--batch-size", "4", "--lr", "1e-3", "--device", "cpu", "--log-every", "1", *more),
        ]
    )
    return out


def losses(folder: Path) -> list[float]:
    state = json.loads(max(folder.glob("checkpoint-*/trainer_state.json")).read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture
def tower(tiny_checkpoint) -> Path:
    return tiny_checkpoint("towers") / "vit"


def test_cached_features_give_the_losses_of_pixels(pairs: Path, tower: Path, tmp_path: Path) -> None:
    pixels = run(pairs, tower, tmp_path / "pixels", "--head", "linear", "--max-steps", "3")
    cache = ("--cache-features", str(tmp_path / "cache"))
    cached = run(pairs, tower, tmp_path / "cached", "--head", "linear", "--max-steps", "3", *cache)
    torch.testing.assert_close(losses(pixels), losses(cached), rtol=1e-3, atol=1e-3)
    again = run(pairs, tower, tmp_path / "again", "--head", "linear", "--max-steps", "3", *cache)
    assert losses(again) == losses(cached)


def test_an_embedder_that_was_trained_anew_gives_other_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "embedder"
    folder.mkdir()

    def from_folder(name: str):
        value = float((Path(name) / "weights").read_text())
        return lambda texts: np.full((len(texts), 384), value, dtype=np.float32)

    monkeypatch.setattr(vectors, "text_embedder", from_folder)
    for value in (1.0, 2.25):
        (folder / "weights").write_text(str(value))
        assert vectors.Vectors(["a fox"], str(folder))(["a fox"])["labels"].unique().item() == value


def test_the_residual_head_begins_with_the_mean_prompt(pairs: Path, tower: Path, tmp_path: Path) -> None:
    """After one step at no rate worth the name it still says the mean of all prompts, to any picture."""
    out = run(pairs, tower, tmp_path / "run", "--head", "residual", "--lr", "1e-12", "--max-steps", "1")
    rows = [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]
    learnt = set(json.loads((out / "training_data.json").read_text())["fingerprints"])
    texts = [row["text"] for row in rows if fingerprint(row["text"]) in learnt]
    mean = text_embedder()(texts).mean(0)
    said = captioner.load(str(out), device="cpu").embed([pairs / "0.png", pairs / "5.png"])
    np.testing.assert_allclose(said, np.stack([mean / np.linalg.norm(mean)] * 2), atol=1e-4)


def test_statistics_of_every_stage_can_be_asked_for(pairs: Path, tmp_path: Path, monkeypatch) -> None:
    """The pool is part of the saved model. The backbone's package is not needed: its weights are random here."""
    monkeypatch.setattr(backbones, "build", lambda name, weights, **settings: backbones.blank(name, **settings))
    options = ["--backbone", "efficientnet-lite2", "--pool", "statistics", "--freeze", "backbone", "--max-steps", "1"]
    direct.main(["--data", str(pairs), "--out", str(tmp_path / "run"), *options, "--head", "linear", "--device", "cpu"])
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["backbone"]["settings"] == {"pool": "statistics"}
    assert captioner.load(str(tmp_path / "run"), device="cpu").embed([pairs / "0.png"]).shape == (1, 384)


def test_by_prompt_an_epoch_shows_one_picture_of_each_prompt() -> None:
    texts = ["fox"] * 30 + ["owl", "hen"]
    pixels = lambda images: torch.zeros(1, 1)  # noqa: E731
    features = [torch.tensor(float(row)) for row in range(len(texts))]
    rows = Dataset.from_dict({"image": [None] * len(texts), "text": texts})
    found = Pairs(rows, pixels, seed=3, features=features, by_prompt=True)
    assert found.texts == ["fox", "owl", "hen"]
    shown = []
    for epoch in range(20):
        found.begin_epoch(epoch)
        assert [found[n]["text"] for n in range(3)] == found.texts
        assert [found[n]["features"].item() for n in (1, 2)] == [30, 31]
        assert found[0]["features"] == found[0]["features"]  # the same within an epoch
        shown.append(found[0]["features"].item())
    assert set(shown) <= set(range(30))
    assert len(set(shown)) > 8


@pytest.mark.parametrize("backbone", ["clip", "vit"])
def test_an_adapter_is_a_model_and_leaves_its_base_alone(
    tiny_checkpoint, pairs: Path, tmp_path: Path, backbone: str
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    tower = tiny_checkpoint("towers") / backbone
    learn = ["--backbone", backbone, "--head", "residual", "--lora", "--lr", "1e-2"]
    steps = ["--max-steps", "3", "--eval-every", "3", "--batch-size", "16", "--validation", str(pairs)]
    run(pairs, tower, adapter, *learn, *steps)
    merge(adapter, merged)

    rows = [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]
    pictures = [pairs / row["file_name"] for row in rows]
    said, alone = (captioner.load(str(folder), device="cpu").embed(pictures) for folder in (adapter, merged))
    np.testing.assert_allclose(alone, said, atol=1e-5)
    # The validation loss is that of the model in memory: had a weight of the base moved, the files would not give it.
    cosines = (said * text_embedder()([row["text"] for row in rows])).sum(1)
    state = json.loads(max(adapter.glob("checkpoint-*/trainer_state.json")).read_text())
    assert 1 - cosines.mean() == pytest.approx(state["log_history"][-1]["eval_loss"], abs=1e-4)

    before, after = load_file(adapter / "base/model.safetensors"), load_file(merged / "model.safetensors")
    tower_weights = {name: weight for name, weight in before.items() if "tower" in name}
    moved = {name for name, weight in tower_weights.items() if not torch.equal(weight, after[name])}
    assert moved == {name for name, weight in tower_weights.items() if "layer" in name and weight.ndim == 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "--backbone", "resnet50"], "--lora is for vit, vit-large and clip: resnet50 is convolutional"),
        (["--lora", "--backbone", "efficientnet-lite2"], "efficientnet-lite2 is convolutional"),
        (["--lora", "--freeze", "backbone"], "keeps as it is: leave one of them out"),
        (["--lora", "--cache-features", "cache"], "leave out --cache-features"),
        (["--lora", "--freeze", "backbone", "--unfreeze", "1"], "leave out --unfreeze"),
        (["--qlora", "4bit"], "--qlora is for BLIP and OFA"),
    ],
)
def test_what_does_not_go_with_an_adapter_is_said(
    pairs: Path, tower: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(pairs, tower, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_the_help_tells_of_adapters(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        direct.main(["--help"])
    said = capsys.readouterr().out
    assert "--lora-rank" in said
    assert "--lora is for vit, vit-large and clip" in said
