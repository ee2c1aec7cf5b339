"""Whatever is planned, and whoever is killed: rows = pictures, each once, as one process would have written them."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from captioner.errors import BadImage, BadInput, BadOutput
from captioner.files import lease
from captioner.run import templates
from captioner.shards import merge, part, plan
from captioner.shards.inputs import Finding
from captioner.shards.status import status
from captioner.text.finish import Finish
from tests.shards.colours import Colours, job
from tests.shards.conftest import BAD, COUNT, picture

Planned = Callable[..., plan.Plan]
TEXTS = [f"colour {n} {20 * n} 7" if n != BAD else None for n in range(COUNT)]


def merged(of: plan.Plan, out: Path) -> list[dict]:
    merge.merge(of, out, "table")
    return pyarrow.parquet.read_table(out).to_pylist()


def worker(out: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.shards.colours", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def check(of: plan.Plan, out: Path) -> None:
    rows = merged(of, out)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["file"] for row in rows] == [id for shard in range(of.shards) for id in of.ids(shard)]
    assert len({row["file"] for row in rows}) == of.pictures == COUNT
    assert [row["error"] is None for row in rows] == [text is not None for text in TEXTS]


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pictures", "pictures/*.png", "@list.txt", "a.parquet", "a.tar"])
def test_every_input_gives_a_row_a_picture(planned: Planned, inputs: Path, tmp_path: Path, name: str) -> None:
    made = planned(name) if name[0] != "@" else plan.make(tmp_path / "run", [f"@{inputs / name[1:]}"], 3)
    assert (made.pictures, made.shards, made.size(0), made.size(3)) == (COUNT, 4, 3, 2)
    assert made == plan.read(made.out)
    assert [what.shard for what in part.work(made, job(), (1, 1))] == [0, 1, 2, 3]
    check(made, tmp_path / "all.parquet")


def test_a_data_set_of_the_hub(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its local copy: `datasets` treats a folder as it treats a name."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    os.link(inputs / "a.parquet", folder / "train.parquet")
    made = plan.make(tmp_path / "run", [f"hub:{folder}"], 4)
    assert made.ids(2)[-1] == f"hub:{folder}#{COUNT - 1}"
    assert len(list(part.work(made, job()))) == 3
    check(made, tmp_path / "all.parquet")


def test_a_hub_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"hub:nobody/none cannot be loaded: the Hugging Face Hub does not answer"):
        plan.make(tmp_path / "run", ["hub:nobody/none"])


def test_relative_names_are_found_from_anywhere(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    made = plan.make(tmp_path / "run", ["pictures"], 20)
    monkeypatch.chdir(tmp_path)
    assert made.ids(0)[0] == "pictures/00.png"
    assert next(iter(part.work(made, job()))).failed == 1


def test_names_that_lead_nowhere_are_rows_of_errors(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{inputs}/pictures/00.png\ngone.png\ngone.png\n")
    made = plan.make(tmp_path / "run", [f"@{tmp_path / 'list.txt'}"], 10)
    [manifest] = part.work(made, job())
    assert (manifest.pictures, manifest.failed) == (2, 1)
    assert manifest.errors == [{"file": "gone.png", "error": "gone.png does not exist."}]
    with pytest.raises(BadInput, match="gone does not exist"):
        plan.make(tmp_path / "other", ["gone"], 10)
    assert not (tmp_path / "other").exists()


def test_a_plan_is_made_once(planned: Planned, inputs: Path) -> None:
    made = planned()
    with pytest.raises(BadOutput, match="is already there"):
        planned()
    with pytest.raises(BadInput, match=r"is compressed"):
        plan.make(made.out / "b", [str(inputs / "a.tar.gz")])
    with pytest.raises(BadInput, match="holds no plan"):
        plan.read(inputs)
    about = json.loads((made.out / "plan.json").read_text())
    for wrong in ({"pictures": 0}, {"shard_size": 0}, {"shards": 3}, {"folder": 5}, {"inputs": None}, {"more": 1}):
        (made.out / "plan.json").write_text(json.dumps({**about, **wrong}))
        with pytest.raises(BadInput, match=r"plan\.json is no plan \(.*: make a new one"):
            plan.read(made.out)


def test_standard_input_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.TextIOWrapper(io.BytesIO(picture(0)))
    monkeypatch.setattr("sys.stdin", given)
    with pytest.raises(BadInput, match="standard input only once: write it to a file"):
        plan.make(tmp_path / "run", ["-"], 3)
    assert given.buffer.tell() == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("hub:", "^hub: names nothing"),
        ("parquet:", "^parquet: names nothing"),
        ("https://host/a.tar?download=true", "a.tar.* may hold pictures: fetch it, and name the file"),
        ("@{}/list", r"a\.tar may hold pictures: name it itself, or by a pattern that ends in \.tar"),
        ("{}/data/*", r"train-0\.parquet may hold pictures: name it itself, or by a pattern that ends in \.parquet"),
        ("{}", r"holds no pictures\. Below lies .*/data/train-0\.parquet: name its folder, .*/data\.$"),
        ("{}/cache", r"holds no pictures\.$"),
    ],
)
def test_what_names_no_picture_is_told(inputs: Path, tmp_path: Path, named: str, why: str) -> None:
    for folder in ("data", "cache/.hidden"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        os.link(inputs / "a.parquet", tmp_path / "set" / folder / "train-0.parquet")
    (tmp_path / "set" / "list").write_text(f"{inputs}/a.tar\n")
    with pytest.raises(BadInput, match=why):
        plan.make(tmp_path / "run", [named.format(tmp_path / "set")])


def test_tars_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no tar at"):
        plan.make(tmp_path / "run", [f"{tmp_path}/*.tar"])


def test_a_split_and_a_column_are_of_tables(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^split and image_column would change nothing"):
        plan.make(tmp_path / "run", [str(inputs / "pictures")], finding=Finding(split="test", image_column="x"))


def test_a_folder_of_tars_is_not_looked_below(inputs: Path, tmp_path: Path) -> None:
    """Its subfolder holds pictures, which would be left out without a word."""
    assert plan.make(tmp_path / "run", [str(inputs)]).pictures == COUNT
    with pytest.raises(
        BadInput, match=r"^recursive would change nothing: .*holds \.tar files.*or name .*\*\.tar, and its"
    ):
        plan.make(tmp_path / "deep", [str(inputs)], finding=Finding(recursive=True))
    both = plan.make(
        tmp_path / "both", [str(inputs / "*.tar"), str(inputs / "pictures")], finding=Finding(recursive=True)
    )
    assert both.pictures == 2 * COUNT


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_an_ending_may_be_in_capitals(inputs: Path, tmp_path: Path, name: str) -> None:
    for other in (name.upper(), f".{name}"):
        os.link(inputs / name, tmp_path / other)
    made = plan.make(tmp_path / "run", [str(tmp_path)])
    assert made.pictures == COUNT
    assert all(one.startswith(f"{tmp_path}/{name.upper()}#") for one in made.ids(0))


def test_hidden_pictures_hide_no_table_beside_them(inputs: Path, tmp_path: Path) -> None:
    os.link(inputs / "a.parquet", tmp_path / "a.parquet")
    (tmp_path / "._cover.png").touch()
    assert plan.make(tmp_path / "run", [str(tmp_path)]).pictures == COUNT


def test_a_folder_of_pictures_and_tars_asks_which_are_meant(inputs: Path, tmp_path: Path) -> None:
    """The pictures alone would be planned without a word of the thousands inside the tars."""
    shutil.copy(inputs / "pictures" / "00.png", inputs / "preview.png")
    with pytest.raises(BadInput, match=r"holds pictures and tars: say which are meant by pictures:\S+ or webdataset:"):
        plan.make(tmp_path / "run", [str(inputs)])
    assert plan.make(tmp_path / "one", [f"pictures:{inputs}"]).pictures == 1
    both = [f"pictures:{inputs}", f"webdataset:{inputs}"]
    assert plan.make(tmp_path / "both", both).pictures == 1 + COUNT


def test_no_plan_takes_the_place_of_the_folder_one_stands_in(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "/"):
        with pytest.raises(BadOutput, match="name one to be made"):
            plan.make(Path(out), [str(inputs / "a.tar")])


def test_what_cannot_be_read_is_named_and_not_the_output(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.tar").symlink_to("nowhere")
    with pytest.raises(BadInput, match=r"b\.tar is no tar, or is cut off \(.*No such file"):
        plan.make(tmp_path / "run", [str(tmp_path / "*.tar")])

    def shut(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", shut)
    with pytest.raises(BadInput, match=r"pictures cannot be read \(Permission denied\)"):
        plan.make(tmp_path / "run", [str(inputs / "pictures")])


def test_names_in_parquet_that_are_no_text_fail_their_shard_alone(tmp_path: Path) -> None:
    bytes_of_names = pyarrow.array([b"a.png", b"caf\xe9.png"], pyarrow.binary())
    names = pyarrow.StringArray.from_buffers(2, *bytes_of_names.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"image": names}), tmp_path / "a.parquet")
    made = plan.make(tmp_path / "run", [str(tmp_path / "a.parquet")])
    [failure] = part.work(made, job())
    assert isinstance(failure, part.Failure)
    assert "a.parquet is damaged" in failure.error


def test_two_members_of_one_name_are_two_pictures(inputs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.add(inputs / "pictures" / "01.png", "same.png")
    made = plan.make(tmp_path / "run", [str(tmp_path / "twice.tar")])
    assert len(set(made.ids(0))) == 2


def test_hidden_members_are_passed_over_as_in_a_folder(inputs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("x/._a.png", "./x/a.png", ".b.png", "x/.thumbs/c.png", "../d.png"):
            archive.add(inputs / "pictures" / "00.png", name)
    made = plan.make(tmp_path / "run", [str(tmp_path / "a.tar")])
    assert made.ids(0) == [f"{tmp_path}/a.tar#{name}" for name in ("./x/a.png", "../d.png")]


def test_links_and_videos_of_a_tar_are_told(inputs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "a.mp4", "x/b.mp4"):  # the first video's frame is there
            archive.add(inputs / "pictures" / "00.png", name)
        for name, kind in (("x/c.png", tarfile.LNKTYPE), ("a.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            archive.addfile(member)
    videos: set[str] = set()
    made = plan.make(tmp_path / "run", [str(tmp_path / "a.tar")], videos=videos)
    assert videos == {f"{tmp_path}/a.tar#x/b.mp4"}
    whole, *links = made.sources(made.items(0))
    assert (whole.id, whole.data) == (f"{tmp_path}/a.tar#a.png", picture(0))
    assert len({source.id for source in (whole, *links)}) == 3
    why = "is a link within a tar: pack the file itself, as tar -h --hard-dereference does."
    assert [link.problem for link in links] == [f"{link.id} {why}" for link in links]


# --- what lies beside them -------------------------------------------------------------------------------------------


CAPTIONS = {"10_sks/a": "a cat", "10_sks/b": "ein Hund, grün", "c": ""}


@pytest.fixture
def captioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, a tar whose texts stand behind all pictures, a parquet file and a data set of the same."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for ending in (".png", ".txt"):
            for name, caption in CAPTIONS.items():
                path = tmp_path / "folder" / f"{name}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if ending == ".png" or caption:
                    path.write_bytes(picture(0) if ending == ".png" else f"{caption}\r\n".encode())
                    archive.add(path, f"./{name}{ending}")
    cells = [{"bytes": picture(0), "path": f"{name}.png"} for name in CAPTIONS]
    table = pyarrow.table({"image": cells, "prompt": [caption or None for caption in CAPTIONS.values()]})
    (tmp_path / "set").mkdir()
    for file in ("a.parquet", "set/train.parquet"):
        pyarrow.parquet.write_table(table, tmp_path / file)
    return tmp_path


def filled(of: plan.Plan, text: str = "{name}|{concept}|{tags}") -> list[str]:
    return sorted(
        filling.prefix for filling in (templates.filled(Finish(prefix=text), one) for one in of.sources(of.items(0)))
    )


@pytest.mark.parametrize("name", ["folder", "a.tar", "a.parquet", "hub:set"])
def test_variables_stand_for_the_same_in_every_container(captioned: Path, name: str) -> None:
    named = f"hub:{captioned / 'set'}" if name == "hub:set" else str(captioned / name)
    made = plan.make(captioned / "run", [named], finding=Finding(recursive=name == "folder"))
    folder_of_c = "folder" if name == "folder" else ""
    assert filled(made) == ["a|sks|a cat", "b|sks|ein Hund, grün", f"c|{folder_of_c}|"]


def test_an_address_in_a_table_has_its_name_and_its_caption(tmp_path: Path) -> None:
    table = pyarrow.table({"URL": ["https://host/x/my%20cat.png?size=2"], "TEXT": [["a cat ", "another"]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    named = [str(tmp_path / "a.parquet")]
    with pytest.raises(BadInput, match=r"no caption column 'ALT'.*text_column"):
        plan.make(tmp_path / "run", named, finding=Finding(image_column="URL", text_column="ALT"))
    made = plan.make(tmp_path / "run", named, finding=Finding(image_column="URL", text_column="TEXT"))
    assert filled(plan.read(made.out)) == ["my cat||a cat"]
    without = plan.make(tmp_path / "without", named, finding=Finding(image_column="URL"))
    assert filled(without) == ["my cat||"]


def test_a_caption_that_is_no_text_fails_its_picture_alone(captioned: Path) -> None:
    """And only where it is asked for."""
    cells = [{"bytes": picture(0), "path": None}] * 2
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "text": [5, 6]}), captioned / "a.parquet")
    with tarfile.open(captioned / "a.tar", "w") as archive:
        (captioned / "folder" / "c.txt").write_bytes(b"\xff\xfe")
        archive.add(captioned / "folder" / "c.png", "c.png")
        archive.add(captioned / "folder" / "c.txt", "c.txt")
    no_text = pyarrow.StringArray.from_buffers(2, *pyarrow.array([b"a cat", b"\xff"], pyarrow.binary()).buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "text": no_text}), captioned / "b.parquet")
    for name, why in (
        ("a.tar", r"a\.tar#c\.png: the text beside it is not UTF-8"),
        ("a.parquet", "caption is 5, not"),
        ("b.parquet", r"b\.parquet#1: the caption is not UTF-8"),
    ):
        made = plan.make(captioned / f"of-{name}", [str(captioned / name)])
        assert all(manifest.failed == 0 for manifest in part.work(made, job()))
        with pytest.raises(BadImage, match=why):
            filled(made)


def test_a_plan_of_an_older_version_is_worked_off(planned: Planned, tmp_path: Path) -> None:
    """It tells of no captions."""
    made = planned("a.tar")
    for file in (made.out / "plan").iterdir():
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).drop(["text_place", "text_length"]), file)
    about = json.loads((made.out / "plan.json").read_text())
    del about["text_column"]
    (made.out / "plan.json").write_text(json.dumps(about))
    list(part.work(plan.read(made.out), job()))
    check(made, tmp_path / "all.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["x"]}), file)
    with pytest.raises(BadOutput, match="is damaged"):
        made.items(int(file.stem))


# --- killed, doubled, half written -----------------------------------------------------------------------------------


def test_a_worker_that_is_killed_at_any_moment_loses_its_shard_alone(planned: Planned, tmp_path: Path) -> None:
    """Each is killed a little later than the one before, until one comes to the end."""
    made = planned()
    moments = (2, 7, 9, 12, 16, 20, 24, 28, 999)
    said, complaint = worker(made.out, ",".join(map(str, moments))).communicate(timeout=60)
    assert said.split().count("killed") == len(moments) - 1, complaint
    assert len(part.done(made)) == made.shards
    check(made, tmp_path / "all.parquet")
    assert os.listdir(made.out / "leases") == []
    assert {path.name for path in made.out.iterdir()} == {"plan.json", "plan", "parts", "leases", "settings.json"}


def test_what_was_half_written_counts_for_nothing(planned: Planned, tmp_path: Path) -> None:
    made = planned()
    slow = worker(made.out, "0", "60")
    while not list((made.out / "parts").glob(".captioner-*")):
        assert slow.poll() is None
        time.sleep(0.02)
    os.killpg(slow.pid, signal.SIGKILL)
    slow.communicate()
    assert status(made).running == 0
    assert len(list(part.work(made, job()))) == 4
    assert not list((made.out / "parts").glob(".captioner-*"))
    check(made, tmp_path / "all.parquet")


def test_two_drivers_at_once_share_the_shards(planned: Planned, tmp_path: Path) -> None:
    made = planned()
    other = worker(made.out, "0", "0.1")
    while other.poll() is None and not list((made.out / "leases").glob("*.json")):
        time.sleep(0.01)
    here = [what.shard for what in part.work(made, job())]
    there = [int(shard) for shard in other.communicate(timeout=60)[0].split()]
    assert here and there  # noqa: PT018 (neither did it all)
    assert sorted(here + there) == [0, 1, 2, 3]
    check(made, tmp_path / "all.parquet")


def test_shares_are_disjoint_and_whole(planned: Planned) -> None:
    made = planned()
    shares = [[what.shard for what in part.work(made, job(), (share, 3))] for share in (1, 2, 3)]
    assert shares == [[0, 3], [1], [2]]


def test_a_shard_that_was_doubled_has_the_same_rows(planned: Planned) -> None:
    """As after a lease that ran out under a worker who only slept."""
    made = planned()
    list(part.work(made, job()))
    path = part.done(made)[1]
    before = path.read_bytes()
    path.unlink()
    list(part.work(made, job()))
    assert path.read_bytes() == before


def test_other_settings_are_refused(planned: Planned) -> None:
    made = planned()
    part.begin(made, job(prompt="wrong"))
    with pytest.raises(BadOutput, match=r"No part is made yet: .* remove .*settings\.json"):
        part.begin(made, job(prompt="a"))
    (made.out / "settings.json").unlink()
    list(part.work(made, job(prompt="a"), (1, 4)))
    with pytest.raises(BadOutput, match=r"begun with other settings: prompt was a and is now b\. Give the same"):
        list(part.work(made, job(prompt="b")))
    other = made.out / "parts" / "00001-000000000000.parquet"
    other.write_bytes(part.done(made)[0].read_bytes())
    with pytest.raises(BadOutput, match="parts of 2 settings"):
        merge.merge(made, made.out / "x.parquet", "table", partial=True)


def test_a_container_that_cannot_be_read_fails_its_shards_alone(inputs: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes((inputs / "a.tar").read_bytes())
    made = plan.make(tmp_path / "run", [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")], COUNT)
    (tmp_path / "a.tar").write_bytes(b"")
    outcome = {what.shard: type(what) for what in part.work(made, job())}
    assert outcome == {0: part.Failure, 1: part.Manifest}
    [failure] = status(made).failed
    assert "has changed since the plan was made" in failure.error
    with pytest.raises(BadInput, match="parts for 1 of 2 shards"):
        merge.merge(made, tmp_path / "all.jsonl", "table")
    (tmp_path / "a.tar").write_bytes((inputs / "a.tar").read_bytes())
    assert [what.shard for what in part.work(made, job())] == [0]
    assert status(made).failed == []


def test_a_clock_that_is_set_back_has_no_shard_tried_for_ever(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes((inputs / "a.tar").read_bytes())
    made = plan.make(tmp_path / "run", [str(tmp_path / "a.tar")], COUNT)
    (tmp_path / "a.tar").write_bytes(b"")
    moments = iter(range(1_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    assert [type(what) for what in part.work(made, job())] == [part.Failure]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("parts/00000-{}.json", {"pictures": "x"}, "tells nothing of a part: remove 00000-"),
        ("parts/00000-{}.json", {"seconds": None}, "tells nothing of a part: remove 00000-"),
        ("leases/00001.failed.json", {"time": "x"}, "does not tell when its shard was tried. Remove it"),
    ],
)
def test_what_workers_wrote_and_somebody_changed_is_told(planned: Planned, name: str, content: dict, says: str) -> None:
    made = planned()
    list(part.work(made, job(), (1, 4)))
    path = made.out / name.format(job().hash)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
    with pytest.raises(BadOutput, match=says):
        status(made), list(part.work(made, job()))


def test_a_failure_that_is_put_right_as_it_is_read_ends_nobody(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker makes the shard, and removes the file."""
    made = planned()
    failure = made.out / "leases" / "00001.failed.json"
    failure.parent.mkdir(exist_ok=True)
    read = part.read_object

    def read_late(path: Path, *words: Any) -> dict[str, Any]:
        path.unlink()
        return read(path, *words)

    monkeypatch.setattr(part, "read_object", read_late)
    failure.write_text("{}")
    assert part.failures(made) == []
    failure.write_text("{}")
    assert part._read_failure(failure) is None


def test_parts_of_no_shard_are_passed_over(planned: Planned, tmp_path: Path) -> None:
    made = planned()
    list(part.work(made, job()))
    (made.out / "parts" / "00099-0123456789ab.parquet").touch()
    (made.out / "leases" / "mine.failed.json").touch()
    assert status(made).shards_done == 4
    check(made, tmp_path / "all.parquet")


def test_a_part_that_lies_is_not_merged(planned: Planned, tmp_path: Path) -> None:
    made = planned()
    list(part.work(made, job()))
    parts = part.done(made)
    rows = [pyarrow.parquet.read_table(file) for file in parts.values()]
    for wrong in (rows[0], rows[1][:2]):
        pyarrow.parquet.write_table(wrong, parts[1])
        with pytest.raises(BadOutput, match="does not hold the pictures of its shard"):
            merge.merge(made, tmp_path / "x.parquet", "table")
    assert not (tmp_path / "x.parquet").exists()


def test_a_disk_on_which_workers_could_not_agree_is_told_of_before_a_plan_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT does

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BadOutput, match="without hard links"):
        plan.make(tmp_path / "run", [str(tmp_path / "a.png")])
    assert os.listdir(tmp_path) == ["a.png"]


# --- leases between machines -----------------------------------------------------------------------------------------


def test_a_lease_of_another_machine_lasts_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "00000.json"
    path.write_text(json.dumps({"machine": "another", "process": 1}))
    assert lease.take(path) is None
    assert lease.is_held(path)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)  # the clock of this machine
    assert lease.is_held(path)
    monkeypatch.undo()
    old = time.time() - lease.EXPIRES - 1
    os.utime(path, (old, old))
    assert not lease.is_held(path)
    with lease.take(path) as held:
        assert held is not None
        assert lease.read(path)["machine"] == lease.machine()
        assert lease.take(path) is None
    assert os.listdir(tmp_path) == []


def test_a_lease_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "00000.json"
    path.write_text(json.dumps({"machine": lease.machine(), "process": 1}))
    held = lease.take(path)
    assert held is not None
    held.release()


def test_a_lease_is_held_where_each_name_of_a_file_has_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by ntfs-3g: two workers made every shard twice."""
    monkeypatch.setattr(os, "link", shutil.copyfile)
    with lease.take(tmp_path / "a.json"):
        assert lease.is_held(tmp_path / "a.json")
    assert not lease.is_held(tmp_path / "a.json")


def test_who_lost_a_lease_does_not_take_it_from_its_next_holder(tmp_path: Path) -> None:
    path = tmp_path / "00000.json"
    slept = lease.take(path)
    assert slept is not None
    path.unlink()  # as another machine does when the heart has stopped
    with lease.take(path):
        slept.release()
        assert path.exists()


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.01)
    done = iter(range(1000))
    with lease.take(tmp_path / "x.json", lambda: {"done": next(done)}):
        while lease.read(tmp_path / "x.json").get("done", 0) < 3:
            time.sleep(0.01)


# --- what they come to -----------------------------------------------------------------------------------------------


def test_status_counts_and_reckons(planned: Planned) -> None:
    made = planned()
    assert (status(made).pace, status(made).seconds_left, status(made).cost_per_million(2)) == (None, None, None)
    list(part.work(made, job(), (2, 4)))
    assert merge.merge(made, made.out / "x.parquet", "table", partial=True) == merge.Merged(3, failed=1, missing=3)
    assert status(made).rate is None
    with lease.take(made.out / "leases" / "00000.json", lambda: {"done": 2, "failed": 0}):
        now = status(made)
    assert (now.shards_done, now.pictures_done, now.pictures_failed, now.running) == (1, 3, 1, 1)
    assert now.pace is not None
    assert now.rate == now.pace
    assert now.seconds_left == pytest.approx((COUNT - 3 - 2) / now.pace)
    assert now.cost_per_million(3.6) == pytest.approx(1000 / now.pace)


@pytest.mark.parametrize("name", ["pictures", "a.parquet", "a.tar"])
def test_a_webdataset_of_the_parts(planned: Planned, tmp_path: Path, name: str) -> None:
    made = planned(name)
    list(part.work(made, job()))
    first = merge.merge(made, tmp_path / "tars", "webdataset")
    assert (first.rows, first.failed) == (COUNT - 1, 1)
    with tarfile.open(tmp_path / "tars" / "00001.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert list(members) == [f"00001{n:06}.{kind}" for n in (0, 2) for kind in ("png", "txt", "json")]
    assert members["00001000002.png"] == picture(5)
    assert members["00001000002.txt"].decode() == TEXTS[5]
    (tmp_path / "tars" / "00001.tar").unlink()  # as if the merge had been killed there
    assert merge.merge(made, tmp_path / "tars", "webdataset") == first


def test_an_imagefolder_of_the_parts(planned: Planned, tmp_path: Path) -> None:
    from datasets import load_dataset

    made = planned("a.parquet")
    list(part.work(made, job()))
    merge.merge(made, tmp_path / "folder", "imagefolder")
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "c"))
    assert sorted(rows["text"]) == sorted(text for text in TEXTS if text)


def test_a_full_disk_does_not_tell_to_resume_what_cannot_be_resumed(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = planned("pictures")
    list(part.work(made, job()))
    with monkeypatch.context() as patch:
        patch.setattr("captioner.sinks.imagefolder.shutil.copyfile", no_room)
        with pytest.raises(BadOutput, match=r"No space left .*remove .*folder, and merge again") as said:
            merge.merge(made, tmp_path / "folder", "imagefolder")
    assert "resume" not in str(said.value)


def test_a_picture_that_is_gone_is_left_out(planned: Planned, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    for file in (inputs / "pictures").iterdir():
        (tmp_path / "copies" / file.name).write_bytes(file.read_bytes())
    made = plan.make(tmp_path / "run", [str(tmp_path / "copies")], 3)
    list(part.work(made, job()))
    (tmp_path / "copies" / "02.png").unlink()
    for name in ("webdataset", "imagefolder"):
        done = merge.merge(made, tmp_path / name, name)
        assert (done.rows, done.failed) == (COUNT - 2, 2)
    errors = [json.loads(line) for line in (tmp_path / "imagefolder" / "errors.jsonl").read_text().splitlines()]
    assert [error["error"].partition("copies/")[2] for error in errors] == [
        "02.png does not exist.",
        "04.png is not a picture of a kind that can be read, or is cut off.",
    ]
    with pytest.raises(BadOutput, match="imagefolder is already there: remove it"):
        merge.merge(made, tmp_path / "imagefolder", "imagefolder")


def test_tars_of_another_plan_are_not_taken_for_those_of_this_one(planned: Planned, tmp_path: Path) -> None:
    made, other = planned("a.tar"), tmp_path / "other.png"
    other.write_bytes(picture(1))
    for of in (made, plan.make(tmp_path / "other", [str(other)], 3)):
        list(part.work(of, job()))
    merge.merge(plan.read(tmp_path / "other"), tmp_path / "tars", "webdataset")
    with pytest.raises(BadOutput, match=r"00000\.tar holds other rows than"):
        merge.merge(made, tmp_path / "tars", "webdataset")
    (tmp_path / "tars" / "00000.tar").write_bytes(b"no tar")
    with pytest.raises(BadOutput, match=r"00000\.tar is no tar of a merge"):
        merge.merge(made, tmp_path / "tars", "webdataset")


def test_rows_of_embeddings(planned: Planned, tmp_path: Path) -> None:
    class Vectors(Colours):
        def answer(self, looks):
            return [{"embedding": [float(row["text"].split()[1]), 1.0]} for row in super().answer(looks)]

    made = planned()
    list(part.work(made, part.Job(Vectors(), ("embedding",), {})))
    rows = merged(made, tmp_path / "x.parquet")
    assert np.array_equal(rows[3]["embedding"], [3.0, 1.0])
    assert rows[BAD]["embedding"] is None
    merge.merge(made, tmp_path / "tars", "webdataset")
    with tarfile.open(tmp_path / "tars" / "00001.tar") as archive:
        assert [name.rpartition(".")[2] for name in archive.getnames()] == ["png", "json"] * 2  # no empty caption


def test_the_column_of_the_pictures_can_be_named(inputs: Path, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(inputs / "a.parquet").rename_columns(["picture", "other"])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(BadInput, match=r"no picture column .* say which with image_column"):
        plan.make(tmp_path / "run", [str(tmp_path / "b.parquet")])
    made = plan.make(tmp_path / "run", [str(tmp_path / "b.parquet")], finding=Finding(image_column="picture"))
    list(part.work(made, job()))
    check(made, tmp_path / "all.parquet")
