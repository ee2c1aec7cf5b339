"""Every trainer on a tiny model of its family: it overfits a few pairs and then says those prompts back."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import captioner
from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, BadOutput
from captioner.models.ofa import load as load_ofa
from captioner.models.parts.adapters import merge
from captioner.text.embedding import text_embedder
from tests.tiny.ofa import on_smaller_pictures
from tests.training.test_loop import losses
from training import blip, clip_prefix, direct, ofa, resnet_lstm

GREEDY = Request(decoding=Decoding(num_beams=1, max_new_tokens=48))


@pytest.fixture
def towers(tiny_checkpoint: Callable[[str], Path]) -> Path:
    """Tiny pretrained parts: clip, resnet, vit, gpt2."""
    return tiny_checkpoint("towers")


@pytest.fixture
def tiny_ofa(shallow_ofa: Path, tmp_path: Path) -> Path:
    return on_smaller_pictures(shallow_ofa, tmp_path / "ofa")


def shared(pairs: Path, out: Path, *more: str) -> list[str]:
    where = ["--data", str(pairs), "--validation", str(pairs), "--out", str(out)]
    return [*where, "--samples", "0", "--log-every", "1", "--batch-size", "16", *more]


def rows(pairs: Path) -> list[dict]:
    return [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]


def said_back(pairs: Path, model: Path) -> int:
    """How many of the training prompts the finished folder says word for word."""
    said = captioner.load(str(model)).generate([pairs / row["file_name"] for row in rows(pairs)], GREEDY)
    return sum(prompt.text == row["text"] for prompt, row in zip(said, rows(pairs), strict=True))


def test_clip_prefix(towers: Path, few_pairs: Path, tmp_path: Path) -> None:
    parts = ["--weights", str(towers / "clip"), "--language-model", str(towers / "gpt2"), "--prefix-length", "4"]
    learn = ["--max-steps", "80", "--eval-every", "80", "--lr", "1e-2", "--freeze", "none"]
    clip_prefix.main(shared(few_pairs, tmp_path / "run", *parts, *learn))
    assert losses(tmp_path / "run")[-1] < 0.1
    assert said_back(few_pairs, tmp_path / "run") == 4


def test_resnet_lstm(towers: Path, few_pairs: Path, tmp_path: Path) -> None:
    parts = ["--weights", str(towers / "resnet"), "--vocabulary-size", "300", "--hidden-size", "64"]
    learn = ["--max-steps", "50", "--eval-every", "50", "--lr", "1e-2", "--freeze", "none"]
    resnet_lstm.main(shared(few_pairs, tmp_path / "run", *parts, *learn))
    assert losses(tmp_path / "run")[-1] < 0.2
    assert said_back(few_pairs, tmp_path / "run") == 4


def test_resnet_lstm_gpt2(towers: Path, few_pairs: Path, tmp_path: Path) -> None:
    parts = ["--gpt2", "--weights", str(towers / "resnet"), "--language-model", str(towers / "gpt2")]
    learn = ["--max-steps", "120", "--eval-every", "120", "--lr", "5e-3", "--freeze", "none"]
    resnet_lstm.main(shared(few_pairs, tmp_path / "run", *parts, *learn))
    assert losses(tmp_path / "run")[-1] < 0.3
    assert said_back(few_pairs, tmp_path / "run") == 4


def test_ofa(tiny_ofa: Path, few_pairs: Path, tmp_path: Path) -> None:
    learn = ["--max-steps", "8", "--eval-every", "8", "--lr", "3e-3", "--warmup", "0", "--batch-size", "4"]
    ofa.main(shared(few_pairs, tmp_path / "run", "--base", str(tiny_ofa), *learn, "--question", "what is this?"))
    assert losses(tmp_path / "run")[-1] < 0.9 * losses(tmp_path / "run")[0]
    [prompt] = captioner.load(str(tmp_path / "run")).generate([few_pairs / "0.png"], GREEDY)
    assert np.isfinite(prompt.score)


@pytest.mark.parametrize("options", [[], ["--layer-decay", "0.8"]], ids=["flat", "layer-wise"])
def test_direct_learns_the_embeddings(towers: Path, few_pairs: Path, tmp_path: Path, options: list[str]) -> None:
    learn = ["--head", "linear", "--max-steps", "100", "--eval-every", "100", "--lr", "1e-2"]
    direct.main(shared(few_pairs, tmp_path / "run", "--weights", str(towers / "vit"), *learn, *options))
    model = captioner.load(str(tmp_path / "run"))
    predicted = model.embed([few_pairs / row["file_name"] for row in rows(few_pairs)])
    truth = text_embedder()([row["text"] for row in rows(few_pairs)])
    assert (predicted * truth).sum(1).mean() > 0.95
    assert ((predicted @ truth.T).argmax(1) == np.arange(4)).all()
    assert not model.speaks


def test_cached_features_give_the_losses_of_pixels(towers: Path, pairs: Path, tmp_path: Path) -> None:
    parts = ["--weights", str(towers / "clip"), "--language-model", str(towers / "gpt2"), "--max-steps", "3"]
    clip_prefix.main(shared(pairs, tmp_path / "pixels", *parts))
    clip_prefix.main(shared(pairs, tmp_path / "cached", *parts, "--cache-features", str(tmp_path / "cache")))
    torch.testing.assert_close(losses(tmp_path / "pixels"), losses(tmp_path / "cached"), rtol=1e-3, atol=1e-3)


def test_features_of_a_tower_that_learns_are_not_cached(towers: Path, pairs: Path, tmp_path: Path) -> None:
    learns = shared(pairs, tmp_path / "run", "--weights", str(towers / "resnet"), "--freeze", "none")
    with pytest.raises(BadInput, match="nothing learns"):
        resnet_lstm.main([*learns, "--cache-features", str(tmp_path / "cache")])


def test_lora_leaves_the_base_alone_and_its_folder_is_a_model(
    tiny_checkpoint: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    base = tiny_checkpoint("blip")
    before = (base / "model.safetensors").read_bytes()
    out = tmp_path / "adapter"
    learn = ["--lora", "--lora-rank", "4", "--max-steps", "20", "--eval-every", "20", "--lr", "1e-2"]
    blip.main(shared(pairs, out, "--base", str(base), *learn))
    assert (base / "model.safetensors").read_bytes() == before
    assert not (out / "model.safetensors").exists()
    names = load_file(out / "adapter_model.safetensors")
    assert names
    assert all("lora_" in name and "embeddings" not in name and "decoder.weight" not in name for name in names)
    assert losses(out)[-1] < losses(out)[0]
    paths = [pairs / row["file_name"] for row in rows(pairs)]
    tuned = [prompt.text for prompt in captioner.load(str(out)).generate(paths, GREEDY)]
    plain = [prompt.text for prompt in captioner.load(str(base)).generate(paths, GREEDY)]
    assert tuned != plain
    merge(out, tmp_path / "merged")
    assert [prompt.text for prompt in captioner.load(str(tmp_path / "merged")).generate(paths, GREEDY)] == tuned
    with pytest.raises(BadOutput, match="is there already"):
        merge(out, tmp_path / "merged")
    with pytest.raises(BadCheckpoint, match="no adapter"):
        merge(base, tmp_path / "other")
    blip.main(shared(pairs, tmp_path / "whole", "--base", str(out), "--max-steps", "2"))
    begun, learnt = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "whole"))
    assert begun.keys() == learnt.keys()
    assert [name for name in begun if "query.weight" in name and torch.equal(begun[name], learnt[name])] == []


def test_more_blocks_than_a_tower_has_are_refused(towers: Path, pairs: Path, tmp_path: Path) -> None:
    options = ["--weights", str(towers / "resnet"), "--freeze", "backbone", "--unfreeze", "99"]
    for trainer, more in ((direct, ["--backbone", "resnet50"]), (resnet_lstm, [])):
        with pytest.raises(BadInput, match=r"--unfreeze 99: this tower has \d+ blocks"):
            trainer.main(shared(pairs, tmp_path / "run", *options, *more))


def test_another_language_model_than_a_gpt2_is_refused(
    towers: Path, tiny_checkpoint: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    parts = ["--weights", str(towers / "clip"), "--language-model", str(tiny_checkpoint("blip"))]
    with pytest.raises(BadInput, match="a 'blip' model: --language-model names a GPT-2"):
        clip_prefix.main(shared(pairs, tmp_path / "run", *parts))


@pytest.mark.parametrize("trainer", [blip, ofa], ids=["blip", "ofa"])
def test_prompts_longer_than_a_model_reads_are_refused(
    trainer: ModuleType, tiny_checkpoint: Callable[[str], Path], tiny_ofa: Path, pairs: Path, tmp_path: Path
) -> None:
    base = tiny_ofa if trainer is ofa else tiny_checkpoint("blip")
    with pytest.raises(BadInput, match=r"--max-tokens 5000: this model reads prompts of at most [\d,]+ tokens"):
        trainer.main(shared(pairs, tmp_path / "run", "--base", str(base), "--max-tokens", "5000"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trainer", "part", "kept"),
    [
        (blip, "vision", "vision_model"),
        (blip, "text", "text_decoder"),
        (ofa, "encoder", ".encoder."),
        (ofa, "decoder", ".decoder."),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
def test_a_frozen_part_gets_no_adapter(
    trainer: ModuleType,
    part: str,
    kept: str,
    tiny_checkpoint: Callable[[str], Path],
    tiny_ofa: Path,
    pairs: Path,
    tmp_path: Path,
) -> None:
    base = tiny_ofa if trainer is ofa else tiny_checkpoint("blip")
    options = ["--base", str(base), "--lora", "--freeze", part, "--max-steps", "1"]
    if part in ("vision", "encoder"):  # nothing of it learns, so its outputs can be kept
        options += ["--cache-features", str(tmp_path / "features")]
    trainer.main(shared(pairs, tmp_path / "run", *options))
    names = load_file(tmp_path / "run/adapter_model.safetensors")
    assert names
    assert not [name for name in names if kept in name]


def test_an_adapter_of_ofa_asks_its_own_question(tiny_ofa: Path, pairs: Path, tmp_path: Path) -> None:
    out, merged = tmp_path / "adapter", tmp_path / "merged"
    options = ["--base", str(tiny_ofa), "--lora", "--question", "Which prompt?", "--max-steps", "1"]
    ofa.main(shared(pairs, out, *options, "--batch-size", "2"))
    merge(out, merged)
    for folder in (out, merged):
        speaker = load_ofa(folder, LoadOptions(device="cpu"))
        assert speaker.processor.decode(speaker.model.question) == "which prompt?"


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_qlora_goes_on_after_an_evaluation(
    tiny_checkpoint: Callable[[str], Path], pairs: Path, tmp_path: Path, bits: str
) -> None:
    learn = ["--qlora", bits, "--max-steps", "6", "--eval-every", "2", "--lr", "1e-2", "--warmup", "0"]
    blip.main(shared(pairs, tmp_path / "run", "--base", str(tiny_checkpoint("blip")), *learn))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    [prompt] = captioner.load(str(tmp_path / "run")).generate([pairs / "0.png"], GREEDY)
    assert np.isfinite(prompt.score)


def test_lora_of_a_prefix_model_keeps_its_mapper(towers: Path, pairs: Path, tmp_path: Path) -> None:
    parts = ["--weights", str(towers / "clip"), "--language-model", str(towers / "gpt2"), "--lora", "--max-steps", "3"]
    clip_prefix.main(shared(pairs, tmp_path / "adapter", *parts))
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("mapper" in name for name in names)
    assert any("lora_" in name for name in names)
    [prompt] = captioner.load(str(tmp_path / "adapter")).generate([pairs / "0.png"], GREEDY)
    assert np.isfinite(prompt.score)


def test_lora_on_blip_base_trains_under_two_percent() -> None:
    from transformers import BlipConfig

    from captioner.models.blip import Blip
    from training.adapters import adapted
    from training.recipe import LoraRecipe

    with torch.device("meta"):
        model = Blip(BlipConfig())
        whole = sum(parameter.numel() for parameter in model.parameters())
        wrapped = adapted(model, LoraRecipe(lora=True), blip.ADAPTABLE, base="blip")
    learning = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    assert 0 < learning < 0.02 * whole
