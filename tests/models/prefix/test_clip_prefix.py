"""CLIP prefix + GPT-2: parity with transformers and with golden mapper outputs, the shared prefix, mini's head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint
from captioner.models.parts.checkpoint import read_model
from captioner.models.prefix import clip_prefix
from captioner.models.prefix.layers import JointHead, MlpMapper, PrefixProcessor, TransformerMapper
from captioner.search.search import Hypothesis, search
from tests import decoders
from tests.tiny import clip_prefix as tiny

CPU = LoadOptions(device="cpu")
MAPPERS = [{"mapper": "transformer"}, {"mapper": "mlp"}]
SEARCHES = [
    {"num_beams": 1},
    {"num_beams": 4, "length_penalty": 1.0},
    {"num_beams": 5, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0},
]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("clip-prefix")


def processor(model) -> PrefixProcessor:
    return PrefixProcessor(model.backbone.preprocess, tiny.tokenizer(), model.config)


@pytest.mark.filterwarnings("ignore:Passing")  # of transformers: penalties see the text alone, as they do here
@pytest.mark.parametrize("settings", SEARCHES)
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_ids_equal_those_of_transformers(seed, settings):
    model = tiny.model(seed, **MAPPERS[seed % 2]).double()
    model.fixed = seed > 0  # its step is traced, as that of a loaded model
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)).double()
    ours = search(model, model.remember(features), processor(model), Decoding(max_new_tokens=9, **settings))
    theirs = model.gpt.generate(
        inputs_embeds=model.prefix(features), attention_mask=torch.ones(3, 4), max_new_tokens=9, do_sample=False,
        eos_token_id=model.config.eos_ids, pad_token_id=model.config.pad_id, **settings,
    )  # fmt: skip
    eos = model.config.eos_ids[0]
    expected = [row[: row.index(eos)] if eos in row else row for row in theirs.tolist()]
    assert [found.ids for of_image in ours for found in of_image] == expected
    assert len({tuple(ids) for ids in expected}) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "float64"])
@torch.inference_mode()
def test_a_traced_step_gives_the_same_numbers(folder, precision):
    model = clip_prefix.load(folder, LoadOptions(device="cpu", precision=precision)).model
    assert model.fixed
    assert model.traced != model.gpt2
    memory = model.remember(torch.randn(2, model.config.joint_dim).to(model.dtype))
    ids = torch.randint(0, 60, (6, 3))  # 2 images × 3 texts
    logits: list[torch.Tensor] = []
    for model.fixed in (True, False):
        _, past = model.step(ids[:, :0], memory, None)
        for place in range(3):
            step, past = model.step(ids[:, place : place + 1], memory, past.select(torch.tensor([1, 1, 0, 3, 5, 4])))
            logits.append(step)
    for traced, plain in zip(logits[:3], logits[3:], strict=True):
        assert torch.equal(traced, plain)


@pytest.mark.parametrize("precision", ["fp32", "float64"])
def test_steps_equal_full_pass(folder, precision):
    model = clip_prefix.load(folder, LoadOptions(device="cpu", precision=precision)).model
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    ids = torch.randint(1, 100, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    decoders.assert_steps_equal_full_pass(model, pixels, ids, 1e-12 if precision == "float64" else 5e-4)


def test_batch_equals_singles(folder):
    decoders.assert_batch_equals_singles(clip_prefix.load(folder, LoadOptions(device="cpu", precision="float64")))


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5, "top_k": 5}, {"num_return_sequences": 1}])
@torch.inference_mode()
def test_texts_with_the_same_words_are_one_row_and_drawn_as_if_they_were_not(settings, monkeypatch):
    model = tiny.model(1, mapper="mlp").double()
    memory = model.remember(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double())
    decoding = Decoding(**{"do_sample": True, "num_return_sequences": 16, "max_new_tokens": 40, "seed": 2, **settings})
    rows, step = [], model.step
    monkeypatch.setattr(model, "step", lambda tokens, *more: rows.append(len(tokens)) or step(tokens, *more))
    found = []
    for forks in (True, False):
        monkeypatch.setattr(model, "forks", forks)
        rows.append(0)
        found.append(search(model, memory, processor(model), decoding, [4, 5, 6]))
    shared, apart = rows[1 : rows.index(0, 1)], rows[rows.index(0, 1) + 1 :]
    assert found[0] == found[1]
    assert sum(shared) <= sum(apart)
    assert decoding.num_return_sequences == 1 or shared[1] < apart[1]
    assert len({tuple(text.ids) for texts in found[0] for text in texts}) > 1


def test_saved_and_loaded_says_the_same(folder, tmp_path):
    model = read_model(clip_prefix.ClipPrefix, folder)
    model.save_pretrained(tmp_path)
    processor(model).save_pretrained(tmp_path)
    images = decoders.pictures(3)
    first, again = clip_prefix.load(folder, CPU), clip_prefix.load(tmp_path, CPU)
    assert decoders.texts(again, images) == decoders.texts(first, images)


@torch.no_grad()
def test_gists_add_up_tokens(tmp_path):
    made = tiny.model(head=True, gist=True)
    tiny.save(made, tmp_path)
    speaker = clip_prefix.load(tmp_path, CPU)
    texts = [[5, 6, 7, 6], [9], []]
    reading = speaker.reading([Hypothesis(ids, -1.0, True) for ids in texts])
    for ids, gist in zip(texts, reading.gists, strict=True):
        expected = torch.nn.functional.normalize(made.gist.weight[ids].sum(0), dim=0)
        np.testing.assert_allclose(gist, expected, atol=1e-6)
    [said] = speaker.read_images(decoders.pictures(1), Decoding(num_beams=3, num_return_sequences=3))
    assert said.gists.shape == (3, 16)


def test_the_text_goes_on_from_a_prompt(folder):
    speaker = clip_prefix.load(folder, CPU)
    assert speaker.processor.decode(speaker.beginning("a red").start_ids) == "a red"
    images = decoders.pictures(2)
    assert decoders.texts(speaker, images, Request(prompt="a red")) != decoders.texts(speaker, images)


@pytest.mark.parametrize("settings", MAPPERS)
def test_it_learns_prompts_by_heart(settings):
    model = tiny.model(normalize=True, **settings)
    with torch.no_grad():
        for weight in [*model.mapper.parameters(), *model.gpt.parameters()]:
            if weight.ndim > 1:
                weight.mul_(0.3)
    prompts = [prompt[:-1] for prompt in tiny.PROMPTS]
    assert decoders.overfit(model, processor(model), prompts, steps=120, lr=1e-2) == prompts


def test_padding_and_labels_do_not_change_the_loss():
    model = tiny.model()
    features = torch.randn(1, 16)
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 0, 0]])
    plain = model(features=features, input_ids=ids, labels=ids).loss
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    masked = model(
        features=features, input_ids=padded, attention_mask=mask, labels=padded.masked_fill(mask == 0, -100)
    ).loss
    torch.testing.assert_close(plain, masked)


@torch.no_grad()
def test_transformer_mapper_golden():
    """The published arithmetic, written out by einsum on our own seeded weights."""
    torch.manual_seed(3)
    mapper = TransformerMapper(joint_dim=6, prefix_length=2, clip_length=3, width=8, layers=2, heads=2).double()
    x = torch.randn(4, 6).double()
    hidden = torch.cat((mapper.linear(x).view(4, 3, 8), mapper.prefix_const.expand(4, 2, 8)), dim=1)
    for layer in mapper.transformer.layers:
        seen = layer.norm1(hidden)
        queries = layer.attn.to_queries(seen).reshape(4, 5, 2, 4)
        both = layer.attn.to_keys_values(seen).reshape(4, 5, 2, 2, 4)
        scores = torch.einsum("bnhd,bmhd->bnmh", queries, both[:, :, 0]) * 4**-0.5
        mixed = torch.einsum("bnmh,bmhd->bnhd", scores.softmax(dim=2), both[:, :, 1]).reshape(4, 5, 8)
        hidden = hidden + layer.attn.project(mixed)
        hidden = hidden + layer.mlp.fc2(torch.relu(layer.mlp.fc1(layer.norm2(hidden))))
    torch.testing.assert_close(mapper(x), hidden[:, 3:], atol=1e-12, rtol=0)


@torch.no_grad()
def test_mlp_mapper_golden():
    mapper = MlpMapper(joint_dim=6, prefix_length=2, width=8).double()
    x = torch.randn(4, 6).double()
    first, _, second = mapper.model
    assert first.out_features == 8
    expected = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(mapper(x), expected.view(4, 2, 8))


@torch.no_grad()
def test_head_is_the_mean_of_line_and_memory():
    torch.manual_seed(0)
    head = JointHead(inputs=5, joint_dim=4, rank=3, prototypes=6)
    found = head(torch.randn(7, 5))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(7))
    one = torch.randn(1, 5)
    head.share.fill_(1.0)
    head.sharpness.fill_(1e4)  # the nearest prototype alone
    nearest = (torch.nn.functional.normalize(head.axes(one), dim=-1) @ head.keys.T).argmax()
    expected = torch.nn.functional.normalize(head.values[nearest], dim=-1)
    torch.testing.assert_close(head(one)[0], expected)


def test_readings_carry_the_predicted_embedding(tmp_path):
    tiny.save(tiny.model(head=True, joint_dim=384, mapper="mlp"), tmp_path)
    speaker = clip_prefix.load(tmp_path, CPU)
    readings = speaker.read_images(
        decoders.pictures(3), Decoding(num_beams=2, num_return_sequences=2, max_new_tokens=5)
    )
    vectors = np.stack([reading.embedding for reading in readings])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
    assert all(len(reading.candidates) == 2 for reading in readings)


def test_clip_models_predict_no_embedding(folder):
    (reading,) = clip_prefix.load(folder, CPU).read_images(decoders.pictures(1), Decoding(max_new_tokens=3))
    assert reading.embedding is None


def test_parts_freeze_by_themselves():
    model = tiny.model()
    model.requires_grad_(False)
    model.mapper.requires_grad_(True)
    model(
        pixel_values=torch.randn(1, 3, 32, 32), input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])
    ).loss.backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"mapper"}


def test_a_checkpoint_without_its_vocabulary_is_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json"):
        clip_prefix.load(tmp_path, CPU)


def test_another_architecture_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(BadCheckpoint, match="blip"):
        clip_prefix.load(tmp_path, CPU)
