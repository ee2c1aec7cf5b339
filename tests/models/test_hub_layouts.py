"""How foreign models are saved: old and new layouts, published names, templates, and what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import is_torchvision_available

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, MissingExtra
from captioner.models import hub
from tests.models.hub import EXACT, said

IMAGES, IMAGE_FILES = "image_processor_type", ("preprocessor_config.json", "processor_config.json")


@pytest.fixture
def broken(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may break."""
    return lambda family: Path(shutil.copytree(tiny_checkpoint(family), tmp_path / family))


@pytest.mark.parametrize("family", ["internvl", "llava_onevision", "qwen2_5_vl", "smolvlm"])
def test_a_processor_in_one_file(family: str, broken: Callable[[str], Path]) -> None:
    """As `save_pretrained` of transformers 5 writes it, its video part included."""
    folder = broken(family)
    expected = said(hub.load(folder, EXACT))
    told = json.loads((folder / "processor_config.json").read_text())
    for part, file in (("image_processor", "preprocessor"), ("video_processor", "video_preprocessor")):
        told[part] = json.loads((folder / f"{file}_config.json").read_text())
        (folder / f"{file}_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(told))
    assert said(hub.load(folder, EXACT)) == expected


PUBLISHED = {
    "blip2": {"image_processor_type": "BlipImageProcessor"},
    "florence2": {"image_processor_type": "CLIPImageProcessor"},
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor"},
    "git": {"feature_extractor_type": "CLIPFeatureExtractor"},
    "internvl": {"image_processor_type": "GotOcr2ImageProcessorFast"},
    "joycaption": {"image_processor_type": "SiglipImageProcessor"},
    "llava_next": {"image_processor_type": "LlavaNextImageProcessor"},
    "llava_onevision": {"image_processor_type": "LlavaOnevisionImageProcessor"},
    "paligemma": {"image_processor_type": "SiglipImageProcessor"},
    "qwen2_vl": {"image_processor_type": "Qwen2VLImageProcessor"},
    "qwen3_vl": {"image_processor_type": "Qwen2VLImageProcessorFast"},
    "smolvlm": {"image_processor_type": "SmolVLMImageProcessor"},
}
"""How files on the Hub call what prepares the pictures."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_image_processors_under_published_names(
    family: str, broken: Callable[[str], Path], capfd: pytest.CaptureFixture
) -> None:
    """None of them is the name of a class that needs no torchvision, and yet none is needed."""
    folder = broken(family)
    expected = said(hub.load(folder, EXACT))
    file = next(file for file in map(folder.joinpath, IMAGE_FILES) if file.is_file() and IMAGES in file.read_text())
    told = json.loads(file.read_text())
    part = told.get("image_processor", told)
    del part[IMAGES]
    part.update(PUBLISHED[family])
    file.write_text(json.dumps(told))
    assert said(hub.load(folder, EXACT)) == expected
    assert "deprecated" not in capfd.readouterr().err


def test_an_image_processor_that_needs_torchvision(broken: Callable[[str], Path]) -> None:
    if is_torchvision_available():
        pytest.skip("it is there")
    folder = broken("llava")
    (folder / "config.json").write_text('{"model_type": "lfm2_vl"}')
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps({IMAGES: "Lfm2VlImageProcessorFast"}))
    with pytest.raises(MissingExtra, match="needs torchvision: `pip install torchvision`"):
        hub.load(folder, EXACT)


def test_weights_in_parts_and_in_the_old_form(broken: Callable[[str], Path]) -> None:
    folder = broken("llava")
    expected = said(hub.load(folder, EXACT))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert said(hub.load(folder, EXACT)) == expected
    for file in folder.glob("model*safetensors*"):
        file.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert said(hub.load(folder, EXACT)) == expected


def test_an_old_folder_names_its_processor_elsewhere(broken: Callable[[str], Path]) -> None:
    folder = broken("qwen2_vl")
    expected = said(hub.load(folder, EXACT))
    (folder / "processor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert said(hub.load(folder, EXACT)) == expected


def test_a_template_that_lies_with_the_tokenizer(broken: Callable[[str], Path]) -> None:
    folder = broken("smolvlm")
    expected = said(hub.load(folder, EXACT))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": template}))
    assert said(hub.load(folder, EXACT)) == expected


def test_a_template_that_expects_the_pictures_token(broken: Callable[[str], Path]) -> None:
    folder = broken("joycaption")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'].strip() }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    told = hub.load(folder, EXACT).chat.text("what?")
    assert told == "system: You are a helpful image captioner.\nuser: <|reserved_special_token_69|>\nwhat?\n"


def test_a_template_without_a_picture(broken: Callable[[str], Path]) -> None:
    folder = broken("internvl")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}: a question")
    with pytest.raises(BadCheckpoint, match="has no place for a picture"):
        hub.load(folder, EXACT)


def test_a_chat_model_without_a_template(broken: Callable[[str], Path]) -> None:
    folder = broken("qwen3_vl")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadCheckpoint, match=r"no chat template.*chat_template.jinja"):
        hub.load(folder, EXACT)


def test_the_package_that_smolvlm_needs(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(MissingExtra, match="pip install num2words"):
        hub.load(tiny_checkpoint("smolvlm"), EXACT)


def test_layouts_of_the_authors(tmp_path: Path) -> None:
    """As microsoft/Florence-2-base and OpenGVLab/InternVL3-1B are published."""
    davit = {"vision_config": {"model_type": "davit"}, "text_config": {"model_type": "florence2_language"}}
    for kind, told, remedy in (
        ("florence2", davit, "florence-community"),
        ("internvl_chat", {}, "end in -hf"),
        ("llava_llama", {}, "llava-hf has it"),
    ):
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "a.B"}} | told)
        )
        with pytest.raises(BadCheckpoint, match=remedy):
            hub.load(tmp_path, LoadOptions())


@pytest.mark.parametrize("family", ["florence2", "llava_onevision", "paligemma", "qwen3_vl", "smolvlm"])
def test_speaking_is_silent(
    family: str, tiny_checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    folder = tiny_checkpoint(family)
    capfd.readouterr()
    said(hub.load(folder, EXACT))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn if warning.category is not DeprecationWarning] == []
