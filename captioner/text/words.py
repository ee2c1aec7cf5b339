"""Words that a finished text must, or must not, contain, and terms in place of others. Any spelling counts, in whole
words or terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from captioner.errors import BadInput
from captioner.terms import tag_key
from captioner.text.clean import drop_dangling, tidy

_SENTENCE = re.compile(r"(?<=\w{3}[.!?])\s+(?=[A-Z])")
"""Where one ends and the next begins; "by St. Basil" is none."""


def holds(text: str, word: str) -> bool:
    """Is this word in the text?"""
    return _pattern([word]).search(text) is not None


def with_words(text: str, words: Sequence[str]) -> str:
    """The text with each word that it lacks as a comma term at its end: "a cat", ["8k"] → "a cat, 8k"."""
    missing = [word for word in words if not holds(text, word)]
    return ", ".join([*([text] if text else []), *missing])


def without_words(text: str, words: Sequence[str]) -> str:
    """The text without the comma terms that hold one of the words; of the first term, its subject, only the words go.
    A later sentence whose own subject holds one goes whole, unless it is a list that no stop ends.

    A search that avoids a word's usual tokens can still spell it by others, and cleaning can join its parts.
    """
    if not words or not (pattern := _pattern(words)).search(text):
        return text
    kept = [_without(pattern, sentence, number == 0) for number, sentence in enumerate(_SENTENCE.split(text))]
    return " ".join(filter(None, kept))


def _without(pattern: re.Pattern[str], sentence: str, is_first: bool) -> str:
    stop = "." if re.search(r"\w\.$", sentence) else ""
    subject, *terms = sentence.removesuffix(stop).split(",")
    if pattern.search(subject):
        if not is_first:  # of prose the rest says nothing without it
            terms, subject = [] if sentence.endswith((".", "!", "?")) else terms, ""
        rest = tidy(pattern.sub(" ", subject))
        if subject.split()[-1:] != rest.split()[-1:]:
            rest = drop_dangling(rest)  # "a city in neon" → "a city"
        subject = rest if any(map(str.isalpha, rest)) else ""  # of "(neon:1.2)" a weight alone is left
    kept = tidy(",".join([subject, *(term for term in terms if not pattern.search(term))]))
    return kept + stop if kept else ""


def replacements(given: Iterable[str]) -> dict[str, str]:
    """What OLD compares by → NEW, of each OLD=NEW. The last = parts them, since faces hold one (=_=)."""
    new_of: dict[str, str] = {}
    for text in given:
        old, _, new = text.rpartition("=")
        if not (key := tag_key(old)) or "," in text:
            raise BadInput(f"replace must be OLD=NEW, each one comma term (NEW may be empty), not {text!r}.")
        if new_of.setdefault(key, new.strip()) != new.strip():
            raise BadInput(f"replace must be one NEW for each OLD, not two for {old.strip()!r}.")
    return new_of


def with_replaced(text: str, new_of: Mapping[str, str]) -> str:
    """The text with new terms in place of old ones, or without these where the new one is empty: in one pass, so that
    two can change places. A new term that the text has already is not written twice."""
    stop = _full_stop(text, new_of)
    terms = text.rstrip().removesuffix(stop).split(",")
    keys = list(map(tag_key, terms))
    if new_of.keys().isdisjoint(keys):
        return text
    there = set(keys) - new_of.keys()
    kept = []
    for term, key in zip(terms, keys, strict=True):
        if (new := new_of.get(key)) is not None:
            if not new or tag_key(new) in there:
                continue
            there.add(tag_key(new))
            term = term.replace(term.strip(), new)
        kept.append(term)
    changed = ",".join(kept).strip()
    return changed + stop if changed else ""


def _full_stop(text: str, new_of: Mapping[str, str]) -> str:
    """The one that ends a text and is not its last term's own, as that of "..." is."""
    *_, last = text.rstrip().rpartition(",")
    return "." if re.search(r"[^.]\.$", last) and tag_key(last) not in new_of else ""


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(_escape, words))})(?!\w)", re.IGNORECASE)


def _escape(words: str) -> str:
    """A tag's underscores (long_hair) are spaces."""
    parts = list(filter(None, re.split(r"[\s_]+", words))) or [words]
    return r"[\s_]+".join(map(re.escape, parts))
