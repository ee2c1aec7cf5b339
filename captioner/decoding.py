"""How text is searched for: the settings of `search.py`, named as transformers names them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard

from captioner.errors import BadInput, refuse_idle

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def shown(settings: DataclassInstance) -> str:
    """As they are written, without those that are as by default."""
    default = type(settings)()
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    given = (f"{name}={value!r}" for name, value in values.items() if value != getattr(default, name))
    return f"{type(settings).__name__}({', '.join(given)})"


@dataclass(frozen=True)
class Decoding:
    """Settings of one search. `num_beams=1` without `do_sample` is greedy."""

    num_beams: int = 4
    """Hypotheses kept per image. 1 is greedy."""
    num_return_sequences: int = 1
    """Candidates returned per image; at most `num_beams` unless sampling."""
    max_new_tokens: int = 48
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    """A hypothesis scores `sum of log-probabilities / length ** length_penalty`."""
    early_stopping: bool | str = False
    """False, True or "never", as in transformers' beam search."""
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    """Draw `num_return_sequences` independent texts; `num_beams` then plays no part."""
    temperature: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    seed: int | None = None
    """Sampling with the same seed, image and settings gives the same text, whatever the batch size."""
    forbid: tuple[str, ...] = ()
    """Words that are never written, whatever their case: their token sequences cannot be produced."""

    def __post_init__(self) -> None:
        for name, minimum in WHOLE_NUMBERS.items():
            check_whole(name, getattr(self, name), minimum)
        for name, (low, high) in NUMBERS.items():
            check_number(name, getattr(self, name), low, high)
        if not (self.seed is None or _is_whole(self.seed)):
            raise BadInput(f"seed must be a whole number, not {self.seed!r}.")
        if self.do_sample not in (False, True):
            raise BadInput(f"do_sample is False or True, not {self.do_sample!r}.")
        if self.min_new_tokens > self.max_new_tokens:
            raise BadInput(
                f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens}): "
                "raise max_new_tokens."
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise BadInput(
                f"num_return_sequences ({self.num_return_sequences}) is above num_beams ({self.num_beams}): "
                f"raise num_beams, or set do_sample."
            )
        object.__setattr__(self, "forbid", words_of("forbid", self.forbid))
        if self.early_stopping not in (False, True, "never"):
            raise BadInput(f'early_stopping is False, True or "never", not {self.early_stopping!r}.')

    def check(self) -> None:
        """They were checked as they were made (see `DecodingChanges.check`)."""

    def over(self, defaults: Decoding) -> Decoding:
        """Whole settings leave nothing to the model (see `DecodingChanges.over`)."""
        return self


def _is_whole(value: object) -> TypeGuard[int]:
    """A whole number of any kind, numpy's too; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: object, minimum: int) -> None:
    """Refuse what is no whole number that a setting of this name may have."""
    if not _is_whole(value) or value < minimum:
        raise BadInput(f"{name} must be a whole number, {minimum} or more, not {value!r}.")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is no number in this range; a NaN is in none."""
    if not isinstance(value, Real) or isinstance(value, bool) or value < low or not value <= high:
        raise BadInput(f"{name} must be a number from {low} to {high}, not {value!r}.")


def words_of(name: str, words: Iterable[str]) -> tuple[str, ...]:
    """A setting's words, kept; what is no list of words is refused."""
    if isinstance(words, str) or not isinstance(words, Iterable):  # each letter of a text would be a word
        raise BadInput(f"{name} is a list of words: [{words!r}].")
    kept = tuple(words)
    if not all(isinstance(word, str) and word.strip() for word in kept):
        raise BadInput(f"{name} must be words, none of them empty.")
    return kept


WHOLE_NUMBERS: dict[str, int] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}
"""Fields of `Decoding` that count something, with the least they may be."""
NUMBERS: dict[str, tuple[float, float]] = {
    "length_penalty": (-100, 100),
    "repetition_penalty": (0.01, 100),
    "temperature": (0.01, 100),  # logits are divided by it: what is smaller leaves float32
    "top_p": (0.001, 1),
}
"""The others, with their ranges."""


@dataclass(frozen=True)
class DecodingChanges:
    """Settings that a request names, over a model's own; None leaves that to the model."""

    num_beams: int | None = None
    num_candidates: int | None = None
    """`num_return_sequences`; raises `num_beams` when needed."""
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    forbid: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_candidates"):  # which are reckoned with before there is a `Decoding`
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, 1)
        if self.forbid is not None:
            object.__setattr__(self, "forbid", words_of("forbid", self.forbid))

    __repr__ = shown

    def check(self) -> None:
        """Say what contradicts itself whatever the model; what depends on the model's own settings is said later."""
        self._over(Decoding(max_new_tokens=sys.maxsize))

    def over(self, defaults: Decoding) -> Decoding:
        """The settings of a search; a change that plays no part in it is refused by name."""
        decoding = self._over(defaults)
        searching, idle = ("a random draw", BEAM_ONLY) if decoding.do_sample else ("a search", SAMPLING_ONLY)
        remedy = "Set do_sample to false." if decoding.do_sample else "Set do_sample to true."
        refuse_idle((name for name in self.given() if name in idle), f"this is {searching}. {remedy}")
        return decoding

    def given(self) -> dict[str, Any]:
        """What is said, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def _over(self, defaults: Decoding) -> Decoding:
        given = self.given()
        if self.num_beams is not None:
            given.setdefault("do_sample", False)  # who asks for a search gets one
        candidates = given.pop("num_candidates", None)
        if candidates is not None:
            given["num_return_sequences"] = candidates
            given.setdefault("num_beams", max(defaults.num_beams, candidates))
        elif given.get("do_sample") is False:
            beams = given.get("num_beams", defaults.num_beams)
            given["num_return_sequences"] = min(defaults.num_return_sequences, beams)
        return replace(defaults, **given)


BEAM_ONLY = frozenset({"num_beams", "length_penalty", "early_stopping"})
SAMPLING_ONLY = frozenset({"temperature", "top_k", "top_p", "seed"})
