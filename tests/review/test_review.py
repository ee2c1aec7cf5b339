"""Correcting a folder: the same files that `generate` writes, every way back, nothing lost or touched unasked."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

import pytest
from PIL import Image

from captioner.errors import BadImage, BadInput, BadOutput
from captioner.files.atomic import write_all
from captioner.review import Append, Conflict, DeleteTerm, Prepend, Replace, Review, Scope, Unknown
from captioner.review.journal import journal_path
from captioner.review.outputs import Moved, Wanted
from captioner.review.sidecars import Sidecars
from captioner.sinks import open_out
from tests.disk import files_of_at_most
from tests.review.folders import picture, rows_of, snapshot, write_rows


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures, ten of them with sidecars."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(folder / f"{number}.png", number)
        if number < 10:
            (folder / f"{number}.txt").write_text(f"a cat {number}, oil painting, 8k\n")
    return folder


def test_a_text_with_the_line_breaks_of_windows_is_not_edited_by_being_looked_at(photos: Path) -> None:
    (photos / "3.txt").write_bytes(b"a cat,\r\noil painting\r\n")
    before = snapshot(photos)
    with Review(photos) as review:
        assert review.row("3.png").text == "a cat,\noil painting"
        review.edit("3.png", "a cat,\noil painting", before="a cat,\noil painting")
        assert review.history() == []
        review.edit("3.png", "a dog")
        review.undo()
        review.flush()
        assert snapshot(photos) == before


def test_what_no_editor_shows_is_no_other_text(photos: Path) -> None:
    with Review(photos) as review:
        review.edit("3.png", "a cat\x0b, 8k", before="a cat 3, oil painting, 8k")
        assert review.edit("3.png", "a dog\x0b, 8k", before="a cat\x0b, 8k").text == "a dog, 8k"


def test_a_kill_between_two_files_of_one_text_leaves_none_behind(photos: Path) -> None:
    write_rows(photos / "metadata.jsonl", ["3.png"], "file_name")
    with Review(photos) as review:
        review.edit("3.png", "a cat")
        (photos / "3.txt").write_text("a cat\n")
        review.look_again()
        assert len(review.places(review.row("3.png"))) == 2
        review.edit("3.png", "a dog")
        review.flush()
    lines = journal_path(photos).read_text().splitlines()
    assert json.loads(lines.pop()) == {"written": 2}  # the kill came before this, and
    journal_path(photos).write_text("".join(f"{line}\n" for line in lines))
    (photos / "3.txt").write_text("a cat\n")  # after one file of the two
    with Review(photos) as review:
        review.flush()
    assert (photos / "3.txt").read_text() == "a dog\n"
    assert rows_of(photos / "metadata.jsonl")[0]["text"] == "a dog"


# --- what stands there -----------------------------------------------------------------------------------------------


def test_sidecars_are_read_edited_and_taken_back(photos: Path) -> None:
    (photos / "3.txt").write_bytes(b"\xef\xbb\xbf a cat, 8k  \r\n\r\n")
    before = snapshot(photos)
    with Review(photos) as review:
        assert [row.name for row in review.view()] == [f"{number}.png" for number in range(12)]  # 2 before 10
        assert review.row("3.png").text == "a cat, 8k"
        assert review.row("10.png").text is None
        assert snapshot(photos) == before  # nothing before the first edit
        row = review.edit("3.png", " a dog, 8k \r\n")
        assert (row.text, row.is_edited, row.original) == ("a dog, 8k", True, "a cat, 8k")
        review.edit("10.png", "a hen")
        assert review.flush() == 0
        assert (photos / "3.txt").read_bytes() == b"a dog, 8k\n"
        assert (photos / "10.txt").read_bytes() == b"a hen\n"
        review.undo()
        review.undo()
        review.flush()
        assert snapshot(photos) == before  # to the byte, and no file that was not there
        assert not row.is_edited
        with pytest.raises(BadInput, match="nothing to undo"):
            review.undo()
        review.redo()
        assert review.row("3.png").text == "a dog, 8k"


def test_a_table_of_generate_is_edited_in_place(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for sidecar in photos.glob("*.txt"):
        sidecar.unlink()
    table = photos / "captions.jsonl"
    write_rows(table, [f"photos/{number}.png" for number in range(11)], score=-0.5)
    with table.open("a") as stream:
        stream.write('{"file": "/etc/passwd", "text": "not of this folder"}\nno JSON at all\n')
    lines = table.read_bytes().splitlines()
    with Review(photos) as review:
        row = review.row("4.png")
        assert (row.text, row.score) == ("text of 4", -0.5)
        assert [one.text for one in review.candidates(row)] == ["text of 4", "another of 4"]
        review.edit("4.png", "a dog — né")
        review.edit("11.png", "where the others are")
        review.flush()
        after = table.read_bytes().splitlines()
        assert json.loads(after[4])["text"] == "a dog — né"
        assert json.loads(after[4]).keys() == json.loads(lines[4]).keys()
        assert [line for line in after if line not in lines] == [after[4], after[-1]]
        assert json.loads(after[-1]) | {"text": ""} == {
            **dict.fromkeys(json.loads(lines[0])),
            "file": "photos/11.png",
            "text": "",
            "candidates": [],
        }
        review.undo()
        review.undo()
        review.flush()
        assert table.read_bytes().splitlines() == lines
    assert not list(photos.glob("*.txt"))


def test_a_picture_that_a_model_was_asked_about_gets_a_whole_line(photos: Path) -> None:
    for sidecar in photos.glob("*.txt"):
        sidecar.unlink()
    write_rows(photos / "captions.jsonl", [f"{number}.png" for number in range(3)], score=-0.5)
    said = rows_of(photos / "captions.jsonl")[0] | {"text": "a hen", "score": -2.0}
    with Review(photos) as review:
        review.said("5.png", {name: value for name, value in said.items() if name != "file"})
        assert [one.text for one in review.candidates(review.row("5.png"))] == ["text of 0", "another of 0"]
        review.edit("5.png", "a hen")
        review.flush()
        assert rows_of(photos / "captions.jsonl")[-1] == said | {"file": "5.png"}
        review.undo()
    assert len(rows_of(photos / "captions.jsonl")) == 3


def test_a_prompt_that_the_picture_carries_is_a_candidate(photos: Path) -> None:
    with Review(photos) as review:
        review.said("5.png", {"text": "a hen", "score": None, "candidates": [], "source": "metadata"})
        assert review.candidates(review.row("5.png")) == [("a hen", None)]


def test_a_run_goes_on_from_an_edited_table(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `generate --out … --resume` would do: edited rows are done, and stay as they were edited."""
    from captioner.images import find_images
    from captioner.sinks import Result

    for sidecar in photos.glob("*.txt"):
        sidecar.unlink()
    monkeypatch.chdir(photos)
    sources = list(find_images(["."]))
    with open_out(Path("captions.jsonl"), settings={"model": "mini"}) as sink:
        rows = [{"file": str(source.path), "text": "a cat", "score": -1.0} for source in sources[:5]]
        sink.write([Result(source, row) for source, row in zip(sources, rows, strict=False)])
    with Review(photos) as review:
        review.edit(sources[0].path.name, "a dog")
    with open_out(Path("captions.jsonl"), settings={"model": "mini"}, resume=True) as sink:
        assert [sink.wants(source) for source in sources[:6]] == [False] * 5 + [True]
    assert [row["text"] for row in rows_of(photos / "captions.jsonl")] == ["a dog"] + ["a cat"] * 4


def test_an_image_folder_is_edited_in_its_metadata(photos: Path) -> None:
    write_rows(photos / "metadata.jsonl", [f"{number}.png" for number in range(9)], column="file_name", embedding=True)
    made: list[str] = []

    def embed(texts):
        made.extend(texts)
        return [[0.25] * 384 for _ in texts]

    with Review(photos, embed) as review:
        assert review.row("0.png").text == "text of 0"  # as a training reads it, not the sidecar
        assert review.row("9.png").text == "a cat 9, oil painting, 8k"
        review.edit("0.png", "a dog")
        review.edit("11.png", "new here")
        review.flush()
        rows = rows_of(photos / "metadata.jsonl")
        assert (rows[0]["text"], rows[0]["embedding"][:2]) == ("a dog", [0.25, 0.25])  # the old text's would be wrong
        assert (rows[-1]["file_name"], rows[-1]["text"]) == ("11.png", "new here")
        assert (photos / "0.txt").read_text().startswith("a cat 0")  # it said something else before
    assert sorted(made) == ["a dog", "new here"]


def test_an_image_folder_may_write_accents_in_the_other_way(photos: Path) -> None:
    (photos / "0.png").rename(photos / normalize("NFD", "é.png"))
    write_rows(photos / "metadata.jsonl", [normalize("NFC", "é.png")], column="file_name")
    with Review(photos) as review:
        review.edit(normalize("NFD", "é.png"), "a dog")
    (row,) = rows_of(photos / "metadata.jsonl")
    assert (row["file_name"], row["text"]) == (normalize("NFC", "é.png"), "a dog")


def test_a_table_that_is_gone_since_the_last_look_is_looked_at_before_it_is_written(photos: Path) -> None:
    write_rows(photos / "metadata.jsonl", ["1.png"], column="file_name", embedding=True)
    with Review(photos) as review:
        (table,) = review.tables
        table.path.unlink()
        with pytest.raises(Moved):
            table.write({review.rows["1.png"]: Wanted("text of 1", "a dog")})


def test_several_texts_of_a_picture_and_a_run_that_goes_on_are_left_alone(photos: Path) -> None:
    row = {"file_name": "1.png", "text": ["one", "another"]}
    (photos / "metadata.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"file_name": "2.png", "text": "a"})
    )
    (photos / "1.txt").unlink()
    before = (photos / "metadata.jsonl").read_bytes()
    with Review(photos) as review:
        with pytest.raises(BadOutput, match="no single text"):
            review.edit("1.png", "a dog")
        (photos / "metadata.jsonl.part").write_text("")
        with pytest.raises(BadOutput, match="not finished"):
            review.edit("2.png", "a dog")
    assert (photos / "metadata.jsonl").read_bytes() == before


def test_outputs_that_agree_go_on_agreeing(photos: Path) -> None:
    write_rows(photos / "captions.jsonl", [f"{number}.png" for number in range(10)])
    (photos / "1.txt").write_text("text of 1\n")
    with Review(photos) as review:
        review.edit("1.png", "a dog")
        review.edit("2.png", "a hen")
        review.flush()
        texts = [row["text"] for row in rows_of(photos / "captions.jsonl")]
    assert texts[1:3] == ["a dog", "text of 2"]
    assert [(photos / f"{number}.txt").read_text() for number in (1, 2)] == ["a dog\n", "a hen\n"]


def test_what_failed_is_a_row_with_its_reason(photos: Path) -> None:
    (photos / "11.png").write_bytes(b"no picture")
    error = {"file": "photos/10.png", "error": "photos/10.png: the model failed on this picture."}
    (photos / "captioner-errors.jsonl").write_text(json.dumps(error) + "\nnonsense\n")
    (photos / "2.txt").write_bytes(b"caf\xe9")
    picture(photos / "5.jpg", 5)
    with Review(photos) as review:
        with pytest.raises(BadImage):
            review.small("11.png")
        problems = {row.name: row.problem for row in review.view("is:failed")}
        assert problems.keys() == {"10.png", "11.png", "2.png", "5.png"}
        assert "not UTF-8" in problems["2.png"]
        assert "would share its sidecar with 5.jpg" in problems["5.png"]
        for name in ("2.png", "5.png"):
            with pytest.raises(BadOutput):
                review.edit(name, "a dog")
        review.edit("10.png", "a dog")
        assert review.row("10.png").problem is None
        review.flush()
    assert (photos / "2.txt").read_bytes() == b"caf\xe9"


def test_pictures_that_a_table_names_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    picture(tmp_path / "disk" / "1.png", 1)
    os.symlink(tmp_path / "disk", tmp_path / "photos")
    names = [str(tmp_path / "photos" / "1.png"), str(tmp_path / "no\0name" / "1.png"), "\ud800/1.png"]
    write_rows(tmp_path / "disk" / "captions.jsonl", names)
    with Review(tmp_path / "photos") as review:
        assert review.row("1.png").text == "text of 1"


@pytest.mark.parametrize("name", ["rows.jsonl", "captioner-errors.jsonl"])
def test_what_may_not_be_read_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (photos / name).write_text('{"file": "1.png", "text": "a cat"}\n')
    opens = io.open

    def refusing(file: Any, *how: Any, **more: Any) -> Any:
        if str(file) == str(photos / name):
            raise PermissionError(errno.EACCES, "Permission denied")  # as everybody but root is told
        return opens(file, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refusing)
        patch.setattr(builtins, "open", refusing)
        with pytest.raises(BadOutput, match=rf"{name} cannot be read \(Permission denied\): change who may"):
            Review(photos)
    with Review(photos) as review:
        assert review.view()


def test_one_sidecar_where_capitals_make_no_difference(tmp_path: Path) -> None:
    for number, name in enumerate(("Cat.jpg", "cat.png")):
        picture(tmp_path / name, number)
    with suppress(FileExistsError):
        os.link(tmp_path / "Cat.jpg", tmp_path / "cAT.JPG")  # it is found by both, as on Macs and USB disks
    with Review(tmp_path) as review:
        problems = {row.name: row.problem or "" for row in review.view()}
        (owner,) = (name for name, problem in problems.items() if not problem)
        for name in problems.keys() - {owner}:
            with pytest.raises(BadOutput, match=f"share its sidecar with {owner}"):
                review.edit(name, "a dog")


def test_a_picture_that_is_none_fails_after_another_look_too(photos: Path) -> None:
    (photos / "11.png").write_bytes(b"no picture")

    def failed() -> list[str]:
        until = time.monotonic() + 60
        while not (rows := review.view("is:failed")) and time.monotonic() < until:
            time.sleep(0.01)
        return [row.name for row in rows]

    with Review(photos) as review:
        assert failed() == ["11.png"]
        review.look_again()
        assert failed() == ["11.png"]


def test_half_a_surrogate_pair_in_a_table_can_be_corrected(photos: Path) -> None:
    """JSON may hold it, and no page can say which text it has seen."""
    (photos / "metadata.jsonl").write_text('{"file_name": "11.png", "text": "a cat \\ud83d"}\n')
    before = (photos / "metadata.jsonl").read_bytes()
    with Review(photos) as review:
        seen = review.row("11.png").text
        assert seen == "a cat \\ud83d"
        review.edit("11.png", seen, before=seen)
        review.flush()
        assert (photos / "metadata.jsonl").read_bytes() == before
        review.edit("11.png", "a cat", before=seen)
        review.flush()
    assert rows_of(photos / "metadata.jsonl")[0]["text"] == "a cat"


@pytest.mark.parametrize("where", ["table", "sidecars"])
def test_looking_again_while_texts_are_written(photos: Path, where: str) -> None:
    """Two threads read and write the same files: each line of a table stays one line, each text the last one."""
    if where == "table":
        for sidecar in photos.glob("*.txt"):
            sidecar.unlink()
        write_rows(photos / "captions.jsonl", [f"{number}.png" for number in range(12)] * 40)
    with Review(photos) as review:
        looking = threading.Event()

        def look() -> None:
            while not looking.is_set():
                review.look_again()

        thread = threading.Thread(target=look)
        thread.start()
        for number in range(60):
            review.edit(f"{number % 12}.png", f"edit {number}")
        looking.set()
        thread.join()
        review.flush()
    last = [f"edit {48 + number}" for number in range(12)]
    if where == "table":
        assert [row["text"] for row in rows_of(photos / "captions.jsonl")] == last * 40
    else:
        assert [(photos / f"{number}.txt").read_text().strip() for number in range(12)] == last


# --- never outside, never unasked ------------------------------------------------------------------------------------


def test_nothing_outside_of_the_root(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(outside / "secret.png", 1)
    (outside / "secret.txt").write_text("secret\n")
    (photos / "link.png").symlink_to(outside / "secret.png")
    (photos / "folder").symlink_to(outside, target_is_directory=True)
    (photos / "within.png").symlink_to(photos / "1.png")
    (photos / "circle.png").symlink_to("circle.png")
    (photos / "11.txt").symlink_to(outside / "secret.txt")
    before = snapshot(outside)
    with Review(photos) as review:
        names = {row.name for row in review.view()}
        assert "within.png" in names
        assert not {"link.png", "folder/secret.png", "circle.png"} & names
        assert review.row("11.png").text is None
        assert "leads out" in review.row("11.png").problem
        for name in ("../outside/secret.png", "/etc/passwd", "folder/secret.png", "", "\0"):
            with pytest.raises(Unknown):
                review.small(name)
        with pytest.raises(BadOutput):
            review.edit("11.png", "overwritten")
        (photos / "1.png").unlink()
        (photos / "1.png").symlink_to(outside / "secret.png")  # after the look
        with pytest.raises(BadImage, match="leads out"):
            review.large("1.png")
    assert snapshot(outside) == before


def test_what_another_program_writes_is_never_lost(photos: Path) -> None:
    with Review(photos) as review:
        (photos / "1.txt").write_text("by hand\n")
        with pytest.raises(Conflict) as raised:
            review.edit("1.png", "a dog", before="a cat 1, oil painting, 8k")
        assert raised.value.row.text == "by hand"
        review.edit("1.png", "a dog", before="by hand")
        review.flush()
        (photos / "1.txt").write_text("by hand again\n")
        outcome = review.undo()
        assert (outcome.skipped, outcome.pictures) == (["1.png"], 0)
        review.flush()
        assert (photos / "1.txt").read_text() == "by hand again\n"
        assert review.row("1.png").text == "by hand again"


def test_a_file_that_changes_while_it_is_written_keeps_what_it_holds(photos: Path) -> None:
    review = Review(photos)
    with review.lock:  # before the thread comes to it
        review.edit("1.png", "a dog")
        (photos / "1.txt").write_text("by hand\n")
    review.flush()
    assert (photos / "1.txt").read_text() == "by hand\n"
    assert review.row("1.png").text == "by hand"
    assert "changed by another program" in review.row("1.png").problem
    review.close()


def test_two_reviews_of_one_folder(photos: Path) -> None:
    with Review(photos), pytest.raises(BadOutput, match="another"):
        Review(photos)
    Review(photos).close()


def full(contents: Any) -> None:
    raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_said_and_tried_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Review(photos) as review:
        with monkeypatch.context() as patched:
            patched.setattr("captioner.review.sidecars.write_all", full)
            review.edit("1.png", "a dog")
            assert review.flush() == 1
            assert "No space left" in review.row("1.png").problem
        review.writer.retry()
        assert review.flush() == 0
    assert (photos / "1.txt").read_text() == "a dog\n"


def test_what_is_written_with_the_next_edit_is_no_problem_any_more(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Review(photos) as review:
        with monkeypatch.context() as patched:
            patched.setattr("captioner.review.sidecars.write_all", full)
            review.edit("1.png", "a dog")
            assert review.flush() == 1
        review.edit("2.png", "a bird")
        assert review.flush() == 0
        assert [review.row(name).problem for name in ("1.png", "2.png")] == [None, None]
    assert (photos / "1.txt").read_text() == "a dog\n"


def test_a_preview_takes_no_time_from_what_follows_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr("captioner.review.operations.time", SimpleNamespace(monotonic=lambda: now[0]))
    operation = Replace("cat", "dog")
    with Review(photos) as review:
        assert review.preview(operation, Scope("name:1.png")).pictures == 1
        now[0] += 60  # somebody looks at it
        assert review.apply(operation, Scope("name:1.png")).pictures == 1


def test_many_texts_are_written_in_pieces_so_that_it_can_be_told_how_many_are_left(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sidecars, "at_once", 4)
    write_rows(photos / "metadata.jsonl", ["3.png"], "file_name")
    (photos / "3.txt").write_text("text of 3\n")
    left = []

    def seen(contents):
        left.append(len(review.writer.waiting))
        write_all(contents)

    monkeypatch.setattr("captioner.review.sidecars.write_all", seen)
    with Review(photos) as review:
        review.apply(Prepend("sks"), Scope())
        assert review.flush() == 0
        assert left == [10, 6, 2]
        assert rows_of(photos / "metadata.jsonl")[0]["text"] == "sks, text of 3"
        assert (photos / "9.txt").read_text() == "sks, a cat 9, oil painting, 8k\n"


# --- many at once ----------------------------------------------------------------------------------------------------


def test_a_bulk_edit_is_one_step(photos: Path) -> None:
    before = snapshot(photos)
    with Review(photos) as review:
        preview = review.preview(Replace("cat", "dog"), Scope())
        assert (preview.pictures, preview.matches, preview.of) == (10, 10, 12)
        example = preview.examples[0]
        assert (example.before, example.after) == ("a cat 0, oil painting, 8k", "a dog 0, oil painting, 8k")
        assert snapshot(photos) == before
        review.apply(Replace("cat", "dog"), Scope())
        review.apply(DeleteTerm("8K"), Scope("name:1.png OR name:2.png"))
        review.apply(Prepend("sks"), Scope(names=("3.png", "10.png", "no such picture")))
        review.apply(Append("8k"), Scope("sks", names=("4.png",)))  # none
        review.flush()
        texts = [(photos / f"{number}.txt").read_text().strip() for number in range(5)]
        assert texts == [
            "a dog 0, oil painting, 8k",
            "a dog 1, oil painting",
            "a dog 2, oil painting",
            "sks, a dog 3, oil painting, 8k",
            "a dog 4, oil painting, 8k",
        ]
        assert [step.title for step, _ in review.history()] == [
            "Prepend “sks” in 1 text",
            "Delete the term “8K” in 2 texts",
            "Replace “cat” by “dog” in 10 texts",
        ]
        assert [review.undo().pictures for _ in range(3)] == [1, 2, 10]
        review.flush()
        assert snapshot(photos) == before
        review.redo()
        review.edit("0.png", "a hen")  # what was taken back is gone now
        assert [stands for _, stands in review.history()] == [True, True]


def test_typing_into_one_text_is_one_step(photos: Path) -> None:
    with Review(photos) as review:
        for text in ("a d", "a do", "a dog"):
            review.edit("1.png", text, group="first")
        review.edit("1.png", "a hen", group="second")
        assert review.undo().examples[0].after == "a dog"
        assert review.undo().examples[0].after == "a cat 1, oil painting, 8k"
        review.redo()
        assert review.row("1.png").text == "a dog"


def test_terms_are_counted(photos: Path) -> None:
    with Review(photos) as review:
        review.edit("1.png", "Oil  Painting, 4k")
        terms = {term.text: term.count for term in review.terms()}
        assert terms["8k"] == 9
        assert sum(count for text, count in terms.items() if "ainting" in text) == 10
        assert [term.text for term in review.terms("4k", by_name=True)] == ["4k", "Oil  Painting"]
        assert [term.count for term in review.terms(contains="8K")] == [9]
        review.edit("9.png", "a cat, 8K")
        assert [(term.text, term.count) for term in review.terms(contains="8k")] == [("8k", 9)]  # as most write it


def test_sorting(photos: Path) -> None:
    write_rows(photos / "captions.jsonl", ["2.png", "7.png"], score=-2.0)
    write_rows(photos / "more.jsonl", ["1.png"], score=-1.0)
    with Review(photos) as review:
        names = lambda **how: [row.name.removesuffix(".png") for row in review.view(**how)]  # noqa: E731
        assert names(sort="score")[:4] == ["2", "7", "1", "0"]
        assert names(sort="score", descending=True)[:3] == ["1", "2", "7"]
        review.edit("5.png", "x " * 50)
        assert names(sort="chars", descending=True)[0] == "5"
        assert names(sort="tokens", descending=True)[0] == "5"
        assert names(filter="tokens:>40") == ["5"]
        assert names(descending=True)[0] == "11"


# --- killed ----------------------------------------------------------------------------------------------------------


def test_what_is_in_the_journal_is_written_after_a_kill(photos: Path) -> None:
    path = journal_path(photos)
    review = Review(photos)
    with review.lock:  # the thread cannot write
        review.edit("1.png", "a dog")
        review.edit("1.png", "a hen")
        review.apply(Append("4k"), Scope(names=("1.png", "2.png", "3.png")))
        review.undo()
        review.apply(Append("16k"), Scope(names=("1.png", "2.png", "3.png")))
        killed = path.read_bytes()
        before = snapshot(photos)
    review.close()
    written = snapshot(photos)
    for name, content in before.items():
        (photos / name).write_bytes(content)
    (photos / "3.txt").write_text("by hand\n")
    path.write_bytes(killed + b'{"edit": 99, "title": "half a li')
    with Review(photos) as review:
        assert review.row("1.png").text == "a hen, 16k"
        assert "changed by another program" in review.row("3.png").problem
        assert [step.title for step, _ in review.history()][-1] == "Edit 1.png"
        review.flush()
        assert (photos / "3.txt").read_text() == "by hand\n"
        (photos / "3.txt").write_bytes(written["3.txt"])
        assert snapshot(photos) == written
    (photos / "1.txt").write_text("a cat 1, oil painting, 8k\n")  # by another program, long after
    with Review(photos) as review:
        assert review.row("1.png").text == "a cat 1, oil painting, 8k"
        assert review.row("1.png").original == "a cat 1, oil painting, 8k"


def test_the_original_outlives_the_session(photos: Path) -> None:
    (photos / "1.txt").write_bytes(b"a cat\r\n")
    with Review(photos) as review:
        review.edit("1.png", "a dog")
    with Review(photos) as review:
        assert (review.row("1.png").original, review.row("1.png").is_edited) == ("a cat", True)
        review.undo()
    assert (photos / "1.txt").read_bytes() == b"a cat\r\n"


def test_what_somebody_else_writes_later_is_no_edit(photos: Path) -> None:
    with Review(photos) as review:
        review.edit("1.png", "a dog")
    (photos / "1.txt").write_text("captioned anew\n")
    with Review(photos) as review:
        assert not review.row("1.png").is_edited
        review.edit("1.png", "a hen")
        assert review.row("1.png").original == "captioned anew"
        review.undo()
        assert review.row("1.png").text == "captioned anew"


@pytest.mark.parametrize(
    "damage",
    [b"\0\0\0\0\n", b'{"edit": 2, "title\n', b'{"edit": 2, "title": "x", "time": 1, "changes": [5]}\n'],
)
def test_a_damaged_line_of_the_journal_costs_its_own_edit_alone(photos: Path, damage: bytes) -> None:
    path = journal_path(photos)
    with Review(photos) as review:
        for number in range(1, 5):
            review.edit(f"{number}.png", f"a dog {number}")
    (photos / "4.txt").write_text("a cat 4, oil painting, 8k\n")  # killed after three of the four were written
    header, *edits = [line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b'{"written')]
    path.write_bytes(b"".join([header, edits[0], damage, *edits[2:], b'{"written": 3}\n', b'{"undo"']))
    for _ in range(2):  # the second time with what the first one has added
        with Review(photos) as review:
            assert review.journal.damaged == 1
            assert {step.title for step, _ in review.history()} >= {"Edit 1.png", "Edit 3.png", "Edit 4.png"}
            review.flush()
            assert (photos / "4.txt").read_text() == "a dog 4\n"
            review.edit("5.png", "a hen")
            assert review.undo().pictures == 1
        assert damage in path.read_bytes()
    with Review(photos) as review:
        assert [review.undo().title for _ in range(3)] == ["Edit 4.png", "Edit 3.png", "Edit 1.png"]
    assert (photos / "2.txt").read_text() == "a dog 2\n"


def test_what_undoes_a_damaged_edit_is_passed_over(photos: Path) -> None:
    with Review(photos) as review:
        review.edit("1.png", "a dog")
        review.edit("2.png", "a hen")
        review.undo()
        review.edit("3.png", "an owl")
    path = journal_path(photos)
    path.write_bytes(path.read_bytes().replace(b'{"edit": 2', b'{"edit: 2'))
    with Review(photos) as review:
        assert review.journal.damaged == 2
        assert [step.title for step, _ in review.history()] == ["Edit 3.png", "Edit 1.png"]


def test_a_journal_of_something_else_is_refused(photos: Path) -> None:
    journal_path(photos).write_text('{"run": {}}\n')
    with pytest.raises(BadOutput, match="no journal of a review"):
        Review(photos)


# --- small copies ----------------------------------------------------------------------------------------------------


def test_small_copies_are_kept_and_made_anew(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1000), (200, 0, 0)).save(photos / "wide.jpg")
    with Review(photos) as review:
        content = review.small("wide.jpg")
        with Image.open(tmp_path / "cache" / "thumbnails" / kept_name(tmp_path)) as image:
            assert image.size == (256, 64)
        assert review.small("wide.jpg") == content
        Image.new("RGB", (100, 100), (0, 200, 0)).save(photos / "wide.jpg")
        assert review.small("wide.jpg") != content
        (photos / "0.png").write_bytes(os.urandom(100))
        with pytest.raises(BadImage):
            review.large("0.png")


def test_on_a_full_disk_small_copies_are_shown_and_not_kept(photos: Path, tmp_path: Path) -> None:
    with Review(photos) as review:
        with files_of_at_most(10):
            content = review.small("3.png")
        assert Image.open(io.BytesIO(content)).format == "JPEG"
        assert not [file for file in (tmp_path / "cache" / "thumbnails").rglob("*") if file.is_file()]


def kept_name(tmp_path: Path) -> Path:
    (name,) = (file.relative_to(tmp_path / "cache" / "thumbnails") for file in tmp_path.rglob("thumbnails/*/*.jpg"))
    return name
