"""Edits of many texts, and patterns that must not hold up the machine."""

import pytest

from captioner.errors import BadInput
from captioner.review import Append, BadPattern, DeleteTerm, Prepend, Replace


@pytest.mark.parametrize(
    ("operation", "before", "after", "matches"),
    [
        (Replace("cat", "dog"), "a Cat, a cat", "a dog, a dog", 2),
        (Replace("cat", "dog", match_case=True), "a Cat, a cat", "a Cat, a dog", 1),
        (Replace("cat", "dog", whole_words=True), "cat, catalogue", "dog, catalogue", 1),
        (Replace("a.b", r"\1"), "a.b axb", r"\1 axb", 1),
        (Replace(r"(\w+) cat", r"cat, \1", is_pattern=True), "red cat", "cat, red", 1),
        (Replace("(?P<x>a)b", r"\g<x>c", is_pattern=True), "ab", "ac", 1),
        (Replace(r"\p{Lu}{2}", "", is_pattern=True, match_case=True), "ABc", "c", 1),
        (Replace("cat", ""), "dog", "dog", 0),
        (Prepend("sks"), "a cat", "sks, a cat", 1),
        (Prepend("photo of "), "a cat", "photo of a cat", 1),
        (Append("8k"), "a cat", "a cat, 8k", 1),
        (Append("."), "a cat", "a cat.", 1),
        (Append("8k"), "", "", 0),
        (
            DeleteTerm("Oil Painting"),
            "a cat, oil  painting, 8k, oil painting on canvas",
            "a cat, 8k, oil painting on canvas",
            1,
        ),
        (DeleteTerm("a cat"), "a cat, 8k", "8k", 1),
        (DeleteTerm("8k"), "a cat,  8K", "a cat", 1),
        (DeleteTerm("cat"), " a cat, 8k", " a cat, 8k", 0),
    ],
)
def test_operations(operation, before, after, matches):
    assert operation(before) == (after, matches)
    assert operation.title()


@pytest.mark.parametrize(
    ("find", "position"),
    [("a(b", 3), ("[a", 2), ("a{2000}", 1), (r"(\\p{9999}){9}", 5), ("(a{40}){40}", 7), ("(?:cat){e<=2}", 7), ("*", 0)],
)
def test_a_pattern_that_is_wrong_or_too_large_says_where(find: str, position: int) -> None:
    with pytest.raises(BadPattern) as raised:
        Replace(find, is_pattern=True)
    assert raised.value.position is not None
    assert abs(raised.value.position - position) <= 1


def test_a_pattern_that_would_never_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.review.operations.SECONDS", 0.2)
    operation = Replace("(a|aa)+$", "x", is_pattern=True)
    with pytest.raises(BadPattern, match="simpler"):
        operation("a" * 60 + "b")
    with pytest.raises(BadPattern, match="simpler"):  # the time is for all texts together
        operation("a")


def test_a_pattern_that_holds_itself_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.review.operations.SECONDS", 60)  # a slow machine would run out of time before memory
    with pytest.raises(BadPattern, match="too much memory"):
        Replace("(?R)", "x", is_pattern=True)("a cat")
    assert Replace(r"\((?:[^()]|(?R))*\)", "", is_pattern=True)("a cat (on (a) mat)") == ("a cat ", 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Replace(""),
        lambda: Prepend(" "),
        lambda: DeleteTerm(""),
        lambda: Append("a" * 501),
        lambda: Replace("a", "b" * 501),
    ],
)
def test_nothing_to_do_is_refused(make) -> None:
    with pytest.raises(BadInput):
        make()


def test_a_replacement_with_a_group_that_is_not_there() -> None:
    with pytest.raises(BadInput, match="replacement"):
        Replace("a", r"\2", is_pattern=True)("a")
