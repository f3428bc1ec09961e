"""What is trained towards: one frozen dataclass for each objective, over the pure losses of the book.

Each class names the numbers that its loss needs and calls the pure function that states it, with source and chapter.
What some learn beside the policy, log Z, V(s_0) or a baseline, is one number for all paths, a table over conditions, or
a module of yours. A new objective is a new class with the same two methods, in any file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from companion import reinforce, rtb, trust_pcl
from companion.plain import storable
from companion.samplers.batch import Batch
from companion.validation import (
    check_choice,
    check_counts,
    check_number,
    check_per_path,
    check_positive_integers,
    check_range,
    check_tensor,
    check_weights,
)


class Objective(Protocol):
    """What :func:`companion.training.loop.fine_tune` asks of an objective."""

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return the tensors that are learned beside the policy, of the dtype and on the device of ``like``."""

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar with gradients; ``learned`` is what :meth:`parameters` returned."""


@storable
@dataclass(frozen=True)
class Scalar:
    """One number for all paths, which is ``start`` at first."""

    start: float = 0.0

    def __post_init__(self) -> None:
        check_number("start", self.start)

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return the number, 0-d."""
        return [like.new_full((), self.start).requires_grad_()]

    def of(self, learned: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the number, 0-d."""
        return learned[0]


@storable
@dataclass(frozen=True)
class Table:
    """One number, ``start`` at first, for each of ``conditions``: a batch's ``group``, from 0, or a ``ValueError``."""

    conditions: int
    start: float = 0.0

    def __post_init__(self) -> None:
        check_positive_integers(conditions=self.conditions)
        check_number("start", self.start)

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return the table, ``[conditions]``."""
        return [like.new_full((self.conditions,), self.start).requires_grad_()]

    def of(self, learned: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return each path's number, ``[batch]``."""
        if batch.group is None:
            raise ValueError("The batch has no group; expected one per path. Draw it from a sampler of conditions.")
        check_range("group", batch.group, self.conditions, "Count from 0, or enlarge the table.")
        return learned[0][batch.group.long()]


@storable
@dataclass(frozen=True)
class StateTable:
    """V(s) for each of ``states``, zero from a path's end on; ``ValueError`` for a batch without integer states."""

    states: int

    def __post_init__(self) -> None:
        check_positive_integers(states=self.states)

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return the table, ``[states]``, zero at first."""
        return [like.new_zeros(self.states).requires_grad_()]

    def of(self, learned: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the number of each state of each path, ``[batch, steps + 1]``."""
        states = batch.states
        if states is None or states.ndim != 2 or states.is_floating_point():
            expected = "[batch, steps + 1] integers. Use another value."
            raise ValueError(f"The batch has no table of states; expected {expected}")
        check_range("a state", states, self.states, "Enlarge the table.")
        return learned[0][states.long()]


@dataclass(frozen=True)
class Network:
    """A ``module`` of yours, called with the batch, that returns a number for each path, or each state of each path.

    ``[batch]`` for log Z, V(s_0) or a baseline, ``[batch, steps + 1]`` for V on sub-paths. It has no plain form.
    """

    module: torch.nn.Module

    def __post_init__(self) -> None:
        if not isinstance(self.module, torch.nn.Module):
            raise ValueError(f"module is {self.module!r}; expected a torch.nn.Module, made. Wrap a function in one.")

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return the module's own parameters."""
        return list(self.module.parameters())

    def of(self, learned: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return what the module says of a batch."""
        values: Tensor = self.module(batch)
        if not isinstance(values, Tensor) or len(values.shape) not in (1, 2) or len(values) != len(batch.log_reward):
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            expected = f"one number for each of the {len(batch.log_reward)} paths of the batch, or of their states"
            raise ValueError(f"The module returned {given}; expected {expected}. Look conditions up by batch.group.")
        return values


#: Any of them.
Learned = Scalar | Table | StateTable | Network


class _Learns:
    """What an objective learns beside the policy is among its fields, or is nothing."""

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return what is learned beside the policy, of the dtype and on the device of ``like``."""
        parts = [getattr(self, field.name) for field in fields(cast(Any, self))]
        return [tensor for part in parts if hasattr(part, "parameters") for tensor in part.parameters(like)]


@storable
@dataclass(frozen=True)
class RTB(_Learns):
    """Relative trajectory balance, :func:`companion.rtb.loss`; ``log_z`` says how log Z is learned, ``beta`` is > 0."""

    beta: float = 1.0
    log_z: Scalar | Table | Network = Scalar()

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)
        _check_learned("log_z", self.log_z)

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return half the mean squared residual."""
        log_z = self.log_z.of(learned, batch)
        inputs = (batch.log_pi, batch.log_ref, batch.log_reward)
        return rtb.loss(*inputs, log_z, beta=self.beta, group=batch.group, steps=batch.steps)


@storable
@dataclass(frozen=True)
class VarGrad(_Learns):
    """RTB with log Z of the batch, or of each group: :func:`companion.rtb.vargrad_loss`, ``beta`` > 0 as there."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return half the variance of the residual within each group."""
        inputs = (batch.log_pi, batch.log_ref, batch.log_reward)
        return rtb.vargrad_loss(*inputs, beta=self.beta, group=batch.group, steps=batch.steps)


@storable
@dataclass(frozen=True)
class TrustPCL(_Learns):
    """Trust-PCL on whole paths, V(s_0) learned, or on all sub-paths: :func:`companion.trust_pcl.loss`.

    ``kl_weight`` is lambda, ``entropy_weight`` eta, both >= 0, and ``gamma`` the discount, in (0, 1]. ``value`` says
    how V is learned: V(s_0) on whole paths, or V of every state, by a table of these or a network. ``length`` is d, the
    transitions of a sub-path, None for whole paths: one begins at each step, those near the end of a path stop there,
    and the loss is their sum. Source: Nachum et al. (2017b). Derived in chapter ``path-consistency``.
    """

    kl_weight: float = 1.0
    entropy_weight: float = 0.0
    gamma: float = 1.0
    value: Learned = Scalar()
    length: int | None = None

    def __post_init__(self) -> None:
        check_weights(self.kl_weight, self.entropy_weight, self.gamma)
        if self.length is not None:
            check_positive_integers(length=self.length)
        kinds = (Scalar, Table, Network) if self.length is None else (StateTable, Network)
        _check_learned("value", self.value, kinds)

    @property
    def beta(self) -> float:
        """Inverse temperature, 1/(kl_weight + entropy_weight)."""
        return 1 / (self.kl_weight + self.entropy_weight)

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return half the mean squared path consistency, summed over sub-paths where there are several."""
        value = self.value.of(learned, batch)
        if self.length is None:
            return self._of(batch, trust_pcl.full_path_values(value, batch.log_pi))
        total, values = batch.log_pi.shape[1], _ended(value, batch)
        spans = [(start, min(start + self.length, total)) for start in range(total)]
        return torch.stack([self._of(batch, values, start, stop) for start, stop in spans]).sum()

    def _of(self, batch: Batch, values: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        inputs = (batch.log_pi, batch.log_ref, batch.per_step_rewards(), values)
        weights: dict[str, Any] = {name: getattr(self, name) for name in ("kl_weight", "entropy_weight", "gamma")}
        return trust_pcl.loss(*inputs, start=start, stop=stop, group=batch.group, steps=batch.steps, **weights)


@storable
@dataclass(frozen=True)
class Reinforce(_Learns):
    """REINFORCE with a KL penalty: :func:`companion.reinforce.kl_loss`, and ``critic_loss`` for a learned baseline.

    ``beta``, > 0, is the inverse temperature, 1 over the KL weight; ``baseline`` a name, a number, or how one is
    learned; ``weights`` are as there; ``clip`` is the largest distance of a path's return from the mean return, in nats
    of the residual, or None. Source: Williams (1992). Derived in chapter ``on-policy-rtb-is-reinforce``.
    """

    beta: float = 1.0
    baseline: str | float | Scalar | Table | Network = "batch_mean"
    weights: str = "none"
    clip: float | None = None

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)
        if isinstance(self.baseline, str):
            check_choice("baseline", self.baseline, reinforce.BASELINES)
        elif isinstance(self.baseline, int | float):
            check_number("baseline", self.baseline)
        else:
            _check_learned("baseline", self.baseline)
        check_choice("weights", self.weights, reinforce.WEIGHTS)
        if self.clip is not None:
            check_number("clip", self.clip, above=0)

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return the surrogate, and a learned baseline's error. Raises ``ValueError`` for weights without behaviour."""
        if self.weights != "none" and batch.log_behaviour is None:
            lack = f"weights={self.weights!r} with a batch that has no log_behaviour, as where paths are replayed"
            mend = "Use 'none', or a sampler that scores all its paths under what drew them."
            raise ValueError(f"{lack}; expected one. {mend}")
        inputs = (batch.log_pi, batch.log_ref, batch.log_reward)
        given: dict[str, Any] = {"beta": self.beta, "weights": self.weights, "group": batch.group, "steps": batch.steps}
        given["log_behaviour"] = None if self.weights == "none" else batch.log_behaviour
        if isinstance(self.baseline, str | int | float):
            return reinforce.kl_loss(*inputs, baseline=self.baseline, clip=self.clip, **given)
        value = self.baseline.of(learned, batch)
        if value.ndim:
            check_per_path("the learned baseline", value, batch.log_pi)
        baseline = value.detach().expand(batch.log_reward.shape)
        policy = reinforce.kl_loss(*inputs, baseline=baseline, clip=self.clip, **given)
        return policy + reinforce.critic_loss(*inputs, value, **given)


@storable
@dataclass(frozen=True)
class PublishedBaseline(_Learns):
    """The baseline of :func:`companion.reinforce.published_baseline_loss`; ``kl_weight`` is >= 0."""

    kl_weight: float = 0.01

    def __post_init__(self) -> None:
        check_number("kl_weight", self.kl_weight, at_least=0)

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return the loss as published."""
        inputs = (batch.log_pi, batch.log_ref, batch.log_reward)
        return reinforce.published_baseline_loss(
            *inputs, kl_weight=self.kl_weight, group=batch.group, steps=batch.steps
        )


@storable
@dataclass(frozen=True)
class MaximumLikelihood(_Learns):
    """Minus the log-likelihood of the paths, whatever draws them. Source: standard; chapter ``names-with-a-wish``."""

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return minus the mean log-likelihood of a path."""
        return -batch.log_pi.sum(dim=1).mean()


@storable
@dataclass(frozen=True)
class Annealed(_Learns):
    """Another objective whose inverse temperature rises over the first ``over`` iterations to its own.

    ``objective`` is a dataclass whose field ``beta`` is an inverse temperature, or :class:`TrustPCL`: another is a
    ``ValueError``. At iteration i it is ``min(1, (i + 1) / (over + 1))`` times its own. Source: a remedy for early
    collapse. Used in chapter ``twenty-five-modes-to-nine``.
    """

    objective: Any
    over: int

    def __post_init__(self) -> None:
        check_counts(over=self.over)
        names = {field.name for field in fields(self.objective)} if is_dataclass(self.objective) else set()
        if isinstance(self.objective, type) or not (isinstance(self.objective, TrustPCL) or "beta" in names):
            expected = "TrustPCL(...), or a dataclass with a field beta, its inverse temperature"
            mend = "Train it without annealing, or give it that field."
            raise ValueError(f"objective is {self.objective!r}; expected {expected}. {mend}")

    @property
    def beta(self) -> float:
        """Inverse temperature in the end."""
        return float(self.objective.beta)

    def at(self, iteration: int) -> Objective:
        """Return the objective of an iteration. Raises ``ValueError`` unless that counts from 0."""
        check_counts(iteration=iteration)
        factor = min(1.0, (iteration + 1) / (self.over + 1))
        if isinstance(self.objective, TrustPCL):
            kl_weight, entropy_weight = self.objective.kl_weight / factor, self.objective.entropy_weight / factor
            return replace(self.objective, kl_weight=kl_weight, entropy_weight=entropy_weight)
        return cast(Objective, replace(self.objective, beta=self.objective.beta * factor))

    def loss(self, batch: Batch, learned: Sequence[Tensor]) -> Tensor:
        """Return the loss in the end; :meth:`at` has that of an iteration."""
        return cast(Tensor, self.objective.loss(batch, learned))


def _ended(values: Tensor, batch: Batch) -> Tensor:
    """Values that are zero from the end of each path on: a finished path earns nothing more."""
    count, columns = batch.log_pi.shape
    shape = (count, columns + 1)
    check_tensor("value", values, shape, f"{shape}, [batch, steps + 1]. Return one for each state.")
    end = torch.full_like(batch.log_reward, columns, dtype=torch.int64) if batch.steps is None else batch.steps
    before = torch.arange(columns + 1, device=values.device) < end[:, None]
    return torch.where(before, values, torch.zeros_like(values))


def _check_learned(name: str, value: object, kinds: tuple[type, ...] = (Scalar, Table, Network)) -> None:
    if not isinstance(value, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} is {value!r}; expected one of {names}. Choose one of these.")
