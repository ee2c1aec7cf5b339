"""Settings of a search, and what a request changes of a model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadInput

SEARCH = Decoding(num_beams=4, num_return_sequences=2)
DRAW = Decoding(num_beams=4, num_return_sequences=6, do_sample=True)


@pytest.mark.parametrize(
    ("own", "changes", "becomes"),
    [
        (SEARCH, {"max_new_tokens": 9}, {"max_new_tokens": 9}),
        (SEARCH, {"num_beams": 3}, {"num_beams": 3}),
        (SEARCH, {"num_beams": 1}, {"num_beams": 1, "num_return_sequences": 1}),
        (SEARCH, {"num_candidates": 3}, {"num_return_sequences": 3}),
        (SEARCH, {"num_candidates": 5}, {"num_return_sequences": 5, "num_beams": 5}),
        (DRAW, {"top_k": 9}, {"top_k": 9}),
        (DRAW, {"num_candidates": 2}, {"num_return_sequences": 2}),
        (DRAW, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3, "do_sample": False}),
        (DRAW, {"do_sample": False}, {"num_return_sequences": 4, "do_sample": False}),
    ],
)
def test_what_is_not_named_is_left_to_the_model(own: Decoding, changes: dict, becomes: dict) -> None:
    assert DecodingChanges(**changes).over(own) == replace(own, **becomes)


def test_what_contradicts_itself_needs_no_model() -> None:
    for changes in ({"num_beams": 2, "num_candidates": 3}, {"min_new_tokens": 9, "max_new_tokens": 8}):
        with pytest.raises(BadInput, match=r"raise (num_beams|max_new_tokens)"):
            DecodingChanges(**changes).check()
    DecodingChanges(min_new_tokens=99).check()  # the model's own limit may be higher
