"""Pictures drawn again: a tiny random pipeline in the real format draws what models said, and the report compares."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from captioner.errors import BadInput, BadOutput, MissingModel
from eval.anew import draw_page
from eval.gallery import TRUE_PROMPT
from eval.likeness import likeness
from eval.redraw import PLAN, Redrawn, folder_name, picture_names, redraw
from eval.report import report
from eval.results import Results
from tests.eval.reports import quietly
from training.data.drawing import Drawing

PROMPTS = ["a red fox, oil paint", "a castle at night", "two cats, ink"]


def picture_of(number: int) -> Image.Image:
    image = Image.new("RGB", (48, 48), (60 * number, 90, 200 - 50 * number))
    ImageDraw.Draw(image).ellipse((number, 4, number + 20, 28), fill=(240, 15 * number, 60))
    return image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    names = ["0.png", "1.png", "sub/2.png"]
    for number, name in enumerate(names):
        picture_of(number).save(folder / name)
    rows = [{"file_name": name, "text": text} for name, text in zip(names, PROMPTS, strict=True)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts_of(folder: Path, name: str, texts: list[str]) -> str:
    file = folder / f"{name}.csv"
    rows = zip(("0.png", "1.png", "sub/2.png"), texts, strict=True)
    file.write_text("id,prediction\n" + "".join(f'{identifier},"{text}"\n' for identifier, text in rows))
    return str(file)


def made(data: Path, out: Path, models: list[str], **options) -> dict:
    return report([str(data)], models, out, quietly, resamples=200, gallery=3, **options)


@pytest.fixture
def two(data: Path, tmp_path: Path) -> Path:
    """A report of two models: one is right, the other says the same everywhere."""
    models = [texts_of(tmp_path, "right", PROMPTS), f"a/b={texts_of(tmp_path, 'flat', ['a car'] * 3)}"]
    made(data, tmp_path / "report", models)
    return tmp_path / "report"


@pytest.fixture
def drawing(tiny_checkpoint) -> Drawing:
    pytest.importorskip("diffusers", reason="the extra `synth` is not installed")
    return Drawing(str(tiny_checkpoint("stable-diffusion")), steps=2, size=16, save_size=16, batch_size=4)


def pixels_in(folder: Path) -> dict[str, np.ndarray]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.png")}
    return {name: np.asarray(Image.open(file), dtype=int) for name, file in files.items()}


def test_every_text_is_drawn_and_a_stopped_run_goes_on_to_the_same_pictures(
    two: Path, tmp_path: Path, drawing: Drawing
) -> None:
    out = tmp_path / "drawn"
    assert redraw(two, out, drawing, per_prompt=2, true_prompts=True).pictures == 3 * 3 * 2
    files = pixels_in(out)
    assert {"right/0.png", "right/0~2.png", "right/sub/2.png", f"{TRUE_PROMPT}/1.png"} <= set(files)
    assert {name.split("/")[0] for name in files} == {"right", TRUE_PROMPT, folder_name("a/b")}
    assert np.array_equal(files["right/0.png"], files[f"{TRUE_PROMPT}/0.png"])  # the same text and noise
    assert not np.array_equal(files["right/0.png"], files["right/0~2.png"])
    settings = json.loads((out / PLAN).read_text())
    assert (settings["steps"], settings["size"], settings["model"]) == (2, 16, drawing.model)
    lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
    assert {"text", "seed", "id", "label", "model", "file_name"} == set(json.loads(lines[0]))

    (out / "metadata.jsonl").write_text("".join(lines[:9]) + lines[9][:30])  # killed while it wrote a line
    for line in lines[12:]:
        (out / json.loads(line)["file_name"]).unlink()
    redraw(two, out, drawing, per_prompt=2, true_prompts=True)
    again = pixels_in(out)
    assert again.keys() == files.keys()
    for name in files:  # a picture depends on its batch by rounding alone
        assert np.abs(again[name] - files[name]).max() <= 2
    with pytest.raises(BadOutput, match="steps"):
        redraw(two, out, Drawing(drawing.model, steps=3, size=16, save_size=16))


def test_fewer_pictures_and_models(two: Path, tmp_path: Path, drawing: Drawing) -> None:
    assert redraw(two, tmp_path / "d", drawing, models=["right"], limit=2).pictures == 2
    assert len(list((tmp_path / "d").rglob("*.png"))) == 2
    assert redraw(two, tmp_path / "d", drawing, models=["right"]).pictures == 3  # goes on with the others
    with pytest.raises(BadInput, match="no model 'left'"):
        redraw(two, tmp_path / "e", drawing, models=["left"])
    with pytest.raises(MissingModel, match="no-such-folder"):
        redraw(two, tmp_path / "e", Drawing("./no-such-folder"))
    with pytest.raises(BadInput, match="multiple of 8"):
        Drawing(drawing.model, size=20)
    assert not (tmp_path / "e").exists()


def test_a_report_without_texts_cannot_be_drawn(data: Path, tmp_path: Path, drawing: Drawing) -> None:
    right = texts_of(tmp_path, "right", PROMPTS)
    (tmp_path / "silent.jsonl").write_text('{"id": "0.png", "prediction": null}\n')
    made(data, tmp_path / "report", [right, str(tmp_path / "silent.jsonl")])
    with pytest.raises(BadInput, match="no text of 'silent'"):
        redraw(tmp_path / "report", tmp_path / "out", drawing, models=["right", "silent"])
    made(data, tmp_path / "bare", [right], figures_only=True)
    with pytest.raises(BadInput, match="holds no texts"):
        redraw(tmp_path / "bare", tmp_path / "d", drawing)


def test_report_measures_what_was_drawn(two: Path, data: Path, tmp_path: Path, drawing: Drawing) -> None:
    out = tmp_path / "drawn"
    redraw(two, out, drawing, true_prompts=True)
    models = [str(tmp_path / "right.csv"), f"a/b={tmp_path / 'flat.csv'}"]
    written = made(data, two, models, redrawn=out)
    figures = {model["label"]: model["figures"] for model in written["models"]}
    for name in ("redrawn_efficientnet", "redrawn_distance", "redrawn_colour"):
        assert figures["right"][name]["n"] == figures["a/b"][name]["n"] == 3
        # It says the true prompts, and begins with the same noise.
        assert written["redrawn"]["true_prompts"][name] == pytest.approx(figures["right"][name]["mean"])
    assert written["redrawn"]["pictures"] == {"right": 3, "a/b": 3, TRUE_PROMPT: 3}
    assert written["redrawn"]["settings"]["steps"] == 2
    html = (two / "report.html").read_text()
    assert html.count('class="redrawn"') == 3 * 2
    assert "Drawn again" in html


def test_the_page_is_drawn_anew_with_its_pictures(two: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs" / "right").mkdir(parents=True)
    picture_of(0).save(tmp_path / "theirs" / "right" / "0.png")
    draw_page(two, redrawn=tmp_path / "theirs")
    html = (two / "report.html").read_text()
    assert html.count('class="original"') == 3
    assert html.count('class="redrawn"') == 1
    data.rename(tmp_path / "moved")
    draw_page(two, [str(tmp_path / "moved")])
    assert (two / "report.html").read_text().count('class="original"') == 3
    (tmp_path / "moved" / "1.png").unlink()
    with pytest.raises(BadInput, match="not in"):
        draw_page(two, [str(tmp_path / "moved")])


def test_pictures_of_other_texts_are_left_out(two: Path, data: Path, tmp_path: Path, drawing: Drawing) -> None:
    redraw(two, tmp_path / "drawn", drawing, models=["right"])
    texts_of(tmp_path, "right", [PROMPTS[0], "something else", PROMPTS[2]])
    written = made(data, tmp_path / "second", [str(tmp_path / "right.csv")], redrawn=tmp_path / "drawn")
    assert written["models"][0]["figures"]["redrawn_colour"]["n"] == 2
    assert "1 picture in" in " ".join(written["data"]["notes"])


def test_a_folder_drawn_elsewhere(two: Path, tmp_path: Path) -> None:
    results = Results.load(two / "per_image.parquet")
    theirs = tmp_path / "theirs"
    (theirs / "right").mkdir(parents=True)
    picture_of(0).save(theirs / "right" / "0.png")
    picture_of(1).save(theirs / "right" / "0~2.webp", lossless=True)
    picture_of(2).save(theirs / "right" / "2.png")  # without the folder that the id names
    (theirs / "right" / "1.png").write_bytes(b"no picture")
    redrawn = Redrawn.find(theirs, results)
    assert {item: len(files) for item, files in redrawn.files["right"].items()} == {0: 2, 1: 1, 2: 1}
    values = likeness(redrawn, picture_of, 3, None, quietly)["right"]
    assert values["redrawn_efficientnet"][2] == pytest.approx(1, abs=1e-5)  # the very same picture
    assert values["redrawn_distance"][2] == pytest.approx(0, abs=1e-5)
    assert values["redrawn_colour"][2] == pytest.approx(1)
    assert values["redrawn_distance"][0] > 0.01
    assert values["redrawn_colour"][0] < 1
    assert np.isnan(values["redrawn_colour"][1])
    assert "cannot be read" in redrawn.notes[0]
    (tmp_path / "other").mkdir()
    picture_of(0).save(tmp_path / "other" / "0.png")
    with pytest.raises(BadInput, match=r"right/0\.png"):  # says how they are called
        Redrawn.find(tmp_path / "other", results)


def test_no_name_leads_out_of_the_folder() -> None:
    names = ["..", "../../x", "/etc/passwd", "a\nb", "", ".hidden", "a" * 500, "~2"]
    for name in [*map(folder_name, names), *picture_names(names)]:
        parts = name.split("/")
        assert name.isprintable()
        assert all(part and not part.startswith(".") and len(part) < 130 for part in parts)
    assert folder_name("mini expected") == "mini expected"
    assert picture_names(["a/0.png", "1", "v1.5"]) == ["a/0", "1", "v1.5"]
    first, second = picture_names(["0.png", "0.jpg"])
    assert first != second
