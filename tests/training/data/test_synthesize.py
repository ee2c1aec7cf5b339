"""Prompts become pictures: a tiny random pipeline in the real format draws them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="the extra `synth` is not installed")

from captioner.errors import BadInput, BadOutput, MissingModel
from training.data import drawing
from training.data.__main__ import main
from training.data.options import Synthesis
from training.data.sources import load_pairs
from training.data.synthesize import planned, recombined, synthesize

PROMPTS = ["a cat, oil paint", "a dog, ink, fog", "a red car", "an old king, oil paint"]


@pytest.fixture
def options(tiny_checkpoint, tmp_path: Path) -> Synthesis:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return Synthesis(
        prompts=str(tmp_path / "prompts.txt"),
        out=str(tmp_path / "drawn"),
        count=4,
        model=str(tiny_checkpoint("stable-diffusion")),
        steps=2,
        size=16,
        save_size=12,
        batch_size=3,
    )


def contents(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_an_image_folder_to_train_on(options: Synthesis, capfd: pytest.CaptureFixture[str]) -> None:
    with (Path(options.prompts)).open("a") as lines:
        lines.write("long " * 30)
    synthesize(replace(options, count=5))
    said = capfd.readouterr()
    assert said.out.startswith(f"{options.out}: 5 pictures")
    cut, bar = said.err.split("\n")[:2]  # and no word, bar or warning of diffusers and of transformers
    assert cut == "1 of 5 texts longer than the 24 tokens that the pipeline reads: drawn from the beginning."
    assert bar.startswith("drawing ")
    assert said.err.count("\n") == 2
    rows = load_pairs([options.out])
    assert sorted(rows["text"]) == sorted([*PROMPTS, ("long " * 30).strip()])
    assert all(row["image"].size == (12, 12) for row in rows)
    assert len({row["image"].tobytes() for row in rows}) == 5  # another seed for each
    lines = [json.loads(line) for line in (Path(options.out) / "metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2, 3, 4]


def test_stopped_at_any_moment_it_goes_on_to_the_same_pictures(
    options: Synthesis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize(options)
    whole = contents(options.out)
    again = replace(options, out=str(tmp_path / "again"))
    synthesize(again)
    folder = Path(again.out)
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines[:2]) + lines[2][:20])  # cut while a line was written
    (folder / "000003.png").unlink()
    (folder / "000001.png").unlink()
    synthesize(again)
    assert {n: f for n, f in contents(again.out).items() if n.endswith(".png")} == {
        n: f for n, f in whole.items() if n.endswith(".png")
    }
    assert sorted((folder / "metadata.jsonl").read_text().splitlines()) == [line.strip() for line in lines]
    monkeypatch.setattr(drawing, "load_pipeline", lambda settings: pytest.fail("all is drawn: nothing to load"))
    synthesize(again)


def test_what_json_leaves_in_a_line_ends_none(options: Synthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(options.prompts).write_text("a cat\u2028in fog\na dog\x85\n", encoding="utf-8")
    odd = replace(options, count=2)
    synthesize(odd)
    assert len(drawing.drawn_lines(Path(odd.out))) == 2
    monkeypatch.setattr(drawing, "load_pipeline", lambda settings: pytest.fail("all is drawn: nothing to load"))
    synthesize(odd)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("synthesize --prompts p.txt", "--batch-size", "0"),
        ("synthesize --prompts p.txt", "--count", "-1"),
        ("synthesize --prompts p.txt", "--seed", "-5"),
        ("prepare --data p.txt", "--seed", "-1"),
        ("prepare --data p.txt", "--validation", "1.5"),
        ("prepare --data p.txt", "--threshold", "nan"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(command: str, option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{option} .* it must be at"):
        main([*command.split(), "--out", str(tmp_path / "out"), option, value])
    assert not (tmp_path / "out").exists()


def test_a_picture_does_not_depend_on_its_batch(options: Synthesis, tmp_path: Path) -> None:
    one_by_one = replace(options, out=str(tmp_path / "single"), batch_size=1)
    synthesize(options)
    synthesize(one_by_one)
    for number in range(4):
        first, second = (Image.open(Path(o.out) / f"{number:06}.png").convert("L") for o in (options, one_by_one))
        pairs = zip(first.tobytes(), second.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 2  # rounding of another matrix size


def test_other_settings_and_other_folders_are_refused(options: Synthesis, tmp_path: Path) -> None:
    synthesize(options)
    with pytest.raises(BadOutput, match="steps"):
        synthesize(replace(options, steps=3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(BadOutput, match="something else"):
        synthesize(replace(options, out=str(tmp_path / "mine")))
    with pytest.raises(MissingModel, match="no-such-folder"):
        synthesize(replace(options, model="./no-such-folder", out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()  # so that the command put right is not refused


def test_which_prompts(options: Synthesis) -> None:
    assert planned(PROMPTS, options) == planned(PROMPTS, options) != planned(PROMPTS, replace(options, seed=4))
    assert planned(PROMPTS, replace(options, count=2)) == planned(PROMPTS, options)[:2]
    with pytest.raises(BadInput, match="4 different"):
        planned(PROMPTS, replace(options, count=5))
    made = planned(PROMPTS, replace(options, count=50, recombine=True))
    assert len(made) == 50
    assert {prompt.split(", ")[0] for prompt in made} == {"a cat", "a dog", "a red car", "an old king"}
    assert set(made) - set(PROMPTS)


def test_recombined_terms_come_as_often_as_they_occur() -> None:
    made = recombined(["x, common"] * 9 + ["y, rare"], 300, seed=1)
    common = sum("common" in prompt for prompt in made)
    assert 240 < common < 295
    assert recombined(["only a subject"], 2, seed=0) == ["only a subject"] * 2
    with pytest.raises(BadInput, match="nothing to recombine"):
        recombined([" , "], 1, seed=0)
