"""The filter language of Review: `cat NOT tokens:>75 (name:*.png OR score:<-1.5)`.

A word alone is looked for in the text. `caption:`, `name:`, `term:` take words or "several words"; `chars:`, `tokens:`
and `score:` take numbers, with <, <=, >, >=, = or != before them; `is:` takes empty, failed or edited. Terms that stand
side by side must all hold; NOT (or a - before a term) binds tighter than AND, AND tighter than OR.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from captioner.errors import BadInput
from captioner.review.row import Row
from captioner.terms import term_key

LONGEST = 2_000
DEEPEST = 40
"""Parentheses within parentheses, and NOTs before each other."""

Test = Callable[[Row], bool]

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
NUMBERS: dict[str, Callable[[Row], float | None]] = {
    "chars": lambda row: len(row.text or ""),
    "tokens": lambda row: row.tokens,
    "score": lambda row: row.score,
}
STATES: dict[str, Test] = {
    "empty": lambda row: not row.text,
    "failed": lambda row: row.problem is not None,
    "edited": lambda row: row.is_edited,
}
FIELDS = ("caption", "name", "term", *NUMBERS, "is")

_TOKEN = re.compile(
    r"""\s*(?: (?P<open>\() | (?P<close>\)) | (?P<minus>-)(?=["(\w])
    | (?P<field>[A-Za-z]+): | "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<word>[^\s()"]+) )""",
    re.VERBOSE,
)
_VALUE = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s()"]+)')
"""What stands right behind the colon of a field: there a - is a number's sign."""


class BadFilter(BadInput):
    """What is wrong with a filter, and where: `start` and `end` count its characters."""

    def __init__(self, message: str, start: int, end: int) -> None:
        super().__init__(message)
        self.start = start
        self.end = end


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text in words


def parse(text: str) -> Test:
    """What a filter asks of a row; an empty one asks nothing. What cannot be understood is a `BadFilter`."""
    if len(text) > LONGEST:
        raise BadFilter(f"A filter has at most {LONGEST:,} characters.", LONGEST, len(text))
    return _Parser(text).parse()


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _VALUE.match(text, position) if tokens and tokens[-1].kind == "field" else None
        match = match or _TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise BadFilter("This quotation mark is not closed.", start, len(text))
        kind = str(match.lastgroup)
        tokens.append(Token(kind, match[kind], match.start() + len(match[0]) - len(match[0].lstrip()), match.end()))
        position = match.end()
    return tokens


class _Parser:
    """By recursive descent, one function a level."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.next = 0
        self.depth = 0

    def parse(self) -> Test:
        if not self.tokens:
            return lambda row: True
        test = self._either()
        if (token := self._peek()) is not None:  # only a parenthesis ends an expression early
            raise BadFilter("This parenthesis was not opened.", token.start, token.end)
        return test

    def _peek(self) -> Token | None:
        return self.tokens[self.next] if self.next < len(self.tokens) else None

    def _take(self) -> Token:
        token = self.tokens[self.next]
        self.next += 1
        return token

    def _either(self) -> Test:
        tests = [self._both()]
        while (token := self._peek()) is not None and token.is_word("OR"):
            self._take()
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _both(self) -> Test:
        tests = [self._negated()]
        while (token := self._peek()) is not None and token.kind != "close" and not token.is_word("OR"):
            if token.is_word("AND"):
                self._take()
            tests.append(self._negated())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _negated(self) -> Test:
        token = self._peek()
        if token is None or not (token.is_word("NOT") or token.kind == "minus"):
            return self._single()
        self._take()
        self._deeper(token)
        test = self._negated()
        self.depth -= 1
        return lambda row: not test(row)

    def _single(self) -> Test:
        token = self._peek()
        if token is None:
            self._expected(len(self.text.rstrip()))
        if token.kind == "open":
            return self._parenthesis()
        if token.kind == "close" or token.is_word("AND", "OR"):
            self._expected(token.start, token.end)
        self._take()
        if token.kind == "field":
            return self._field(token)
        return _holds(_unquoted(token))

    def _parenthesis(self) -> Test:
        opened = self._take()
        self._deeper(opened)
        test = self._either()
        self.depth -= 1
        if self._peek() is None:
            raise BadFilter("This parenthesis is not closed.", opened.start, opened.end)
        self._take()
        return test

    def _deeper(self, token: Token) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise BadFilter(f"More than {DEEPEST} levels deep: make it simpler.", token.start, token.end)

    def _field(self, field: Token) -> Test:
        name = field.text.lower()
        if name not in FIELDS:
            fields = ", ".join(f"{known}:" for known in FIELDS)
            raise BadFilter(
                f'There is no "{field.text}:", but {fields}. Put quotation marks around a text with a colon.',
                field.start,
                field.end,
            )
        value = self._peek()
        if value is None or value.kind not in ("word", "quoted") or value.start != field.end:
            raise BadFilter(f"After {name}: there should be a value, without a space between.", field.start, field.end)
        self._take()
        if name in NUMBERS:
            return _compares(name, value)
        if name == "is":
            return _state(value)
        text = _unquoted(value)
        if name == "term":
            key = term_key(text)
            return lambda row: key in row.term_keys
        return _named(text) if name == "name" else _holds(text)

    def _expected(self, start: int, end: int | None = None) -> NoReturn:
        raise BadFilter("Here something to look for is missing.", start, start + 1 if end is None else end)


def _unquoted(token: Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text) if token.kind == "quoted" else token.text


def _holds(text: str) -> Test:
    sought = text.lower()
    return lambda row: sought in row.lower


def _named(text: str) -> Test:
    """A part of the name, or a pattern with * and ? for the whole of it (or the part after the last /)."""
    sought = text.lower()
    if "*" not in sought and "?" not in sought:
        return lambda row: sought in row.name.lower()
    sought = sought.replace("[", "[[]")  # which is itself here, as in "cat [1].png"
    return lambda row: fnmatchcase(row.name.lower(), sought) or fnmatchcase(row.name.lower().rpartition("/")[2], sought)


def _compares(name: str, token: Token) -> Test:
    number = NUMBERS[name]
    sign = next((sign for sign in COMPARISONS if token.text.startswith(sign)), "")
    compare = COMPARISONS[sign or "="]
    written = token.text[len(sign) :]
    if not re.fullmatch(r"[+-]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})", written, re.ASCII):
        raise BadFilter(f"After {name}: there should be a number, as in {name}:>60.", token.start, token.end)
    bound = float(written)

    def test(row: Row) -> bool:
        value = number(row)
        return value is not None and compare(value, bound)

    return test


def _state(token: Token) -> Test:
    if (test := STATES.get(token.text.lower())) is None:
        raise BadFilter(f"After is: there should be one of {', '.join(STATES)}.", token.start, token.end)
    return test
