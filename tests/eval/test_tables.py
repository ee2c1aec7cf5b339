"""Tables of texts: CSV and JSON lines, ours and others', and what is wrong with them in a sentence."""

import csv
from pathlib import Path

import pytest

from captioner.errors import BadInput
from eval.tables import Lookup, is_table, read_rows


def test_our_own_tables_and_others_read_alike(tmp_path: Path) -> None:
    rows = [{"id": "a.png", "prediction": "a fox"}, {"id": "b.png", "prediction": 'an "owl",\nin snow'}]
    ours = '{"file": "a.png", "text": "a fox"}\n\n{"file": "b.png", "text": "an \\"owl\\",\\nin snow"}\n'
    (tmp_path / "ours.jsonl").write_text(ours)
    theirs = '\ufeffid,prediction\r\na.png,a fox\r\nb.png,"an ""owl"",\nin snow"\r\n'
    (tmp_path / "theirs.csv").write_bytes(theirs.encode())
    for name in ("ours.jsonl", "theirs.csv"):
        assert read_rows(tmp_path / name, ("id", "prediction")) == rows
        assert is_table(name)


def test_a_field_may_be_longer_than_the_csv_module_takes(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "long.csv").write_text("id,prediction\n" + f"a,{'x' * 300_000}\n")
    assert len(read_rows(tmp_path / "long.csv", ("id",))[0]["prediction"]) == 300_000
    assert csv.field_size_limit() == limit  # set for the whole process, so left alone


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"x,y\n1,2\n", "lacks the columns id and prediction; it has x, y"),
        ("a.csv", b"id,y\n1,2\n", "lacks the column prediction; it has id, y"),
        ("a.csv", b"file,y\n1,2\n", "lacks the column prediction; it has file, y"),
        ("a.csv", b"id,prediction\n1\n", "cannot be read as UTF-8 CSV"),
        ("a.csv", b"id,prediction\n1,caf\xe9\n", "cannot be read as UTF-8 CSV"),
        ("a.csv", b"id,id\n1,2\n", "two columns called 'id'"),
        ("a.csv", b"id,prediction\n", "has no rows"),
        ("a.jsonl", b'{"id": "a"}\n{"id": \n', "line 2, is no JSON"),
        ("a.jsonl", b"5\n", "line 1, holds no object"),
        ("a.jsonl", b'{"id": "a", "text": ["b", "c"]}\n', "line 1: text is no text"),
        ("a.jsonl", b"[" * 100_000, "line 1, is no JSON"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=sentence):
        read_rows(tmp_path / name, ("id", "prediction"))


def test_what_is_not_there_is_not_called_unreadable(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no .*none\.csv"):
        read_rows(tmp_path / "none.csv", ())
    with pytest.raises(BadInput, match="is a folder"):
        read_rows(tmp_path, ())


def test_pictures_are_found_by_the_part_of_the_path_that_is_theirs_alone() -> None:
    lookup = Lookup({"/my/a/1.png": "x", "/my/b/1.png": "y", "2.png": "z", "3": "w"})
    assert lookup.find("a/1.png") == "/my/a/1.png"
    assert lookup.find("other/b/1.png") == "/my/b/1.png"
    assert lookup.find("1.png") is None  # there are two
    assert lookup.find("deep/2.png") == "2.png"
    assert lookup.find("2") == "2.png"
    assert lookup.find("3.jpg") == "3"
    assert lookup.find("4.png") is None
