"""What every sampler gives and every objective takes: a batch of paths, scored; and how a quantity fades over a run.

An objective asks for the same numbers whatever is sampled. The behaviour, which is what draws the paths, is a value of
the sampler's own type. Source: the behaviours of Venkatraman et al. (2024) and Sendera et al. (2024).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from companion.plain import storable
from companion.validation import (
    check_counts,
    check_fits,
    check_generator,
    check_group,
    check_number,
    check_positive_integers,
    check_steps,
    check_tensor,
)


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

    Raises ``ValueError`` for entries that do not fit ``log_pi`` in shape, dtype or device, true lengths out of range,
    or a path that goes on beyond its own. (What is not finite is for the loss to refuse.)
    """

    log_pi: Tensor
    log_ref: Tensor
    log_reward: Tensor
    log_behaviour: Tensor | None = None
    rewards: Tensor | None = None
    steps: Tensor | None = None
    group: Tensor | None = None
    states: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("log_pi", self.log_pi, (None, None), "floats, [batch, steps], not empty. Pass one per row.")
        check_fits("log_reward", self.log_reward, self.log_pi, self.log_pi.shape[:1], "[batch], one entry per path")
        for name in ("log_ref", "log_behaviour", "rewards"):
            value = getattr(self, name)
            if name == "log_ref" or value is not None:
                check_fits(name, value, self.log_pi, self.log_pi.shape, "[batch, steps], one entry per step")
        check_steps(self.steps, log_pi=self.log_pi)
        if self.group is not None:
            check_group(self.group, self.log_pi)
        shape = (self.log_pi.shape[0], self.log_pi.shape[1] + 1)
        if self.states is not None and tuple(getattr(self.states, "shape", ()))[:2] != shape:
            given = tuple(self.states.shape) if isinstance(self.states, Tensor) else type(self.states).__name__
            raise ValueError(f"states is {given}; expected {(*shape, '...')}. Pass those before and after each step.")

    def log_weights(self, *, beta: float = 1.0) -> Tensor:
        """Return e of each path, ``beta log r(x) - sum(log_pi - log_ref)``: ``[batch]``, nats. Keeps gradients.

        Its mean is the ELBO over the policy's own paths, the EUBO over paths of the target. Source: claim O3.
        """
        return beta * self.log_reward - (self.log_pi - self.log_ref).sum(dim=1)

    def per_step_rewards(self) -> Tensor:
        """Return ``rewards``, or log r(x) at the last true step of each path and zero before: ``[batch, steps]``."""
        if self.rewards is not None:
            return self.rewards
        zeros = self.log_reward.new_zeros(self.log_pi.shape)
        steps = torch.full_like(self.log_reward, zeros.shape[1]) if self.steps is None else self.steps
        return zeros.scatter(1, steps.long()[:, None] - 1, self.log_reward[:, None])


class Sampler(Protocol):
    """What :func:`companion.training.loop.fine_tune` asks of a sampler.

    It may also have ``constants()``, what else it is made of, by name: a checkpoint describes these, and is refused
    where they differ. Buffers of modules among its attributes are kept in a checkpoint without being asked for.
    """

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained."""

    def draw(self, n: int, generator: torch.Generator, behaviour: Any = None, iteration: int = 0) -> Batch:
        """Draw ``n`` paths as the behaviour says for this iteration; without one, the policy's own paths."""


@storable
@dataclass(frozen=True)
class Fading:
    """A number that is held, then falls in proportion to what is left of a stretch of iterations, then is zero.

    It is ``start``, >= 0, up to iteration ``until``, from ``end`` on zero, and in between ``start * (1 - i / end)``.
    Raises ``ValueError`` for a number out of range, or a stretch that ends before it begins. Source: the schedule of
    exploration of Venkatraman et al. (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """

    start: float
    until: int
    end: int

    def __post_init__(self) -> None:
        check_number("start", self.start, at_least=0)
        check_counts(until=self.until)
        check_positive_integers(end=self.end)
        if self.end < self.until:
            raise ValueError(f"end is {self.end} with until {self.until}; expected it to end after that. Raise end.")

    def at(self, iteration: int) -> float:
        """Return the number at an iteration. Raises ``ValueError`` unless that counts from 0."""
        check_counts(iteration=iteration)
        if iteration >= self.end:
            return 0.0
        return self.start if iteration <= self.until else self.start * (1 - iteration / self.end)


def at(number: float | Fading, iteration: int) -> float:
    """Return a number that may fade, as it is at an iteration."""
    return number.at(iteration) if isinstance(number, Fading) else number


def check_fading(name: str, number: float | Fading, *, at_most: float | None = None) -> None:
    """Refuse what is neither a number >= 0 nor one that fades from such a number. Raises ``ValueError``."""
    if not isinstance(number, int | float | Fading):
        raise ValueError(f"{name} is {number!r}; expected a number or a Fading. Pass a Fading(start, until, end).")
    check_number(name, at(number, 0), at_least=0, at_most=at_most)


def check_draw(n: int, generator: torch.Generator, behaviour: object, *expected: type) -> None:
    """Refuse no number of paths, no generator, and a behaviour of another sampler. Raises ``ValueError``."""
    check_positive_integers(n=n)
    check_generator(generator)
    if not isinstance(behaviour, expected):
        names = " or ".join(kind.__name__ for kind in expected)
        raise ValueError(f"behaviour is {behaviour!r}; expected {names}, or None. Pass one of this sampler's own.")


def weights_of(policy: object, reference: object, stored: list[Tensor]) -> list[Tensor]:
    """Return the parameters of a policy, to be trained while the reference and what is stored stay as they are.

    Raises ``ValueError`` where the policy is no module or has none, where the reference shares one that is trained, and
    where policy, reference and store differ in dtype or device.
    """
    modules = (model if isinstance(model, torch.nn.Module) else torch.nn.Module() for model in (policy, reference))
    ours, theirs = (list[Tensor](module.parameters()) for module in modules)
    if not ours:
        given = f"{type(policy).__name__} without parameters"
        raise ValueError(f"policy is a {given}; expected a torch.nn.Module to train. Wrap it in one.")
    trained = {weight.data_ptr() for weight in ours if weight.requires_grad and weight.numel()}
    shared = sum(weight.data_ptr() in trained for weight in theirs)
    if shared:
        expected = "expected none: the reference would move with the policy"
        mend = "Pass a copy: copy.deepcopy(reference).requires_grad_(True)."
        raise ValueError(f"policy and reference share {shared} tensor(s) that are trained; {expected}. {mend}")
    parts = {"policy": ours, "reference": theirs, "store": stored}
    kinds = {name: (part[0].dtype, part[0].device) for name, part in parts.items() if part}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"dtypes and devices are {kinds}; expected those of the policy. Convert or move the rest.")
    return ours
