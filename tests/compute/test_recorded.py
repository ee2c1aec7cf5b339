"""Recordings are lent to one at a time, as many wait as may, and what they hold is let go of when memory runs out."""

from __future__ import annotations

import pickle

import pytest
import torch

from captioner.compute import Lending, RecordedFunction


def test_one_that_waits_is_lent_before_another_is_made() -> None:
    lending: Lending[list[int]] = Lending(2)
    made = [lending.take([number].__eq__, [number].copy) for number in (1, 1, 2)]
    assert len({id(one) for one in made}) == 3
    for one in made:
        lending.give_back(one)
    assert [id(one) for one in lending.waiting] == [id(made[2]), id(made[1])]  # the two that came back last
    again = lending.take([1].__eq__, lambda: pytest.fail("one waits"))
    assert again is made[1]
    assert [id(one) for one in lending.waiting] == [id(made[2])]


def test_what_is_given_back_while_one_is_looked_for_may_push_it_out() -> None:
    lending: Lending[str] = Lending(1)
    lending.give_back("old")

    def fits(kept: str) -> bool:
        lending.give_back("new")  # as what is thrown away does, wherever Python comes to it
        return kept == "old"

    assert lending.take(fits, lambda: "made") == "made"


def test_recordings_do_not_go_with_a_copy() -> None:
    lending: Lending[str] = Lending(2)
    lending.give_back("recorded")
    again = pickle.loads(pickle.dumps(lending))
    assert (again.most, again.waiting) == (2, [])


def test_without_memory_nothing_waits() -> None:
    lending: Lending[str] = Lending(2)
    lending.give_back("large")

    def make() -> str:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        lending.take(lambda kept: False, make)
    assert lending.waiting == []


def test_a_function_of_each_size_is_kept() -> None:
    double = RecordedFunction(lambda x: x * 2, 2)
    given = [torch.ones(2), torch.ones(3), torch.full((2,), 5.0)]
    results = [double(x) for x in given]
    assert all(torch.equal(result, x * 2) for result, x in zip(results, given, strict=True))
    assert len(double.lending.waiting) == 2
