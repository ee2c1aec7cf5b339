"""OFA: golden logits, padding, steps, batches, the published layout, questions, learning, broken checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint
from captioner.models import ofa
from captioner.models.ofa import OFA, OFAConfig
from captioner.models.ofa.processor import OFAProcessor, read_tokenizer
from captioner.models.parts import checkpoint
from captioner.search.search import search
from tests import decoders
from tests.tiny.ofa import SIZES, scrambled, vocabulary

CPU = LoadOptions(device="cpu")
EXACT = LoadOptions(device="cpu", precision="float64")
GOLDEN = Path(__file__).parents[1] / "golden" / "ofa.safetensors"
"""Made by `golden()` from weights of our own, after an independent implementation had given the same logits for them
(largest difference 6.2e-6 in fp32)."""


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("ofa")


@pytest.fixture(scope="module")
def speaker(folder):
    return ofa.load(folder, EXACT)


def golden() -> dict[str, torch.Tensor]:
    """Pictures with a question and a text each, and the logits of every 97th token of the vocabulary."""
    model = scrambled(OFA(OFAConfig(**SIZES)), seed=0).eval().double()
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 64, 64, generator=random).double()
    questions = [0, 9, 40, 71, 2], [0, 33, 2]
    texts = torch.randint(3, 320, (2, 7), generator=random)
    with torch.no_grad():
        rows = []
        for picture, question, text in zip(pixels.split(1), questions, texts.split(1), strict=True):
            states = model.decoder(text, model.read(picture, question))
            rows.append(model.decoder.output_projection(states))
    return {"logits": torch.cat(rows)[..., ::97].float().contiguous()}


def test_golden_logits():
    torch.testing.assert_close(golden(), load_file(GOLDEN), atol=1e-5, rtol=1e-5)


def test_batch_equals_singles(speaker):
    decoders.assert_batch_equals_singles(speaker)


@pytest.mark.parametrize(("options", "atol"), [(CPU, 1e-4), (EXACT, 1e-11)], ids=["fp32", "float64"])
def test_steps_equal_full_pass(folder, options, atol):
    speaker = ofa.load(folder, options)
    pixels = speaker.processor.preprocess(decoders.pictures(3)).to(speaker.model.dtype)
    ids = torch.randint(3, 300, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    decoders.assert_steps_equal_full_pass(speaker.model, pixels, ids, atol)


def test_saved_and_loaded_says_the_same(speaker, tmp_path):
    speaker.model.save_pretrained(tmp_path)
    speaker.processor.save_pretrained(tmp_path)
    again = ofa.load(tmp_path, EXACT)
    images = decoders.pictures(3)
    assert decoders.texts(again, images, num_beams=4) == decoders.texts(speaker, images, num_beams=4)


PUBLISHED_CONFIG = {
    "architectures": ["OFAModel"],
    "activation_function": "gelu",
    "add_type_embedding": True,
    "encoder_drop_path_rate": 0.0,
    "forced_eos_token_id": 2,
    "num_hidden_layers": 2,
    "resnet_model_path": None,
    "share_decoder_input_output_embed": True,
    "torch_dtype": "float32",
    "transformers_version": "4.16.0.dev0",
    "use_cache": False,
    "normformer": True,
}


def published(folder: Path, out: Path) -> Path:
    """The same model as its authors publish it: pickled tensors, the tied weights thrice, constants among them."""
    shutil.copytree(folder, out)
    weights = checkpoint.read_model(OFA, folder).state_dict()
    assert "decoder.output_projection.weight" in weights
    weights["encoder.token_rp_bucket"] = weights["decoder.token_rp_bucket"] = torch.zeros(4, 4, dtype=torch.long)
    weights["encoder.image_rp_bucket"] = weights["decoder.image_position_idx"] = torch.zeros(4, dtype=torch.long)
    (out / "model.safetensors").unlink()
    torch.save(weights, out / "pytorch_model.bin")
    said = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({k: v for k, v in said.items() if k in {*SIZES, "model_type"}} | PUBLISHED_CONFIG)
    )
    return out


def test_published_layout_says_the_same(folder, speaker, tmp_path):
    pickled = ofa.load(published(folder, tmp_path / "ofa"), EXACT)
    images = decoders.pictures(3)
    assert decoders.texts(pickled, images) == decoders.texts(speaker, images)


class Code:
    """What a wicked checkpoint would hold."""

    def __reduce__(self):
        return os.mkdir, (self.where,)


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    wicked = published(folder, tmp_path / "ofa")
    code = Code()
    code.where = str(tmp_path / "was-here")
    torch.save({"encoder.pos_ln.weight": code}, wicked / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(BadCheckpoint, match=r"ofa are damaged or hold pickled code.*convert them to safetensors"):
        ofa.load(wicked, CPU)
    assert not (tmp_path / "was-here").exists()


def test_other_questions_get_other_answers(folder, speaker):
    assert speaker.processor.decode(speaker.model.question) == "what does the image describe?"
    asked = speaker.processor.question("Which Colour?  ")
    assert speaker.processor.decode(asked) == "which colour?"
    assert (asked[0], asked[-1]) == (0, 2)
    images = decoders.pictures(4)
    plain = decoders.texts(speaker, images)
    assert decoders.texts(speaker, images, Request(question="Which Colour?  ")) != plain
    assert decoders.texts(speaker, images) == plain
    pixels = speaker.processor.preprocess(images[:1]).double()
    maps = [speaker.look(pixels, [0, 20], request) for request in (PLAIN_REQUEST, Request(question="which colour?"))]
    assert not torch.allclose(*maps)


def test_a_question_given_for_training_is_kept(folder, tmp_path):
    model = checkpoint.read_model(OFA, folder)
    processor = ofa.processor_for(model, folder, "which prompt made this?")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = ofa.load(tmp_path, CPU)
    assert again.processor.decode(again.model.question) == "which prompt made this?"


class Ending:
    """A decoder that would end its texts sooner."""

    def __init__(self, model: OFA, eos: int, bias: float) -> None:
        self.model, self.eos, self.bias = model, eos, bias
        self.device, self.dtype = model.device, model.dtype

    def step(self, tokens, memory, past):
        logits, past = self.model.step(tokens, memory, past)
        logits[:, self.eos] += self.bias
        return logits, past


def generator_of_fairseq(decoder: Ending, memory, start: list[int], eos: int, pad: int) -> tuple[list[int], float]:
    """OFA's own search, of one picture, in its plainest form: 5 beams, 16 words and the end, no trigram twice."""
    live, finished = [([], 0.0)], []
    for step in range(17):
        proposals = []
        for ids, score in live:
            logits, _ = decoder.step(torch.tensor([start + ids]), memory, None)
            log_probs = logits[0].log_softmax(-1)
            log_probs[pad] = -torch.inf
            if step == 0:
                log_probs[eos] = -torch.inf
            text = start + ids
            for at in range(len(text) - 2):
                if text[at : at + 2] == text[-2:]:
                    log_probs[text[at + 2]] = -torch.inf
            likeliest = log_probs.topk(10)
            proposals += [(ids, score + s, t) for s, t in zip(*map(torch.Tensor.tolist, likeliest), strict=True)]
        best = sorted(proposals, key=lambda proposal: -proposal[1])[:10]
        finished += [(ids, score / (step + 1)) for ids, score, token in best[:5] if token == eos]
        if len(finished) >= 5:
            break
        live = [([*ids, token], score) for ids, score, token in best if token != eos][:5]
    return max(finished[:5], key=lambda text: text[1])


def test_the_usual_search_is_that_of_its_own_generator(speaker):
    processor, decoding = speaker.processor, Decoding(**ofa.DEFAULT_DECODING)
    [eos] = processor.eos_ids
    pixels = processor.preprocess(decoders.pictures(6)).double()
    decoder = Ending(speaker.model, eos, 6.0)
    with torch.inference_mode():
        memory = speaker.model.read(pixels)
        ours = search(decoder, memory, processor, decoding)
        for image, [best, *_] in enumerate(ours):
            row = memory.select(torch.tensor([image]))
            ids, score = generator_of_fairseq(decoder, row, processor.start_ids, eos, processor.pad_id)
            assert (best.ids, best.finished) == (ids, True)
            assert best.score == pytest.approx(score, abs=1e-5)
    assert len({tuple(best.ids) for best, *_ in ours}) > 2


def test_attention_maps(speaker):
    pixels = speaker.processor.preprocess(decoders.pictures(1)).double()
    maps = speaker.model.look(pixels, [0, 20, 30, 40])
    assert maps.shape == (4, 4, 4)
    assert (maps.sum((1, 2)) < 1).all()  # the question has its share
    torch.testing.assert_close(speaker.model.look(pixels, [0, 20]), maps[:2])


def test_tokenizer(folder):
    processor = OFAProcessor.from_folder(folder, 480)
    assert processor.preprocess.size == 64
    assert processor.tokenizer.get_vocab_size() == SIZES["vocab_size"]
    assert processor.encode("<code_0><code_8191><bin_0><bin_999>") == [320, 8511, 8512, 9511]
    text = " a red fox </s> don't, café ☕"
    ids = processor.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert processor.decode([0, *ids, 8511, 9000, 2, 1]) == text.strip()


def test_pixels(folder):
    processor = OFAProcessor.from_folder(folder, 480)
    pixels = processor.preprocess(decoders.pictures(2))
    assert pixels.shape == (2, 3, 64, 64)
    assert -1 <= pixels.min() < pixels.max() <= 1


def test_sizes_of_the_published_models():
    with torch.device("meta"):
        base = OFA(OFAConfig())
    assert base.encoder.embed_positions.weight.shape == (1026, 768)
    assert base.encoder.embed_image_positions.weight.shape == (1765, 768)
    assert base.encoder.token_rel_pos_table_list[0].weight.shape == (511, 12)
    assert base.decoder.image_rel_pos_table_list[5].weight.shape == (6892, 12)
    assert [ofa.trained_size(OFAConfig(d_model=width)) for width in (256, 512, 768, 1024, 1280)] == [
        256,
        256,
        384,
        480,
        480,
    ]


def test_it_learns_prompts_by_heart(folder):
    torch.manual_seed(0)
    model = OFA(OFAConfig(**SIZES | {"vocab_size": 320}, dropout=0.0))
    processor = OFAProcessor.from_folder(folder, 64)
    decoders.norms_that_have_seen(model.encoder.embed_images, processor.preprocess(decoders.pictures(16)))
    model.question = processor.question("what does the image describe?")
    assert decoders.overfit(model, processor, decoders.BY_HEART, steps=100, lr=1e-2) == decoders.BY_HEART


def test_batch_size_does_not_change_what_is_learnt(folder):
    """The mean loss of single pictures is that of the batch: batch norms keep their statistics."""
    model = checkpoint.read_model(OFA, folder).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    random = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(3, 3, 64, 64, generator=random), torch.randint(3, 300, (3, 5), generator=random)
    with torch.no_grad():
        singles = [model(pixels[n : n + 1], input_ids=ids[n : n + 1], labels=ids[n : n + 1]).loss for n in range(3)]
        together = model(pixels, input_ids=ids, labels=ids).loss
    torch.testing.assert_close(torch.stack(singles).mean(), together)


def test_gradients_with_recomputed_encoder_layers(folder):
    found = []
    for recompute in (False, True):
        model = checkpoint.read_model(OFA, folder).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if recompute:
            model.gradient_checkpointing_enable()
        ids = torch.tensor([[0, 50, 60, 2]])
        torch.manual_seed(0)
        model(torch.randn(1, 3, 64, 64), input_ids=ids, labels=ids).loss.backward()
        found.append(model.encoder.layers[0].fc1.weight.grad)
    torch.testing.assert_close(*found)


def test_broken_checkpoints_are_named(folder, tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    said = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(said | {"use_ofasys": True}))
    with pytest.raises(BadCheckpoint, match=r"does not run \(use_ofasys = True\)"):
        ofa.load(broken, CPU)
    (broken / "config.json").write_text(json.dumps(said))
    vocabulary(broken)
    (broken / "merges.txt").write_text("one\n")
    with pytest.raises(BadCheckpoint, match=r"merges.txt are no tokenizer"):
        ofa.load(broken, CPU)
    (broken / "merges.txt").unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks merges.txt"):
        ofa.load(broken, CPU)
    (broken / "vocab.json").write_text('{"a": 0}')
    (broken / "merges.txt").write_text("")
    with pytest.raises(BadCheckpoint, match=r"lacks <s>, <pad>"):
        read_tokenizer(broken / "vocab.json", broken / "merges.txt")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:9000])
    with pytest.raises(BadCheckpoint, match="cut short"):
        ofa.load(broken, CPU)
    with pytest.raises(BadCheckpoint, match="'resnet-lstm' model, not 'ofa'"):
        ofa.load(tiny_checkpoint("resnet-lstm"), CPU)
