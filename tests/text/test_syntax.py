"""Prompts as programs that draw read them, and the words of them."""

from __future__ import annotations

import pytest

from captioner.text.finish import Finish
from captioner.text.syntax import without_syntax


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            "((a cat:1.2)), <lora:sks:1> BREAK hat, (masterpiece), [blurry], {{{best}}}",
            "a cat, hat, masterpiece, blurry, best",
        ),
        ("[cat:dog:0.5], [red|blue] hat, [forest:0.3], [a:[b:c:0.2]:0.5] z", "cat, red hat, forest, a z"),
        ("a portrait (by (artist:1.1):0.9)\nmasterpiece\n\n8k", "a portrait by artist, masterpiece, 8k"),
        (r"fate \(series\), (saber \(fate\):1.1)", "fate (series), saber (fate)"),
        ("1.5::night sky::, -1::dog::, a lamp", "night sky, a lamp"),
        ("a cat AND a dog :1.2, brANDy, embedding:easyneg", "a cat, a dog, brANDy"),
        (":d, >_<, a clock at 10:30, 16:9", ":d, >_<, a clock at 10:30, 16:9"),
        ("a castle, oil painting", "a castle, oil painting"),
        ("<lora:x:1>", ""),
        ("((((", ""),
    ],
)
def test_the_words_alone(prompt: str, words: str) -> None:
    assert without_syntax(prompt) == words
    assert without_syntax(words) == words or "(" in words


def test_brackets_that_are_words_can_be_escaped_again() -> None:
    finish = Finish(plain=True, escape=True)
    assert finish.text(without_syntax(r"(fate \(series\):1.2)")) == r"fate \(series\)"
