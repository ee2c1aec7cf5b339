"""Terms mined from prompts and read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.errors import BadInput
from captioner.text.terms import clean_term, mine, read_tags, read_terms


def test_terms_are_counted_most_frequent_first() -> None:
    prompts = ["a cat, highly detailed, 8 k\n", "a dog, Highly  Detailed, ((8k:1.3))", "a dog,,", ""]
    assert mine(prompts) == [("8k", 2), ("a dog", 2), ("highly detailed", 2), ("a cat", 1)]


def test_what_is_no_term_is_left_out() -> None:
    assert mine(["x" * 61 + ", 1 2 3, !!!, ok, <unk>, " + "y" * 61]) == [("ok", 1)]


def test_the_place_of_a_term_does_not_matter() -> None:
    """A word of one sign is one, and the space after a comma belongs to no term."""
    long = "x" * 60
    assert mine([f"猫, {long}", f"{long}, 猫"]) == [(long, 2), ("猫", 2)]


@pytest.mark.parametrize(
    ("term", "cleaned"),
    [
        ("((sharp focus:1.2))", "sharp focus"),
        ("[art by wlop]", "art by wlop"),
        ("trending on artstation.", "trending on artstation"),
        ("3 d render", "3d render"),
        ("- ", ""),
        ("2 0 2 2", ""),
    ],
)
def test_a_term_is_cleaned(term: str, cleaned: str) -> None:
    assert clean_term(term) == cleaned


def test_memory_is_bounded_and_frequent_terms_survive() -> None:
    prompts = (f"sharp focus, unique thing {i}, wlop" for i in range(500))
    found = mine(prompts, max_kept=50)
    assert found[:2] == [("sharp focus", 500), ("wlop", 500)]
    assert len(found) <= 51


def test_lists_and_tables_are_read(tmp_path: Path) -> None:
    file = tmp_path / "terms.tsv"
    file.write_text("\ufeffsharp focus\t12\n\nwlop \t3\nsharp focus\t1\n", encoding="utf-8")
    assert read_terms(file) == ["sharp focus", "wlop"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tags.txt", "long_hair\n>_<\nlong hair\n"),
        ("danbooru.csv", '\ufefflong_hair,0,4350743,"/longhair,very_long"\n>_<,0,1,\nlong_hair,0,1,""\n\n'),
        ("selected_tags.csv", "tag_id,name,category,count\r\n1,long_hair,0,9\r\n2,>_<,0,1\r\n3\r\n"),
    ],
)
def test_tags_are_read_from_what_other_programs_have(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_tags(tmp_path / name) == ["long hair", ">_<"]


def test_bad_lists_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, reason in (("gone.txt", "cannot be read"), ("empty.txt", "is empty"), ("latin.txt", "not UTF-8")):
        with pytest.raises(BadInput, match=reason):
            read_terms(tmp_path / name)
    (tmp_path / "long.csv").write_text("x" * 200_000)
    (tmp_path / "empty.csv").write_text("tag_id,name\n")
    for name, reason in (("gone.csv", "cannot be read"), ("empty.csv", "is empty"), ("long.csv", "is no table")):
        with pytest.raises(BadInput, match=reason):
            read_tags(tmp_path / name)
