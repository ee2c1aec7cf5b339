"""The comma terms of a text: how a tag is written as one, what they compare by, and two texts made one."""

from __future__ import annotations

import re

_FACE = re.compile(r"\W*[^\W_]?\W*_\W*[^\W_]?\W*")
"""0_0, >_<, (o)_(o): at most one letter on either side."""


def tag_text(name: str) -> str:
    """A booru tag as it is written in a prompt: with spaces, but for faces."""
    return name if _FACE.fullmatch(name) else name.replace("_", " ")


def term_key(term: str) -> str:
    """What terms compare by: they are the same whatever their case and the spaces between their words."""
    return " ".join(term.lower().split())


def tag_key(term: str) -> str:
    """As `term_key`; a tag's underscores (long_hair) are spaces, and its brackets may be escaped."""
    return term_key(re.sub(r"\\(?=[()])", "", term.replace("_", " ")))


def beside(first: str, second: str) -> str:
    """Two parts of a prompt as comma terms; a space or a sign where they meet says how they are joined."""
    if not first or not second:
        return (first or second).strip()
    if first[-1] in " ([{" or second[0] in " ,.;:!?)]}":
        return first + second
    return first + (" " if first[-1] in ",.;:!?" or second.startswith("--") else ", ") + second


def merged(first: str, second: str) -> str:
    """Both texts as one. A comma term that both have, however it is spelled, stands once, in the first: "a cat, red",
    "Red, 8k" → "a cat, red, 8k"."""
    there = {tag_key(term) for term in first.split(",")}
    rest = ",".join(term for term in second.split(",") if tag_key(term) not in there)
    return beside(first.strip(), rest.strip())
