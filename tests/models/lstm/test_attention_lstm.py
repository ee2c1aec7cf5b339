"""ResNet-LSTM: vocabulary, steps against the full pass, batches, attention maps, learning, broken checkpoints."""

from __future__ import annotations

import shutil

import pytest
import torch

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput
from captioner.models.lstm import attention_lstm
from captioner.models.lstm.attention_lstm import build_vocabulary
from captioner.models.parts.backbones import backbones
from tests import decoders
from tests.tiny.resnet_lstm import PROMPTS, SIZES, backbone

CPU = LoadOptions(device="cpu")
EXACT = LoadOptions(device="cpu", precision="float64")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("resnet-lstm")


def test_batch_equals_singles(folder):
    decoders.assert_batch_equals_singles(attention_lstm.load(folder, EXACT))


@pytest.mark.parametrize(("options", "atol"), [(CPU, 1e-5), (EXACT, 1e-12)], ids=["fp32", "float64"])
def test_steps_equal_full_pass(folder, options, atol):
    speaker = attention_lstm.load(folder, options)
    pixels = speaker.processor.preprocess(decoders.pictures(3)).to(next(speaker.model.parameters()).dtype)
    ids = torch.randint(3, 200, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    decoders.assert_steps_equal_full_pass(speaker.model, pixels, ids, atol)


def test_saved_and_loaded_says_the_same(folder, tmp_path):
    first = attention_lstm.load(folder, EXACT)
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    again = attention_lstm.load(tmp_path, EXACT)
    images = decoders.pictures(3)
    assert decoders.texts(again, images) == decoders.texts(first, images)


def test_attention_maps(folder):
    speaker = attention_lstm.load(folder, CPU)
    pixels = speaker.processor.preprocess(decoders.pictures(1))
    maps = speaker.model.look(pixels, [1, 20, 30])
    assert maps.shape == (3, 2, 2)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(("kind", "steps"), [("bpe", 60), ("word", 40)])
def test_it_learns_prompts_by_heart(kind, steps):
    torch.manual_seed(0)
    tokenizer = build_vocabulary(decoders.BY_HEART, kind, 400)
    model, processor = attention_lstm.new(backbone(), tokenizer, dropout=0.0, **SIZES | {"hidden_size": 128})
    assert decoders.overfit(model, processor, decoders.BY_HEART, steps=steps, lr=1e-2) == decoders.BY_HEART


def test_unknown_words_carry_no_loss_and_are_never_written():
    torch.manual_seed(0)
    tokenizer = build_vocabulary(["a red fox"], "word", 20)
    model, processor = attention_lstm.new(backbone(), tokenizer, **SIZES)
    unknown = model.config.unknown_token_id
    ids = torch.tensor([[*processor.start_ids, *processor.encode("a zebra fox"), *processor.eos_ids]])
    assert ids[0, 2] == unknown
    masked = ids.clone()
    masked[0, 2] = -100
    features = model.eval().encode(torch.randn(1, 3, 64, 64))
    found = model(features=features, input_ids=ids, labels=ids)
    assert torch.isfinite(found.loss)
    assert found.loss == model(features=features, input_ids=ids, labels=masked).loss
    assert (found.logits[..., unknown] < -1e30).all()


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_vocabulary_gives_the_text_back(kind):
    text = "two ships,  on a (stormy:1.3) sea — don't stop\n now!"
    processor = attention_lstm.VocabularyProcessor(None, build_vocabulary([text], kind, 400))
    assert processor.decode(processor.encode(text)) == "two ships, on a (stormy:1.3) sea — don't stop now!"
    assert processor.decode([*processor.start_ids, *processor.encode(text), *processor.eos_ids, 0]).endswith("now!")


def test_special_tokens_within_a_prompt_are_text():
    processor = attention_lstm.VocabularyProcessor(None, build_vocabulary(PROMPTS, "bpe", 300))
    ids = processor.encode("a fox <end> in snow")
    assert not {0, 1, 2} & set(ids)
    assert processor.decode(ids) == "a fox <end> in snow"


def test_byte_pairs_write_anything():
    processor = attention_lstm.VocabularyProcessor(None, build_vocabulary(PROMPTS, "bpe", 300))
    assert processor.decode(processor.encode("猫 with a naïve ☕")) == "猫 with a naïve ☕"


def test_other_backbones_and_training_of_the_decoder_alone():
    torch.manual_seed(0)
    lite = backbones.blank("efficientnet-lite2")
    model, processor = attention_lstm.new(lite, build_vocabulary(PROMPTS, "bpe", 300), **SIZES)
    model.backbone.thaw(0)
    features = model.encode(processor.preprocess(decoders.pictures(1)))
    assert features.shape == (1, 81, 1280)
    ids = torch.tensor([[1, 50, 2]])
    model(features=features.half(), input_ids=ids, labels=ids).loss.backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "backbone" not in with_gradient
    assert {"project", "lstm", "words"} <= with_gradient


def test_broken_checkpoints_are_named(folder, tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    build_vocabulary(PROMPTS, "bpe", 280).save(str(broken / "tokenizer.json"))
    with pytest.raises(BadCheckpoint, match=r"tokenizer.json has 280 tokens, the model 300"):
        attention_lstm.load(broken, CPU)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"tokenizer.json cannot be loaded"):
        attention_lstm.load(broken, CPU)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks tokenizer.json"):
        attention_lstm.load(broken, CPU)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="cut short"):
        attention_lstm.load(broken, CPU)
    with pytest.raises(BadCheckpoint, match="'resnet-lstm-gpt2' model, not 'resnet-lstm'"):
        attention_lstm.load(tiny_checkpoint("resnet-lstm-gpt2"), CPU)
    with pytest.raises(BadInput, match="bpe or word"):
        build_vocabulary(PROMPTS, "characters")
    for kind, least in (("word", 5), ("bpe", 259)):
        with pytest.raises(BadInput, match=f"of kind '{kind}' has at least {least} entries: {least - 1} are too few"):
            build_vocabulary(PROMPTS, kind, least - 1)
        assert build_vocabulary(PROMPTS, kind, least).get_vocab_size() == least
