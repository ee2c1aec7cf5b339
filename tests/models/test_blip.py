"""BLIP: transformers' weights and logits, its training loss, foreign and broken checkpoints, adapters, processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipForConditionalGeneration
from transformers import BlipProcessor as TheirProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint
from captioner.models import blip
from captioner.models.blip import Blip, BlipProcessor
from captioner.models.parts import checkpoint


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint("blip"), tmp_path / "blip"))


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40, 50 + i, 3), dtype=np.uint8)) for i in range(count)]


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Add, replace or (None) drop tensors of a checkpoint."""
    weights = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


# --- the same model as transformers' ----------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
@torch.inference_mode()
def test_steps_give_the_logits_of_transformers(folder: Path, joined: bool) -> None:
    theirs = BlipForConditionalGeneration.from_pretrained(folder).double().eval()
    ours = checkpoint.read_model(Blip, folder, torch.float64).eval()
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ids = torch.randint(0, 60, (6, 7))  # 2 images × 3 beams
    expected = theirs(pixels.repeat_interleave(3, dim=0), ids).logits
    torch.testing.assert_close(ours(pixels.repeat_interleave(3, dim=0), input_ids=ids).logits, expected)
    if joined:
        blip.join_projections(ours)
    logits, past = ours.step(ids[:, :3], memory := ours.read(pixels), None)
    torch.testing.assert_close(logits, expected[:, 2])
    for place in range(3, 7):
        logits, past = ours.step(ids[:, place : place + 1], memory, past)
        torch.testing.assert_close(logits, expected[:, place])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "float64"])
@torch.inference_mode()
def test_a_traced_step_gives_the_same_numbers(folder: Path, precision: str) -> None:
    model = blip.load(folder, LoadOptions(device="cpu", precision=precision)).model
    assert model.fixed
    assert model._traced != model._layers
    memory = model.read(torch.randn(2, 3, 32, 32).to(model.dtype))
    ids = torch.randint(0, 60, (6, 5))  # 2 images × 3 beams
    order = torch.tensor([1, 1, 0, 3, 5, 4])
    logits: list[torch.Tensor] = []
    for model.fixed in (True, False):
        _, past = model.step(ids[:, :2], memory, None)
        for place in range(2, 5):
            step, past = model.step(ids[:, place : place + 1], memory, past.select(order))
            logits.append(step)
    for traced, plain in zip(logits[:3], logits[3:], strict=True):
        assert torch.equal(traced, plain)


@pytest.mark.parametrize("fused", [False, True])
def test_training_loss_and_gradients_are_those_of_transformers(folder: Path, fused: bool) -> None:
    theirs = BlipForConditionalGeneration.from_pretrained(folder).double().eval()
    ours = checkpoint.read_model(Blip, folder, torch.float64)
    if fused:
        blip.fuse_attention(ours)
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    ids = torch.randint(5, 60, (3, 8))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    expected = theirs(pixels, ids, mask, labels).loss
    loss = ours(pixels, input_ids=ids, attention_mask=mask, labels=labels).loss
    close = {"check_dtype": False, "rtol": 1e-4, "atol": 1e-6}  # ours is always taken in float32
    torch.testing.assert_close(loss, expected, **close)
    from_features = ours(features=ours.encode(pixels), input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(from_features, expected, **close)
    expected.backward()
    loss.backward()
    for (name, weight), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, reference.grad, msg=name, **close)


def test_what_we_save_transformers_loads(folder: Path, tmp_path: Path) -> None:
    model = checkpoint.read_model(Blip, folder)
    model.save_pretrained(tmp_path / "saved")
    BlipProcessor.from_folder(folder).save_pretrained(tmp_path / "saved")
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert blip.load(tmp_path / "saved", LoadOptions()).read_images(pictures(1), Decoding(max_new_tokens=4))


def test_processor_gives_what_transformers_gives(folder: Path) -> None:
    theirs = TheirProcessor.from_pretrained(folder)
    ours = blip.load(folder, LoadOptions()).beginning("a picture of")
    images = pictures(3)
    expected = theirs(images=images, text=["a picture of"] * 3, return_tensors="pt")
    torch.testing.assert_close(ours.preprocess(images), expected.pixel_values, atol=0.02, rtol=0)
    start = expected.input_ids[0].tolist()
    assert ours.start_ids[1:] == start[1:-1]  # without [CLS], which gives way to BLIP's own start, and [SEP]
    assert ours.eos_ids == (start[-1],)
    assert ours.decode([*ours.encode("A dragon, by an artist"), 3]) == "a dragon, by an artist"


@pytest.mark.parametrize("size", [(384, 384), (512, 512), (1, 1000), (1000, 1), (3, 2), (385, 383), (640, 427)])
def test_pixels_are_those_of_transformers_to_the_last_bit(folder: Path, size: tuple[int, int]) -> None:
    """At the published size and with the published numbers."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 384
    (folder / "config.json").write_text(json.dumps(config))
    theirs = BlipImageProcessorPil()
    theirs.save_pretrained(folder)
    pixels = BlipProcessor.from_folder(folder).preprocess(images)
    assert torch.equal(pixels, theirs(images, return_tensors="pt").pixel_values)


def test_every_byte_becomes_what_transformers_makes_of_it(folder: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    image = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1))  # of the size that is read
    processor = BlipProcessor.from_folder(folder)
    theirs = processor.images([image], return_tensors="pt").pixel_values
    assert torch.equal(processor.preprocess([image]), theirs)
    assert [len(channel.unique()) for channel in theirs[0]] == [256] * 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"do_rescale": False}, "scales otherwise"),
        ({"rescale_factor": 1 / 127.5}, "scales otherwise"),
        ({"do_resize": False}, "does not resize"),
        ({"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}, "cuts or pads"),
        ({"size": {"height": 64, "width": 64}}, "reads 32×32"),
        ({"size": {"shortest_edge": 32}}, "reads 32×32"),
    ],
)
def test_other_ways_to_make_pixels_are_refused(folder: Path, settings: dict, says: str) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(BadCheckpoint, match=says):
        BlipProcessor.from_folder(folder)


def test_prompt_conditions_the_text(folder: Path) -> None:
    speaker, decoding = blip.load(folder, LoadOptions()), Decoding(max_new_tokens=6)
    plain = speaker.read_images(pictures(2), decoding)
    assert speaker.read_images(pictures(2), decoding, Request(prompt="a picture of")) != plain
    assert speaker.read_images(pictures(2), decoding) == plain  # a request leaves nothing behind


def test_sampled_texts_depend_on_the_picture_alone(folder: Path) -> None:
    speaker = blip.load(folder, LoadOptions(precision="float64"))
    decoding = Decoding(do_sample=True, num_return_sequences=2, seed=7, max_new_tokens=6)
    together = speaker.read_images(pictures(3), decoding)
    for picture, reading in zip(pictures(3), together, strict=True):
        (alone,) = speaker.read_images([picture], decoding)
        assert [c.text for c in alone.candidates] == [c.text for c in reading.candidates]


def test_look_is_attention_over_the_patches(folder: Path) -> None:
    speaker = blip.load(folder, LoadOptions(precision="float64"))
    pixels = speaker.processor.preprocess(pictures(2)).double()
    ids = [*speaker.processor.start_ids, 7, 8, 9]
    first, second = (speaker.model.look(p[None], ids) for p in pixels)
    assert first.shape == (4, 4, 4)
    assert (first >= 0).all()
    assert (first.sum((1, 2)) < 1).all()  # the class token has the rest
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first[:2], speaker.model.look(pixels[:1], ids[:2]))  # later ids change nothing
    theirs = BlipForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").double().eval()
    features = theirs.vision_model(pixels[:1]).last_hidden_state
    output = theirs.text_decoder(torch.tensor([ids]), encoder_hidden_states=features, output_attentions=True)
    mean = torch.stack(output.cross_attentions).mean((0, 2))[0]
    torch.testing.assert_close(first, mean[:, 1:].unflatten(1, (4, 4)))


@pytest.mark.parametrize(("precision", "cosine"), [("fp32", 0.999999), ("bf16", 0.999), ("int8", 0.99)])
def test_every_precision_sees_and_speaks(folder: Path, precision: str, cosine: float) -> None:
    exact = blip.load(folder, LoadOptions(precision="float64")).model
    speaker = blip.load(folder, LoadOptions(precision=precision))
    pixels = torch.randn(2, 3, 32, 32)
    features = speaker.model.encode(pixels.to(speaker.model.dtype)).double()
    assert torch.cosine_similarity(features.flatten(1), exact.encode(pixels.double()).flatten(1)).min() > cosine
    assert all(reading.candidates[0].text for reading in speaker.read_images(pictures(3), Decoding(max_new_tokens=5)))


# --- checkpoints as they come -----------------------------------------------------------------------------------------


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    blip.load(folder, LoadOptions())
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_published_extras_load(folder: Path) -> None:
    """Checkpoints on the Hub carry buffers of older versions, the tied output layer, and generation settings."""
    weights = load_file(folder / "model.safetensors")
    change(
        folder,
        **{
            "text_decoder.bert.embeddings.position_ids": torch.arange(64)[None],
            "text_decoder.cls.predictions.decoder.weight": weights[
                "text_decoder.bert.embeddings.word_embeddings.weight"
            ].clone(),
            "text_decoder.cls.predictions.decoder.bias": weights["text_decoder.cls.predictions.bias"].clone(),
        },
    )
    config = json.loads((folder / "config.json").read_text())
    config["architectures"], config["torch_dtype"] = ["BlipForConditionalGeneration"], "float32"
    config["text_config"] |= {
        "num_beams": 1,
        "max_length": 20,
        "top_k": 50,
        "bad_words_ids": None,
        "torchscript": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensor in checkpoint.read_model(Blip, folder).state_dict().items():
        if name in weights:
            assert torch.equal(tensor, weights[name])


def test_older_weights_file_loads_without_running_code(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    name = "vision_model.post_layernorm.weight"
    assert torch.equal(checkpoint.read_model(Blip, folder).state_dict()[name], weights[name])


class Code:
    """Unpickling this would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_code_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="pickled code"):
        blip.load(folder, LoadOptions())
    assert not (tmp_path / "ran").exists()


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


NORM = "vision_model.post_layernorm.weight"
BROKEN = {
    "no model.safetensors": lambda folder: (folder / "model.safetensors").unlink(),
    "damaged or cut short": cut_short,
    "1 missing .vision_model": lambda folder: change(folder, **{NORM: None}),
    "1 unknown .surplus": lambda folder: change(folder, surplus=torch.zeros(2)),
    "1 of another size .vision_model": lambda folder: change(folder, **{NORM: torch.zeros(7)}),
    "'gpt2' model, not 'blip'": lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
    "cannot be read as JSON": lambda folder: (folder / "config.json").write_text("{"),
    "cannot be loaded": lambda folder: (folder / "config.json").write_text(
        '{"model_type": "blip", "text_config": {"hidden_size": "wide"}}'
    ),
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "lacks tokenizer.json": lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.txt")],
    "lacks preprocessor_config.json": lambda folder: (folder / "preprocessor_config.json").unlink(),
}


@pytest.mark.parametrize("says", BROKEN)
def test_broken_checkpoints_are_named(folder: Path, says: str) -> None:
    BROKEN[says](folder)
    with pytest.raises(BadCheckpoint, match=says) as error:
        blip.load(folder, LoadOptions())
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


# --- LoRA adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """An adapter as `peft` saves it, far enough from zero to be seen."""
    targets = r"vision_model\..*\.(qkv|projection|fc1|fc2)|text_decoder\.bert\..*\.(query|key|value|dense)"
    model = get_peft_model(checkpoint.read_model(Blip, folder), LoraConfig(r=2, target_modules=targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@torch.inference_mode()
def test_adapter_is_merged(folder: Path, adapter: Path) -> None:
    """In float64: with weights as wide as these, float32 is up to 3e-3 off, merged or not."""
    from peft import PeftModel

    exact = LoadOptions(precision="float64")
    pixels, ids = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.randint(5, 60, (2, 5))
    base = checkpoint.read_model(Blip, folder, torch.float64)
    without = base(pixels, input_ids=ids).logits
    expected = PeftModel.from_pretrained(base, adapter).double()(pixels, input_ids=ids).logits
    merged = checkpoint.load_pretrained(Blip, adapter, exact)
    assert type(merged) is Blip
    torch.testing.assert_close(merged(pixels, input_ids=ids).logits, expected, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(without, expected, atol=1e-2)
    assert blip.load(adapter, LoadOptions()).read_images(pictures(1), Decoding(max_new_tokens=4))


def test_broken_adapters_are_named(folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    some = dict(list(weights.items())[1:])
    save_file(some, adapter / "adapter_model.safetensors")
    with pytest.raises(BadCheckpoint, match="1 missing"):
        blip.load(adapter, LoadOptions())
    save_file(
        weights | {"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 2)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(BadCheckpoint, match="1 unknown"):
        blip.load(adapter, LoadOptions())
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(BadCheckpoint, match="damaged"):
        blip.load(adapter, LoadOptions())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(BadCheckpoint, match=r"no adapter_model.safetensors"):
        blip.load(adapter, LoadOptions())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(BadCheckpoint, match="does not name its base"):
        blip.load(adapter, LoadOptions())


def test_a_folder_that_transformers_5_saved_is_read(folder: Path) -> None:
    """Its image processor is a part of processor_config.json; vocab.txt alone is BERT's tokenizer too."""
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    expected = blip.load(folder, LoadOptions()).read_images([picture], Decoding(max_new_tokens=8))
    words = BertTokenizer.from_pretrained(folder)
    images = BlipImageProcessorPil.from_pretrained(folder)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    TheirProcessor(images, words).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    assert blip.load(folder, LoadOptions()).read_images([picture], Decoding(max_new_tokens=8)) == expected
    (folder / "tokenizer.json").unlink()
    assert (folder / "vocab.txt").exists()
    assert blip.load(folder, LoadOptions()).read_images([picture], Decoding(max_new_tokens=8)) == expected
