"""What is done to many texts at once: find and replace, words before and after, a comma term taken out.

A pattern that somebody typed may take longer than the universe lasts, or more memory than there is: `regex` can be
stopped and lets other threads work meanwhile, and patterns that would be large are refused before they are compiled.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple, Protocol

import regex

from captioner.errors import BadInput
from captioner.terms import term_key
from captioner.text.finish import Finish

LONGEST_PATTERN = 500
LONGEST_TEXT = 100_000
"""Characters of a caption; no operation makes one longer."""
SECONDS = 2.0
"""For all texts together."""
MOST_REPEATS = 1_000
"""The product of all counts in a pattern: `(a{1000}){1000}` takes a gigabyte before anything is looked for."""


BRACES = re.compile(r"\\[pPN]\{[^}]*\}|\\.|\{([^}]*)\}?", re.DOTALL)
"""What braces hold, if they are a count: not in \\p{Lu}, a kind of letter, nor after a backslash."""


class BadPattern(BadInput):
    """What is wrong with a pattern, and at which of its characters, where that is known."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class Change(NamedTuple):
    """A text after an operation, and how often it found something."""

    text: str
    matches: int


class Operation(Protocol):
    """Makes texts of texts. One that finds nothing gives the text back, with 0 matches."""

    def title(self) -> str:
        """What the history calls it."""

    def __call__(self, text: str) -> Change: ...


@dataclass
class Replace:
    """Find and replace, plain or by a pattern; in the replacement of a pattern \\1 and \\g<name> are its groups."""

    find: str
    replacement: str = ""
    is_pattern: bool = False
    match_case: bool = False
    whole_words: bool = False
    compiled: regex.Pattern[str] = field(init=False, repr=False)
    deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.find:
            raise BadInput("Say what to look for.")
        if max(len(self.find), len(self.replacement)) > LONGEST_PATTERN:
            raise BadInput(f"What is looked for, and what takes its place, have at most {LONGEST_PATTERN} characters.")
        if self.is_pattern:
            _check_counts(self.find)
        before, after = (r"(?<!\w)(?:", r")(?!\w)") if self.whole_words else ("", "")
        sought = self.find if self.is_pattern else regex.escape(self.find)
        try:
            self.compiled = regex.compile(before + sought + after, 0 if self.match_case else regex.IGNORECASE)
        except regex.error as error:
            position = None if error.pos is None else min(max(error.pos - len(before), 0), len(self.find))
            raise BadPattern(f"The pattern is not valid: {error.msg}.", position) from error
        except (RecursionError, OverflowError, KeyError, ValueError) as error:
            raise BadPattern("The pattern cannot be understood: make it simpler.") from error

    def title(self) -> str:
        return f"Replace {_quoted(self.find)} by {_quoted(self.replacement)}"

    def __call__(self, text: str) -> Change:
        now = time.monotonic()
        self.deadline = self.deadline or now + SECONDS
        template = self.replacement if self.is_pattern else lambda match: self.replacement
        try:
            if now >= self.deadline:
                raise TimeoutError
            after, count = self.compiled.subn(template, text, timeout=self.deadline - now, concurrent=True)
        except TimeoutError as error:
            raise BadPattern(
                f"The pattern takes longer than {SECONDS:g} seconds: make it simpler, or choose fewer pictures."
            ) from error
        except MemoryError as error:  # `regex` stops at some hundreds of megabytes
            raise BadPattern("The pattern takes too much memory, as (?R) does that never ends.") from error
        except (regex.error, IndexError) as error:
            raise BadInput(f"The replacement is not valid: {error}.") from error
        return Change(after, count)


def _check_counts(pattern: str) -> None:
    """Refuses large counts, and the package's own {e<=1} (search with errors), which is slow in ways of its own."""
    counts = []
    for braces in BRACES.finditer(pattern):
        if braces[1] is None:
            continue
        if not re.fullmatch(r"\d{1,6}(,\d{0,6})?|,\d{1,6}", braces[1], re.ASCII):
            raise BadPattern("Within { } there should be a count, as in {2,5}; \\{ is the sign.", braces.start(1))
        counts.append(max(int(number) for number in braces[1].split(",") if number))
        if prod(max(count, 1) for count in counts) > MOST_REPEATS:
            raise BadPattern(f"The counts multiply to more than {MOST_REPEATS:,}: make them smaller.", braces.start(1))


@dataclass
class Prepend:
    """A trigger word before every text: a comma term of its own, unless a space or a sign at its end says otherwise."""

    words: str

    def __post_init__(self) -> None:
        _check_words(self.words)

    def title(self) -> str:
        return f"Prepend {_quoted(self.words)}"

    def __call__(self, text: str) -> Change:
        return Change(Finish(prefix=self.words).dress(text), 1) if text else Change(text, 0)


@dataclass
class Append:
    """The same after every text."""

    words: str

    def __post_init__(self) -> None:
        _check_words(self.words)

    def title(self) -> str:
        return f"Append {_quoted(self.words)}"

    def __call__(self, text: str) -> Change:
        return Change(Finish(suffix=self.words).dress(text), 1) if text else Change(text, 0)


@dataclass
class DeleteTerm:
    """A comma term taken out wherever it stands, whatever its case."""

    term: str

    def __post_init__(self) -> None:
        _check_words(self.term)
        self.key = term_key(self.term)

    def title(self) -> str:
        return f"Delete the term {_quoted(self.term)}"

    def __call__(self, text: str) -> Change:
        terms = text.split(",")
        kept = [term for term in terms if term_key(term) != self.key]
        matches = len(terms) - len(kept)
        return Change(",".join(kept).strip() if matches else text, matches)


OPERATIONS = {"replace": Replace, "prepend": Prepend, "append": Append, "delete": DeleteTerm}


def _check_words(words: str) -> None:
    if not words.strip():
        raise BadInput("Say which words.")
    if len(words) > LONGEST_PATTERN:
        raise BadInput(f"At most {LONGEST_PATTERN} characters at a time.")


def _quoted(words: str) -> str:
    return f"“{words[:40]}…”" if len(words) > 41 else f"“{words}”"
