"""Gaussian-transition samplers: a state in R^d, moved by a drift and by noise, with closed-form log-probabilities.

A process starts at s_0 = 0 and takes T steps of dt = 1/T, s' = s + dt u(s, t) + sqrt(sigma^2 dt) noise. The drift u is
the policy: any function of states and time. A path's log-probability is a sum of Gaussian log-densities, one per step,
under the drift that drew it or any other. Exploration adds variance to the steps that are *drawn*; the sampler that is
trained keeps its own.

Chapter ``twenty-five-modes-to-nine`` fine-tunes such a sampler.

Source: the setting of Venkatraman et al. (2024) and Zhang and Chen (2022).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion.plain import storable
from companion.samplers.batch import Batch, Fading, at, check_behaviour, join
from companion.validation import check_counts, check_finite, check_generator, check_number, check_positive_integers

#: A drift: states ``[..., dim]`` and times ``[...]`` or 0-d, to ``[..., dim]``.
Drift = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Process:
    """What all samplers of one family share: the number of steps, the noise, the dimension.

    Attributes:
        steps: T, at least 1.
        variance: sigma^2, the variance of the noise per unit of time, > 0.
        dim: dimension of the state, at least 1.

    Raises ``ValueError`` for numbers out of range.
    """

    steps: int = 100
    variance: float = 5.0
    dim: int = 2

    def __post_init__(self) -> None:
        check_positive_integers(steps=self.steps, dim=self.dim)
        check_number("variance", self.variance, above=0)

    @property
    def dt(self) -> float:
        """Length of a step, 1/T."""
        return 1.0 / self.steps

    def times(self, like: Tensor) -> Tensor:
        """Return the times at which the steps begin, 0, dt, ..., 1 - dt: ``[steps]``, in the dtype of ``like``."""
        return torch.arange(self.steps, dtype=like.dtype, device=like.device) * self.dt


def rollout(
    process: Process,
    drift: Drift,
    n: int,
    generator: torch.Generator,
    *,
    extra_std: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw ``n`` paths from s_0 = 0 under a drift, without gradients: ``[n, steps + 1, dim]``, where the generator is.

    ``extra_std`` is the standard deviation of exploration noise added to each step, per step, not per unit of time.
    Raises ``ValueError`` for a drift of the wrong shape, a drift that is not finite, or a number out of range.

    Source: Euler-Maruyama; exploration as in Sendera et al. (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """
    with torch.no_grad():
        return traced_rollout(process, drift, n, generator, extra_std=extra_std, dtype=dtype)[0]


def traced_rollout(
    process: Process,
    drift: Drift,
    n: int,
    generator: torch.Generator,
    *,
    extra_std: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Draw paths as :func:`rollout` does, and keep the drifts that drew them, with their gradients.

    Each step is taken from a constant state, so gradients flow through the drift at that state only: what the
    log-probability of a given path needs. Pass the drifts on to :func:`step_log_prob`, and no state is computed twice.

    Returns:
        The states, ``[n, steps + 1, dim]``, and the drift at all states but the last, ``[n, steps, dim]``.

    Source: Euler-Maruyama. Used in chapter ``twenty-five-modes-to-nine``.
    """
    check_positive_integers(n=n)
    check_generator(generator)
    check_number("extra_std", extra_std, at_least=0)
    start = torch.zeros(n, process.dim, dtype=dtype, device=generator.device)
    shape = (process.steps, n, process.dim)
    noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    noise *= math.sqrt(process.variance * process.dt + extra_std**2)
    states, record = [start], _record(drift, process.times(start), n)
    for k, step_noise in enumerate(noise):
        move = record.step(k, states[-1])
        _check_drift(move, start)
        states.append(torch.add(states[-1], move, alpha=process.dt) + step_noise)
    moves = record.moves()
    check_finite("The drift", moves, "Lower the rate of training, or clip.")
    return torch.stack(states).transpose(0, 1), moves.transpose(0, 1)


def log_prob(process: Process, drift: Drift, states: Tensor, *, extra_std: float = 0.0) -> Tensor:
    """Return the log-density of each step of given paths under a drift: ``[n, steps]``. Keeps gradients.

    Args:
        process: the process.
        drift: the policy; called once, on all states but the last, ``[n, steps, dim]``, and times ``[steps]``.
        states: ``[n, steps + 1, dim]``.
        extra_std: as in :func:`rollout`, where the paths' own law is wanted.

    Raises:
        ValueError: for states or a drift of the wrong shape, or a number out of range.

    Source: the Gaussian density. Used in chapter ``twenty-five-modes-to-nine``.
    """
    _check_states(process, states)
    before = states[:, :-1]
    move = drift(before, process.times(states))
    _check_drift(move, before)
    check_finite("The drift", move, "Lower the rate of training, or clip.")
    return step_log_prob(process, states, move, extra_std=extra_std)


def step_log_prob(process: Process, states: Tensor, moves: Tensor, *, extra_std: float = 0.0) -> Tensor:
    """Return the log-density of each step of given paths, ``[n, steps]``, where the drifts are known already.

    ``states`` is ``[n, steps + 1, dim]`` and ``moves``, which keeps its gradients, ``[n, steps, dim]``, as
    :func:`traced_rollout` returns them. Raises ``ValueError`` for other shapes, or a negative ``extra_std``.

    Source: the Gaussian density. Used in chapter ``twenty-five-modes-to-nine``.
    """
    _check_states(process, states)
    _check_drift(moves, states[:, 1:])
    check_number("extra_std", extra_std, at_least=0)
    variance = process.variance * process.dt + extra_std**2
    squares = (states[:, 1:] - states[:, :-1] - process.dt * moves).square().sum(dim=2)
    return -0.5 * squares / variance - 0.5 * process.dim * math.log(2 * math.pi * variance)


@dataclass(frozen=True, eq=False)
class Store:
    """Paths kept to be drawn again: ``states`` ``[paths, steps + 1, dim]``, and their score under the reference.

    Attributes:
        states: ``[paths, steps + 1, dim]``.
        log_ref: ``[paths, steps]``, nats.
        log_reward: ``[paths]``.
        weights: ``[paths]``; how often each is drawn, in proportion.
    """

    states: Tensor
    log_ref: Tensor
    log_reward: Tensor
    weights: Tensor


@storable
@dataclass(frozen=True)
class Exploration:
    """The behaviour of a :class:`DiffusionSampler`: fresh paths with more noise, and paths from its store.

    Attributes:
        noise: standard deviation added to each fresh step, per step, >= 0; a number, or one that fades.
        replayed: share of each batch that comes from the store.
        replay_until: iteration from which nothing is replayed; None replays to the end.

    Raises ``ValueError`` for a number out of range, or an end of what never begins.

    Source: Sendera et al. (2024) for the noise. Used in chapter ``twenty-five-modes-to-nine``.
    """

    noise: float | Fading = 0.0
    replayed: float = 0.0
    replay_until: int | None = None

    def __post_init__(self) -> None:
        check_number("noise", at(self.noise, 0), at_least=0)
        check_number("replayed", self.replayed, at_least=0, at_most=1)
        if self.replay_until is not None:
            check_counts(replay_until=self.replay_until)
            if self.replayed == 0:
                raise ValueError(
                    f"replay_until is {self.replay_until} with nothing replayed; expected None. Leave it out."
                )

    def replayed_at(self, iteration: int) -> float:
        """Return the share of the batch that is replayed at an iteration."""
        return self.replayed if self.replay_until is None or iteration < self.replay_until else 0.0


class DiffusionSampler:
    """A drift to be fine-tuned, with its reference.

    Args:
        process: steps and noise, shared by policy and reference.
        policy: the drift to be trained, a module. (Only training needs a module: any drift can be scored.)
        reference: the drift of the prior; no gradient flows into it.
        log_reward: log r of the last states, ``[batch, dim]`` to ``[batch]``.
        store: paths to be replayed, as :func:`resampled_prior_paths` makes them.

    Source: Venkatraman et al. (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """

    def __init__(
        self,
        process: Process,
        policy: Drift,
        reference: Drift,
        log_reward: Callable[[Tensor], Tensor],
        *,
        store: Store | None = None,
    ) -> None:
        self.process, self.policy, self.reference, self.log_reward = process, policy, reference, log_reward
        self.store = store

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained: those of the policy. Raises ``ValueError`` where it is no module."""
        if not isinstance(self.policy, torch.nn.Module):
            given = type(self.policy).__name__
            raise ValueError(f"policy is a {given}; expected a torch.nn.Module to train. Wrap the drift in one.")
        return list(self.policy.parameters())

    def draw(
        self, n: int, generator: torch.Generator, behaviour: Exploration | None = None, iteration: int = 0
    ) -> Batch:
        """Draw ``n`` paths, ``round(share * n)`` of them from the store, where any are replayed, the rest fresh.

        Raises ``ValueError`` for a behaviour of another sampler, a share of a store that is not there, or a log-reward
        that is not finite.
        """
        check_positive_integers(n=n)
        check_generator(generator)
        behaviour = Exploration() if behaviour is None else behaviour
        check_behaviour(behaviour, Exploration)
        old = round(behaviour.replayed_at(iteration) * n)
        parts = [self._fresh(n - old, generator, at(behaviour.noise, iteration))] if old < n else []
        return join(parts + ([self._stored(old, generator)] if old else []))

    def log_weights(self, states: Tensor, *, beta: float = 1.0) -> Tensor:
        """Return e of given paths, ``[n]``, float64: :meth:`companion.samplers.batch.Batch.log_weights`.

        ``states`` is ``[n, steps + 1, dim]``. Sums are taken in float64, whatever the paths are. Keeps gradients.
        """
        log_pi, log_ref = (log_prob(self.process, drift, states).double() for drift in (self.policy, self.reference))
        return Batch(log_pi, log_ref, self.log_reward(states[:, -1]).double()).log_weights(beta=beta)

    def _fresh(self, n: int, generator: torch.Generator, noise: float) -> Batch:
        dtype = self.parameters()[0].dtype
        states, moves = traced_rollout(self.process, self.policy, n, generator, extra_std=noise, dtype=dtype)
        log_pi = step_log_prob(self.process, states, moves)
        log_behaviour = step_log_prob(self.process, states, moves.detach(), extra_std=noise)
        with torch.no_grad():
            log_ref, log_reward = log_prob(self.process, self.reference, states), self.log_reward(states[:, -1])
        check_finite("log_reward", log_reward, "Give every x a positive reward that the dtype can hold.")
        return Batch(log_pi, log_ref, log_reward, log_behaviour, states=states)

    def _stored(self, n: int, generator: torch.Generator) -> Batch:
        if self.store is None:
            raise ValueError("replayed is above 0, but there is no store; expected one. Pass resampled_prior_paths'.")
        index = torch.multinomial(self.store.weights, n, replacement=True, generator=generator)
        states = self.store.states[index]
        log_pi = log_prob(self.process, self.policy, states)
        return Batch(log_pi, self.store.log_ref[index], self.store.log_reward[index], states=states)


def resampled_prior_paths(
    process: Process,
    reference: Drift,
    log_reward: Callable[[Tensor], Tensor],
    n: int,
    generator: torch.Generator,
    *,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Store:
    """Draw ``n`` paths of the reference, to be replayed in proportion to r(x)^beta: nearly paths of the target.

    As ``n`` grows the law of a replayed path tends to p*(tau). The paths need no policy, so they can be drawn before
    training begins. Raises ``ValueError`` as :func:`rollout` does, and for ``beta <= 0``.

    Source: importance resampling; its use here is off-policy, which claim O6 allows. Used in chapter
    ``twenty-five-modes-to-nine``.
    """
    check_number("beta", beta, above=0)
    with torch.no_grad():
        states = rollout(process, reference, n, generator, dtype=dtype)
        log_r = log_reward(states[:, -1])
        weights = torch.softmax(beta * log_r, dim=0)  # -inf, no reward, is weight 0
        check_finite(
            "the weights of the paths", weights, "Mend the log-reward: no NaN, no +inf, and not all of it -inf."
        )
        # A path that will hardly ever be drawn need not be kept.
        kept = weights > 1e-3 / n
        states = states[kept].contiguous()
        return Store(states, log_prob(process, reference, states), log_r[kept], weights[kept])


class _Record:
    """Calls any drift step by step, and keeps what it returned, with the graph of each step."""

    def __init__(self, drift: Drift, times: Tensor) -> None:
        self.drift, self.times = drift, times
        self.kept: list[Tensor] = []

    def step(self, k: int, state: Tensor) -> Tensor:
        move = self.drift(state, self.times[k])
        self.kept.append(move)
        return move.detach() if isinstance(move, Tensor) else move

    def moves(self) -> Tensor:
        return torch.stack(self.kept)


def _record(drift: Drift, times: Tensor, n: int) -> Any:
    """A drift may bring a faster record of its own, as companion.samplers.networks.DriftNetwork does."""
    return drift.record(times, n) if hasattr(drift, "record") else _Record(drift, times)


def _check_states(process: Process, states: Tensor) -> None:
    shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    if not isinstance(states, Tensor) or states.ndim != 3 or shape[1:] != (process.steps + 1, process.dim):
        raise ValueError(
            f"states is {shape}; expected [n, {process.steps + 1}, {process.dim}], that is [n, steps + 1, dim] of this "
            "process. Draw them with rollout."
        )


def _check_drift(move: Tensor, state: Tensor) -> None:
    if not isinstance(move, Tensor) or move.shape != state.shape:
        given = tuple(move.shape) if isinstance(move, Tensor) else type(move).__name__
        raise ValueError(f"The drift is {given}; expected {tuple(state.shape)}, as the states. Mend its last layer.")
