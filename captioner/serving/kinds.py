"""The kinds of questions that a bench is asked. Units of equal kinds may be in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from captioner.contracts import Request

if TYPE_CHECKING:
    from captioner.serving.bench import Bench
    from captioner.serving.scheduler import Unit

JOINED = 16
"""Questions asked at once, where no model says how many fit into memory."""


class Kind(Protocol):
    """One kind of question, with all that must be alike in a batch."""

    def size(self, bench: Bench) -> int:
        """Units at a time."""

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        """One for each unit, in order; a `CaptionerError` stands in its own place."""


@dataclass(frozen=True)
class OfPictures:
    """The rows of pictures; a unit asks an `Ask` about a `Picture`."""

    model: str
    request: Request
    expected: bool

    def size(self, bench: Bench) -> int:
        return bench.batch_size(self.model)

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        asks, pictures = zip(*(unit.asked for unit in units), strict=True)
        rows = bench.answer_pictures(asks, pictures, _opened(units))
        return [
            {"file": picture.name} | row if isinstance(row, dict) else row
            for picture, row in zip(pictures, rows, strict=True)
        ]


@dataclass(frozen=True)
class OfTexts:
    """Unit vectors; a unit asks for those of several texts."""

    fills_batch: bool
    """Many texts are asked alone: whoever leaves meanwhile is not answered by all of theirs at once."""

    def size(self, bench: Bench) -> int:
        return 1 if self.fills_batch else JOINED

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        vectors = iter(bench.embed_texts([text for unit in units for text in unit.asked]))
        return [[next(vectors) for _ in unit.asked] for unit in units]


@dataclass(frozen=True)
class Similar:
    """The reference pictures that look most like each picture."""

    count: int

    def size(self, bench: Bench) -> int:
        return JOINED

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        return bench.similar(_opened(units), self.count)


@dataclass(frozen=True)
class AsOpened:
    """What a reader made of the picture is the answer."""

    def size(self, bench: Bench) -> int:
        return JOINED

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        return _opened(units)


@dataclass(frozen=True, eq=False)
class Call:
    """A function of a model and the unit's pictures; equal to no other, so that it is asked alone."""

    model: str

    def size(self, bench: Bench) -> int:
        return 1

    def answers(self, bench: Bench, units: Sequence[Unit]) -> Sequence[Any]:
        model = bench.load(self.model)
        return [unit.asked(model, images) for unit, images in zip(units, _opened(units), strict=True)]


def _opened(units: Sequence[Unit]) -> list[Any]:
    return [unit.opened.value for unit in units if unit.opened is not None]
