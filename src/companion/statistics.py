"""Several seeds, one answer: intervals for a mean, and the test of whether two methods are equivalent.

That two methods differ by less than a margin is not shown by failing to find a difference, but by two one-sided tests:
both must reject that the difference lies beyond the margin, which was fixed beforehand. Used from chapter
``twenty-five-modes-to-nine`` on. Source: Schuirmann (1987); Student's t throughout, from scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from companion.validation import check_number, check_positive_integers


@dataclass(frozen=True)
class Interval:
    """A ``mean`` and its confidence interval, from ``low`` to ``high``."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of values, one a seed, and its Student interval; ``ValueError`` for one alone, or a bad level."""
    sample = _sample("values", values)
    _check_share("level", level)
    half = stats.t.ppf(0.5 + level / 2, len(sample) - 1) * sample.std() / math.sqrt(len(sample))
    return Interval(sample.mean().item(), (sample.mean() - half).item(), (sample.mean() + half).item())


def difference_interval(
    first: Sequence[float], second: Sequence[float], *, significance: float = 0.05, paired: bool = False
) -> Interval:
    """Return the mean of the first less that of the second, with its Student interval at level 1 - 2 x significance.

    Two samples are independent, with Welch's degrees of freedom; ``paired`` says that the i-th values of both come from
    one seed, so that what the seed does to both drops out of their difference. ``significance`` is that of a one-sided
    test at either end. Raises ``ValueError`` for fewer than two values a side, one that is not finite, a significance
    outside (0, 0.5), or pairs of which one value is missing. Source: Welch (1947); Student (1908) for pairs.
    """
    _check_share("significance", significance, below=0.5)  # from 0.5 on the interval is inside out
    a, b = _sample("first", first), _sample("second", second)
    difference = (a.mean() - b.mean()).item()
    error, freedom = _error_of_pairs(a, b) if paired else _error_of_samples(a, b)
    half = float(stats.t.ppf(1 - significance, freedom)) * error
    return Interval(difference, difference - half, difference + half)


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say of a ``difference``, an interval at level 1 - 2 x significance.

    From ``margin`` on two methods count as different: they are ``equivalent`` where the whole interval lies inside plus
    or minus the margin, both tests rejecting, ``different`` where it lies beyond on one side.
    """

    difference: Interval
    margin: float
    equivalent: bool
    different: bool


def equivalence(
    first: Sequence[float], second: Sequence[float], *, margin: float, significance: float = 0.05, paired: bool = False
) -> Equivalence:
    """Run two one-sided t-tests (TOST) on two means, ``margin`` > 0; else as :func:`difference_interval`."""
    check_number("margin", margin, above=0)
    interval = difference_interval(first, second, significance=significance, paired=paired)
    inside = -margin < interval.low and interval.high < margin
    return Equivalence(interval, margin, inside, interval.low > margin or interval.high < -margin)


def smallest_margin(
    first: Sequence[float], second: Sequence[float], *, significance: float = 0.05, paired: bool = False
) -> float:
    """Return the margin above which :func:`equivalence` finds two methods equivalent; arguments and errors as there."""
    interval = difference_interval(first, second, significance=significance, paired=paired)
    return max(-interval.low, interval.high)


def power(
    spread: float, seeds: int, *, margin: float, true_difference: float = 0.0, significance: float = 0.05
) -> float:
    """Return the chance that :func:`equivalence` finds two methods equivalent, with ``seeds`` runs a side, unpaired.

    ``spread`` is the standard deviation from seed to seed of either method, ``true_difference`` that of their means. A
    normal approximation with Student's quantile. Raises ``ValueError`` for a spread or a margin that is not positive,
    fewer than two seeds, a difference that is not finite, or a significance outside (0, 0.5).
    """
    check_number("spread", spread, above=0)
    check_number("margin", margin, above=0)
    check_number("true_difference", true_difference)
    check_positive_integers(seeds=seeds)
    check_number("seeds", seeds, at_least=2)
    _check_share("significance", significance, below=0.5)
    error = spread * math.sqrt(2 / seeds)
    room = margin / error - stats.t.ppf(1 - significance, 2 * seeds - 2)
    shift = true_difference / error
    return max(0.0, float(stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift)))


def _error_of_samples(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The standard error of the difference of two independent means, and its degrees of freedom by Welch."""
    square_a, square_b = a.var().item() / len(a), b.var().item() / len(b)
    if square_a + square_b == 0:
        return 0.0, 1.0  # no error, whatever its degrees of freedom
    freedom = (square_a + square_b) ** 2 / (square_a**2 / (len(a) - 1) + square_b**2 / (len(b) - 1))
    return math.sqrt(square_a + square_b), freedom


def _error_of_pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The standard error of the mean difference of pairs, and its degrees of freedom."""
    if len(a) != len(b):
        expected = "pairs. Leave out the seeds that one of them lacks, or compare them unpaired."
        raise ValueError(f"first holds {len(a)} values, second {len(b)}; expected {expected}")
    return (a - b).std().item() / math.sqrt(len(a)), len(a) - 1.0


def _sample(name: str, values: Sequence[float]) -> torch.Tensor:
    try:
        given = np.asarray(values)
    except (ValueError, RuntimeError, TypeError):  # ragged, or a tensor that keeps its gradient
        given = np.empty(0)
    if given.ndim != 1 or len(given) < 2 or given.dtype.kind not in "fiu" or not np.isfinite(given).all():
        raise ValueError(f"{name} is {values!r}; expected two or more finite numbers, one per seed. Run more seeds.")
    return torch.as_tensor(given, dtype=torch.float64)


def _check_share(name: str, value: float, *, below: float = 1.0) -> None:
    if not isinstance(value, float) or not 0 < value < below:
        advice = "0.95" if below == 1 else "0.05"
        raise ValueError(f"{name} is {value!r}; expected a number between 0 and {below:g}, such as {advice}. Pass one.")
