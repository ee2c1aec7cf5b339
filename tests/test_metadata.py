"""Real pictures with the parameters that the programs write, and with hostile ones."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from captioner.errors import BadImage
from captioner.images.metadata import MAX_PROMPT, Parameters, read_parameters
from tests.test_images import chunk, png_of_size

A1111 = (
    "a castle on a hill, (sharp focus:1.2)\nNegative prompt: blurry, low quality\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: abc123, Model: dream_v5"
)
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dream.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": 42, "steps": 25, "cfg": 6.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            **{"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
        },
    },
}


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_", "-") if name == "sd_metadata" else name, text)
    into = io.BytesIO()
    Image.new("RGB", (4, 4)).save(into, "PNG", pnginfo=info)
    return into.getvalue()


def with_comment(kind: str, comment: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x9286] = comment
    into = io.BytesIO()
    Image.new("RGB", (4, 4)).save(into, kind, exif=exif)
    return into.getvalue()


CASTLE = Parameters(
    prompt="a castle on a hill, (sharp focus:1.2)",
    negative_prompt="blurry, low quality",
    tool="AUTOMATIC1111",
    model="dream_v5",
    sampler="Euler a",
    steps=20,
    seed=1234567890,
    cfg_scale=7.5,
    size="512x768",
)
FOX = Parameters("a red fox", "blurry", "ComfyUI", "dream.safetensors", "euler", 25, 42, 6.5, "640x512")


def test_a1111_png(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(parameters=A1111))
    for source in (file, str(file), file.read_bytes(), Image.open(file)):
        assert read_parameters(source) == CASTLE


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-8"])
def test_a1111_user_comment(kind: str, encoding: str) -> None:
    head = b"ASCII\0\0\0" if encoding == "utf-8" else b"UNICODE\0"
    assert read_parameters(with_comment(kind, head + A1111.encode(encoding))) == CASTLE


def test_pictures_one_after_the_other_keep_their_own() -> None:
    for number in range(20):
        text = f"picture {number}\nSteps: 20, Sampler: Euler a, Seed: {number}"
        found = read_parameters(with_comment("JPEG", b"UNICODE\0" + text.encode("utf-16-be")))
        assert (found.prompt, found.seed) == (f"picture {number}", number)
        assert read_parameters(with_comment("JPEG", b"")) is None


def test_comfyui_with_and_without_the_drawn_workflow() -> None:
    links = {"links": [[1, 2, 0, 5, 1, "CONDITIONING"]]}
    assert read_parameters(png(prompt=json.dumps(GRAPH), workflow=json.dumps(links))) == FOX
    assert read_parameters(png(prompt=json.dumps(GRAPH))) == FOX


def test_comfyui_webp() -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    into = io.BytesIO()
    Image.new("RGB", (4, 4)).save(into, "WEBP", exif=exif)
    assert read_parameters(into.getvalue()) == FOX


def test_the_other_programs() -> None:
    invoke = {
        **{"positive_prompt": "a boat", "negative_prompt": "fog", "scheduler": "ddim", "steps": 30, "seed": 7},
        **{"cfg_scale": 5, "width": 512, "height": 512, "model": {"model_name": "sd-1.5"}},
    }
    found = read_parameters(png(invokeai_metadata=json.dumps(invoke)))
    assert found == Parameters("a boat", "fog", "InvokeAI", "sd-1.5", "ddim", 30, 7, 5, "512x512")

    dream = read_parameters(png(Dream='"a boat [fog]" -s 30 -S 7 -W 512 -H 640 -C 7.5 -A k_lms'))
    assert (dream.prompt, dream.negative_prompt, dream.size, dream.sampler) == ("a boat", "fog", "512x640", "k_lms")

    novel = {"sampler": "k_euler", "seed": 9, "steps": 28, "scale": 11.0, "uc": "bad", "width": 512, "height": 768}
    texts = {"Description": "a girl", "Software": "NovelAI", "Source": "Stable Diffusion F1022D28"}
    found = read_parameters(png(**texts, Comment=json.dumps(novel)))
    assert found == Parameters("a girl", "bad", "NovelAI", "Stable Diffusion", "k_euler", 28, 9, 11.0, "512x768")

    fooocus = {
        **{"prompt": "a hut", "negative_prompt": "", "base_model": "jug", "base_model_hash": "1", "sampler": "dpmpp"},
        **{"guidance_scale": 4.0, "seed": "5", "steps": 30, "scheduler": "karras", "version": "Fooocus v2.5"},
    }
    found = read_parameters(png(parameters=json.dumps(fooocus)))
    assert (found.tool, found.prompt, found.seed, found.cfg_scale) == ("Fooocus", "a hut", 5, 4.0)


def test_as_text_and_as_dict() -> None:
    assert CASTLE.to_text() == (
        "a castle on a hill, (sharp focus:1.2)\nNegative prompt: blurry, low quality\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model: dream_v5, "
        "Tool: AUTOMATIC1111"
    )
    assert Parameters(**json.loads(json.dumps(CASTLE.to_dict()))) == CASTLE


def test_texts_after_the_pixels_are_found_without_decoding_them() -> None:
    huge = png_of_size(13_000, 13_000)  # the pixels are not there
    late = chunk(b"tEXt", b"parameters\0" + A1111.encode())
    end = huge.index(b"IEND") - 4
    assert read_parameters(huge[:end] + late + huge[end:]) == CASTLE


def test_a_picture_without_parameters_and_what_is_no_picture() -> None:
    assert read_parameters(png()) is None
    assert read_parameters(png(parameters="just words", Comment="hello", prompt="{", Dream="x")) is None
    with pytest.raises(BadImage, match="not a picture"):
        read_parameters(b"no picture")


def test_control_characters_and_length_are_tamed() -> None:
    text = "evil\x1b[31m \u202eprompt\t" + "x" * 100_000 + "\nSteps: 20, Sampler: Euler\x07 a, Seed: 1"
    exif = with_comment("WEBP", b"UNICODE\0" + text.encode("utf-16-be"))
    found = read_parameters(exif)
    assert found.prompt.startswith("evil[31m prompt xxx")
    assert len(found.prompt) <= MAX_PROMPT
    assert found.sampler == "Euler a"


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "[" * 100_000},
        {"prompt": '{"1":' * 50_000},
        {"prompt": json.dumps({str(i): {"inputs": {"model": [str(i + 1), 0]}} for i in range(3000)})},
        {"prompt": json.dumps({"1": {"inputs": {"steps": 1, "cfg": 1, "sampler_name": 1, "model": [["x"], 0]}}})},
        {"parameters": "Negative prompt: a Negative prompt: b\nSteps: 1, Sampler: x, Seed: 1"},
        {"Dream": '"a"' + " " * 300_000 + "x"},
        {"Description": "a", "Source": " " * 300_000 + "!", "Comment": '{"sampler": "x"}'},
        {"parameters": '{"prompt": {"a": 1}}'},
        {"sd_metadata": '{"image": {"sampler": 1, "prompt": [null, 1]}}'},
    ],
)
def test_hostile_texts_end_well(texts: dict[str, str]) -> None:
    found = read_parameters(png(**texts))
    assert found is None or isinstance(found.to_text(), str)


def test_fifty_megabytes_of_text_carry_nothing() -> None:
    whole = png()
    at = whole.index(b"IDAT") - 4
    bomb = chunk(b"tEXt", b"parameters\0" + b"x" * 50_000_000)
    assert read_parameters(whole[:at] + bomb + whole[at:]) is None
    squeezed = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 50_000_000, 1))
    with pytest.raises(BadImage, match="too large"):
        read_parameters(whole[:at] + squeezed + whole[at:])
