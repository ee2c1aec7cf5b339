"""`python -m eval report`: four files, error bars, warnings; resumed after a kill; a bad model or picture is no end."""

import json
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput, BadOutput, CaptionerError, MissingModel
from captioner.files.lock import LOCK
from captioner.models.knn.build import Recipe, build
from captioner.pairs.fingerprint import fingerprint
from captioner.pairs.layouts import ReadOptions
from captioner.text.minilm import packaged_minilm
from eval import store
from eval.answers import Answer
from eval.asking import Asker, Settings
from eval.compare import compare
from eval.data import read_pairs
from eval.entries import Entry
from eval.measure import Measures
from eval.provenance import weights_hash
from eval.report import report
from eval.results import Results
from tests.eval.reports import broken_model, quietly

PROMPTS = ["a red fox in the snow, oil painting", "a castle at night", "portrait of a robot, digital art", "two cats"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve drawn pictures of four prompts, a folder in the imagefolder layout."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(12):
        image = Image.new("RGB", (48, 32), (20 * number, 90, 200 - 10 * number))
        ImageDraw.Draw(image).ellipse((number, 4, number + 20, 28), fill=(240, 15 * number, 60))
        image.save(folder / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "text": PROMPTS[number % 4]})
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts_file(folder: Path, name: str, texts: dict[str, str]) -> str:
    file = folder / f"{name}.csv"
    file.write_text("id,prediction\n" + "".join(f'{i},"{text}"\n' for i, text in texts.items()))
    return f"{name}={file}"


def make(pictures: Path, models: list[str], out: Path, **chosen) -> dict:
    return report([str(pictures)], models, out, quietly, resamples=300, **chosen)


def test_a_whole_report(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    names = [f"{n:02}.png" for n in range(12)]
    good = {name: PROMPTS[n % 4] for n, name in enumerate(names)}
    models = [
        f"blip={tiny_checkpoint('blip')}",
        f"vit={tiny_checkpoint('direct')}",
        texts_file(tmp_path, "truth", good),
        texts_file(tmp_path, "constant", dict.fromkeys(names[:10], "<b>a | picture</b>")),
        f"broken={broken_model(tmp_path / 'broken')}",
    ]
    written = make(pictures, models, tmp_path / "out", gallery=3)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        *("answers", "report.html", "report.md", "report.json", "per_image.parquet")
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == written
    rows = {model["label"]: model for model in written["models"]}

    assert rows["truth"]["figures"]["cosine"]["mean"] == pytest.approx(1)
    assert rows["truth"]["figures"]["levenshtein_ratio"]["mean"] == 1
    assert rows["truth"]["distinct"] == pytest.approx(4 / 12)
    assert rows["constant"]["figures"]["cosine"]["n"] == 10
    assert rows["blip"]["images_per_second"] > 0
    assert rows["blip"]["precision"] == "fp32"
    assert "computed in fp32" in (tmp_path / "out" / "report.html").read_text()
    assert rows["vit"]["figures"]["cosine"]["n"] == 12
    for metric in ("levenshtein_ratio", "bleu4", "cider_d", "length"):
        assert rows["vit"]["figures"][metric]["n"] == 0
        assert rows["vit"]["figures"][metric]["mean"] is None
    assert "has no weights" in rows["broken"]["failure"]
    # Four prompts are too few to call anything better: the interval says how little is known.
    assert written["best"]["cosine"] is None
    assert len([d for d in written["differences"] if d["metric"] == "cosine"]) == 6
    assert written["data"]["prompts"] == 4

    kept = Results.load(tmp_path / "out" / "per_image.parquet")
    assert kept.models == ["blip", "vit", "truth", "constant"]
    assert kept.texts["vit"] == [None] * 12
    assert kept.values["cosine"].shape == (12, 4)
    check_page((tmp_path / "out" / "report.html").read_text(), written)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| broken | not measured: " in markdown
    assert "Published by others, on other data" in markdown
    of_levenshtein = markdown.split("### Levenshtein ratio")[1].split("###")[0]
    assert "| truth |" in of_levenshtein
    assert "| vit |" not in of_levenshtein  # no text, so nothing to measure


class Page(HTMLParser):
    """Open and closed tags, addresses, and text."""

    VOID = frozenset(("meta", "wbr", "img", "br", "input", "line", "rect", "circle", "polyline"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cards: list[dict] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.addresses += [given[key] for key in ("src", "href", "action", "srcset", "data") if key in given]
        if "data-scores" in given:
            self.cards.append(json.loads(given["data-scores"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(html: str, written: dict) -> None:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert all(address.startswith(("#", "data:image/webp;base64,")) for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "<b>a | picture</b>" in page.text  # said by a model, escaped
    for model in written["models"]:
        assert model["label"] in page.text
    for metric in written["metrics"]:
        assert metric["label"] in page.text
    assert 3 <= len(page.cards) <= 9
    assert all(len(card["cosine"]) == 4 for card in page.cards)
    assert "Published by others, on other data" in page.text
    assert written["command"] in page.text


def test_a_winner_is_marked_only_where_it_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    prompts = [
        f"{animal} {place}" for animal in ("fox", "owl", "cat", "hen") for place in ("in snow", "at sea", "on ice")
    ]
    for number in range(12):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"{number:02}.png")
    write_rows(folder, [{"file_name": f"{n:02}.png", "text": prompt} for n, prompt in enumerate(prompts)])
    models = [
        texts_file(tmp_path, "right", {f"{n:02}.png": prompt for n, prompt in enumerate(prompts)}),
        texts_file(tmp_path, "right-too", {f"{n:02}.png": prompt for n, prompt in enumerate(prompts)}),
        texts_file(tmp_path, "wrong", {f"{n:02}.png": "an oil painting of a car" for n in range(12)}),
    ]
    alone = make(folder, [models[0], models[2]], tmp_path / "two")
    assert alone["best"]["cosine"] == "right"
    assert alone["best"]["length"] is None
    tied = make(folder, models, tmp_path / "three")
    assert tied["best"]["cosine"] is None
    assert 'data-m="best">best</span>' in (tmp_path / "two" / "report.html").read_text()
    assert 'data-m="best">best</span>' not in (tmp_path / "three" / "report.html").read_text()


def test_odd_data_is_handled_and_said(pictures: Path, tmp_path: Path) -> None:
    (pictures / "00.png").write_bytes(b"no picture")
    shutil.copy(pictures / "01.png", pictures / "copy.png")
    rows = [{"file_name": f"{n:02}.png", "text": PROMPTS[n % 4], "id": f"{n % 6}"} for n in range(12)]
    rows[2]["text"] = "  "
    rows.append({"file_name": "copy.png", "text": "another", "id": "copy"})
    rows.append({"file_name": "03.png", "text": "a second caption", "id": "3"})
    write_rows(pictures, rows)
    pairs = read_pairs([str(pictures)])
    notes = " ".join(pairs.notes)
    assert "1 picture that cannot be read left out: 0." in notes
    assert "1 picture without a caption left out" in notes
    assert "renamed to id#2" in notes
    assert "a picture that occurs more than once" in notes
    assert [item.id for item in pairs.items][:4] == ["1", "3", "4", "5"]
    assert pairs.items[1].truths == (PROMPTS[3], "a second caption")
    assert len({item.id for item in pairs.items}) == len(pairs.items) == 11
    assert read_pairs([str(pictures)], limit=5).fingerprint != pairs.fingerprint


def test_an_id_given_anew_is_nobody_elses(tmp_path: Path) -> None:
    ids = ["a", "a", "a#2", "a", "b", "a#2"]
    for number in range(len(ids)):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write_rows(tmp_path, [{"file_name": f"{n}.png", "text": "a fox", "id": name} for n, name in enumerate(ids)])
    assert [item.id for item in read_pairs([str(tmp_path)]).items] == ["a", "a#3", "a#2", "a#4", "b", "a#2#2"]


def test_a_limit_draws_pictures_with_all_their_captions(pictures: Path) -> None:
    rows = [{"file_name": f"{n:02}.png", "text": f"caption {k} of {n}", "id": str(n)} for n in range(8) for k in "abc"]
    write_rows(pictures, rows)
    pairs = read_pairs([str(pictures)], limit=3)
    assert len(pairs.items) == 3
    assert all(sorted(item.truths) == [f"caption {k} of {item.id}" for k in "abc"] for item in pairs.items)
    assert "3 of 8 pictures, drawn by chance (seed 0)." in pairs.notes
    assert len(read_pairs([str(pictures)], limit=8).items) == 8


def test_no_pictures_no_captions_no_models(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no"):
        read_pairs([str(tmp_path / "nowhere")])
    write_rows(pictures, [{"file_name": "00.png", "text": ""}])
    with pytest.raises(BadInput, match="no picture with a caption"):
        read_pairs([str(pictures)])
    (pictures / "00.png").write_bytes(b"")
    write_rows(pictures, [{"file_name": "00.png", "text": "a fox"}])
    with pytest.raises(BadInput, match="Of 1 picture none can be read"):
        read_pairs([str(pictures)])
    with pytest.raises(BadInput, match="No model"):
        make(pictures, [], tmp_path / "out")
    with pytest.raises(BadInput, match="Two models are called 'a'"):
        make(pictures, ["a=x", "a=y"], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nope", "No model 'nope'"),
        ("nope+expected", "No model 'nope'"),
        ("nearest:nope", "nope holds no index"),
        ("./nope.csv", "There is no nope.csv"),
    ],
)
def test_a_misspelled_model_is_refused_before_another_is_asked(
    pictures: Path, tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(CaptionerError, match=reason):
        make(pictures, ["mini", name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_and_a_split_where_there_are_none(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^split would change nothing: .*pictures has no parquet files"):
        make(pictures, ["mini"], tmp_path / "out", reading=ReadOptions(split="test"))
    (pictures / "metadata.jsonl").unlink()
    (pictures / "00.txt").write_text("a cat")
    with pytest.raises(BadInput, match=r"^text_column would change nothing: .*pictures has no table"):
        make(pictures, ["mini"], tmp_path / "out", reading=ReadOptions("title"))
    assert not (tmp_path / "out").exists()  # where nothing came about


def test_a_report_of_failures_only_is_still_a_report(pictures: Path, tmp_path: Path) -> None:
    written = make(
        pictures,
        [f"one={broken_model(tmp_path / 'one')}", texts_file(tmp_path, "two", {"other": "x"})],
        tmp_path / "out",
    )
    reasons = [model["failure"] for model in written["models"]]
    assert "has no weights" in reasons[0]
    assert "answers none of the pictures" in reasons[1]
    assert "Nothing was measured" in (tmp_path / "out" / "report.html").read_text()


def test_folders_of_others_and_other_data_are_not_overwritten(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    model = texts_file(tmp_path, "m", {"00.png": "a fox"})
    with pytest.raises(BadOutput, match=r"thesis\.tex"):
        make(pictures, [model], out)
    (out / "thesis.tex").rename(out / "report.html")
    with pytest.raises(BadOutput, match=r"report\.html"):
        make(pictures, [model], out)
    make(pictures, [model], tmp_path / "report")
    with pytest.raises(BadOutput, match="other data"):
        make(pictures, [model], tmp_path / "report", limit=6)


def test_training_data_is_warned_of(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("direct"), model)
    assert ask_overlap(pictures, model, tmp_path / "a") is None
    (model / "training_data.json").write_text(json.dumps({"sources": ["folder:/elsewhere/Pictures@0.5", "b"]}))
    assert "names pictures as training data" in ask_overlap(pictures, model, tmp_path / "b")
    assert "Do not publish its figures" in (tmp_path / "b" / "report.html").read_text()
    (model / "training_data.json").write_text(json.dumps({"fingerprints": [fingerprint(" Two  CATS ")]}))
    assert "3 of the 12 prompts" in ask_overlap(pictures, model, tmp_path / "c")
    picture = read_pairs([str(pictures)]).items[0].image_hash
    (model / "training_data.json").write_text(json.dumps({"sources": ["other"], "fingerprints": [picture]}))
    assert "1 of the 12 pictures" in ask_overlap(pictures, model, tmp_path / "d")
    (model / "training_data.json").unlink()
    (model / "README.md").write_text("---\ndatasets:\n- pictures\n---\n# A model\n")
    assert "names pictures" in ask_overlap(pictures, model, tmp_path / "e")
    (model / "README.md").write_text("---\ndatasets: [unclosed\n---\n")
    assert "could not be compared" in ask_overlap(pictures, model, tmp_path / "f")


def ask_overlap(pictures: Path, model: Path, out: Path) -> str | None:
    return make(pictures, [f"vit={model}"], out)["models"][0]["warning"]


def test_figures_alone_show_nothing_of_the_data(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    rows = [{"file_name": f"{n:02}.png", "text": PROMPTS[n % 4]} for n in range(12)]
    write_rows(pictures, [*rows, {"file_name": "00.png", "text": "a secret"}])  # one picture, two prompts
    said = texts_file(tmp_path, "told", {f"{n:02}.png": "some castle" for n in range(12)})
    models = [said, f"vit={tiny_checkpoint('direct')}"]
    full = make(pictures, models, tmp_path / "full")
    bare = make(pictures, models, tmp_path / "bare", figures_only=True)
    assert [model["figures"] for model in bare["models"]] == [model["figures"] for model in full["models"]]
    assert {file.name for file in (tmp_path / "bare").iterdir()} == set(store.FILES)
    for name in ("report.json", "report.html", "report.md"):
        content = (tmp_path / "bare" / name).read_text()
        assert not any(text in content for text in (*PROMPTS, "a secret", "some castle", "data:image", "00.png"))
    assert "left out" in (tmp_path / "bare/report.html").read_text()
    values = Results.load(tmp_path / "bare/per_image.parquet")
    assert values.truths[1] == (fingerprint(PROMPTS[1]),)
    assert values.texts == {"told": [None] * 12, "vit": [None] * 12}
    assert "01.png" not in values.ids
    changes = compare(tmp_path / "full/report.json", tmp_path / "bare/report.json", resamples=200)
    assert [(change.a, change.difference.items, change.difference.interval.mean) for change in changes] == [
        ("told", 12, 0.0),
        ("vit", 12, 0.0),
    ]
    with pytest.raises(BadOutput, match="answers"):
        make(pictures, models, tmp_path / "full", figures_only=True)


def test_everything_is_looked_at_before_a_model_is_asked(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    models = [f"vit={tiny_checkpoint('direct')}"]

    def report_with(**chosen) -> None:
        settings = Settings(**{key: chosen.pop(key) for key in ("device", "precision") if key in chosen})
        never = lambda *_: pytest.fail("a model was asked")  # noqa: E731
        report([str(pictures)], models, tmp_path / "out", never, settings=settings, resamples=300, **chosen)

    with pytest.raises(MissingModel, match="not in the local cache"):
        report_with(measures=Measures(clip="openai/clip-vit-base-patch32"))
    with pytest.raises(BadCheckpoint, match="CLIP or SigLIP"):
        report_with(measures=Measures(clip=str(tiny_checkpoint("blip"))))
    with pytest.raises(BadInput, match="no device"):
        report_with(device="gpu")
    with pytest.raises(BadInput, match="no precision"):
        report_with(precision="fp33")
    assert not (tmp_path / "out" / "answers").exists()


def test_another_embedder_reaches_every_part(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    """The packaged MiniLM under another name: only what was trained on its space must say that it does not suit."""
    shutil.copytree(packaged_minilm(), tmp_path / "other")
    said = texts_file(tmp_path, "said", {f"{n:02}.png": "some castle" for n in range(12)})
    models = [said, f"blip={tiny_checkpoint('blip')}", f"vit={tiny_checkpoint('direct')}"]
    plain = make(pictures, models, tmp_path / "plain")
    other = make(pictures, models, tmp_path / "out", settings=Settings(embedder=str(tmp_path / "other")))
    assert "not of" in other["models"][2]["failure"]
    for before, after in zip(plain["models"][:2], other["models"][:2], strict=True):
        assert after["figures"]["cosine"]["mean"] == pytest.approx(before["figures"]["cosine"]["mean"], abs=1e-4)
    assert [plain["metrics"][0]["label"], other["metrics"][0]["label"]] == ["MiniLM cosine", "other cosine"]
    with pytest.raises(BadInput, match="different embedders"):
        compare(tmp_path / "plain", tmp_path / "out")
    assert compare(tmp_path / "plain", tmp_path / "out", ["quick_ratio"], resamples=200)[0].difference.items == 12


def test_a_report_is_not_replaced_by_one_that_lacks_a_model(pictures: Path, tmp_path: Path) -> None:
    texts = {f"{n:02}.png": "some castle" for n in range(12)}
    a, b = (texts_file(tmp_path, name, texts) for name in "ab")
    make(pictures, [a, f"broken={broken_model(tmp_path / 'broken')}"], tmp_path / "out")
    make(pictures, [a, b], tmp_path / "out")  # more is fine, and what had failed may go
    before = (tmp_path / "out" / "report.json").read_bytes()
    with pytest.raises(BadOutput, match="also has a: name every model again"):
        make(pictures, [b], tmp_path / "out")
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_baselines_of_an_index(pictures: Path, tmp_path: Path, tiny_checkpoint) -> None:
    """The nearest picture is the picture itself here, and says its own prompt; the constant is one of the prompts."""
    index = tmp_path / "index"
    build(
        [pictures], index, Recipe("vit", weights=str(tiny_checkpoint("towers") / "vit"), k=2), LoadOptions(device="cpu")
    )
    written = make(pictures, [f"nearest=nearest:{index}", f"constant=constant:{index}"], tmp_path / "out")
    nearest, constant = written["models"]
    assert nearest["figures"]["cosine"]["mean"] == pytest.approx(1, abs=1e-3)
    assert "12 of the 12 prompts are in its training data" in nearest["warning"]
    texts = Results.load(tmp_path / "out/per_image.parquet").texts
    assert texts["nearest"] == [PROMPTS[n % 4] for n in range(12)]
    assert set(texts["constant"]) < set(PROMPTS)
    assert constant["distinct"] == pytest.approx(1 / 12)


def test_members_of_an_ensemble_count(tmp_path: Path, tiny_checkpoint) -> None:
    shutil.copytree(tiny_checkpoint("direct"), tmp_path / "member")
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"kind": "ensemble", "members": [{"model": "member", "weight": 1.0}]}))
    before = weights_hash(str(both))
    (tmp_path / "member" / "training_data.json").write_text('{"sources": ["x"]}')
    assert weights_hash(str(both)) != before


def test_answers_are_kept_and_asked_for_again_only_if_something_changed(
    pictures: Path, tmp_path, tiny_checkpoint
) -> None:
    pairs = read_pairs([str(pictures)])
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("direct"), model)
    entry, folder = Entry("vit", str(model)), tmp_path / "answers"
    asked: list[int] = []

    def counting(steps, total, what):
        asked.append(total)
        return steps

    def vectors(**changed) -> np.ndarray:
        settings = Settings(**{"batch_size": 4, **changed})
        answered = Asker([entry], pairs, folder, settings, None, counting).ask(entry)
        assert answered.failure is None
        return np.stack([answer.vector for answer in answered.answers])

    whole = vectors()
    np.testing.assert_array_equal(vectors(), whole)
    assert asked == [3]
    file = folder / entry.file_name
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:6]) + lines[6][:40])  # killed while writing the sixth answer
    np.testing.assert_allclose(vectors(), whole, atol=1e-6)
    assert asked == [3, 2]
    assert Answer.parse(lines[1]).id == "00.png"
    vectors(batch_size=5)
    (model / "training_data.json").write_text("{}")
    vectors()
    assert asked == [3, 2, 3, 3]


def test_killed_and_started_again(pictures: Path, tmp_path: Path, tiny_checkpoint, quick_python: str) -> None:
    fcntl = pytest.importorskip("fcntl")  # not on Windows
    out = tmp_path / "out"
    command = [quick_python, "-m", "eval", "report", "--data", str(pictures), "--out", str(out), "--batch-size", "1"]
    models = [f"lstm={tiny_checkpoint('resnet_lstm')}"]
    command += ["--models", *models, "--resamples", "200"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers = out / "answers" / Entry.parse("lstm=x").file_name
    while run.poll() is None and not (answers.exists() and len(answers.read_text().splitlines()) >= 3):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with open(out / LOCK, "ab") as left:
        fcntl.flock(left, fcntl.LOCK_EX)  # the command ends a moment after the process that asked for it
    kept = [line for line in answers.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert len(kept) >= 3
    assert not (out / "report.json").exists()
    written = make(pictures, models, out, settings=Settings(batch_size=1))
    assert written["models"][0]["failure"] is None
    assert written["models"][0]["figures"]["cosine"]["n"] == 12
    lines = answers.read_text().splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    assert len(lines) == 1 + 12
