"""Published ClipCap files, made here in their key layout: both mappers, old buffers, wrong and hostile files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, PreTrainedTokenizerFast

from captioner.contracts import LoadOptions
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, BadOutput, MissingModel
from captioner.models.prefix import clip_prefix, clipcap
from captioner.models.prefix.layers import PrefixProcessor
from captioner.search.search import search
from tests import decoders
from tests.tiny import clip_prefix as tiny
from tests.tiny import clip_resnet

MAPPERS = [
    {"mapper": "transformer", "mapper_layers": 2, "mapper_heads": 3, "clip_length": 3, "prefix_length": 4},
    {"mapper": "mlp", "prefix_length": 2},
    {"mapper": "linear", "prefix_length": 5, "normalize": True},
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tiny.clip().tower.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("gpt2")
    words = tiny.tokenizer()
    GPT2Config(**tiny.GPT2, vocab_size=words.get_vocab_size(), eos_token_id=0).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return str(folder)


def published(model: clip_prefix.ClipPrefix) -> dict[str, torch.Tensor]:
    """As ClipCap's training saved it: its own names, and the buffers that GPT-2 once had."""
    state = {f"clip_project.{key}": tensor for key, tensor in model.mapper.state_dict().items()}
    state |= {f"gpt.{key}": tensor for key, tensor in model.gpt.state_dict().items()}
    for layer in range(model.gpt.config.n_layer):
        state[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("mapper", MAPPERS)
def test_published_files_say_the_same_after_conversion(mapper, clip, gpt2, tmp_path):
    model = tiny.model(1, **mapper)
    file, out = tmp_path / "coco_weights.pt", tmp_path / "converted"
    torch.save(published(model), file)
    asked = mapper.get("normalize", False)
    assert clipcap.convert(file, out, clip, gpt2, mapper_heads=3, normalize=asked) is asked
    speaker = clip_prefix.load(out, LoadOptions(device="cpu", precision="float64"))
    speaker.processor.eos_ids = tuple(model.config.eos_ids)  # "." is 13 in GPT-2's vocabulary, not in the tiny one
    model.double()
    features = torch.randn(3, 16).double()
    words = PrefixProcessor(model.backbone.preprocess, tiny.tokenizer(), model.config)
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    with torch.inference_mode():
        assert search(speaker.model, speaker.model.remember(features), speaker.processor, decoding) == search(
            model, model.remember(features), words, decoding
        )
    assert speaker.model.config.eos_ids == [13]
    assert speaker.model.config.normalize is asked
    assert speaker.processor.preprocess.rounded
    assert decoders.texts(speaker, decoders.pictures(1))[0][0]
    assert sorted(os.listdir(tmp_path)) == ["coco_weights.pt", "converted"]


def test_the_sizes_of_the_published_ones_are_read_off_the_tensors():
    shapes = {"gpt.transformer.wte.weight": (50257, 768), "clip_project.linear.weight": (40 * 768, 640),
              "clip_project.prefix_const": (40, 768)}  # fmt: skip
    shapes |= {f"clip_project.transformer.layers.{layer}.norm1.weight": (768,) for layer in range(8)}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert clipcap._mapper_settings(state) == {
        "mapper": "transformer", "joint_dim": 640, "clip_length": 40, "prefix_length": 40, "mapper_layers": 8,
    }  # fmt: skip
    shapes = {"gpt.transformer.wte.weight": (50257, 768), "clip_project.model.0.weight": (3840, 512),
              "clip_project.model.2.weight": (7680, 3840)}  # fmt: skip
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert clipcap._mapper_settings(state) == {"mapper": "mlp", "joint_dim": 512, "prefix_length": 10}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whether_embeddings_were_scaled_is_known_of_published_files_and_asked_of_others(clip, gpt2, tmp_path):
    published_mlp = {"mapper": "mlp", "joint_dim": 512, "prefix_length": 10}
    published_rn50x4 = {"mapper": "transformer", "joint_dim": 640, "prefix_length": 40, "clip_length": 40}
    assert clipcap._normalized(published_mlp) is False
    assert clipcap._normalized(published_rn50x4) is True
    file = tmp_path / "own.pt"
    torch.save(published(tiny.model(1, **MAPPERS[1])), file)
    with pytest.raises(BadInput, match="set normalize to true or false"):
        clipcap.convert(file, tmp_path / "out", clip, gpt2)
    assert os.listdir(tmp_path) == ["own.pt"]


def test_one_for_a_clip_of_resnet_form_runs_with_it(gpt2, tiny_checkpoint, tmp_path):
    """As the published one for RN50x4: the notebook scaled its embeddings."""
    clip, mapper = str(tiny_checkpoint("clip_resnet")), {**MAPPERS[0], "prefix_length": 6}
    model = tiny.model(1, **mapper)
    file, out = tmp_path / "rn.pt", tmp_path / "converted"
    torch.save(published(model), file)
    clipcap.convert(file, out, clip, gpt2, mapper_heads=3, normalize=True)
    speaker = clip_prefix.load(out, LoadOptions(device="cpu"))
    pictures = decoders.pictures(3)
    pixels = speaker.processor.preprocess(pictures)
    tower = clip_resnet.tower()
    with torch.inference_mode():
        features = tower.attnpool(tower(pixels))
        expected = model.mapper(torch.nn.functional.normalize(features, dim=-1))
        torch.testing.assert_close(speaker.model.prefix(speaker.model.encode(pixels)), expected, atol=1e-4, rtol=1e-4)
    assert decoders.texts(speaker, pictures)[0][0]


def test_what_the_published_rn50x4_needs_is_said(gpt2, clip, tmp_path):
    file = tmp_path / "rn50x4.pt"
    mapper = {"mapper": "transformer", "mapper_layers": 1, "clip_length": 2, "prefix_length": 40, "joint_dim": 640}
    torch.save(published(tiny.model(1, **mapper)), file)
    with pytest.raises(MissingModel, match=r"no folder timm/resnet50x4_clip.openai; .* not in the local cache"):
        clipcap.convert(file, tmp_path / "out", None, gpt2)
    with pytest.raises(BadInput, match=r"reads embeddings of length 640, .* makes 16"):
        clipcap.convert(file, tmp_path / "out", clip, gpt2)


def test_a_pickle_that_would_run_code_is_refused(clip, gpt2, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps({"clip_project.model.0.weight": Evil()}))
    with pytest.raises(BadCheckpoint, match=r"evil\.pt"):
        clipcap.convert(file, tmp_path / "out", clip, gpt2)
    torch.save({"clip_project.model.0.weight": Evil()}, file)
    with pytest.raises(BadCheckpoint, match=r"evil\.pt"):
        clipcap.convert(file, tmp_path / "out", clip, gpt2)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_and_leaves_nothing(clip, gpt2, tmp_path):
    state = published(tiny.model(1, **MAPPERS[1]))
    file, out = tmp_path / "some.pt", tmp_path / "out"
    file.write_bytes(b"j174812789junk")
    for name in ("gone.pt", "."):
        with pytest.raises(BadInput, match="is no file: name a published"):
            clipcap.convert(tmp_path / name, out, clip, gpt2)
    with pytest.raises(BadCheckpoint, match="is no checkpoint of torch"):
        clipcap.convert(file, out, clip, gpt2, normalize=False)
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(BadCheckpoint, match="no clip_project"):
        clipcap.convert(file, out, clip, gpt2, normalize=False)
    torch.save({key: tensor for key, tensor in state.items() if "ln_f" not in key}, file)
    with pytest.raises(BadCheckpoint, match="ln_f"):
        clipcap.convert(file, out, clip, gpt2, normalize=False)
    torch.save(state | {"clip_project.model.0.weight": torch.zeros(24, 640)}, file)
    with pytest.raises(BadInput, match="640"):
        clipcap.convert(file, out, clip, gpt2, normalize=False)
    torch.save(state | {"clip_project.model.0.weight": torch.zeros(24, 333)}, file)
    with pytest.raises(BadInput, match="as clip"):
        clipcap.convert(file, out, None, gpt2, normalize=False)
    assert os.listdir(tmp_path) == ["some.pt"]


def test_an_existing_folder_is_left_alone(clip, gpt2, tmp_path):
    with pytest.raises(BadOutput):
        clipcap.convert(tmp_path / "any.pt", tmp_path, clip, gpt2, normalize=False)
