"""Settings of a search in the ranges that the server takes: those of the library, and no more work than is sensible."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from captioner.decoding import NUMBERS, WHOLE_NUMBERS

TOKENS = 1024
"""No model here writes more."""


def _whole(name: str, most: int) -> Any:
    return Field(ge=WHOLE_NUMBERS[name], le=most)


def _number(name: str) -> Any:
    least, most = NUMBERS[name]
    return Field(ge=least, le=most)


Longest = Annotated[int | None, _whole("max_new_tokens", TOKENS)]


class Search(BaseModel):
    """What transformers knows as well, by its names."""

    num_beams: Annotated[int | None, _whole("num_beams", 32)] = None
    max_new_tokens: Longest = None
    min_new_tokens: Annotated[int | None, _whole("min_new_tokens", TOKENS)] = None
    length_penalty: Annotated[float | None, _number("length_penalty")] = None
    repetition_penalty: Annotated[float | None, _number("repetition_penalty")] = None
    no_repeat_ngram_size: Annotated[int | None, _whole("no_repeat_ngram_size", TOKENS)] = None
    do_sample: bool | None = None
    temperature: Annotated[float | None, _number("temperature")] = None
    top_k: Annotated[int | None, _whole("top_k", 1_000_000)] = None
    top_p: Annotated[float | None, _number("top_p")] = None


def ranges(kind: type[BaseModel]) -> dict[str, tuple[float, float]]:
    """The least and the most of each number that has both."""
    found = {}
    for name, field in kind.model_json_schema()["properties"].items():
        for schema in field.get("anyOf", [field]):
            if "minimum" in schema and "maximum" in schema:
                found[name] = schema["minimum"], schema["maximum"]
    return found
