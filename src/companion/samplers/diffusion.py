"""Gaussian-transition samplers: a state in R^d, moved by a drift and by noise, with closed-form log-probabilities.

A process starts at s_0 = 0 and takes T steps of dt = 1/T, s' = s + dt u(s, t) + sqrt(sigma^2 dt) noise. The drift u is
the policy: any function of states and time. A path's log-probability is a sum of Gaussian log-densities, one per step,
under the drift that drew it or any other. Exploration adds variance to the steps that are *drawn*; the sampler that is
trained keeps its own. A mixture of Gaussians has its drift in closed form, so that a prior needs no training. It is for
chapter 10.

Source: the setting of Venkatraman et al. (2024) and Zhang and Chen (2022).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.targets import GaussianMixture
from companion.validation import check_finite, check_generator, check_number, check_positive_integers

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

    Source: Euler-Maruyama; exploration as in Sendera et al. (2024). Used in chapter 10.
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

    Source: Euler-Maruyama. Used in chapter 10.
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

    Source: the Gaussian density. Used in chapter 10.
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

    Source: the Gaussian density. Used in chapter 10.
    """
    _check_states(process, states)
    _check_drift(moves, states[:, 1:])
    check_number("extra_std", extra_std, at_least=0)
    variance = process.variance * process.dt + extra_std**2
    squares = (states[:, 1:] - states[:, :-1] - process.dt * moves).square().sum(dim=2)
    return -0.5 * squares / variance - 0.5 * process.dim * math.log(2 * math.pi * variance)


class MixtureDrift:
    """The drift that takes Brownian motion of the process's variance from 0 at time 0 to a mixture at time 1.

    It is E[(s_1 - s_t) / (1 - t) | s_t], in closed form for Gaussians (the Doob transform, or Foellmer drift). With
    finitely many steps the samples follow the mixture only nearly; the discretised process is then the reference.

    Source: Foellmer's drift, as in Zhang and Chen (2022). Used in chapter 10.
    """

    def __init__(self, process: Process, mixture: GaussianMixture) -> None:
        if mixture.means.shape[1] != process.dim:
            raise ValueError(
                f"mixture has dimension {mixture.means.shape[1]}; expected {process.dim}. Match the process."
            )
        self.process, self.mixture = process, mixture

    def __call__(self, states: Tensor, times: Tensor) -> Tensor:
        """Return the drift at ``states``, ``[..., dim]``, and ``times`` in [0, 1), which broadcast to ``[...]``.

        At time 0 the state is taken to be 0, where every path begins.
        """
        time = times[..., None, None]
        bridge = self.process.variance * time * (1 - time)
        spread = time.square() * self.mixture.variance + bridge  # of s_t, given the component
        centred = states[..., None, :] - time * self.mixture.means
        # At time 0 every component puts s_t at 0: the density ratio of the components is then 1.
        scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        log_share = self.mixture.weights.log() - 0.5 * (centred.square() / scale).sum(dim=-1)
        end = self.mixture.means + time * self.mixture.variance / scale * centred
        mean_end = (log_share.softmax(dim=-1)[..., None] * end).sum(dim=-2)
        return (mean_end - states) / (1 - times[..., None])


class GuidedDrift:
    """Classifier guidance: the prior's drift, pushed along the gradient of log r at the state of the moment.

    It adds ``strength sigma^2 k/(k + 1) grad log r(s_k)`` at step k. Nothing is trained, and the samples do not follow
    p*: log r(s_k) stands where the logarithm of the expected reward of the *end* would have to stand.

    Args:
        process: steps and noise.
        drift: the prior's.
        log_reward: log r, ``[n, dim]`` to ``[n]``, differentiable; a gradient that is not finite counts as zero.
        strength: factor on the gradient, >= 0.

    Source: Dhariwal and Nichol (2021), in the form that Venkatraman et al. (2024) compare with. Used in chapter 10.
    """

    def __init__(
        self, process: Process, drift: Drift, log_reward: Callable[[Tensor], Tensor], *, strength: float = 1.0
    ) -> None:
        check_number("strength", strength, at_least=0)
        self.process, self.drift, self.log_reward, self.strength = process, drift, log_reward, strength

    def __call__(self, states: Tensor, times: Tensor) -> Tensor:
        """Return the drift at ``states``, ``[..., dim]``, and ``times``, which broadcast to ``[...]``."""
        points = states.detach().reshape(-1, self.process.dim).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.log_reward(points).sum(), points)
        k = (times * self.process.steps).round()[..., None]
        push = self.strength * self.process.variance * k / (k + 1) * gradient.nan_to_num(0.0, 0.0, 0.0).view_as(states)
        return self.drift(states, times) + push


class _Record:
    """Calls any drift step by step, and keeps what it returned, with the graph of each step."""

    def __init__(self, drift: Drift, times: Tensor) -> None:
        self.drift, self.times, self.kept = drift, times, []

    def step(self, k: int, state: Tensor) -> Tensor:
        move = self.drift(state, self.times[k])
        self.kept.append(move)
        return move.detach() if isinstance(move, Tensor) else move

    def moves(self) -> Tensor:
        return torch.stack(self.kept)


def _record(drift: Drift, times: Tensor, n: int):
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
