"""Words that a finished text must and must not contain."""

from __future__ import annotations

import pytest

from captioner.decoding import DecodingChanges
from captioner.errors import BadInput
from captioner.text.finish import Finish
from captioner.text.length import clip_tokens
from captioner.text.words import replacements, with_replaced, with_words, without_words


@pytest.mark.parametrize(
    ("text", "words", "completed"),
    [
        ("a cute cat", ["cat"], "a cute cat"),
        ("a Cute cat", ["cute", "CAT"], "a Cute cat"),
        ("a category", ["cat"], "a category, cat"),
        ("a dog", ["cat", "oil painting"], "a dog, cat, oil painting"),
        ("a dog", ["☃"], "a dog, ☃"),
        ("a c++ book", ["c++"], "a c++ book"),
        ("1girl, looking at viewer", ["looking_at_viewer", ">_<"], "1girl, looking at viewer, >_<"),
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
        ("a city in neon.", ["neon"], "a city."),
        ("a city, 8k, in neon.", ["neon"], "a city, 8k."),
        ("a city", [], "a city"),
        ("1girl, long hair, red_eyes, >_<, 0_0", ["long_hair", "red eyes", ">_<"], "1girl, 0_0"),
        ("1girl, _", ["_"], "1girl"),
        ("(masterpiece:1.2), 1girl", ["masterpiece"], "1girl"),
        ("masterpiece, 1girl", ["masterpiece"], "1girl"),
        (
            "A dog, brown and white, sits on grass. There is a watermark, faint, in the corner. The sky is blue.",
            ["watermark"],
            "A dog, brown and white, sits on grass. The sky is blue.",
        ),
        ("A dog sits. A sky, a watermark, a cat. A hat.", ["watermark"], "A dog sits. A sky, a cat. A hat."),
        ("A dog sits, a watermark. The sky is blue, a watermark.", ["watermark"], "A dog sits. The sky is blue."),
        ("A castle. Trending on artstation, 8k", ["artstation"], "A castle. 8k"),
        ("a church by St. Basil and Co, 8k", ["basil"], "a church by St. and Co, 8k"),
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


@pytest.mark.parametrize(
    ("text", "given", "changed"),
    [
        ("1girl, solo, 1girls", ["1GIRL=woman"], "woman, solo, 1girls"),
        ("1girl,long  Hair,\nsolo", ["long hair = short hair", "solo="], "1girl,short hair"),
        ("long hair, blue_sky", ["long_hair=short hair", "blue_sky="], "short hair"),
        ("long_hair, blue_sky", ["long hair=short hair"], "short hair, blue_sky"),
        ("short_hair, cat, long hair", ["long hair=short hair"], "short_hair, cat"),
        ("1girl, solo", ["1girl="], "solo"),
        ("1girl, hat, Woman", ["1girl=woman"], "hat, Woman"),
        ("1girl, 1Girl, hat", ["1girl=1girl"], "1girl, hat"),
        ("a, b, c", ["a=b", "b=a"], "b, a, c"),
        ("cat, =_=", ["=_==closed eyes"], "cat, closed eyes"),
        ("a girl, a girl,, ", ["girl=woman"], "a girl, a girl,, "),
        ("solo", ["solo="], ""),
        ("1girl, a hat, solo.", ["solo="], "1girl, a hat."),
        ("woman, hat, 1girl. ", ["1girl=woman", "hat=cap"], "woman, cap."),
        ("A woman, 1girl.", ["1girl=a woman"], "A woman."),
        ("solo.", ["solo="], ""),
        ("solo, ...", ["...=speechless"], "solo, speechless"),
        ("solo, ...", ["..=two dots"], "solo, ..."),
        ("art by j. r. r.", ["art by j. r. r.=oil."], "oil."),
    ],
)
def test_whole_terms_are_replaced(text: str, given: list[str], changed: str) -> None:
    assert with_replaced(text, replacements(given)) == changed


@pytest.mark.parametrize("given", ["1girl", "=woman", " =", "1girl, solo=woman", "1girl=woman, solo"])
def test_what_is_no_replacement_is_refused(given: str) -> None:
    with pytest.raises(BadInput) as caught:
        Finish(replace=(given,))
    assert str(caught.value) == (f"replace must be OLD=NEW, each one comma term (NEW may be empty), not {given!r}.")
    with pytest.raises(BadInput, match=r"^replace must be one NEW for each OLD, not two for 'A'\.$"):
        Finish(replace=("a=b", "A=c"))


def test_what_is_forbidden_required_and_too_long_is_seen_to_once_terms_are_replaced() -> None:
    replace = ("1girl=woman", "hat=a very wide and very red straw hat")
    assert (
        Finish(replace=replace, forbid=("straw",), require=("1girl",)).text("1girl, hat, solo") == "woman, solo, 1girl"
    )
    assert Finish(replace=replace, prefix="1girl").text("1girl") == "1girl, woman"
    assert Finish(replace=replace, max_clip_tokens=9).text("1girl, solo, hat, cat") == "woman, solo"
    assert Finish(replace=("hat=",), max_clip_tokens=9).text("1girl, solo, hat, cat") == "1girl, solo, cat"
    assert Finish(replace=("1girl=a woman of great stature",), max_clip_tokens=4).text("1girl, hat") == "a woman"


def test_replacements_without_a_term_to_replace_are_known() -> None:
    replace = ("1girl=woman", "solo=", "1gril=woman", "long_hair=short hair")
    finish = Finish(replace=replace, prefix="1gril")
    assert finish.idle("- 1girl\n- long hair", replace) == ["solo=", "1gril=woman"]
    assert finish.idle("a hat, solo.", ["solo=", "1gril=woman"]) == ["1gril=woman"]


def test_brackets_are_escaped_once_and_those_of_a_trigger_word_never() -> None:
    finish = Finish(escape=True, prefix="(sks:1.1)", replace=("fate_(series)=fate (stay night)",))
    assert finish.text(r"1girl, fate \(series\), ;)") == r"(sks:1.1), 1girl, fate \(stay night\), ;\)"
    assert Finish(escape=True, max_clip_tokens=6).text("fate (series), hat") == r"fate \(series\)"
    with pytest.raises(BadInput, match=r"^escape is True or False, not 'no'\.$"):
        Finish(escape="no")


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "whole"),
    [
        ("sks", ":d, hat", "8k", "sks, :d, hat, 8k"),
        ("sks", ";), ...", "8k", "sks, ;), ..., 8k"),
        ("sks,", "!!, hat, ...", ".", "sks, !!, hat, ...."),
        ("(", "a cat", ":1.2)", "(a cat:1.2)"),
        ("sks: ", "a cat.", "8k", "sks: a cat. 8k"),
    ],
)
def test_a_tag_of_signs_does_not_grow_onto_trigger_words(prefix: str, text: str, suffix: str, whole: str) -> None:
    assert Finish(prefix=prefix, suffix=suffix).text(text) == whole


def test_contradictions() -> None:
    with pytest.raises(BadInput, match="once"):
        Finish(forbid=("Cat",), require=("CAT",))
    with pytest.raises(BadInput, match=r"^require must be words, none of them empty"):
        Finish(require=("",))


@pytest.mark.parametrize("name", ["forbid", "require", "replace"])
def test_a_text_is_no_list_of_words(name: str) -> None:
    """Its letters would be forbidden."""
    with pytest.raises(BadInput, match=rf"^{name} is a list of words: \['cat'\]\.$"):
        Finish(**{name: "cat"})
    with pytest.raises(BadInput, match=r"^forbid is a list of words: \['cat'\]\.$"):
        DecodingChanges(forbid="cat").check()
