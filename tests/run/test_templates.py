"""Variables in what is asked: what they stand for, and that pictures of one request are still asked together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from captioner.contracts import LoadOptions, Request
from captioner.errors import BadImage, BadInput
from captioner.images import Source
from captioner.run import templates
from captioner.run.batch import run_inputs
from captioner.run.questions import Embeddings, Model, Prompts
from captioner.sinks import open_out
from captioner.text.finish import Finish
from tests.chat_server import COLOURS, serving


def drawn(folder: Path, name: str, tags: str | None = None, prompt: str | None = None) -> Path:
    """A square of the colour that it is named after, with a sidecar and a prompt."""
    info = PngImagePlugin.PngInfo()
    if prompt is not None:
        info.add_text("parameters", f"{prompt}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8")
    Image.new("RGB", (20, 20), COLOURS[name]).save(folder / f"{name}.png", pnginfo=info)
    if tags is not None:
        (folder / f"{name}.txt").write_text(tags)
    return folder / f"{name}.png"


def filled(text: str, source: Source) -> str | None:
    request, varies = templates.parse(Request(instruction=text))
    return (templates.filled(request, source) if varies else request).instruction


def test_what_the_variables_stand_for(tmp_path):
    (tmp_path / "paintings").mkdir()
    path = drawn(tmp_path / "paintings", "red", "red, {name}", "a red square")
    source = Source("red.png", path=path)
    assert filled("{concept}", source) == "paintings"
    assert filled("{concept}", Source("x.png", path=tmp_path / "10_sks 2_dog" / "x.png")) == "sks 2_dog"
    assert filled("{name}|{folder}|{tags}|{metadata}", source) == "red|paintings|red, {name}|a red square"
    bare = Source("blue.png", path=drawn(tmp_path, "blue"))
    assert filled("<{tags}{metadata}>", bare) == "<>"
    (tmp_path / "blue.caption").write_text("from its .caption\n")
    assert filled("{tags}", bare) == "from its .caption"


def test_what_has_no_file_has_its_address_or_nothing():
    assert filled("{name}{folder}{tags}", Source("-", data=b"")) == ""
    assert filled("{name}", Source("https://host/a/my%20cat.png?size=2", data=b"")) == "my cat"


def test_braces_that_are_meant_are_written_twice(tmp_path):
    source = Source("red.png", path=drawn(tmp_path, "red"))
    assert filled("answer as {{json}}", source) == "answer as {json}"
    assert filled("{{{name}}} {{name}}", source) == "{red} {name}"


@pytest.mark.parametrize("text", ["{nam}", "{name!r}", "{name.stem}", "{0}", "{}", "{name:>9}", "{ name }"])
@pytest.mark.parametrize("field", templates.FIELDS)
def test_an_unknown_variable_is_refused_by_name(field, text):
    with pytest.raises(BadInput) as raised:
        templates.parse((Finish if field in ("prefix", "suffix") else Request)(**{field: f"of {text}"}))
    known = "{name}, {folder}, {concept}, {tags}, {metadata}"
    assert f"There is no variable {text}, only {known}." in str(raised.value)


@pytest.mark.parametrize("text", ["{name", "name}", "}{"])
def test_half_a_brace_is_refused(text):
    with pytest.raises(BadInput, match="without its other half"):
        templates.parse(Request(instruction=text))


def test_a_sidecar_that_cannot_be_read_is_told_of_its_picture(tmp_path):
    path = drawn(tmp_path, "red")
    path.with_suffix(".txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadImage, match=r"red.png: red.txt is not UTF-8"):
        filled("{tags}", Source("red.png", path=path))


def test_each_picture_is_asked_its_own_and_equal_ones_together(tmp_path):
    for name, tags in (("red", "warm"), ("green", "cold"), ("blue", "cold"), ("white", None)):
        drawn(tmp_path, name, tags)
    with serving() as server:
        model = Model(f"openai:{server.address}#no-white", LoadOptions())
        prompts = Prompts(model, Request(instruction="{tags}?"), Finish(), "ignore", 10**8)
        out = tmp_path / "out.jsonl"
        tally = run_inputs([str(tmp_path)], prompts, lambda many: open_out(out), quiet=True)
        asked = [body["messages"][0]["content"][1]["text"] for body in server.bodies]
    rows = {Path(row["file"]).stem: row["text"] for row in map(json.loads, out.read_text().splitlines())}
    assert rows == {name: f"a {name} square, oil on canvas" for name in ("blue", "green", "red")}
    assert (tally.done, tally.failed) == (3, 1)
    assert sorted(asked) == ["?", "cold?", "cold?", "warm?"]  # and none of them twice


def test_each_text_gets_its_own_words_around_it(tmp_path):
    """A model's as well as one that a picture carries; all pictures are still asked about together."""
    for folder, name, prompt in (("10_sks", "red", None), ("5_a dog", "blue", None), ("5_a dog", "green", "a meadow")):
        (tmp_path / folder).mkdir(exist_ok=True)
        drawn(tmp_path / folder, name, prompt=prompt)
    with serving() as server:
        model = Model(f"openai:{server.address}#sociable", LoadOptions())
        prompts = Prompts(model, Request(), Finish(prefix="{concept} {{x}}", suffix="8k"), "first", 10**8)
        out = tmp_path / "out.jsonl"
        run_inputs([str(tmp_path)], prompts, lambda many: open_out(out), recursive=True, quiet=True)
    rows = {Path(row["file"]).stem: row["text"] for row in map(json.loads, out.read_text().splitlines())}
    assert rows == {
        "red": "sks {x}, a red square, oil on canvas, 8k",
        "blue": "a dog {x}, a blue square, oil on canvas, 8k",
        "green": "a dog {x}, a meadow, 8k",
    }
    plain, varies = templates.parse(Finish(prefix="{{x}}"))
    assert (plain.prefix, varies) == ("{x}", False)


def test_a_model_of_ours_is_asked_too(tiny_checkpoint, tmp_path):
    for name in ("red", "blue"):
        drawn(tmp_path, name)
    rows = {}
    for prompt in ("{name}", "red", "blue"):
        model = Model(str(tiny_checkpoint("blip")), LoadOptions(precision="float64"))
        out = tmp_path / f"{prompt}.jsonl"
        embeddings = Embeddings(model, Request(prompt=prompt), 10**8)
        run_inputs([str(tmp_path)], embeddings, lambda many, out=out: open_out(out), quiet=True)
        rows[prompt] = [json.loads(line)["embedding"] for line in out.read_text().splitlines()]
    blue, red = 0, 1
    for own, alone in zip(rows["{name}"], (rows["blue"][blue], rows["red"][red]), strict=True):
        assert own == pytest.approx(alone, abs=1e-6)
    assert rows["red"] != rows["blue"]
