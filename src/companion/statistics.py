"""Several seeds, one answer: intervals for a mean, and the test of whether two methods are equivalent.

One run is an anecdote. A mean over seeds comes with an interval. That two methods differ by less than a margin is not
shown by failing to find a difference, but by two one-sided tests: both must reject that the difference lies beyond the
margin, which was fixed beforehand. Used from chapter
``twenty-five-modes-to-nine`` on.

Source: Schuirmann (1987) for the two one-sided tests; Student's t throughout, from scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats

from companion.validation import check_number


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of independent values, at least two, one for each seed, with its Student interval.

    Raises ``ValueError`` for fewer values, one that is not finite, or a level outside (0, 1).
    """
    sample = _sample("values", values)
    _check_level(level)
    half = stats.t.ppf(0.5 + level / 2, len(sample) - 1) * sample.std() / math.sqrt(len(sample))
    return Interval(sample.mean().item(), (sample.mean() - half).item(), (sample.mean() + half).item())


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say of a difference.

    Attributes:
        difference: mean of the first less mean of the second, with its interval at level 1 - 2 x ``significance``.
        margin: the difference from which on two methods count as different.
        equivalent: whether the whole interval lies inside plus or minus the margin: both tests reject.
        different: whether the whole interval lies beyond the margin on one side.
    """

    difference: Interval
    margin: float
    equivalent: bool
    different: bool


def equivalence(
    first: Sequence[float], second: Sequence[float], *, margin: float, significance: float = 0.05
) -> Equivalence:
    """Run two one-sided t-tests (TOST), with Welch's degrees of freedom, on the means of two independent samples.

    Raises ``ValueError`` for fewer than two values a side, one that is not finite, or a margin that is not positive.

    Source: Schuirmann (1987). Used in chapter ``twenty-five-modes-to-nine``.
    """
    check_number("margin", margin, above=0)
    _check_level(significance)
    a, b = _sample("first", first), _sample("second", second)
    difference = (a.mean() - b.mean()).item()
    square_a, square_b = a.var().item() / len(a), b.var().item() / len(b)
    half = 0.0
    if square_a + square_b > 0:
        freedom = (square_a + square_b) ** 2 / (square_a**2 / (len(a) - 1) + square_b**2 / (len(b) - 1))
        half = stats.t.ppf(1 - significance, freedom) * math.sqrt(square_a + square_b)
    interval = Interval(difference, difference - half, difference + half)
    inside = -margin < interval.low and interval.high < margin
    return Equivalence(interval, margin, inside, interval.low > margin or interval.high < -margin)


def power(
    spread: float, seeds: int, *, margin: float, true_difference: float = 0.0, significance: float = 0.05
) -> float:
    """Return the chance that :func:`equivalence` finds two methods equivalent, with ``seeds`` runs a side.

    ``spread`` is the standard deviation from seed to seed of either method, ``true_difference`` that of their means,
    inside the margin. A normal approximation with Student's quantile.
    """
    error = spread * math.sqrt(2 / seeds)
    room = margin / error - stats.t.ppf(1 - significance, 2 * seeds - 2)
    shift = true_difference / error
    return max(0.0, float(stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift)))


def _sample(name: str, values: Sequence[float]) -> torch.Tensor:
    sample = torch.as_tensor(values, dtype=torch.float64)
    if sample.ndim != 1 or len(sample) < 2 or not bool(sample.isfinite().all()):
        raise ValueError(f"{name} is {values!r}; expected two or more finite numbers, one per seed. Run more seeds.")
    return sample


def _check_level(level: float) -> None:
    if not isinstance(level, float) or not 0 < level < 1:
        raise ValueError(f"The level is {level!r}; expected a number between 0 and 1, such as 0.95. Pass one.")
