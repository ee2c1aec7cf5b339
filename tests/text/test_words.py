"""Words that a finished text must and must not contain."""

from __future__ import annotations

import pytest

from captioner.decoding import DecodingChanges
from captioner.errors import BadInput
from captioner.text.finish import Finish
from captioner.text.length import clip_tokens
from captioner.text.words import with_words, without_words


@pytest.mark.parametrize(
    ("text", "words", "completed"),
    [
        ("a cute cat", ["cat"], "a cute cat"),
        ("a Cute cat", ["cute", "CAT"], "a Cute cat"),
        ("a category", ["cat"], "a category, cat"),
        ("a dog", ["cat", "oil painting"], "a dog, cat, oil painting"),
        ("a dog", ["☃"], "a dog, ☃"),
        ("a c++ book", ["c++"], "a c++ book"),
        ("", ["cat"], "cat"),
    ],
)
def test_what_is_missing_becomes_a_comma_term(text: str, words: list[str], completed: str) -> None:
    assert with_words(text, words) == completed


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        ("a city, neon lights, 8k", ["neon"], "a city, 8k"),
        ("a Neon city, 8k", ["neon"], "a city, 8k"),
        ("a city by greg rutkowski, art by Greg  Rutkowski", ["greg rutkowski"], "a city"),
        ("an inneonate child", ["neon"], "an inneonate child"),
        ("a city in neon, 8k", ["neon"], "a city, 8k"),
        ("a neon cat. On a mat", ["neon"], "a cat. On a mat"),
        ("neon", ["neon"], ""),
        ("a city", [], "a city"),
    ],
)
def test_what_is_forbidden_goes(text: str, words: list[str], left: str) -> None:
    assert without_words(text, words) == left


def test_trigger_words_count_and_the_limit_keeps_what_is_required() -> None:
    assert Finish(prefix="sks style", require=("sks",)).text("a cat") == "sks style, a cat"
    long = ", ".join(["a castle"] + [f"part {number}" for number in range(40)])
    text = Finish(suffix="8k", max_clip_tokens=30, require=("dragon",)).text(long)
    assert text.startswith("a castle, part 0")
    assert text.endswith(", dragon, 8k")
    assert 26 <= clip_tokens(text) <= 30


def test_contradictions() -> None:
    with pytest.raises(BadInput, match="once"):
        Finish(forbid=("Cat",), require=("CAT",))
    with pytest.raises(BadInput, match=r"^require must be words, none of them empty"):
        Finish(require=("",))


@pytest.mark.parametrize("name", ["forbid", "require"])
def test_a_text_is_no_list_of_words(name: str) -> None:
    """Its letters would be forbidden."""
    with pytest.raises(BadInput, match=rf"^{name} is a list of words: \['cat'\]\.$"):
        Finish(**{name: "cat"})
    with pytest.raises(BadInput, match=r"^forbid is a list of words: \['cat'\]\.$"):
        DecodingChanges(forbid="cat").check()
