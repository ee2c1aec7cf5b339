"""Token counts equal to CLIP's own, and cuts that keep whole terms."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.text.length import clip_tokenizer, clip_tokens, cut_to_tokens

COUNTED = [  # with the vocabulary and the code of open_clip
    ("", 2),
    ("a photo of a cat", 7),
    ("a castle on a hill, highly detailed, digital painting, artstation, concept art, sharp focus", 22),
    ("portrait by greg rutkowski, zdzislaw beksinski and alphonse mucha", 19),
    ("8k, 1960s, f/1.8, 35 mm!!!", 21),
    ("Café in München, 北京", 12),
    ("it's the boys' rock'n'roll, don't look", 16),
    ("awfsjwivjdjfjjdjrj zxqv bcdfg", 19),
]


@pytest.mark.parametrize(("text", "count"), COUNTED)
def test_golden_counts(text: str, count: int) -> None:
    assert clip_tokens(text) == count


@pytest.fixture(scope="module")
def theirs():
    from transformers import CLIPTokenizer

    model = json.loads(clip_tokenizer().to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


ODD = [
    "a",
    "castle",
    "Ünder",
    "8k,",
    "(masterpiece:1.2)",
    "it's",
    "rutkowski",
    "北京",
    "<|endoftext|>",
    "¼",
    "ﬁ",
    "\n",
    "\xa0",
]
WORDS = st.sampled_from([*ODD, "👩\u200d🚀"])


@given(text=st.text(max_size=60) | st.lists(WORDS, max_size=30).map(" ".join))
@settings(deadline=None, max_examples=200)
def test_any_text_is_as_long_as_it_is_to_transformers(theirs, text: str) -> None:
    ids = theirs(text)["input_ids"]
    assert clip_tokens(text) == len(ids)
    assert clip_tokenizer().encode(text, add_special_tokens=False).ids == ids[1:-1]


def test_half_a_surrogate_pair_is_counted_too() -> None:
    assert clip_tokens("a \udce9 cat") == clip_tokens("a ? cat")


def count_words(text: str) -> int:
    return len(text.split())


def test_cut_at_a_comma() -> None:
    text = "a cat on a mat, oil painting, highly detailed"
    assert cut_to_tokens(text, count_words, 9) == text
    assert cut_to_tokens(text, count_words, 8) == "a cat on a mat, oil painting"
    assert cut_to_tokens(text, count_words, 7) == "a cat on a mat, oil painting"
    assert cut_to_tokens(text, count_words, 6) == "a cat on a mat"


def test_only_a_phrase_that_is_too_long_by_itself_is_cut_inside() -> None:
    assert cut_to_tokens("a cat on a mat, oil painting", count_words, 4) == "a cat"
    assert cut_to_tokens("A cat sleeps. It dreams of mice", count_words, 6) == "A cat sleeps."
    assert cut_to_tokens("incomprehensibilities", len, 5) == "incom"
    assert cut_to_tokens("a cat", lambda _: 99, 77) == ""


def test_a_prompt_that_just_fits_keeps_all_its_terms() -> None:
    text = ", ".join(["a castle on a hill", *["highly detailed"] * 20])
    assert cut_to_tokens(text, clip_tokens, clip_tokens(text)) == text
    assert cut_to_tokens(text, clip_tokens, clip_tokens(text) - 1) == text.rsplit(",", 1)[0]


@given(st.lists(st.sampled_from(["a", "cat", ",", "mat.", "of", " ", "oil"]), max_size=30), st.integers(0, 40))
@settings(deadline=None)
def test_the_cut_keeps_the_limit_and_the_beginning(parts: list[str], limit: int) -> None:
    text = " ".join(parts)
    cut = cut_to_tokens(text, count_words, limit)
    assert count_words(cut) <= limit
    assert text.startswith(cut)
    assert cut == text or not cut.endswith((",", " "))
