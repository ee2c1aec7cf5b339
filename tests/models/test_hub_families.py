"""Families of the Hub that people caption with: through the real command, what the model's own `generate` says."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BatchFeature,
    GenerationMixin,
    VisionEncoderDecoderModel,
)
from typer.testing import CliRunner

from captioner import pipeline
from captioner.cli.main import app
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadInput
from captioner.models import hub
from captioner.models.hub.processors import load_processor
from captioner.models.parts.instructions import JOYCAPTION
from captioner.styles import STYLES
from tests.decoders import pictures
from tests.models.hub import EXACT, said, sizes

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


def theirs(model: GenerationMixin, tokenizer: Any, inputs: BatchFeature, **settings: int) -> str:
    """What transformers' own `generate` writes after these inputs."""
    inputs.pop("labels", None)
    goes_on = not model.config.get_text_config(decoder=True).is_encoder_decoder
    told = inputs.input_ids.shape[1] if goes_on and "input_ids" in inputs else 0
    [ids] = model.generate(**inputs.to(model.dtype), do_sample=False, **settings)[:, told:]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


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
    model, expected = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval(), []
    for number, picture in enumerate(sizes()):
        picture.save(tmp_path / f"{number}.png")
        if family in TOLD:
            inputs = processor(images=[[picture]], text=[TOLD[family]], return_tensors="pt", add_special_tokens=False)
        else:
            text = {} if PLAIN[family] is None else {"text": PLAIN[family]}
            inputs = processor(images=picture, **text, return_tensors="pt")
        expected.append(theirs(model, processor.tokenizer, inputs, num_beams=2, max_new_tokens=6))
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


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_model_can_be_copied_and_sent_after_use(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """pickle refused transformers' hooks of the one, and the other's processor without a part for videos."""
    used = hub.load(tiny_checkpoint(family), EXACT)
    before = said(used)
    for speaker in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used), used):
        assert said(speaker) == before


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


def test_an_instruction_of_paligemma_has_its_picture(tiny_checkpoint: Callable[[str], Path]) -> None:
    speaker = hub.load(tiny_checkpoint("paligemma"), EXACT)
    told = speaker._inputs(pictures(1), "answer en what is it?").input_ids[0]
    assert speaker.tokenizer.decode(told).replace("<image>", "") == "<bos>answer en what is it?\n"
    assert said(speaker, Request(instruction="describe en")) == said(speaker, Request(style="paragraph"))


def test_an_instruction_that_holds_a_pictures_token(tiny_checkpoint: Callable[[str], Path]) -> None:
    model = pipeline.load(str(tiny_checkpoint("smolvlm")))
    with pytest.raises(BadInput, match="holds <image>, which stands for the picture"):
        model.generate(pictures(1), instruction="what is <image>?")


@pytest.mark.parametrize(("family", "end"), [("smolvlm", "Assistant: a cat"), ("internvl", "assistant\na cat")])
def test_an_answer_goes_on_from_what_is_begun(family: str, end: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    model = pipeline.load(str(tiny_checkpoint(family)), precision="float64")
    begun, words = Request(prompt="a cat"), model.speaker.instructions.of_style(None)
    inputs = model.speaker._inputs(sizes()[:1], words, "a cat")
    assert model.speaker.tokenizer.decode(inputs.input_ids[0]).endswith(end)
    texts = said(model.speaker, begun)
    assert texts[0] == theirs(model.speaker.model, model.speaker.tokenizer, inputs, max_new_tokens=6)
    assert texts != said(model.speaker)
    for image, text in zip(sizes(), texts, strict=True):
        assert model.generate(image, begun.changed(num_beams=1, max_new_tokens=6)).raw == text
    with pytest.raises(BadInput, match=r"^The prompt holds <"):
        model.generate(pictures(1), prompt=f"a {model.speaker.chat.picture}")
    with pytest.raises(BadInput, match="has no use for prompt"):
        pipeline.load(str(tiny_checkpoint("florence2"))).generate(pictures(1), prompt="a cat")


def test_vit_gpt2(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_checkpoint("vit_gpt2")
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float64).eval()
    pixels, tokenizer = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    expected = []
    for number, picture in enumerate(sizes()):
        picture.save(tmp_path / f"{number}.png")
        inputs = pixels(images=[picture], return_tensors="pt").to(torch.float64)
        ids = model.generate(**inputs, num_beams=2, max_new_tokens=6)
        expected += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    words = ("--model", folder, "--precision", "float64", "--num-beams", 2, "--max-new-tokens", 6, "--json", "--quiet")
    assert [row["raw"] for row in command("generate", tmp_path, *words)] == expected


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
    with pytest.raises(BadInput, match="Use precision fp32"):
        hub.load(tiny_checkpoint("kosmos2"), EXACT)
