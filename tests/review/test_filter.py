"""What the filter language means, and where it says that it was misunderstood."""

from pathlib import Path

import pytest

from captioner.review import BadFilter
from captioner.review.filter import parse
from captioner.review.row import Row

ROWS = {
    "cats/10.png": ("a red cat, oil painting, highly detailed", -1.5),
    "cats/2.JPG": ("A Blue CAT in the forest", -0.25),
    "dog.png": ('a dog, sci-fi, says "hello"', None),
    "empty.webp": (None, None),
}


def matching(text: str) -> list[str]:
    test = parse(text)
    rows = [Row(name, Path(name), text, score) for name, (text, score) in ROWS.items()]
    rows[3].problem = "empty.webp is damaged."
    rows[2].was_edited, rows[2].original = True, "a dog"
    return [row.name.rpartition("/")[2].partition(".")[0] for row in rows if test(row)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["10", "2", "dog", "empty"]),
        ("  ", ["10", "2", "dog", "empty"]),
        ("cat", ["10", "2"]),
        ("caption:CAT Blue", ["2"]),
        ("cat AND NOT blue", ["10"]),
        ("cat -blue", ["10"]),
        ("cat (-blue)", ["10"]),
        ("blue OR dog", ["2", "dog"]),
        ("NOT cat OR red", ["10", "dog", "empty"]),  # NOT binds tighter than OR
        ("red OR blue forest", ["10", "2"]),  # AND binds tighter than OR
        ("(red OR blue) forest", ["2"]),
        ("NOT (red OR blue)", ["dog", "empty"]),
        ("NOT NOT cat", ["10", "2"]),
        ('"cat in the"', ["2"]),
        (r'"says \"hello\""', ["dog"]),
        ("sci-fi", ["dog"]),
        ('term:"OIL  painting"', ["10"]),
        ("term:oil", []),
        ("name:Cats/", ["10", "2"]),
        ("name:2.jpg", ["2"]),
        ("name:*.png", ["10", "dog"]),
        ("name:?.jpg", ["2"]),
        ("chars:>24", ["10", "dog"]),
        ("chars:=0", ["empty"]),
        ("chars:0", ["empty"]),
        ("tokens:<=8", ["2", "empty"]),
        ("tokens:!=8 cat", ["10"]),
        ("score:<-1", ["10"]),
        ("score:-0.25", ["2"]),
        ("score:>=-2 NOT name:10", ["2"]),
        ("is:empty", ["empty"]),
        ("is:failed", ["empty"]),
        ("is:edited", ["dog"]),
        ("and cat", ["10"][:0]),  # in small letters it is a word like any other
    ],
)
def test_what_a_filter_lets_through(text: str, names: list[str]) -> None:
    assert matching(text) == names


def test_brackets_in_a_name_are_themselves() -> None:
    rows = [Row(name, Path(name)) for name in ("cat [1].png", "cat 1.png")]
    assert list(map(parse('name:"cat [1]*"'), rows)) == [True, False]
    assert list(map(parse("name:*1].png"), rows)) == [True, False]


@pytest.mark.parametrize(
    ("text", "marked", "words"),
    [
        ("cat (dog", "(", "not closed"),
        ("cat) dog", ")", "not opened"),
        ('cat "dog ', '"dog', "not closed"),
        ("cat AND", "", "missing"),
        ("AND cat", "AND", "missing"),
        ("cat OR OR dog", "OR", "missing"),
        ("NOT", "", "missing"),
        ("()", ")", "missing"),
        ("cat tokens:many", "many", "tokens:>60"),
        ("tokens:> 60", ">", "number"),
        ("chars:", "chars:", "value"),
        ("name: cat", "name:", "value"),
        ("colour:red cat", "colour:", "caption:"),
        ("is:good", "good", "edited"),
        ("chars:>1e999999", ">1e999999", "number"),
    ],
)
def test_an_error_points_at_its_place(text: str, marked: str, words: str) -> None:
    with pytest.raises(BadFilter, match=words) as raised:
        parse(text)
    assert text[raised.value.start : raised.value.end] == marked


@pytest.mark.parametrize(
    "text", ["(" * 100 + "cat" + ")" * 100, "NOT " * 400 + "cat", "-" + "(-" * 300 + "a", "a" * 2001]
)
def test_what_is_too_deep_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(BadFilter):
        parse(text)
