"""The comma terms of a text: what they compare by, and two texts made one."""

from __future__ import annotations


def term_key(term: str) -> str:
    """What terms compare by: they are the same whatever their case and the spaces between their words."""
    return " ".join(term.lower().split())


def joined(first: str, second: str) -> str:
    """Both texts as one. A comma term that both have stands once, in the first: "a cat, red", "Red, 8k" → "a cat, red,
    8k"."""
    there = {term_key(term) for term in first.split(",")}
    rest = ",".join(term for term in second.split(",") if term_key(term) not in there).strip()
    return f"{first}, {rest}" if first and rest else first or rest
