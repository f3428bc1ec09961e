"""How long a run is, how large its batches, and how its rates fall: values, to be stored beside the results."""

from dataclasses import dataclass

from companion.plain import storable
from companion.validation import check_counts, check_number, check_positive_integers


@storable
@dataclass(frozen=True)
class Linear:
    """Rates that fall linearly, from iteration ``since`` on, to zero at the end of the run."""

    since: int = 0

    def __post_init__(self) -> None:
        check_counts(since=self.since)

    def at(self, iteration: int, iterations: int) -> float:
        """Return the factor on the rates at an iteration of a run of so many. Raises ``ValueError`` beyond its end."""
        _check_inside(iteration, iterations)
        return 1.0 if iteration < self.since else (iterations - iteration) / (iterations - self.since)


@storable
@dataclass(frozen=True)
class Exponential:
    """Rates that fall, from iteration ``since`` on, by one factor a step, to ``to`` in (0, 1] of what they were."""

    to: float
    since: int = 0

    def __post_init__(self) -> None:
        check_number("to", self.to, above=0, at_most=1)
        check_counts(since=self.since)

    def at(self, iteration: int, iterations: int) -> float:
        """Return the factor on the rates at an iteration of a run of so many. Raises ``ValueError`` beyond its end."""
        _check_inside(iteration, iterations)
        done = max(0.0, (iteration - self.since) / (iterations - self.since))
        return float(self.to**done)


@storable
@dataclass(frozen=True)
class Schedule:
    """The course of a run: ``iterations`` steps of ``batch`` paths each.

    ``rate`` is Adam's for the policy, ``learned_rate`` that for what the objective learns beside it; both fall as
    ``decay`` says: :class:`Linear`, :class:`Exponential`, or None, not at all. Raises ``ValueError`` for a number out
    of range, or a decay that begins at the end or later. Source: the defaults are the settings of Venkatraman et al.
    (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """

    iterations: int = 5000
    batch: int = 500
    rate: float = 1e-3
    learned_rate: float = 1e-1
    decay: Linear | Exponential | None = None

    def __post_init__(self) -> None:
        check_positive_integers(iterations=self.iterations, batch=self.batch)
        check_number("rate", self.rate, above=0)
        check_number("learned_rate", self.learned_rate, above=0)
        if self.decay is not None and not isinstance(self.decay, Linear | Exponential):
            raise ValueError(f"decay is {self.decay!r}; expected Linear, Exponential or None. Choose one of these.")
        if self.decay is not None and self.decay.since >= self.iterations:
            given = f"decay begins at {self.decay.since}, iterations is {self.iterations}"
            raise ValueError(f"{given}; expected it to begin before the run ends. Begin it earlier, or leave it out.")

    def rate_at(self, iteration: int) -> float:
        """Return the factor on both rates at an iteration. Raises ``ValueError`` beyond the end of the run."""
        _check_inside(iteration, self.iterations)
        return 1.0 if self.decay is None else self.decay.at(iteration, self.iterations)


def _check_inside(iteration: int, iterations: int) -> None:
    if not isinstance(iteration, int) or not 0 <= iteration < iterations:
        expected = f"an integer, 0 to {iterations - 1}"
        raise ValueError(f"iteration is {iteration!r} of {iterations}; expected {expected}. Lengthen it.")
