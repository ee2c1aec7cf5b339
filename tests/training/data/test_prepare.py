"""The whole preparation through its command: what is dropped, where validation stands, what is written."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from captioner.errors import BadInput, BadOutput
from training.data.__main__ import main
from training.data.sources import load_pairs

_SUBJECTS = "cat dog rocket castle teapot violin glacier tractor orchid lighthouse robot samurai whale desert train"
SUBJECTS = _SUBJECTS.split()
PLACES = ("asleep in the snow, 8k", "painted by a child, oil paint")
NOISE = ("8k, 4k", "word", "a cat asleep in the snow", "eine katze und ein hund auf einem dach mit hut")


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures with prompts that differ, 4 that should go, one that is too small and one that is broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    texts = [f"a {subject} {place}" for subject in SUBJECTS for place in PLACES] + [*NOISE, "tiny one", "broken one"]
    random = np.random.default_rng(0)
    lines = []
    for number, text in enumerate(texts):
        side = 8 if text == "tiny one" else 64
        picture = Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8))
        picture.save(folder / f"{number:02}.png")
        lines.append(json.dumps({"file_name": f"{number:02}.png", "text": text}) + "\n")
    lines.append(json.dumps({"file_name": "01b.png", "text": None}) + "\n")
    (folder / f"{len(texts) - 1:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def test_pairs_from_a_folder_to_shards(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captioner.text.embedding import text_embedder

    out = tmp_path / "prepared"
    command = ["prepare", "--data", str(pictures), "--out", str(out), "--precision", "fp32", "--english-only"]
    main([*command, "--apart", "0.7", "--validation", "0.2", "--shard-mb", "0"])
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["rows"]
    assert (rows["read"], rows["that say something"], rows["in English"], rows["of the right length"]) == (
        36,
        35,
        34,
        33,
    )
    assert (rows["with a readable picture"], rows["of the right size"], rows["different prompts"]) == (32, 31, 30)
    assert summary["not_english"] == 1
    assert [Path(name).name for name in summary["unreadable"]] == ["35.png"]
    training, validation = load_pairs([out]), load_pairs([out], split="validation")
    assert (len(training), len(validation)) == (rows["training"], rows["validation"])
    assert 2 <= len(validation) <= 6
    assert len(training) + len(validation) == rows["without near-duplicates"]
    embed = text_embedder()
    held_back, learnt = embed(list(validation["text"])), embed(list(training["text"]))
    assert (held_back @ learnt.T).max() <= 0.7
    everything = np.concatenate([held_back, learnt])
    assert (np.triu(everything @ everything.T, k=1) <= 0.85).all()
    assert not any("8k" in text for text in training["text"])
    assert "oil paint" in dict(summary["terms"])
    assert sum(summary["words"]["before"].values()) == 36
    with Image.open(out / "summary.png") as drawn:
        assert drawn.width > 500
    told = capsys.readouterr()
    assert f"{len(training)} to train on" in told.out
    assert "35 that say something (1 fewer)\n34 in English (1 fewer)\n33 of the right length (1 fewer)\n" in told.err
    assert "32 with a readable picture (1 fewer)" in told.err
    assert "pictures: 1 picture without a caption left out: 01b.png." in told.err
    assert summary["left_out"] == {"without a caption": 1}
    original = {
        row["id"]: row["image"].tobytes()
        for row in load_pairs([pictures]).filter(lambda i: i != "35.png", input_columns="id")
    }
    assert all(row["image"].tobytes() == original[row["id"]] for row in training)


def test_the_same_command_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {subject} in the rain" for subject in SUBJECTS))
    written = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(["prepare", "--data", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / name), "--seed", seed])
        written.append((tmp_path / name / "train.txt").read_text())
    assert written[0] == written[1] != written[2]


def test_prompts_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt.gz"
    with gzip.open(file, "wt") as lines:
        lines.write("\n".join([f"a {subject} in the rain --ar 16:9" for subject in SUBJECTS] * 2))
    out = tmp_path / "out"
    main(["prepare", "--data", str(file), "--out", str(out), "--threshold", "1", "--apart", "0.9"])
    training = (out / "train.txt").read_text().splitlines()
    validation = (out / "validation.txt").read_text().splitlines()
    assert sorted(training + validation) == sorted(f"a {subject} in the rain" for subject in SUBJECTS)
    assert len(validation) == 2


@pytest.mark.parametrize(("texts", "advised"), [(["a fox"], False), (["a red fox", "a fox that is red"] * 8, True)])
def test_advice_comes_where_neighbours_are_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: list[str], advised: bool
) -> None:
    """Of one prompt none would be held back, however far apart they may be."""
    lines = [f"{text}, number {number}" for number, text in enumerate(texts)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    command = ["prepare", "--data", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--threshold", "1"]
    main([*command, "--apart", "0.3"])
    assert ("a higher --apart finds more" in capsys.readouterr().err) == advised


def test_captions_of_one_picture_stand_on_one_side(tmp_path: Path) -> None:
    """Told by the pixels: here each caption names a file of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        picture = Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        for place, subject in enumerate(SUBJECTS[number::8]):
            picture.save(folder / f"{number}-{place}.png")
            (folder / f"{number}-{place}.txt").write_text(f"a {subject} in the rain")
    command = ["prepare", "--data", str(folder), "--out", str(tmp_path / "out"), "--threshold", "1", "--apart", "0.9"]
    main([*command, "--validation", "0.3"])
    pictures = [
        {number.partition("-")[0] for number in load_pairs([tmp_path / "out"], split=split)["id"]}
        for split in ("train", "validation")
    ]
    assert len(pictures[1]) > 0
    assert len(pictures[0]) + len(pictures[1]) == 8


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {subject} in the rain" for subject in SUBJECTS))
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    command = ["prepare", "--data", str(tmp_path / "prompts.txt"), "--out", str(out)]
    with pytest.raises(BadOutput, match="is not empty"):
        main(command)
    (out / "train-00000.parquet").write_bytes(b"of an earlier run")
    (out / ".captioner-new").mkdir()
    (out / ".captioner-new" / "train.txt").write_text("of one that was killed")
    main([*command, "--overwrite"])
    assert sorted(file.name for file in out.iterdir()) == [
        *("notes.md", "summary.json", "summary.png", "train.txt", "validation.txt")
    ]
    assert not [file.name for file in (*tmp_path.iterdir(), *out.iterdir()) if file.name.startswith(".")]


@pytest.mark.parametrize("named", ["{}", "{}@0.5", "folder:{}"])
def test_the_data_are_not_overwritten_by_what_is_made_of_them(named: str, pictures: Path) -> None:
    (pictures / "summary.json").write_text("mine")
    with pytest.raises(BadOutput, match="is the data itself"):
        main(["prepare", "--data", named.format(pictures), "--out", str(pictures), "--overwrite"])
    assert (pictures / "summary.json").read_text() == "mine"


def test_a_damaged_list_of_prompts_is_told(tmp_path: Path) -> None:
    content = bytearray(gzip.compress("\n".join(SUBJECTS).encode()))
    content[10:20] = b"\xff" * 10  # behind the header
    (tmp_path / "prompts.txt.gz").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        main(["prepare", "--data", str(tmp_path / "prompts.txt.gz"), "--out", str(tmp_path / "out")])


def test_a_column_of_pictures_with_sidecars(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"^text_column would change nothing"):
        main(["prepare", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--text-column", "title"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match="/proc cannot be written to"):
        main(["prepare", "--data", str(tmp_path / "none.txt"), "--out", "/proc/prepared"])


def test_nothing_is_left_behind_when_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("8k\n4k\n")
    with pytest.raises(BadInput, match="Nothing is left"):
        main(["prepare", "--data", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_help_is_quick_to_come_and_worth_reading() -> None:
    code = (
        "import sys\n"
        "from training.data.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(sorted({'torch', 'datasets', 'transformers', 'faiss'} & set(sys.modules)))\n"
    )
    for command, words in (
        ([], ("prepare", "synthesize")),
        (["prepare"], ("--threshold", "0.85")),
        (
            ["synthesize"],
            ("50", "\npython -m training.data synthesize --prompts prompts.txt --count 1000 --out drawn/\n"),
        ),
    ):
        narrow = os.environ | {"COLUMNS": "60"}
        told = subprocess.run(
            [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True, env=narrow
        )
        about = told.stdout.partition("\n\n")[2].partition("\noptions:")[0]
        prose = [line for line in about.splitlines() if not line.startswith("python -m ")]
        assert max(map(len, prose)) <= 60
        assert all(word in told.stdout for word in words)
        assert told.stdout.endswith("[]\n")
