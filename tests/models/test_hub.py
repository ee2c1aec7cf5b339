"""Foreign models: what transformers' own `generate` says, settings, instructions, and folders that are none."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, VisionEncoderDecoderModel

from captioner import pipeline
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput
from captioner.models import hub
from captioner.models.hub import HubModel
from tests.decoders import assert_batch_equals_singles, pictures

FAMILIES = ("git", "vit_gpt2", "llava")
EXACT = LoadOptions(precision="float64")


@pytest.fixture(params=FAMILIES)
def speaker(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> HubModel:
    return hub.load(tiny_checkpoint(request.param), EXACT)


def broken(tiny_checkpoint: Callable[[str], Path], family: str, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint(family), tmp_path / family))


def said(speaker: HubModel, images: list[Image], request: Request = PLAIN_REQUEST, **decoding) -> list[str]:
    readings = speaker.read_images(images, Decoding(**{"num_beams": 1, "max_new_tokens": 8} | decoding), request)
    return [reading.candidates[0].text for reading in readings]


# --- what transformers says ------------------------------------------------------------------------------------------


def test_batch_equals_singles(speaker: HubModel) -> None:
    assert_batch_equals_singles(speaker)


def test_git_says_what_transformers_says(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("git")
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    pixels = processor(images=pictures(3), return_tensors="pt").pixel_values.double()
    found = theirs.generate(pixel_values=pixels, num_beams=3, max_new_tokens=8)
    expected = processor.batch_decode(found, skip_special_tokens=True)
    assert said(hub.load(folder, EXACT), pictures(3), num_beams=3) == expected


def test_vit_gpt2_says_what_transformers_says(tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint("vit_gpt2"), EXACT)
    theirs = VisionEncoderDecoderModel.from_pretrained(tiny_checkpoint("vit_gpt2"), dtype=torch.float64).eval()
    pixels = speaker.pixels(images=pictures(3), return_tensors="pt").pixel_values.double()
    found = theirs.generate(pixel_values=pixels, num_beams=3, max_new_tokens=8)
    expected = [text.strip() for text in speaker.tokenizer.batch_decode(found, skip_special_tokens=True)]
    assert said(speaker, pictures(3), num_beams=3) == expected


def test_chat_template_carries_the_instruction(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("llava")
    speaker = hub.load(folder, EXACT)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    text = "USER: <image> a city of glass? ASSISTANT:"
    inputs = processor(images=pictures(1), text=text, return_tensors="pt").to(torch.float64)
    found = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = processor.tokenizer.decode(found[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
    (answer,) = said(speaker, pictures(1), Request(instruction="a city of glass?"))
    assert answer == expected  # without the echo of what it was told
    assert said(speaker, pictures(1)) != [answer]


def test_git_goes_on_with_an_instruction(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("git")
    speaker = hub.load(folder, EXACT)
    (text,) = said(speaker, pictures(1), Request(instruction="a picture of"))
    assert text != said(speaker, pictures(1))[0]
    assert not text.startswith("a picture of")
    begun = speaker._inputs(pictures(1), "a picture of").input_ids[0]
    assert speaker.tokenizer.decode(begun) == "[CLS] a picture of"


# --- settings --------------------------------------------------------------------------------------------------------


def test_scores_are_log_probabilities_per_token(speaker: HubModel) -> None:
    for settings in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "seed": 1}):
        for reading in speaker.read_images(pictures(2), Decoding(max_new_tokens=6, **settings)):
            scores = [candidate.score for candidate in reading.candidates]
            assert len(scores) == settings.get("num_return_sequences", 1)
            assert scores == sorted(scores, reverse=True)
            assert all(-100 < score < 0 for score in scores)


def test_greedy_score_is_that_of_one_beam(tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint("vit_gpt2"), EXACT)
    (reading,) = speaker.read_images(pictures(1), Decoding(num_beams=1, max_new_tokens=5))
    ids = [speaker.model.generation_config.decoder_start_token_id]
    pixels = speaker.pixels(images=pictures(1), return_tensors="pt").pixel_values.double()
    total = 0.0
    for _ in range(5):
        with torch.no_grad():
            logits = speaker.model(pixel_values=pixels, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        best, token = logits.log_softmax(-1).max(-1)
        total += best.item()
        ids.append(token.item())
        if token == speaker.tokenizer.eos_token_id:
            break
    assert reading.candidates[0].score == pytest.approx(total / (len(ids) - 1))
    assert reading.candidates[0].finished == (ids[-1] == speaker.tokenizer.eos_token_id)


def test_sampling_depends_on_picture_and_seed_alone(speaker: HubModel) -> None:
    drawn = {"do_sample": True, "seed": 3, "num_return_sequences": 2}
    before = torch.get_rng_state()
    together = said(speaker, pictures(3), **drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert together == [said(speaker, [picture], **drawn)[0] for picture in pictures(3)]
    assert together != said(speaker, pictures(3), **drawn | {"seed": 4})


def test_without_a_seed_each_draw_is_another(speaker: HubModel) -> None:
    drawn = {"do_sample": True, "num_return_sequences": 2}
    assert said(speaker, pictures(1), **drawn) != said(speaker, pictures(1), **drawn)
    torch.manual_seed(5)
    once = said(speaker, pictures(2), **drawn)
    torch.manual_seed(5)
    assert said(speaker, pictures(2), **drawn) == once


def test_words_are_forbidden(tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint("git"), EXACT)
    plain = said(speaker, pictures(2))
    word = plain[0].split()[-1]
    assert word not in said(speaker, pictures(2), forbid=(word,))[0].split()


def test_settings_of_generate() -> None:
    greedy = hub.settings(Decoding(num_beams=1))
    assert not {"length_penalty", "temperature"} & greedy.keys()
    assert hub.settings(Decoding(num_beams=4, early_stopping="never"))["early_stopping"] == "never"
    drawn = hub.settings(Decoding(do_sample=True, temperature=0.7, num_return_sequences=9))
    assert (drawn["num_beams"], drawn["temperature"], drawn["num_return_sequences"]) == (1, 0.7, 9)


@pytest.fixture
def reports() -> Iterator[list[str]]:
    """What transformers would print."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    transformers.utils.logging.warning_once.cache_clear()  # another test may have heard it
    transformers.utils.logging.add_handler(handler)
    yield said
    transformers.utils.logging.remove_handler(handler)


def test_loading_and_speaking_are_silent(
    speaker: HubModel, capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder, reports: list[str]
) -> None:
    said(speaker, pictures(2), num_beams=2)
    said(speaker, pictures(1), do_sample=True)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert reports == []


def test_folders_and_hub_names_lead_here(tiny_checkpoint: Callable[[str], Path]) -> None:
    for name in (str(tiny_checkpoint("git")), f"hub:{tiny_checkpoint('git')}"):
        captioner = pipeline.load(name)
        assert isinstance(captioner.speaker, HubModel)
        assert captioner.decoding.num_beams == 1
        assert captioner.generate(pictures(1), max_new_tokens=5)[0].model == name


# --- what cannot be run ----------------------------------------------------------------------------------------------


def test_few_bits_need_a_gpu(tiny_checkpoint: Callable[[str], Path]) -> None:
    for settings, message in (
        ({"load_in": "8bit"}, "load_in 8bit needs a CUDA GPU, and this runs on cpu"),
        ({"load_in": "2bit"}, "use load_in 8bit or 4bit"),
        ({"precision": "int8"}, "no int8"),
    ):
        with pytest.raises(BadInput, match=message):
            hub.load(tiny_checkpoint("git"), LoadOptions(device="cpu", **settings))


def test_vit_gpt2_cannot_be_asked(tiny_checkpoint: Callable[[str], Path]) -> None:
    model = pipeline.load(str(tiny_checkpoint("vit_gpt2")))
    with pytest.raises(BadInput, match="has no use for instruction"):
        model.generate(pictures(1), instruction="what is it?")


def test_models_that_write_no_captions(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="holds a 'clip' model, which does not write about pictures"):
        hub.load(tiny_checkpoint("clip"), LoadOptions())
    folder = broken(tiny_checkpoint, "git", tmp_path)
    (folder / "config.json").write_text('{"model_type": "from-tomorrow"}')
    with pytest.raises(BadCheckpoint, match="transformers does not know the 'from-tomorrow' model"):
        hub.load(folder, LoadOptions())


def test_foreign_code_is_not_run_unasked(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BadCheckpoint, match=r"own code, which we do not run unasked.*set trust_remote_code"):
        hub.load(tmp_path, LoadOptions())
    assert not (tmp_path / "ran").exists()


def test_broken_folders(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = broken(tiny_checkpoint, "git", tmp_path)
    whole = load_file(folder / "model.safetensors")
    lost = next(name for name in whole if name.endswith("word_embeddings.weight"))
    save_file({k: v for k, v in whole.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match="lack 1 tensors"):
        hub.load(folder, LoadOptions())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(BadCheckpoint, match="damaged or cut short"):
        hub.load(folder, LoadOptions())
    for file in (*folder.glob("*processor*.json"), *folder.glob("*token*"), *folder.glob("vocab*")):
        file.unlink()
    with pytest.raises(BadCheckpoint, match=str(folder)):
        hub.load(folder, LoadOptions())
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="Merge it into its base"):
        hub.load(folder, LoadOptions())


def test_old_buffers_of_gpt2_do_no_harm(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = broken(tiny_checkpoint, "vit_gpt2", tmp_path)
    old = {"decoder.transformer.h.0.crossattention.masked_bias": torch.tensor(-1e4)}
    weights = load_file(folder / "model.safetensors") | old
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert said(hub.load(folder, EXACT), pictures(2)) == said(hub.load(tiny_checkpoint("vit_gpt2"), EXACT), pictures(2))
