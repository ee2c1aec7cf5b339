"""A plan worked off from the command line, with the model of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

import captioner
from tests.cli.test_main import call

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"


def test_a_plan_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    pictures = sorted(PICTURES.glob("*.jpg"))[:2]
    planned = call("plan", *pictures, bad, "--out", folder, "--shard-size", "1")
    assert planned.stderr == f"{folder}: 3 pictures in 3 shards\n"
    assert call("generate", "--out", folder, "--shard", "1/3").exit_code == 0
    now = json.loads(call("status", folder, "--json", "--price-per-hour", "2").stdout)
    assert (now["shards_done"], now["pictures_done"], now["running"]) == (1, 1, 0)
    assert now["cost_per_million"] > 0
    refused = call("generate", "--out", folder, "--num-beams", "2")
    assert (refused.exit_code, "begun with other settings: " in refused.stderr) == (2, True)
    assert call("merge", folder, tmp_path / "x.jsonl").stderr.endswith(", or add --partial to leave them out.\n")
    done = call("generate", "--out", folder, "--batch-size", "1")
    assert (done.exit_code, done.stderr.splitlines()[-1][:44]) == (0, "captioner: 2 shards written here; captioner ")
    status = call("status", folder).stdout
    assert "3 of 3 pictures, 1 could not be read" in status
    assert status.endswith(" pictures/s a worker\n")  # none runs, and whoever did is not known

    out = tmp_path / "all.parquet"
    assert call("merge", folder, out).stdout == f"{out}: 3 rows, 1 of which could not be read\n"
    rows = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [*map(str, pictures), str(bad)]
    assert [row["text"] for row in rows[:-1]] == [p.text for p in captioner.load("mini").generate(pictures)]
    assert rows[-1]["error"] == f"{bad} is not a picture of a kind that can be read, or is cut off."


def test_videos_beside_pictures_are_told_in_one_line(tmp_path: Path) -> None:
    for name in ("a.png", "b.mp4", "c.mov"):
        (tmp_path / name).touch()
    assert call("plan", tmp_path, "--out", tmp_path / "run").stderr.splitlines() == [
        f"{tmp_path}/run: 1 picture in 1 shard",
        "captioner: 2 videos passed over: take a frame out first, as ffmpeg -i clip.mp4 -frames:v 1 clip.png does",
    ]
    assert call("plan", tmp_path, "--out", tmp_path / "quiet", "--quiet").stderr == ""


def test_what_is_wrong_with_a_picture_is_told_in_flags(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "all.parquet"
    call("plan", PICTURES, "--out", run)
    call("generate", "--out", run, "--metadata", "only")
    call("merge", run, out)
    errors = pyarrow.parquet.read_table(out)["error"].to_pylist()
    assert errors
    assert all(error.endswith(" carries no prompt. Say --metadata first, and a model is asked.") for error in errors)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "--shard", "1/2"], "there is no plan"),
        (["generate", "cat.png", "--out", "RUN"], "holds a plan, which names its pictures"),
        (["generate", "--out", "RUN", "--resume"], "--resume would change nothing"),
        (["generate", "--out", "RUN", "--shard", "3/2"], "write I/N with I from 1 to N"),
        (["generate", "--out", "RUN", "-m", "interrogator", "--terms", "gone.txt"], "gone.txt cannot be read"),
        (["generate"], "Name a picture"),
        (["generate", "a b.tar"], "list them by captioner plan 'a b.tar' --out RUN, and give --out RUN"),
        (["generate", "hub:a/b", "x.parquet"], "hub:a/b may hold many pictures"),
        (["embed", "hub:name"], "hub:name may hold many pictures"),
        (["embed", "a cat", "parquet:data/a.parquet"], "parquet:data/a.parquet may hold many pictures"),
        (["embed", "--out", "RUN", "--file", "a.txt"], "--file would change nothing"),
        (["status", "nothing"], "nothing holds no plan"),
        (["merge", "RUN", "a.parquet"], "parts for 0 of 1 shards"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path: Path, words: list[str], told: str) -> None:
    run = tmp_path / "run"
    call("plan", PICTURES, "--out", run, "--quiet")
    result = call(*(str(run) if word == "RUN" else word for word in words))
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (run / "settings.json").exists()  # the plan is bound to nothing


def test_a_folder_may_be_called_as_a_tar_is(tmp_path: Path) -> None:
    (tmp_path / "photos.tar").mkdir()
    assert "photos.tar holds no pictures" in call("generate", tmp_path / "photos.tar").stderr
