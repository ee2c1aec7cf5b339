"""What the programs that draw read in a prompt beside its words: weights, networks, schedules, breaks."""

from __future__ import annotations

import re

from captioner.text.clean import tidy

_NETWORK = re.compile(r"<[^<>:]+:[^<>]*>|\bembedding:[^\s,]+")
"""<lora:NAME:0.8>, and ComfyUI's embedding:NAME."""
_BREAK = re.compile(r"\s*\b(?:BREAK|AND|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b\s*|\s*\n\s*")
"""Where a program begins anew: a new comma term."""
_NUMERIC = re.compile(r"(-)?\d+(?:\.\d+)?::(.*?)(?:::|$)", re.DOTALL)
"""NovelAI's 1.5::words::; below zero they are not wanted."""
_WEIGHT = re.compile(r"\s*:\s*-?\d*\.?\d+\s*(?=[)\]}])|\s+:\d*\.?\d+(?=,|$)")
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_ESCAPED = {"\\(": "\ue000", "\\)": "\ue001", "\\[": "\ue002", "\\]": "\ue003"}


def without_syntax(prompt: str) -> str:
    """The words alone: "((a cat:1.2)), <lora:sks:1> BREAK hat" → "a cat, hat". Brackets that are escaped are words'.

    Of [one:other:0.5] and [one|other] the first is kept, which the picture begins as.
    """
    text = _NUMERIC.sub(lambda part: "" if part[1] else part[2], _NETWORK.sub(" ", prompt))
    text = _BREAK.sub(", ", text)
    for escaped, sign in _ESCAPED.items():
        text = text.replace(escaped, sign)
    text = _WEIGHT.sub("", text)
    while (inner := _INNERMOST.sub(_first, text)) != text:
        text = inner
    text = re.sub(r"[(){}\[\]]", "", text)
    for escaped, sign in _ESCAPED.items():
        text = text.replace(sign, escaped[1])
    return tidy(", ".join(term.strip() for term in text.split(",") if term.strip()))


def _first(bracket: re.Match[str]) -> str:
    """Of what a schedule or an alternation names the first that is something."""
    return next((part for part in re.split(r"[|:]", bracket[1]) if part.strip()), "")
