"""Comma terms ("highly detailed", "by greg rutkowski") mined from prompts, and lists of them read from files."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from captioner.errors import BadInput
from captioner.terms import tag_text
from captioner.text.clean import drop_special_tokens, mend_numbers, tidy

LONGEST = 60
"""Characters. What is longer describes a scene rather than names a style."""
MAX_KEPT = 1_000_000
"""Different terms held at once; above it the rarest are forgotten, so memory stays below some 200 MB."""


def mine(lines: Iterable[str], *, max_kept: int = MAX_KEPT) -> list[tuple[str, int]]:
    """The comma terms of prompts (one a line), lower-cased and cleaned, most frequent first, with their counts.

    Exact as long as there are at most `max_kept` different ones; beyond that the counts of rare terms come out low.
    """
    raw: Counter[str] = Counter()
    for line in lines:
        raw.update(term for part in line.lower().split(",") if len(term := part.strip()) <= LONGEST)
        if len(raw) > max_kept:
            raw = Counter(dict(raw.most_common(max_kept // 2)))
    counts: Counter[str] = Counter()
    for term, count in raw.items():  # cleaned once each, not once per prompt
        counts[clean_term(term)] += count
    del counts[""]
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


_CLEAN_ALREADY = re.compile(r"[a-z]+(?:[ '-][a-z]+)*")


def clean_term(term: str) -> str:
    """ "((sharp focus:1.2))" → "sharp focus"; what holds no letter → "" """
    if _CLEAN_ALREADY.fullmatch(term):  # most are: mining 400,000 prompts takes a third of the time
        return term
    term = re.sub(r":[\d. ]+(?=[)\]}]|$)", "", term)
    term = re.sub(r"[()\[\]{}|\"“”]", " ", drop_special_tokens(term))
    term = mend_numbers(tidy(term)).strip(" .,;:!?-")
    return term if re.search(r"[^\W\d_]", term) else ""


def read_terms(path: str | Path) -> list[str]:
    """A list of terms, one a line; of a table (as `terms mine` writes) the first column. Each once, in order."""
    return _distinct(path, (line.split("\t")[0] for line in _lines(path)))


def read_tags(path: str | Path) -> list[str]:
    """As `read_terms`, as tags are written in prompts. Of a .csv, as taggers and other editors have them, it is the
    column called name, or the first."""
    if Path(path).suffix.lower() != ".csv":
        return _distinct(path, map(tag_text, read_terms(path)))
    try:
        rows = list(csv.reader(_lines(path)))
    except csv.Error as error:
        raise BadInput(f"The term list {path} is no table ({error}).") from error
    column = 0
    if rows and "name" in rows[0]:
        column = rows.pop(0).index("name")
    return _distinct(path, (tag_text(row[column]) for row in rows if len(row) > column))


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(f"The term list {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"The term list {path} is not UTF-8 text: save it as UTF-8.") from error


def _distinct(path: str | Path, terms: Iterable[str]) -> list[str]:
    """Each once, in order."""
    found = dict.fromkeys(term.strip() for term in terms)
    found.pop("", None)
    if not found:
        raise BadInput(f"The term list {path} is empty: write one term a line.")
    return list(found)
