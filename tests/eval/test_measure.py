"""What a report measures beside the texts: CLIP, other embedders, runs with several seeds, near-duplicates, power."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.models.knn.build import Recipe, build
from captioner.statistics import Interval
from captioner.text.embedding import text_embedder
from captioner.text.minilm import packaged_minilm
from eval import explained
from eval.asking import Settings
from eval.clip import Clip
from eval.compare import compare
from eval.measure import Measures
from eval.metrics import Remembering, cosines
from eval.provenance import near_duplicates, training_blocks
from eval.report import report
from eval.results import Results, detectable, summary
from tests.eval.reports import broken_model, quietly

PROMPTS = ["a red fox, oil painting", "a castle at night, 4k", "a robot, digital art, 4k", "two cats"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 90, 200 - 20 * number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(PROMPTS[number % 4])
    return folder


def texts_file(folder: Path, name: str, texts: list[str]) -> Path:
    file = folder / f"{name}.csv"
    file.write_text("id,prediction\n" + "".join(f'{n}.png,"{text}"\n' for n, text in enumerate(texts)))
    return file


def make(pictures: Path, models: list[str], out: Path, **chosen):
    return report([str(pictures)], models, out, quietly, **{"resamples": 300, **chosen})


@pytest.fixture
def sampled(tmp_path: Path, tiny_checkpoint) -> Path:
    """A captioner that draws its texts by chance."""
    folder = tmp_path / "sampled"
    shutil.copytree(tiny_checkpoint("blip"), folder)
    (folder / "decoding.json").write_text(json.dumps({"do_sample": True, "seed": 5, "max_new_tokens": 8}))
    return folder


def test_several_seeds_are_one_row_with_its_spread(pictures: Path, tmp_path: Path, sampled: Path, tiny_checkpoint):
    models = [f"sampled={sampled}", f"searched={tiny_checkpoint('blip')}"]
    once = make(pictures, models[:1], tmp_path / "one", seed=7, measures=Measures())
    assert once["models"][0]["runs"] is None
    steps: list[str] = []

    def track(loop, total, what):
        steps.append(what)
        return loop

    chosen = {"resamples": 300, "seed": 7, "measures": Measures(seeds=3)}
    written = report([str(pictures)], models, tmp_path / "out", track, **chosen)
    row, searched = written["models"]
    assert row["failure"] is searched["failure"] is None
    assert searched["runs"] is None  # it says the same whatever the seed
    assert row["runs"] is not None
    assert row["runs"]["names"] == ["seed 7", "seed 8", "seed 9"]
    assert steps == ["sampled, seed 7", "sampled, seed 8", "sampled, seed 9", "searched"]
    spread = row["runs"]["spread"]["cosine"]
    mean = row["figures"]["cosine"]["mean"]
    assert mean is not None
    assert spread["low"] < mean < spread["high"]
    assert 0 < spread["deviation"] < spread["high"] - spread["low"]
    assert [model["label"] for model in written["models"]] == ["sampled", "searched"]
    again = report([str(pictures)], models, tmp_path / "out", track, **chosen)
    assert len(steps) == 4  # nothing was asked again
    for name, figure in again["models"][0]["figures"].items():  # embedded in another batch, of other last bits
        assert figure == pytest.approx(row["figures"][name], abs=1e-6)
    (told,) = explained.runs(written)
    assert told.startswith("sampled: mean of 3 runs")
    assert told.endswith("Its texts, the modifiers counted in them and a submission are of the first run, seed 7.")


def test_several_tables_are_one_row_too(pictures: Path, tmp_path: Path) -> None:
    right, wrong = (texts_file(tmp_path, name, texts) for name, texts in (("a", PROMPTS * 2), ("b", ["x"] * 8)))
    written = make(pictures, [f"mine={right}|{wrong}"], tmp_path / "out")
    (row,) = written["models"]
    assert row["runs"] is not None
    assert row["runs"]["names"] == ["a", "b"]
    ratio, spread = row["figures"]["levenshtein_ratio"], row["runs"]["spread"]["levenshtein_ratio"]
    assert spread["high"] == 1
    assert ratio["mean"] == pytest.approx((spread["low"] + 1) / 2)


def test_a_failure_keeps_its_traceback(pictures: Path, tmp_path: Path) -> None:
    models = [f"broken={broken_model(tmp_path / 'broken')}"]
    written = make(pictures, models, tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert row == written["models"][0]
    assert "BadCheckpoint" in row["traceback"]
    assert row["traceback"].startswith("Traceback")
    bare = make(pictures, models, tmp_path / "bare", figures_only=True)
    assert bare["models"][0]["traceback"] is None


def test_clip_compares_texts_with_texts_and_with_pictures(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    folder = str(tiny_checkpoint("clip"))
    said = texts_file(tmp_path, "said", ["a fox"] * 4)
    written = make(pictures, [f"said={said}"], tmp_path / "out", measures=Measures(clip=folder))
    values = Results.load(tmp_path / "out" / "per_image.parquet").values
    clip = Clip(folder)
    fox = clip.embed_texts(["a fox"])[0]
    np.testing.assert_allclose(values["clip_text"][:4, 0], clip.embed_texts(PROMPTS) @ fox, atol=1e-5)
    assert np.isnan(values["clip_text"][4:]).all()
    seen = clip.embed_images([Image.open(pictures / f"{n}.png").convert("RGB") for n in range(4)])
    np.testing.assert_allclose(values["clip_picture"][:4, 0], seen @ fox, atol=1e-5)
    np.testing.assert_allclose(values["clip_score"][:4, 0], 2.5 * np.maximum(seen @ fox, 0), atol=1e-5)
    (tmp_path / "copy").mkdir()
    shutil.copytree(folder, tmp_path / "copy" / "clip")
    make(pictures, [f"said={said}"], tmp_path / "other", measures=Measures(clip=str(tmp_path / "copy" / "clip")))
    with pytest.raises(BadInput, match="different CLIPs"):
        compare(tmp_path / "out", tmp_path / "other", ["clip_text"])
    meaning = {metric["name"]: metric["meaning"] for metric in written["metrics"]}
    assert "Williams et al., 2024" in meaning["clip_picture"]


def test_pictures_are_read_anew_by_a_clip_of_other_weights(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    clip = tmp_path / "clip"
    shutil.copytree(tiny_checkpoint("clip"), clip)
    said = texts_file(tmp_path, "said", ["a fox"] * 8)

    def mean(out: str) -> float:
        written = make(pictures, [f"said={said}"], tmp_path / out, measures=Measures(clip=str(clip)))
        return written["models"][0]["figures"]["clip_picture"]["mean"]

    before = mean("out")
    weights = load_file(clip / "model.safetensors")
    weights["visual_projection.weight"] *= -1
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    assert mean("out") == mean("afresh") == pytest.approx(-before, abs=1e-5)


def test_another_embedder_has_its_own_column(pictures: Path, tmp_path: Path) -> None:
    """The packaged MiniLM under another name: both columns must agree, and the second must be named after it."""
    other = tmp_path / "all-MiniLM-L12-v2"
    shutil.copytree(packaged_minilm(), other)
    said = texts_file(tmp_path, "said", ["a fox", "a castle", "a robot", "cats"] * 2)
    written = make(pictures, [f"said={said}"], tmp_path / "out", measures=Measures(embedders=(str(other),)))
    labels = [metric["label"] for metric in written["metrics"]]
    assert labels[:2] == ["MiniLM cosine", "MiniLM-L12 cosine"]
    first, second = (written["models"][0]["figures"][metric["name"]] for metric in written["metrics"][:2])
    assert second["mean"] == pytest.approx(first["mean"], abs=1e-4)
    assert Results.load(tmp_path / "out" / "per_image.parquet").values["cosine:all-MiniLM-L12-v2"].shape == (8, 1)
    named = compare(tmp_path / "out", tmp_path / "out", ["cosine:all-MiniLM-L12-v2"], resamples=200)
    assert named[0].difference.interval.mean == 0
    with pytest.raises(BadInput, match="name each once"):
        make(pictures, [f"said={said}"], tmp_path / "b", measures=Measures(embedders=(str(other), str(other))))


def test_modifiers_are_counted_by_the_list_that_is_given(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("4k\nsharp\n")
    said = texts_file(tmp_path, "said", ["a fox, sharp", "a castle, 4k", "a robot, digital art", "cats, odd"] * 2)
    written = make(pictures, [f"said={said}"], tmp_path / "out", measures=Measures(modifiers=tmp_path / "list.txt"))
    (row,) = written["models"]
    # Of the four prompts: {sharp} and {}, {4k} and {4k}, {} and {4k}, nothing on either side.
    assert row["figures"]["modifier_jaccard"]["mean"] == pytest.approx(1 / 3)
    assert row["figures"]["modifier_jaccard"]["n"] == 6
    assert row["modifiers"]["missed"] == [{"modifier": "4k", "count": 2, "of": 4}]
    assert row["modifiers"]["invented"] == [{"modifier": "sharp", "count": 2, "of": 2}]
    meanings = {metric["name"]: metric["meaning"] for metric in written["metrics"]}
    assert "the 2 terms of list.txt" in meanings["modifier_f1"]
    assert written["vocabulary"] == {"rule": "the 2 terms of list.txt", "terms": 2}
    make(pictures, [f"said={said}"], tmp_path / "every")
    with pytest.raises(BadInput, match="different vocabularies"):
        compare(tmp_path / "out", tmp_path / "every", ["modifier_f1"])
    bare = make(
        pictures,
        [f"said={said}"],
        tmp_path / "bare",
        figures_only=True,
        measures=Measures(modifiers=tmp_path / "list.txt"),
    )
    assert bare["models"][0]["modifiers"] == {"missed": [], "invented": []}


def test_near_duplicates_of_training_prompts_are_counted(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    for number, prompt in enumerate(["A red fox, oil painting.", "two cats", "a bridge in fog", "a bowl of soup"]):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(seen / f"{number}.png")
        (seen / f"{number}.txt").write_text(prompt)
    weights = str(tiny_checkpoint("towers") / "vit")
    build([seen], tmp_path / "index", Recipe("vit", weights=weights, k=2), LoadOptions(device="cpu"))
    said = texts_file(tmp_path, "said", ["a fox"] * 8)
    models = [f"nearest=nearest:{tmp_path / 'index'}", f"said={said}", f"other={said}"]
    written = make(pictures, models, tmp_path / "out", trained_on=[f"said={seen}"])
    counted = {"near": 4, "exact": 2, "pictures": 8, "training_prompts": 4, "threshold": 0.9}
    assert [model["near_duplicates"] for model in written["models"]] == [counted, counted, None]
    assert any("4 of the 8 pictures have a prompt with a near-duplicate" in note for note in written["data"]["notes"])
    assert [model["warning"] is not None for model in written["models"]] == [True, True, False]
    assert "2 of the 8 prompts are in its training data" in written["models"][1]["warning"]
    with pytest.raises(BadInput, match="no model of this report"):
        make(pictures, models, tmp_path / "b", trained_on=[f"nobody={seen}"])


def test_near_duplicates_do_not_depend_on_the_block(tmp_path: Path) -> None:
    training = [f"{animal} number {n}" for animal in ("fox", "owl") for n in range(5)] + ["two cats"]
    for number, prompt in enumerate(training):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(prompt)
    truths = [(prompt,) for prompt in PROMPTS]
    embed = Remembering(text_embedder())
    counted = [
        near_duplicates(training_blocks(None, [str(tmp_path)], None, embed, size), truths, embed) for size in (3, 4096)
    ]
    assert counted[0] == counted[1] == {**counted[0], "near": 1, "exact": 1, "training_prompts": 11}
    assert near_duplicates([], truths, embed) is None


def test_the_smallest_difference_that_so_many_prompts_show() -> None:
    # A standard error of 0.01, one comparison: (1.960 + 0.842) × 0.01.
    one = detectable(Interval(0.0, -0.0196, 0.0196))
    assert one == pytest.approx(0.0280, abs=1e-4)
    assert detectable(Interval(0.3, 0.2804, 0.3196)) == pytest.approx(one)  # how large it turned out plays no part
    assert detectable(Interval(0.0, -0.0196, 0.0196), compared=10) > one  # Holm asks more of each of ten
    assert detectable(Interval(0.0, 0.0, 0.0)) is None


def test_what_is_detectable_is_found_four_times_in_five() -> None:
    """Differences of that size, drawn many times: the interval leaves 0 out in some 80 % of them."""
    generator = np.random.default_rng(0)
    items, found, repeats = 60, 0, 400
    error = 1 / np.sqrt(items)
    size = detectable(Interval(0.0, -1.959964 * error, 1.959964 * error))
    for _ in range(repeats):
        drawn = generator.normal(size, 1, items)
        found += abs(drawn.mean()) > 1.959964 * drawn.std(ddof=1) / np.sqrt(items)
    assert found / repeats == pytest.approx(0.8, abs=0.06)


def test_a_model_without_texts_asks_no_more_of_the_others_texts() -> None:
    """Holm corrects for the pairs that a measure has, and so does what it could have shown."""
    generator = np.random.default_rng(0)
    truths = [(f"prompt {number}",) for number in range(20)]
    texts = {model: ["a text"] * 20 for model in "abc"}
    ratios = generator.random((20, 3))
    ratios[:, 2] = np.nan
    ids = [str(number) for number in range(20)]
    three = Results(ids, truths, [None] * 20, list("abc"), texts, {"quick_ratio": ratios})
    two = replace(three, models=list("ab"), values={"quick_ratio": ratios[:, :2]})
    assert summary(three, 300)["differences"] == summary(two, 300)["differences"]


def test_power_stands_under_the_table(pictures: Path, tmp_path: Path) -> None:
    a = texts_file(tmp_path, "a", ["a fox", "a castle", "robot art", "cats"] * 2)
    b = texts_file(tmp_path, "b", ["red fox, oil painting", "castle at night", "a robot", "2 cats, 4k"] * 2)
    written = make(pictures, [f"a={a}", f"b={b}"], tmp_path / "out")
    power = written["power"]
    assert power is not None
    assert power["prompts"] == 4
    rows = {row["metric"]: row["detectable"] for row in written["differences"]}
    assert power["smallest"]["cosine"] == rows["cosine"] > 0
    assert f"at least {rows['cosine']:.3f} in MiniLM cosine" in (tmp_path / "out" / "report.md").read_text()
    assert make(pictures, [f"a={a}"], tmp_path / "one")["power"] is None


def test_an_embedder_that_remembers_embeds_each_text_once() -> None:
    asked: list[list[str]] = []

    def embed(texts):
        asked.append(list(texts))
        return np.array([[float(len(text)), 1.0] for text in texts])

    remembering = Remembering(embed)
    remembering(["a", "bb", "a"])
    assert remembering(["bb", "ccc"])[:, 0].tolist() == [2, 3]
    assert asked == [["a", "bb"], ["ccc"]]
    assert cosines(remembering(["a"]), remembering(["a"]))[0] == pytest.approx(1)


def test_settings_name_what_was_measured(pictures: Path, tmp_path: Path) -> None:
    said = texts_file(tmp_path, "said", ["a fox"] * 8)
    written = make(pictures, [f"said={said}"], tmp_path / "out", settings=Settings(batch_size=3))
    assert {"batch_size": 3, "clip": None, "protocol": None, "seeds": 1}.items() <= written["settings"].items()
