"""Booru taggers: what is written of a picture, and what is wrong with a checkpoint or a setting."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

import captioner
from captioner import zoo
from captioner.cli.main import app
from captioner.contracts import Request
from captioner.errors import BadCheckpoint, BadInput, CaptionerError
from captioner.files import hub
from captioner.models.tagger import Tag
from captioner.pipeline import check
from captioner.text.clean import clean
from captioner.text.finish import Finish
from tests.tiny import tagger as tiny

FACES = [
    *("0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3"),
    *("6_9", ">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"),
]
"""What other programs list as tags whose underscore is no space."""


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("tagger")


@pytest.fixture(scope="module")
def tagger(folder: Path) -> captioner.pipeline.Captioner:
    return captioner.load(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "tagger"))


def picture(seed: int, size: tuple[int, int] = (tiny.SIDE, tiny.SIDE), mode: str = "RGB") -> Image.Image:
    """Coarse random colours."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    return Image.fromarray(colours, mode).resize(size, Image.Resampling.NEAREST)


def probabilities(image: Image.Image) -> dict[str, float]:
    """By hand: laid on white, padded to a square, resized, blue first."""
    rgb = np.asarray(image.convert("RGBA"), np.float64)
    alpha = rgb[..., 3:] / 255
    rgb = np.rint(rgb[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    height, width = rgb.shape[:2]
    longest = max(height, width)
    square = np.full((longest, longest, 3), 255, np.uint8)
    top, left = (longest - height) // 2, (longest - width) // 2
    square[top : top + height, left : left + width] = rgb
    small = Image.fromarray(square).resize((tiny.SIDE, tiny.SIDE), Image.Resampling.BICUBIC)
    bgr = np.stack([np.asarray(small, np.float64)[..., channel] for channel in (2, 1, 0)], -1)
    logits = (bgr / 127.5 - 1).reshape(-1) @ tiny.layer().astype(np.float64)
    return dict(zip(tiny.TAGS, 1 / (1 + np.exp(-logits)), strict=True))


def tags(image: Image.Image, general: float = 0.35, character: float = 0.85) -> tuple[str, float]:
    """The text by hand, and the mean probability of its tags."""
    likely = sorted(probabilities(image).items(), key=lambda tag: -tag[1])
    first = [tag for tag in likely if tag[0] in tiny.CHARACTERS and tag[1] >= character]
    chosen = [*first, *(tag for tag in likely if tag[0] in tiny.GENERAL and tag[1] >= general)]
    names = [name if name in FACES else name.replace("_", " ") for name, _ in chosen]
    return ", ".join(names), float(np.mean([probability for _, probability in chosen]))


@pytest.mark.parametrize(
    ("size", "mode"),
    [((16, 16), "RGB"), ((16, 16), "RGBA"), ((40, 23), "RGB"), ((9, 30), "RGBA"), ((16, 7), "RGB"), ((3, 2), "RGB")],
)
def test_the_tags_of_a_picture_are_those_computed_by_hand(
    tagger: captioner.pipeline.Captioner, size: tuple[int, int], mode: str
) -> None:
    images = [picture(seed, size, mode) for seed in range(6)]
    assert len({tags(image)[0] for image in images}) > 3
    for image, prompt in zip(images, tagger.generate(images), strict=True):
        text, mean = tags(image)
        assert prompt.text == prompt.raw == text
        assert math.exp(prompt.score) == pytest.approx(mean, abs=1e-4)
        assert (prompt.precision, prompt.source) == ("fp32", "model")


def test_blue_comes_first(tagger: captioner.pipeline.Captioner) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    assert tags(red)[0] != tags(blue)[0]
    assert [prompt.text for prompt in tagger.generate([red, blue])] == [tags(red)[0], tags(blue)[0]]


def test_a_long_strip_is_read_without_the_square_around_it(tagger: captioner.pipeline.Captioner) -> None:
    """It would take 4 GB."""
    strip = Image.new("RGB", (36_000, 60), "navy")
    assert tagger.speaker.ready(strip).size == (16, 16)
    assert tagger.generate(strip).text


def test_thresholds(tagger: captioner.pipeline.Captioner) -> None:
    image = picture(0)
    seen = set()
    for general, character in [(0.1, 0.85), (0.9, 0.85), (0.35, 0.05), (0.9, 1), (0, 0)]:
        text = tagger.generate(image, threshold=general, character_threshold=character).text
        assert text == tags(image, general, character)[0]
        seen.add(text)
    assert len(seen) == 5
    assert not any(rating in text.split(", ") for rating in tiny.RATINGS for text in seen)


def test_the_likeliest_rating_stands_where_it_is_wanted(tagger: captioner.pipeline.Captioner) -> None:
    for seed in range(4):
        expected = probabilities(picture(seed))
        rating = max(tiny.RATINGS, key=lambda name: expected[name])
        plain = tagger.generate(picture(seed))
        first, last = (tagger.generate(picture(seed), rating=place) for place in ("first", "last"))
        assert (first.text, last.text) == (f"{rating}, {plain.text}", f"{plain.text}, {rating}")
        assert first.score == last.score == plain.score
        assert tagger.generate(picture(seed), rating="first", forbid=(rating,)).text == plain.text
    assert tagger.generate(picture(0), rating="last", threshold=1.0, character_threshold=1.0).text in tiny.RATINGS
    with pytest.raises(BadInput, match=r"^A rating stands first or last, not 'on top'\.$"):
        Request(rating="on top")


def test_where_no_tag_is_likely_enough_the_text_is_empty(tagger: captioner.pipeline.Captioner) -> None:
    image = picture(1)
    prompt = tagger.generate(image, threshold=1.0, character_threshold=1.0)
    likeliest = max(p for name, p in probabilities(image).items() if name not in tiny.RATINGS)
    assert prompt.text == ""
    assert math.exp(prompt.score) == pytest.approx(1 - likeliest, abs=1e-4)


@pytest.mark.parametrize("name", ["threshold", "character_threshold"])
def test_what_is_no_threshold(name: str) -> None:
    for value in (-0.1, 1.5, math.nan, True, "0.3"):
        with pytest.raises(BadInput, match=rf"^{name} must be a number from 0 to 1, not"):
            Request(**{name: value})


def test_faces_keep_their_underscore() -> None:
    assert [Tag(name, "0").text for name in FACES] == FACES
    words = ["hair_between_eyes", "1girl", "fate/stay_night_(style)", "k-on!", "x_hair", "2b_(nier)", "a_b_c"]
    assert [Tag(name, "0").text for name in words] == [name.replace("_", " ") for name in words]


def test_every_tag_stays_as_it_is(tagger: captioner.pipeline.Captioner) -> None:
    text = tagger.generate(picture(2), threshold=0, character_threshold=0).text
    assert len(text.split(", ")) == len(tiny.GENERAL) + len(tiny.CHARACTERS)
    assert clean(text) == text


def test_a_tagger_can_be_copied_and_sent(tagger: captioner.pipeline.Captioner) -> None:
    for again in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
        assert again.generate(picture(0), threshold=0).text == tagger.generate(picture(0), threshold=0).text


def test_what_is_done_to_the_text(tagger: captioner.pipeline.Captioner) -> None:
    image, everything = picture(3), {"threshold": 0, "character_threshold": 0}
    text = tagger.generate(image, **everything).text
    finish = Finish(prefix="sks style", require=("masterpiece",), forbid=("girls",))
    expected = text.replace("6+girls, ", "").replace(", 6+girls", "")
    assert tagger.generate(image, finish=finish, **everything).text == f"sks style, {expected}, masterpiece"
    short = tagger.generate(image, finish=Finish(max_clip_tokens=20), **everything).text
    assert short
    assert text.startswith(short + ", ")


def test_a_forbidden_tag_counts_for_nothing(tagger: captioner.pipeline.Captioner) -> None:
    """Not even the first, of which another text would lose the word alone."""
    image = picture(4)
    names = tags(image)[0].split(", ")
    prompt = tagger.generate(image, forbid=(names[0].split(" ")[-1],))
    assert prompt.text.split(", ") == names[1:]


def test_a_graph_that_reads_so_many_at_once(copied: Path) -> None:
    images = [picture(seed) for seed in range(5)]
    for batch in (1, 3):
        (copied / "model.onnx").write_bytes(tiny.graph(batch).SerializeToString())
        prompts = captioner.load(copied).generate(images, batch_size=4)
        assert [prompt.text for prompt in prompts] == [tags(image)[0] for image in images]


# --- what it has no use for -------------------------------------------------------------------------------------------


def test_settings_of_other_models_are_refused(tagger: captioner.pipeline.Captioner, folder: Path) -> None:
    assert tagger.decoding is None
    for name, value in {"num_beams": 2, "max_new_tokens": 9, "do_sample": True, "question": "what?"}.items():
        for ask in (lambda asked: tagger.generate(picture(0), **asked), lambda asked: _checked(folder, **asked)):
            with pytest.raises(BadInput, match=f"has no use for {name}.*: leave it out, or name another model"):
                ask({name: value})
    with pytest.raises(BadInput, match=r"gives one candidate\. Leave it out"):
        tagger.embed(picture(0), expected=True)
    with pytest.raises(BadInput, match="computes in fp32: leave precision out"):
        captioner.load(folder, precision="bf16")
    with pytest.raises(BadInput, match="mini has no use for threshold"):
        captioner.load("mini").generate(picture(0), threshold=0.5)


def _checked(folder: Path, **asked: object) -> None:
    check(str(folder), captioner.LoadOptions(), Request().changed(**asked), speaks=True)


# --- checkpoints of others --------------------------------------------------------------------------------------------


def refused(folder: Path) -> str:
    with pytest.raises(CaptionerError) as told:
        captioner.load(folder).generate(picture(0))
    assert isinstance(told.value, BadCheckpoint)
    assert "\n" not in str(told.value)
    return str(told.value)


def rewritten(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    file = folder / "selected_tags.csv"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "gives 28 numbers a picture, and selected_tags.csv names 27 tags"),
        (lambda rows: [*rows, "99,one_more,0,1"], "gives 28 numbers a picture, and selected_tags.csv names 29 tags"),
        (lambda rows: ["id,tag,kind,n", *rows[1:]], "is no list of tags .a row lacks its tag"),
        (lambda rows: [*rows[:-1], "99,short"], "is no list of tags .a row lacks its tag"),
        (lambda rows: [*rows[:-1], '99,"open,0,1'], "is no list of tags .unexpected end of data"),
        (lambda rows: rows[:1], "names no tag"),
        (lambda rows: rows[:5], "names no tag"),
    ],
)
def test_lists_that_are_none(copied: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    rewritten(copied, change)
    with pytest.raises(BadCheckpoint, match=message):
        captioner.load(copied)


def test_a_list_that_is_no_text(copied: Path) -> None:
    (copied / "selected_tags.csv").write_bytes(b"tag_id,name\xff\xfe")
    assert "is no list of tags ('utf-8' codec can't decode" in refused(copied)


@pytest.mark.parametrize("content", [b"hello" * 20, b"", b"<html>not found</html>"])
def test_a_graph_that_is_none(copied: Path, content: bytes, capfd: pytest.CaptureFixture) -> None:
    (copied / "model.onnx").write_bytes(content)
    assert "model.onnx is no graph that can be run" in refused(copied)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 12, 3), ("h", "w", 3), (5000, 5000, 3), (16, 3)])
def test_a_graph_of_other_pictures(copied: Path, shape: tuple[int | str, ...]) -> None:
    (copied / "model.onnx").write_bytes(tiny.graph("n", shape).SerializeToString())
    assert "not pictures [n, side, side, 3]" in refused(copied)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="onnxruntime 1.23 reads any file that a graph names")
@pytest.mark.parametrize("name", ["../weights.bin", "{}/weights.bin", "link.bin"])
def test_a_graph_reads_no_file_outside_its_folder(copied: Path, name: str) -> None:
    location = name.format(copied.parent)
    (copied / "link.bin").symlink_to("../weights.bin")
    model = tiny.graph()
    [weights] = [tensor for tensor in model.graph.initializer if tensor.name == "layer"]
    (copied.parent / "weights.bin").write_bytes(weights.raw_data)
    length = len(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(length)}.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    assert "model.onnx is no graph that can be run" in refused(copied)


def test_a_graph_that_gives_something_else(copied: Path) -> None:
    model = tiny.graph()
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Unsqueeze", ["logits", "last"], ["output"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    assert "not probabilities [n, tags]" in refused(copied)

    model = tiny.graph()  # one row, however many pictures
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("ReduceMax", ["logits"], ["output"], axes=[0], keepdims=1))
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadCheckpoint, match=r"gives no number for each picture and tag .*1, 28"):
        captioner.load(copied).generate([picture(0), picture(1)])


def test_outputs_that_are_no_probabilities(copied: Path) -> None:
    model = tiny.graph()
    model.graph.node[-1].op_type = "Sqrt"  # of what may be below 0
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    prompt = captioner.load(copied).generate(picture(0))
    assert prompt.text
    assert 0 <= math.exp(prompt.score) <= 1


# --- where it is found ------------------------------------------------------------------------------------------------


def test_the_cache_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--SmilingWolf--wd-swinv2-tagger-v3"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    (repository / "blobs").mkdir()
    for number, name in enumerate(("model.onnx", "selected_tags.csv")):
        assert hub.cached_folder("SmilingWolf/wd-swinv2-tagger-v3") is None
        shutil.copy(folder / name, repository / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    for name in ("wd-tagger", "SmilingWolf/wd-swinv2-tagger-v3", "hub:SmilingWolf/wd-swinv2-tagger-v3"):
        assert zoo.resolve(name) == zoo.Resolved(name, "tagger", snapshot)
        assert captioner.load(name).generate(picture(0)).text == tags(picture(0))[0]
    assert zoo.resolve("wd-tagger").bytes_of_weights == (folder / "model.onnx").stat().st_size
    [row] = [row for row in zoo.listing() if row.name == "wd-tagger"]
    assert row.where == str(snapshot)
    (snapshot / "model.onnx").unlink()  # as timm's weights alone would lie there
    (snapshot / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"has no model.onnx\. Fetch .*: hf download ORG/NAME model.onnx selected"):
        captioner.load("wd-tagger")


# --- the command line -------------------------------------------------------------------------------------------------


def called(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--quiet"])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    inside = tmp_path / "dataset" / "10_sks"
    inside.mkdir(parents=True)
    for seed in range(3):
        picture(seed, (40, 30)).save(inside / f"{seed}.png")
    return tmp_path / "dataset"


def test_a_data_set_is_tagged(folder: Path, dataset: Path) -> None:
    words = ["generate", dataset, "--recursive", "--sidecar", "--model", folder, "--prefix", "sks"]
    called(*words, "--threshold", "0.5", "--character-threshold", "0.6")
    for file in sorted(dataset.rglob("*.png")):
        text, _ = tags(Image.open(file), 0.5, 0.6)
        assert file.with_suffix(".txt").read_text() == f"sks, {text}\n"


def test_a_row_and_a_vector(folder: Path, dataset: Path) -> None:
    [file, *_] = sorted(dataset.rglob("*.png"))
    row = json.loads(called("generate", file, "--model", folder, "--json", "--threshold", "0.2"))
    text, mean = tags(Image.open(file), 0.2)
    assert (row["text"], row["precision"], len(row["candidates"])) == (text, "fp32", 1)
    assert math.exp(row["score"]) == pytest.approx(mean, abs=1e-4)
    vector = json.loads(called("embed", file, "--model", folder, "--json", "--threshold", "0.2"))["embedding"]
    assert np.allclose(vector, captioner.load(folder).embed(file, threshold=0.2))


def test_tags_are_ranked_by_their_probability(folder: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["terms", "rank", dataset, "-r", "--model", folder, "--count", "3"]
    rows = [json.loads(line) for line in called(*words, "--json").splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    kind_of = dict(zip(tiny.TAGS, tiny.CATEGORIES, strict=True))
    for row in rows:
        expected = probabilities(Image.open(row["file"]))
        likeliest = sorted(expected, key=lambda name: -expected[name])
        for kind, category in {"ratings": 9, "characters": 4, "general": 0}.items():
            names = [name for name in likeliest if kind_of[name] == category][:3]
            found = {tag["term"]: tag["probability"] for tag in row["tags"] if tag["kind"] == kind}
            assert list(found) == [Tag(name, str(category)).text for name in names]
            assert list(found.values()) == pytest.approx([expected[name] for name in names], abs=1e-3)
    called(*words, "--kind", "ratings", "--out", tmp_path / "ratings.parquet")
    kept = parquet.read_table(tmp_path / "ratings.parquet").to_pylist()
    assert [row["tags"] for row in kept] == [row["tags"][:3] for row in rows]
    assert "probability" in called(*words[:2], dataset / "10_sks" / "0.png", *words[4:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "mini"], "mini ranks no terms: name the interrogator or a tagger."),
        (["--kind", "artists"], "There is no kind of terms 'artists': use one of ratings, characters, general."),
        (["--terms", "a.txt"], "has no use for --terms, which interrogator has"),
        (["--clip-model", "mine"], "has no use for --clip-model, which interrogator has"),
    ],
)
def test_what_ranks_no_tags(folder: Path, dataset: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["terms", "rank", str(dataset), "-r", "--model", str(folder), *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_a_run_goes_on_only_with_the_same_thresholds(folder: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["generate", dataset, "-r", "--model", folder, "--out", tmp_path / "tags.csv", "--resume", "--quiet"]
    broken = dataset / "10_sks" / "9.png"
    broken.write_bytes(b"no picture")
    begun = CliRunner().invoke(app, [*map(str, words), "--threshold", "0.5"])
    assert "9.png" in begun.stderr
    other = CliRunner().invoke(app, [*map(str, words), "--threshold", "0.6"])
    assert other.exit_code != 0
    assert "--threshold was 0.5 and is now 0.6" in " ".join(other.stderr.split())
    assert CliRunner().invoke(app, [*map(str, words), "--threshold", "0.5"]).exit_code == begun.exit_code
    with open(tmp_path / "tags.csv", newline="") as stream:
        written = {Path(row["file"]).name: row["text"] for row in csv.DictReader(stream)}
    assert written["0.png"] == tags(picture(0, (40, 30)), 0.5)[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "mini", "--threshold", "0.5"], "no use for --threshold, which wd-tagger has: leave it out"),
        (["--threshold", "2"], "--threshold must be a number from 0 to 1, not 2.0"),
        (["--character-threshold", "nan"], "--character-threshold must be a number from 0 to 1"),
        (["--num-beams", "2"], "has no use for --num-beams"),
        (["--precision", "bf16"], "computes in fp32: leave precision out"),
    ],
)
def test_flags_that_are_refused(folder: Path, dataset: Path, flags: list[str], message: str) -> None:
    model = [] if "--model" in flags else ["--model", str(folder)]
    done = CliRunner().invoke(app, ["generate", str(dataset), "-r", *model, *flags])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
