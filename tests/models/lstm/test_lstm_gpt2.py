"""ResNet-LSTM-GPT-2: steps against the full pass, batches, learning, broken checkpoints."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint
from captioner.models.lstm import lstm_gpt2
from tests import decoders
from tests.tiny.resnet_lstm import backbone
from tests.tiny.resnet_lstm_gpt2 import gpt2, tokenizer

CPU = LoadOptions(device="cpu")
EXACT = LoadOptions(device="cpu", precision="float64")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("resnet-lstm-gpt2")


def test_batch_equals_singles(folder):
    decoders.assert_batch_equals_singles(lstm_gpt2.load(folder, EXACT))


@pytest.mark.parametrize(("options", "atol"), [(CPU, 1e-5), (EXACT, 1e-12)], ids=["fp32", "float64"])
def test_steps_equal_full_pass(folder, options, atol):
    speaker = lstm_gpt2.load(folder, options)
    pixels = speaker.processor.preprocess(decoders.pictures(3)).to(next(speaker.model.parameters()).dtype)
    ids = torch.randint(3, 200, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    decoders.assert_steps_equal_full_pass(speaker.model, pixels, ids, atol)


def test_saved_and_loaded_says_the_same(folder, tmp_path):
    first = lstm_gpt2.load(folder, EXACT)
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    again = lstm_gpt2.load(tmp_path, EXACT)
    images = decoders.pictures(3)
    assert decoders.texts(again, images) == decoders.texts(first, images)
    assert again.processor.decode(again.processor.encode("two ships, 4k")) == "two ships, 4k"


def test_gpt2_reads_what_the_lstm_makes_of_words_and_picture():
    torch.manual_seed(0)
    tokens = tokenizer()
    language = gpt2(tokens)
    model, _ = lstm_gpt2.new(backbone(), language, tokens)
    model.eval()
    ids, pixels = torch.randint(0, 200, (2, 5)), torch.randn(2, 3, 64, 64)
    hidden, _ = model.lstm(language.transformer.wte(ids), model._start(model.read(pixels), 1))
    expected = language(inputs_embeds=model.to_gpt2(hidden)).logits
    torch.testing.assert_close(model(pixels, input_ids=ids).logits, expected)
    assert not torch.allclose(model(pixels.flip(0), input_ids=ids).logits, expected)
    assert model.gpt2.lm_head.weight is model.gpt2.transformer.wte.weight


def test_it_learns_prompts_by_heart():
    torch.manual_seed(0)
    tokens = tokenizer(decoders.BY_HEART)
    model, processor = lstm_gpt2.new(backbone(), gpt2(tokens, dropout=0.0), tokens, dropout=0.0)
    assert decoders.overfit(model, processor, decoders.BY_HEART, steps=120, lr=6e-3) == decoders.BY_HEART


def test_special_tokens_within_a_prompt_are_text(folder):
    processor = lstm_gpt2.load(folder, CPU).processor
    ids = processor.encode("a fox <|endoftext|> in snow")
    assert processor.eos_ids[0] not in ids
    assert processor.decode([*ids, *processor.eos_ids]) == "a fox <|endoftext|> in snow"


def test_broken_checkpoints_are_named(folder, tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"broken.*cannot be loaded"):
        lstm_gpt2.load(broken, CPU)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks tokenizer.json"):
        lstm_gpt2.load(broken, CPU)
    config = json.loads((broken / "config.json").read_text())
    config["gpt2"]["n_layer"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"missing \(gpt2.transformer.h.2"):
        lstm_gpt2.load(broken, CPU)
    with pytest.raises(BadCheckpoint, match="'resnet-lstm' model, not 'resnet-lstm-gpt2'"):
        lstm_gpt2.load(tiny_checkpoint("resnet-lstm"), CPU)
