"""Intervals and the two one-sided tests, against hand-computed numbers and against coverage in simulation."""

import math

import pytest
import torch
from inputs import generator

from companion import statistics

#: Student's t at 0.975 and at 0.95, from printed tables: by degrees of freedom.
T975, T95 = {1: 12.706, 2: 4.303, 4: 2.776}, {4: 2.132, 8: 1.860}


@pytest.mark.claim("X3")
def test_an_interval_is_the_mean_plus_and_minus_t_standard_errors():
    found = statistics.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = T975[4] * math.sqrt(2.5 / 5)
    assert found.mean == 3
    assert found.high - 3 == pytest.approx(half, rel=1e-3) and 3 - found.low == pytest.approx(half, rel=1e-3)


def test_two_values_give_a_wide_interval():
    found = statistics.mean_interval([0.0, 2.0])
    assert found.high - found.low == pytest.approx(2 * T975[1], rel=1e-3)


@pytest.mark.claim("X2")
def test_equivalence_is_the_interval_of_the_difference_inside_the_margin():
    """Equal spreads and sizes: Welch's degrees of freedom are 8, the error sqrt(2 x 2.5 / 5) = 1."""
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 2.5, 3.5, 4.5, 5.5]
    found = statistics.equivalence(first, second, margin=2.5)
    assert found.difference.mean == pytest.approx(-0.5)
    assert found.difference.low == pytest.approx(-0.5 - T95[8], rel=1e-3)
    assert found.difference.high == pytest.approx(-0.5 + T95[8], rel=1e-3)
    assert found.equivalent and not found.different
    assert not statistics.equivalence(first, second, margin=2.0).equivalent
    assert statistics.equivalence(first, [20.0, 21, 22, 23, 24], margin=2.0).different


@pytest.mark.claim("X2")
def test_degrees_of_freedom_are_those_of_welch():
    """One side without spread: as many as the other has, 4."""
    found = statistics.equivalence([1.0, 2.0, 3.0, 4.0, 5.0], [3.0] * 5, margin=9.0)
    assert found.difference.high == pytest.approx(T95[4] * math.sqrt(0.5), rel=1e-3)


def test_no_spread_at_all_is_an_interval_of_no_width():
    found = statistics.equivalence([0.5, 0.5], [0.5, 0.5], margin=0.1)
    assert found.difference.low == found.difference.high == 0 and found.equivalent


def test_the_test_errs_as_often_as_it_says():
    """Where the true difference is the margin, two methods are called comparable in a twentieth of the cases."""
    draws = generator(0)
    samples = torch.randn(2000, 2, 5, generator=draws, dtype=torch.float64)
    samples[:, 0] += 4.0
    wrong = sum(statistics.equivalence(a.tolist(), b.tolist(), margin=4.0).equivalent for a, b in samples)
    assert 0.03 < wrong / 2000 < 0.07


def test_power_is_the_share_of_tests_that_find_equal_methods_equivalent():
    draws = generator(1)
    for seeds, margin, shift in ((5, 2.0, 0.0), (5, 2.0, 0.5), (8, 1.5, 0.0)):
        samples = torch.randn(1000, 2, seeds, generator=draws, dtype=torch.float64)
        samples[:, 0] += shift
        found = sum(statistics.equivalence(a.tolist(), b.tolist(), margin=margin).equivalent for a, b in samples)
        expected = statistics.power(1.0, seeds, margin=margin, true_difference=shift)
        assert found / 1000 == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: statistics.mean_interval([1.0]), "two or more"),
        (lambda: statistics.mean_interval([1.0, math.nan]), "finite"),
        (lambda: statistics.mean_interval([1.0, 2.0], level=95.0), "between 0 and 1"),
        (lambda: statistics.equivalence([1.0, 2.0], [1.0], margin=1.0), "second"),
        (lambda: statistics.equivalence([1.0, 2.0], [1.0, 2.0], margin=0.0), "margin"),
        (lambda: statistics.equivalence([1.0, 2.0], [1.0, 2.0], margin=1.0, significance=1.0), "between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
