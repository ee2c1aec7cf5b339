"""Bootstrap intervals, paired differences and Holm's correction."""

import numpy as np
import pytest

from captioner.statistics import (
    bootstrap_interval,
    differences,
    holm,
    intervals,
    paired_difference,
    resampled_counts,
    resampled_means,
)


def test_interval_agrees_with_the_normal_approximation_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.4, 0.2, 500)
    found = bootstrap_interval(values, seed=3)
    half = 1.96 * values.std() / 500**0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(values.mean() + half, abs=half / 10)
    assert bootstrap_interval(values, seed=3) == found
    assert bootstrap_interval(values, seed=4) != found


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(5)
    found = (bootstrap_interval(chance.exponential(1.0, 120), resamples=600, seed=k) for k in range(200))
    assert 0.88 <= np.mean([i.low <= 1.0 <= i.high for i in found]) <= 0.99


def test_pictures_of_one_prompt_come_along_together() -> None:
    chance = np.random.default_rng(2)
    values, prompt = np.repeat(chance.normal(size=30), 10), np.repeat(np.arange(30), 10)
    alone, together = bootstrap_interval(values), bootstrap_interval(values, prompt)
    by_prompt = bootstrap_interval(values[::10])
    assert together.high - together.low == pytest.approx(by_prompt.high - by_prompt.low, rel=0.05)
    assert (together.high - together.low) > 2.5 * (alone.high - alone.low)


def test_blocks_of_resamples_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    [whole], means = resampled_counts(50, 101, seed=3), resampled_means(values, resamples=101, seed=3)
    monkeypatch.setattr("captioner.statistics._BLOCK_BYTES", 8 * 50 * 7)
    blocks = list(resampled_counts(50, 101, seed=3))
    assert len(blocks) == 15
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    # A mean of 50 values, summed in whatever order, is off by at most 50 roundings of the values' mean size.
    bound = 50 * np.finfo(float).eps * np.abs(values).mean(0).max() * whole.max()
    np.testing.assert_allclose(resampled_means(values, resamples=101, seed=3), means, rtol=0, atol=bound)


def test_a_resample_is_as_large_as_the_sample() -> None:
    means = resampled_means(np.array([[0.0], [1.0]]), resamples=2000)
    assert np.bincount((2 * means).astype(int).ravel()) / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [3.0, 5.0, np.nan]])
    whole, partly, nothing = intervals(values, resampled_means(values, resamples=500))
    assert whole.mean == 2
    assert (partly.mean, partly.low, partly.high) == (5, 5, 5)
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_pairing_finds_what_independent_intervals_hide() -> None:
    chance = np.random.default_rng(4)
    a = chance.normal(0.4, 0.2, 200)
    b = a + 0.02 + chance.normal(0, 0.05, 200)
    found = paired_difference(a, b)
    assert found.interval.low > 0
    assert found.p == 2 / 10_001  # none of the resamples has 0 or less
    assert found.interval.mean == pytest.approx((b - a).mean())
    assert bootstrap_interval(a).high > bootstrap_interval(b).low


def test_no_difference_is_rarely_called_one() -> None:
    chance = np.random.default_rng(6)
    found = differences(chance.normal(size=(60, 300)), resamples=1000)
    assert np.mean([d.p < 0.05 for d in found]) < 0.12
    assert paired_difference([1, 2, 3] * 9, [1, 2, 3] * 9).p == 1


def test_a_handful_of_pictures_proves_nothing() -> None:
    assert paired_difference([0.1], [0.9]).p == 1
    assert paired_difference([0.1, 0.2, 0.3], [0.9, 0.8, 0.9]).p == 0.25
    assert paired_difference([0.1] * 40, [0.9] * 40, groups=[0] * 20 + [1] * 20).p == 0.5
    partly = paired_difference([0.1, np.nan, 0.3], [0.9, 0.8, np.nan])
    assert (partly.items, partly.p) == (1, 1)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])
    np.testing.assert_allclose(holm([0.02, np.nan]), [0.02, np.nan])
    assert holm([]).shape == (0,)
