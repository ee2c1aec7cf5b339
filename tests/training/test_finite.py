"""What is no number is found a step later, in its order, and once."""

import torch

from training.finite import Expectations, Expected


def test_the_first_that_is_no_number_is_found_a_step_later() -> None:
    expectations = Expectations()
    for step, values in enumerate([(1.0, 2.0), (3.0, float("nan"), float("inf")), (4.0,)], start=1):
        for row, value in enumerate(values):
            expectations.add(torch.tensor(value, dtype=torch.bfloat16), Expected("loss", step, [row]))
        broken = expectations.of_last_step()
        if step < 3:
            assert broken is None
        else:
            about, value = broken
            assert about == Expected("loss", 2, [1])
            assert value != value
    assert expectations.of_all() is None


def test_all_are_looked_at_when_that_is_asked_for() -> None:
    expectations = Expectations()
    assert expectations.of_all() is None
    expectations.add(torch.tensor(1.0), Expected("loss", 1, [1]))
    expectations.of_last_step()
    expectations.add(torch.tensor(float("-inf")), Expected("gradient", 2, [2]))
    assert expectations.of_all() == (Expected("gradient", 2, [2]), float("-inf"))
