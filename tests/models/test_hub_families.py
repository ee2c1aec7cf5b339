"""Families of the Hub that people caption with: through the real command, what the model's own `generate` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BatchFeature
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

from captioner import pipeline
from captioner.cli.main import app
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, MissingExtra
from captioner.models import hub
from captioner.models.parts.instructions import JOYCAPTION
from captioner.models.parts.processors import load_processor
from captioner.styles import STYLES
from tests.decoders import pictures

PROMPT = STYLES["prompt"].instruction
QWEN = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
LLAMA_TURN = "<|start_header_id|>{}<|end_header_id|>\n\n"
TOLD = {
    "gemma3": f"<bos><start_of_turn>user\n<start_of_image>{PROMPT}<end_of_turn>\n<start_of_turn>model\n",
    "idefics3": f"<|im_start|>User:<image>{PROMPT}<end_of_utterance>\nAssistant:",
    "internvl": f"<|im_start|>user\n<IMG_CONTEXT>\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
    "joycaption": "<|begin_of_text|>" + LLAMA_TURN.format("system") + "You are a helpful image captioner.<|eot_id|>"
    f"{LLAMA_TURN.format('user')}<|reserved_special_token_70|><|reserved_special_token_69|><|reserved_special_token_71|>"
    f"{JOYCAPTION.styles['prompt']}<|eot_id|>{LLAMA_TURN.format('assistant')}",
    "llava": f"USER: <image> {PROMPT} ASSISTANT:",
    "llava_next": f"[INST] <image>\n{PROMPT} [/INST]",
    "llava_onevision": f"<|im_start|>user <image>\n{PROMPT}<|im_end|><|im_start|>assistant\n",
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "smolvlm": f"<|im_start|>User:<image>{PROMPT}<end_of_utterance>\nAssistant:",
}
"""What each family that chats is told by default, in the form it was trained on."""
PLAIN = {
    "blip2": None,
    "blip2_t5": None,
    "florence2": "<MORE_DETAILED_CAPTION>",
    "git": None,
    "instructblip": "Write a short description for the image.",
    "kosmos2": "An image of",
    "paligemma": "<image>caption en",
}
"""What the others are told; None: the picture alone."""
IMAGES, IMAGE_FILES = "image_processor_type", ("preprocessor_config.json", "processor_config.json")
EXACT = LoadOptions(precision="float64")


def sizes() -> list:
    """Pictures that some families read in different numbers of pieces."""
    return [*pictures(2), pictures(1, 5)[0].resize((150, 50)), pictures(1, 7)[0].resize((40, 130))]


def theirs(folder: Path, inputs: BatchFeature, dtype: torch.dtype = torch.float64, **settings: int) -> list[str]:
    """What transformers' own `generate` writes after these inputs."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    inputs.pop("labels", None)
    goes_on = not model.config.get_text_config(decoder=True).is_encoder_decoder
    told = inputs.input_ids.shape[1] if goes_on and "input_ids" in inputs else 0
    ids = model.generate(**inputs.to(dtype), do_sample=False, **settings)[:, told:]
    tokenizer = load_processor(folder, model.config, {"local_files_only": True}).tokenizer
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def command(*words: object) -> list[dict]:
    """The rows that the real command prints."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("family", [*TOLD, *PLAIN])
def test_the_command_says_what_generate_says(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(family)
    processor = load_processor(folder, AutoConfig.from_pretrained(folder), {"local_files_only": True})
    dtype, precision = (torch.float32, "fp32") if family == "kosmos2" else (torch.float64, "float64")
    expected = []
    for number, picture in enumerate(sizes()):
        picture.save(tmp_path / f"{number}.png")
        if family in TOLD:
            inputs = processor(images=[[picture]], text=[TOLD[family]], return_tensors="pt", add_special_tokens=False)
        else:
            text = {} if PLAIN[family] is None else {"text": PLAIN[family]}
            inputs = processor(images=picture, **text, return_tensors="pt")
        expected += theirs(folder, inputs, dtype, num_beams=2, max_new_tokens=6)
    words = ("--model", folder, "--precision", precision, "--num-beams", 2, "--max-new-tokens", 6, "--json", "--quiet")
    assert [row["raw"] for row in command("generate", tmp_path, *words)] == expected  # in one batch, of several sizes
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", [*TOLD, *PLAIN])
def test_batches_of_mixed_sizes_equal_singles(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint(family), LoadOptions(precision="fp32") if family == "kosmos2" else EXACT)
    for beams in (1, 3):
        decoding = Decoding(num_beams=beams, max_new_tokens=6)
        at_once = [reading.candidates[0] for reading in speaker.read_images(sizes(), decoding)]
        alone = [speaker.read_images([picture], decoding)[0].candidates[0] for picture in sizes()]
        assert [candidate.text for candidate in at_once] == [candidate.text for candidate in alone]
        assert [c.score for c in at_once] == pytest.approx([c.score for c in alone], abs=1e-6)


# --- how processors are saved ----------------------------------------------------------------------------------------


@pytest.fixture
def broken(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may break."""
    return lambda family: Path(shutil.copytree(tiny_checkpoint(family), tmp_path / family))


def said(speaker: hub.HubModel, request: Request = PLAIN_REQUEST) -> list[str]:
    readings = speaker.read_images(sizes(), Decoding(num_beams=1, max_new_tokens=6), request)
    return [reading.candidates[0].text for reading in readings]


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


# --- styles ----------------------------------------------------------------------------------------------------------


def test_a_style_words_the_instruction_and_the_length(tiny_checkpoint: Callable[[str], Path]) -> None:
    captioner = pipeline.load(str(tiny_checkpoint("smolvlm")), precision="float64")
    assert captioner.settings(PLAIN_REQUEST).max_new_tokens == STYLES["prompt"].max_new_tokens
    for name, style in STYLES.items():
        assert captioner.settings(Request(style=name)).max_new_tokens == style.max_new_tokens
        asked = Request(instruction=style.instruction)
        assert said(captioner.speaker, Request(style=name)) == said(captioner.speaker, asked)
    shorter = Request(style="paragraph").changed(max_new_tokens=9)
    assert captioner.settings(shorter).max_new_tokens == 9


def test_a_style_in_the_words_of_joycaption(tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint("joycaption"), EXACT)
    asked = Request(instruction="Write a list of Booru-like tags for this image.")
    assert said(speaker, Request(style="tags")) == said(speaker, asked) != said(speaker)


def test_styles_of_models_that_cannot_be_asked(tiny_checkpoint: Callable[[str], Path]) -> None:
    for family in ("git", "vit_gpt2", "blip"):
        model = pipeline.load(str(tiny_checkpoint(family)))
        with pytest.raises(BadInput, match="has no use for style"):
            model.generate(pictures(1), style="tags")


def test_a_style_is_one_of_four_and_no_instruction_beside_it() -> None:
    with pytest.raises(BadInput, match="use one of prompt, tags, sentence, paragraph"):
        Request(style="haiku")
    with pytest.raises(BadInput, match="give one of the two"):
        Request(style="tags", instruction="what is it?")


def test_the_style_of_the_command(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "one.png")
    words = ("generate", tmp_path / "one.png", "--model", tiny_checkpoint("llava"), "--max-new-tokens", 6, "--json")
    texts = {command(*words, "--style", style)[0]["raw"] for style in STYLES}
    assert len(texts) > 1


# --- how the authors search ------------------------------------------------------------------------------------------


def test_settings_of_its_generation_config(tiny_checkpoint: Callable[[str], Path]) -> None:
    own = pipeline.load(str(tiny_checkpoint("florence2"))).decoding
    assert (own.num_beams, own.no_repeat_ngram_size, own.max_new_tokens) == (3, 3, 300)
    assert pipeline.load(str(tiny_checkpoint("llava"))).decoding.num_beams == 1


def test_an_end_that_is_forced_at_the_limit_is_none(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Florence-2 writes its end as the last token that it may write; the text is cut short all the same."""
    speaker = hub.load(tiny_checkpoint("florence2"), EXACT)
    (cut,) = speaker.read_images(pictures(1), Decoding(num_beams=1, max_new_tokens=4))
    assert not cut.candidates[0].finished


def test_tasks_of_florence(tiny_checkpoint: Callable[[str], Path]) -> None:
    captioner = pipeline.load(str(tiny_checkpoint("florence2")), precision="float64")
    assert said(captioner.speaker) == said(captioner.speaker, Request(instruction="<MORE_DETAILED_CAPTION>"))
    assert said(captioner.speaker) != said(captioner.speaker, Request(style="sentence"))
    with pytest.raises(BadInput, match="writes sentence or paragraph, not tags"):
        captioner.generate(pictures(1), style="tags")


def test_kosmos_has_no_float64(tiny_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(BadInput, match="Use --precision fp32"):
        hub.load(tiny_checkpoint("kosmos2"), EXACT)
