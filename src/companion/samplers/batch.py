"""What every sampler gives and every objective takes: a batch of paths, scored; and how a quantity fades over a run.

An objective asks for the same few numbers whatever is sampled: the log-probability of each step under the policy, the
reference and the behaviour, and the log-reward of the end. A :class:`Batch` holds them, for Gaussian steps, the edges
of a graph or tokens alike. The behaviour, which is what draws the paths, is a value of the sampler's own type.

Source: the choices of behaviour in Venkatraman et al. (2024) and Sendera et al. (2024).
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from companion.plain import storable
from companion.validation import check_number


@dataclass(frozen=True, eq=False)
class Batch:
    """Paths as objectives see them. Shorter paths are padded with zeros at their end, in every per-step entry.

    Attributes:
        log_pi: ``[batch, steps]``, nats; under the policy trained, with gradients.
        log_ref: ``[batch, steps]``, nats; under the reference.
        log_reward: ``[batch]``, log r(x).
        log_behaviour: ``[batch, steps]``, nats, under what drew the paths; None where some come from a store.
        rewards: ``[batch, steps]``, R of each step, with total log r(x); None where all of it comes at the end.
        steps: ``[batch]``, integers; the true length of each path. None where all have that of the batch.
        group: ``[batch]``, integers; the condition, such as the prompt, that a path belongs to. None for one.
        states: ``[batch, steps + 1, ...]``; what a learned value may look at, the last repeated in padding. Or None.
    """

    log_pi: Tensor
    log_ref: Tensor
    log_reward: Tensor
    log_behaviour: Tensor | None = None
    rewards: Tensor | None = None
    steps: Tensor | None = None
    group: Tensor | None = None
    states: Tensor | None = None

    def log_weights(self, *, beta: float = 1.0) -> Tensor:
        """Return e of each path, ``beta log r(x) - sum(log_pi - log_ref)``: ``[batch]``, nats. Keeps gradients.

        Its mean is the ELBO over the policy's own paths, the EUBO over paths of the target.

        Source: claim O3. Derived in chapter ``on-policy-rtb-is-reinforce``.
        """
        return beta * self.log_reward - (self.log_pi - self.log_ref).sum(dim=1)

    def per_step_rewards(self) -> Tensor:
        """Return ``rewards``, or log r(x) at the last true step of each path and zero before: ``[batch, steps]``."""
        if self.rewards is not None:
            return self.rewards
        last = torch.full_like(self.log_reward, self.log_pi.shape[1] - 1, dtype=torch.int64)
        last = last if self.steps is None else self.steps.long() - 1
        zeros = self.log_reward.new_zeros(self.log_pi.shape)
        return zeros.scatter(1, last[:, None], self.log_reward[:, None])


def join(parts: list[Batch]) -> Batch:
    """Return several batches as one; an entry that one of them lacks is None. They have as many steps each."""
    if len(parts) == 1:
        return parts[0]
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Batch)}
    whole = {name: column for name, column in columns.items() if all(entry is not None for entry in column)}
    return Batch(**{name: torch.cat(column) for name, column in whole.items()})


class Sampler(Protocol):
    """What :func:`companion.training.loop.fine_tune` asks of a sampler."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained."""

    def draw(self, n: int, generator: torch.Generator, behaviour: Any = None, iteration: int = 0) -> Batch:
        """Draw ``n`` paths as the behaviour says for this iteration; without one, the policy's own paths."""


@storable
@dataclass(frozen=True)
class Fading:
    """A number that is held, then falls in proportion to what is left of a stretch of iterations, then is zero.

    Attributes:
        start: its value at first, >= 0.
        until: iteration up to which it is held.
        end: iteration from which it is zero; in between it is ``start * (1 - i / end)``.

    Raises ``ValueError`` for a number out of range, or a stretch that ends before it begins.

    Source: the schedule of exploration of Venkatraman et al. (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """

    start: float
    until: int
    end: int

    def __post_init__(self) -> None:
        check_number("start", self.start, at_least=0)
        check_number("until", self.until, at_least=0)
        check_number("end", self.end, above=0)
        if self.end < self.until:
            raise ValueError(
                f"end is {self.end} with until {self.until}; expected a stretch that ends after it begins. Raise end."
            )

    def at(self, iteration: int) -> float:
        """Return the number at an iteration."""
        if iteration >= self.end:
            return 0.0
        return self.start if iteration <= self.until else self.start * (1 - iteration / self.end)


def at(number: float | Fading, iteration: int) -> float:
    """Return a number that may fade, as it is at an iteration."""
    return number.at(iteration) if isinstance(number, Fading) else number


def check_behaviour(behaviour: object, expected: type | tuple[type, ...]) -> None:
    """Refuse a behaviour of another sampler. Raises ``ValueError``."""
    if not isinstance(behaviour, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"behaviour is {behaviour!r}; expected {names}, or None for the policy's own paths. Each sampler has a "
            "behaviour of its own type: pass one of this sampler's."
        )
