"""Real pictures with the parameters that the programs write, and with hostile ones."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from captioner.errors import BadImage
from captioner.images import comfyui
from captioner.images.metadata import MAX_PROMPT, Parameters, read_parameters, read_texts
from tests.images.test_images import chunk, png_of_size

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
    model_hash="abc123",
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
    assert found == Parameters(
        "a girl", "bad", "NovelAI", "Stable Diffusion", "k_euler", 28, 9, 11.0, "512x768", "F1022D28"
    )

    fooocus = {
        **{"prompt": "a hut", "negative_prompt": "", "base_model": "jug", "base_model_hash": "1", "sampler": "dpmpp"},
        **{"guidance_scale": 4.0, "seed": "5", "steps": 30, "scheduler": "karras", "version": "Fooocus v2.5"},
    }
    found = read_parameters(png(parameters=json.dumps(fooocus)))
    assert (found.tool, found.prompt, found.seed, found.cfg_scale) == ("Fooocus", "a hut", 5, 4.0)


def test_as_text_and_as_dict() -> None:
    assert CASTLE.to_text() == (
        "a castle on a hill, (sharp focus:1.2)\nNegative prompt: blurry, low quality\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: abc123, "
        "Model: dream_v5, Tool: AUTOMATIC1111"
    )
    assert Parameters(**json.loads(json.dumps(CASTLE.to_dict()))) == CASTLE
    assert replace(CASTLE, prompt="").to_text().startswith("Negative prompt: blurry")


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


def test_model_hash_clip_skip_and_loras() -> None:
    text = "a cat <lora:fur:0.8> <lora:eyes>\nSteps: 20, Sampler: Euler a, Seed: 1, Clip skip: 2, Model hash: abcd"
    found = read_parameters(png(parameters=text))
    assert (found.model, found.model_hash, found.clip_skip, found.loras) == (None, "abcd", 2, "fur:0.8, eyes:1")
    assert found.to_text().endswith("Model hash: abcd, Clip skip: 2, LoRAs: fur:0.8, eyes:1, Tool: AUTOMATIC1111")

    lora = {"class_type": "LoraLoader", "inputs": {"lora_name": "fur", "strength_model": 0.8, "model": ["1", 0]}}
    sampler = {**GRAPH["5"], "inputs": {**GRAPH["5"]["inputs"], "model": ["6", 0]}}
    found = read_parameters(png(prompt=json.dumps({**GRAPH, "5": sampler, "6": lora})))
    assert found == replace(FOX, loras="fur:0.8")

    invoke = {
        **{"positive_prompt": "a boat", "negative_prompt": "fog", "scheduler": "ddim", "steps": 30, "seed": 7},
        **{"cfg_scale": 5, "model": {"model_name": "sd"}, "clip_skip": 1},
        "loras": [{"model": {"name": "fur"}, "weight": 0.75}, {"lora": {"model_name": "eyes"}, "weight": 1}],
    }
    found = read_parameters(png(invokeai_metadata=json.dumps(invoke)))
    assert (found.loras, found.clip_skip) == ("fur:0.75, eyes:1", 1)


def test_a_prompt_that_fooocus_wrote_as_a_list_is_text() -> None:
    fooocus = {
        **{"prompt": "a goldfish", "negative_prompt": "", "full_prompt": ["cinematic still a goldfish", "film grain"]},
        **{"base_model": "jug", "base_model_hash": "1", "sampler": "dpmpp", "guidance_scale": 4.0, "seed": "5"},
        **{"steps": 30, "scheduler": "karras", "version": "Fooocus v2.5", "loras": [["fur", 0.1], ["odd"]]},
    }
    found = read_parameters(png(parameters=json.dumps(fooocus)))
    assert (found.prompt, found.loras) == ("cinematic still a goldfish, film grain", "fur:0.1")


# --- ComfyUI's graphs ------------------------------------------------------------------------------------------------


def random_graph(random: np.random.Generator) -> dict:
    """Nodes of all kinds, linked at random, in circles too."""
    count = int(random.integers(2, 14))
    graph = {}
    for number in range(count):
        kind = random.choice(["KSampler", "CLIPTextEncode", "ConditioningCombine", "CheckpointLoaderSimple", "Other"])
        inputs = {
            name: [str(random.integers(0, count + 1)), 0]
            for name in (*random.permutation(["model", "positive", "negative", "conditioning_1", "samples"]), "clip")
            if random.random() < 0.5
        }
        if kind == "KSampler":
            inputs |= {"sampler_name": f"sampler {number}", "steps": 5, "cfg": 6.5, "seed": number}
        if kind == "CLIPTextEncode":
            inputs["text"] = f"text {number}"
        if kind == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = f"model {number}"
        graph[str(number)] = {"class_type": str(kind), "inputs": inputs}
    return graph


def test_graphs_say_the_same_as_to_sd_parsers() -> None:
    from sd_parsers.parsers import ComfyUIParser

    random = np.random.default_rng(0)
    compared = 0
    for _ in range(300):
        graph = random_graph(random)
        links = [
            [0, *value, target, 0, name.upper()]
            for target, node in graph.items()
            for name, value in node["inputs"].items()
            if isinstance(value, list)
        ]
        theirs = ComfyUIParser().parse({"prompt": graph, "workflow": {"links": links}})
        ours = comfyui.read(graph)
        if not theirs.samplers:
            assert ours is None
            continue
        compared += 1
        assert ours.prompts == list(dict.fromkeys(map(str, theirs.prompts)))
        assert ours.negative_prompts == list(dict.fromkeys(map(str, theirs.negative_prompts)))
        assert ours.sampler == theirs.samplers[0].name
        assert ours.settings["seed"] == theirs.samplers[0].parameters["seed"]
    assert compared > 100


def test_seed_size_and_texts_may_stand_in_nodes_of_their_own() -> None:
    graph = {
        "1": {"inputs": {"width": 512, "height": 320}},
        "2": {"inputs": {"positive": ["3", 0], "negative": ["4", 0]}},
        "3": {"inputs": {"text_g": " a fox ", "text_l": "a fox"}},
        "4": {"inputs": {"text": "blurry"}},
        "5": {"inputs": {"seed": 77, "steps": 1}},
        "6": {"inputs": {"steps": 30, "scheduler": "unipc", "seed": ["5", 0], "text_embeds": ["2", 0]}},
    }
    graph["6"]["class_type"] = "WanVideoSampler"
    settings = {"steps": 30, "scheduler": "unipc", "seed": 77, "width": 512, "height": 320}
    assert comfyui.read(graph) == comfyui.Drawing(["a fox"], ["blurry"], sampler="unipc", settings=settings)

    upscaled = {"inputs": {"samples": ["4", 0], "scale_by": 1.5}}
    sampler = {**GRAPH["5"], "inputs": {**GRAPH["5"]["inputs"], "latent_image": ["6", 0]}}
    later = {"inputs": {"width": 2048, "height": 2048}}
    found = read_parameters(png(prompt=json.dumps({**GRAPH, "5": sampler, "6": upscaled, "7": later})))
    assert found == FOX


def dense_graph(count: int) -> dict:
    """Samplers, each linked to the one before under every name."""
    settings = {"sampler_name": "euler", "steps": 5, "cfg": 7, "seed": 1}
    names = ("model", "positive", "negative", "latent_image")
    graph = {
        str(n): {"class_type": "KSampler", "inputs": settings | {name: [str(n - 1), 0] for name in names}}
        for n in range(count)
    }
    graph["0"]["inputs"] |= {"positive": ["text", 0], "negative": ["text", 0], "model": ["text", 0]}
    return graph | {"text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}}}


class Counting(dict):
    """Inputs that count how often they are looked at."""

    looks = 0

    def items(self):
        Counting.looks += 1
        return super().items()

    def values(self):
        Counting.looks += 1
        return super().values()


def test_every_node_of_a_dense_graph_is_walked_through_a_few_times_only() -> None:
    graph = dense_graph(2000)
    for node in graph.values():
        node["inputs"] = Counting(node["inputs"])
    assert comfyui.read(graph).prompts == ["a fox"]
    assert Counting.looks <= 10 * len(graph)
    found = read_parameters(png(prompt=json.dumps(dense_graph(10_000))))
    assert (found.prompt, found.negative_prompt, found.sampler) == ("a fox", "a fox", "euler")


def test_a_tiff_with_a_tag_of_the_wrong_length_carries_what_else_it_holds() -> None:
    exif, into = Image.Exif(), io.BytesIO()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    Image.new("L", (8, 8)).save(into, "TIFF", exif=exif)
    data = bytearray(into.getvalue())
    (start,) = struct.unpack("<I", data[4:8])
    at = data.find(struct.pack("<H", 262), start)
    data[at + 2 : at + 8] = struct.pack("<HI", 3, 2)
    assert read_parameters(bytes(data)) == FOX


def test_messages_name_the_picture() -> None:
    with pytest.raises(BadImage, match=r"^http://host/a\.png is empty"):
        read_parameters(b"", "http://host/a.png")


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "Hashes:{" * 100_000},
        {"parameters": "a\n" + "Steps: 1, Sampler: x, Seed: 1, Hashes:{" * 1000},
        {
            "prompt": json.dumps(
                {"1": {"inputs": {"sampler_name": [1, 2], "steps": {}, "cfg": [], "positive": [[], 0]}}}
            )
        },
        {"prompt": json.dumps({"1": {"inputs": {"sampler_name": "", "steps": 1, "cfg": 1, "width": [1], "seed": {}}}})},
        {"prompt": json.dumps({"1": 5, "2": {"inputs": 5}, "3": {"class_type": [], "inputs": {}}})},
        {"prompt": "[" * 100_000},
        {"prompt": '{"1":' * 50_000},
        {"prompt": json.dumps({str(i): {"inputs": {"model": [str(i + 1), 0]}} for i in range(3000)})},
        {"prompt": json.dumps({**dense_graph(3), "0": {"inputs": {"sampler_name": "x", "steps": "1", "cfg": "y"}}})},
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


def test_texts_are_told_as_they_were_written() -> None:
    assert read_texts(png(parameters=A1111, Software="us")) == {"parameters": A1111, "Software": "us"}
    comment = with_comment("JPEG", b"UNICODE\0" + A1111.encode("utf-16-be") + b"\xd8\x00\xd8\x01")
    assert read_texts(comment)["parameters"].startswith(A1111)
    read_texts(comment)["parameters"].encode()  # half a surrogate pair would not be sent
    assert read_texts(png()) == {}
    with pytest.raises(BadImage, match="the data is empty"):
        read_texts(b"")
