"""Intervals and the two one-sided tests, against hand-computed numbers and against coverage in simulation."""

import math

import numpy as np
import pytest
import torch
from inputs import generator, in_one_line
from scipy import stats

from companion import statistics

#: Student's t at 0.975 and at 0.95, from printed tables: by degrees of freedom.
T975, T95 = {1: 12.706, 2: 4.303, 4: 2.776}, {2: 2.920, 4: 2.132, 8: 1.860}


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


def test_each_side_has_its_own_number_of_values_and_its_own_variance():
    """Variances 4/3 of two values and 1 of three: the error is sqrt(2/3 + 1/3) = 1, the degrees of freedom are 2.

    That is (2/3 + 1/3)^2 / ((2/3)^2 / 1 + (1/3)^2 / 2) = 2.
    """
    found = statistics.difference_interval([0.0, math.sqrt(8 / 3)], [0.0, 1.0, 2.0])
    mean = math.sqrt(2 / 3) - 1
    assert found.mean == pytest.approx(mean)
    assert found.high - mean == pytest.approx(T95[2], rel=1e-3) and mean - found.low == pytest.approx(T95[2], rel=1e-3)


@pytest.mark.parametrize("sizes", [(2, 9), (9, 2), (4, 5)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_an_interval_of_two_samples_of_other_sizes_is_that_of_scipy(sizes, scale):
    """Its Welch test, an independent implementation."""
    draws = np.random.default_rng(sizes)
    first, second = draws.normal(size=sizes[0]), 1 + scale * draws.normal(size=sizes[1])
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    found = statistics.difference_interval(first, second)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


# One seed, two methods.

#: Two methods on five seeds, which move both: the differences are 0.2, -0.1, 0.5, 0.4, 0.5.
ONE, OTHER = [1.0, 2.0, 3.0, 4.0, 5.0], [0.8, 2.1, 2.5, 3.6, 4.5]


@pytest.mark.claim("X2")
def test_pairs_are_judged_by_their_differences():
    """Mean 0.3, variance 0.26 / 4 = 0.065, error sqrt(0.065 / 5), four degrees of freedom."""
    found = statistics.difference_interval(ONE, OTHER, paired=True)
    half = T95[4] * math.sqrt(0.013)
    assert found.mean == pytest.approx(0.3)
    assert found.high - 0.3 == pytest.approx(half, rel=1e-3) and 0.3 - found.low == pytest.approx(half, rel=1e-3)
    back = statistics.difference_interval(OTHER, ONE, paired=True)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.claim("X2")
def test_pairing_decides_where_the_seed_moves_both_methods():
    """Equivalent at a margin of 0.6 as pairs, not as independent samples; a seed that moves them apart, the reverse."""
    assert statistics.equivalence(ONE, OTHER, margin=0.6, paired=True).equivalent
    assert not statistics.equivalence(ONE, OTHER, margin=0.6).equivalent
    assert not statistics.equivalence(ONE, OTHER[::-1], margin=0.6, paired=True).equivalent
    assert statistics.equivalence(ONE, OTHER[::-1], margin=2.5).equivalent
    assert not statistics.equivalence(ONE, OTHER[::-1], margin=2.5, paired=True).equivalent


@pytest.mark.claim("X2")
def test_a_paired_test_errs_as_often_as_it_says_and_an_unpaired_one_too_seldom():
    """At a true difference of the margin, with a correlation of 0.8 by the seed: a twentieth, and next to never."""
    draws = generator(2)
    samples = torch.randn(2000, 2, 5, generator=draws, dtype=torch.float64)
    samples += 2 * torch.randn(2000, 1, 5, generator=draws, dtype=torch.float64)
    samples[:, 0] += 8.0
    wrong = {
        paired: sum(statistics.equivalence(a, b, margin=8.0, paired=paired).equivalent for a, b in samples) / 2000
        for paired in (True, False)
    }
    assert 0.03 < wrong[True] < 0.07 and wrong[False] < 0.01


@pytest.mark.claim("X2")
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("first, second", [(ONE, OTHER), (OTHER, ONE)])
def test_the_smallest_margin_is_where_equivalence_begins(paired, first, second):
    margin = statistics.smallest_margin(first, second, paired=paired)
    assert not statistics.equivalence(first, second, margin=margin, paired=paired).equivalent
    assert statistics.equivalence(first, second, margin=margin * (1 + 1e-9), paired=paired).equivalent
    if paired:
        assert margin == pytest.approx(0.3 + T95[4] * math.sqrt(0.013), rel=1e-3)


def test_no_spread_at_all_is_an_interval_of_no_width():
    found = statistics.equivalence([0.5, 0.5], [0.5, 0.5], margin=0.1)
    assert found.difference.low == found.difference.high == 0 and found.equivalent
    shifted = statistics.equivalence([1.5, 2.5], [0.5, 1.5], margin=0.1, paired=True)
    assert shifted.difference.low == shifted.difference.high == 1 and shifted.different


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


SAMPLE = [1.0, 2.0]


@pytest.mark.parametrize(
    "bad",
    [[1.0], [], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], [[1.0], [2.0, 3.0]], 1.0, None, "12", ["1", "2"]]
    + [[1.0, None], [True, False], {"a": 1.0, "b": 2.0}, torch.tensor([1.0, 2.0], requires_grad=True), [1j, 2j]],
    ids=in_one_line,
)
def test_what_is_no_sample_is_refused(bad):
    with pytest.raises(ValueError, match="values is .* expected two or more finite numbers, one per seed"):
        statistics.mean_interval(bad)
    for side in ("first", "second"):
        with pytest.raises(ValueError, match=f"^{side} is .* expected two or more finite numbers, one per seed"):
            statistics.equivalence(**{"first": SAMPLE, "second": SAMPLE, side: bad}, margin=1.0)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf, "1", None, True])
def test_a_margin_that_is_none_is_refused(margin):
    for call in (
        lambda: statistics.equivalence(SAMPLE, SAMPLE, margin=margin),
        lambda: statistics.power(1.0, 5, margin=margin),
    ):
        with pytest.raises(ValueError, match="margin is .*; expected a finite Python number > 0"):
            call()


@pytest.mark.parametrize("significance", [2.0, 1.0, 0.6, 0.5, 0.0, -0.05, math.nan, "0.05", None, 1])
def test_a_significance_at_which_a_difference_could_be_equivalent_and_different_is_refused(significance):
    for call in (
        lambda: statistics.equivalence(SAMPLE, SAMPLE, margin=1.0, significance=significance),
        lambda: statistics.difference_interval(SAMPLE, SAMPLE, significance=significance),
        lambda: statistics.smallest_margin(SAMPLE, SAMPLE, significance=significance),
        lambda: statistics.power(1.0, 5, margin=1.0, significance=significance),
    ):
        with pytest.raises(ValueError, match="significance is .*; expected a number between 0 and 0.5, such as 0.05"):
            call()


@pytest.mark.parametrize("level", [95.0, 1.0, 0.0, -0.5, math.nan, "0.95", None, 1])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(ValueError, match="level is .*; expected a number between 0 and 1, such as 0.95"):
        statistics.mean_interval(SAMPLE, level=level)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"spread": bad}, "spread is .* > 0") for bad in (0.0, -1.0, math.nan, math.inf, "1")]
    + [({"seeds": bad}, "seeds is .*; expected a") for bad in (1, 0, -2, 2.5, math.nan, True)]
    + [({"true_difference": bad}, "true_difference is .*; expected a finite") for bad in (math.nan, math.inf, None)],
    ids=in_one_line,
)
def test_what_has_no_power_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        statistics.power(**{"spread": 1.0, "seeds": 5, "margin": 1.0} | changes)


def test_pairs_of_which_one_is_missing_are_refused():
    for compare in (statistics.difference_interval, statistics.smallest_margin):
        with pytest.raises(ValueError, match="first holds 3 values, second 2; expected pairs.* Leave out the seeds"):
            compare([1.0, 2.0, 3.0], SAMPLE, paired=True)


def test_a_difference_of_just_the_margin_is_neither_equivalent_nor_different():
    for sign in (1, -1):
        found = statistics.equivalence([1.0, 1.0], [1.0 - sign, 1.0 - sign], margin=1.0)
        assert (found.difference.mean, found.margin) == (sign, 1.0)
        assert not found.equivalent and not found.different


def test_samples_are_unpaired_unless_said_otherwise():
    first, second = [0.1, 0.2, 0.4], [0.1, 0.25, 0.5]
    assert statistics.smallest_margin(first, second) == statistics.smallest_margin(first, second, paired=False)
    assert statistics.smallest_margin(first, second) > statistics.smallest_margin(first, second, paired=True)


def test_integers_and_single_precision_are_seeds_values_too():
    wanted = statistics.mean_interval([1.0, 2.0, 4.0])
    assert statistics.mean_interval([1, 2, 4]) == wanted
    assert statistics.mean_interval(np.array([1, 2, 4], dtype=np.float32)) == wanted


def test_the_power_of_two_seeds_a_side_by_hand():
    """Two degrees of freedom: t at 0.95 is 2.920; the error is the spread, so a margin of 4 leaves 1.080 of it."""
    inside = 2 * stats.norm.cdf(4 - T95[2]) - 1
    assert statistics.power(1.0, 2, margin=4.0) == pytest.approx(inside, rel=1e-3)
    assert statistics.power(1.0, 2, margin=4.0) == statistics.power(1.0, 2, margin=4.0, true_difference=0.0)
