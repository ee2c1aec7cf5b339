"""The comma terms of a text: how a tag is written as one, what they compare by, and two texts made one."""

from __future__ import annotations

import re

_FACE = re.compile(r"\W*[^\W_]?\W*_\W*[^\W_]?\W*")
"""0_0, >_<, (o)_(o): at most one letter on either side."""
_SIGNS = re.compile(r"(?=.*[^\w\s])[\W_]*[^\W_]?[\W_]*")
""":d, ;), ?, ...: at most one letter, and a sign."""


def tag_text(name: str) -> str:
    """A booru tag as it is written in a prompt: with spaces, but for faces."""
    return name if _FACE.fullmatch(name) else name.replace("_", " ")


def term_key(term: str) -> str:
    """What terms compare by: they are the same whatever their case and the spaces between their words."""
    return " ".join(term.lower().split())


def tag_key(term: str) -> str:
    """As `term_key`; a tag's underscores (long_hair) are spaces, and its brackets may be escaped."""
    return term_key(re.sub(r"\\(?=[()])", "", term.replace("_", " ")))


def beside(first: str, second: str, ends: bool = False, begins: bool = False) -> str:
    """Two parts of a prompt as comma terms; a space or a sign where they meet says how they are joined.

    ends, begins: the first ends, the second begins with a tag (:d, ...) whose signs are its own.
    """
    if not first or not second:
        return (first or second).strip()
    if (first[-1] in " ([{" and not ends) or (second[0] in " ,.;:!?)]}" and not begins):
        return first + second
    return first + (" " if (first[-1] in ",.;:!?" and not ends) or second.startswith("--") else ", ") + second


def merged(first: str, second: str) -> str:
    """Both texts as one. A comma term that both have, however it is spelled, stands once, in the first: "a cat, red",
    "Red, 8k" → "a cat, red, 8k"."""
    there = {tag_key(term) for term in first.split(",")}
    rest = ",".join(term for term in second.split(",") if tag_key(term) not in there)
    return beside(first.strip(), rest.strip(), ends_in_signs(first), begins_with_signs(rest))


def begins_with_signs(text: str) -> bool:
    """Whether its first comma term is one of signs, with one letter at most: ":d, a hat"."""
    return bool(_SIGNS.fullmatch(text.partition(",")[0].strip()))


def ends_in_signs(text: str) -> bool:
    """Whether its last comma term is such a one: "a hat, ..."."""
    return bool(_SIGNS.fullmatch(text.rpartition(",")[2].strip()))
