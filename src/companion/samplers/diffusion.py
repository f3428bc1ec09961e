"""Gaussian-transition samplers: a state in R^d, moved by a drift and by noise, with closed-form log-probabilities.

A process starts at s_0 = 0 and takes T steps of dt = 1/T, s' = s + dt u(s, t) + sqrt(sigma^2 dt) noise. The drift u is
the policy: any function of states and time. A path's log-probability sums Gaussian log-densities, one per step, under
any drift; exploration adds variance to the steps that are *drawn* alone. Source: the setting of Venkatraman et al.
(2024) and Zhang and Chen (2022). Used in chapter ``twenty-five-modes-to-nine``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.plain import storable
from companion.samplers.batch import Batch, Fading, at, check_draw, check_fading, weights_of
from companion.validation import (
    check_finite,
    check_generator,
    check_kind,
    check_number,
    check_positive_integers,
    check_replay,
    check_shares,
    check_tensor,
)

#: A drift: states ``[..., dim]`` and times ``[...]`` or 0-d, to ``[..., dim]``.
Drift = Callable[[Tensor, Tensor], Tensor]
#: log r of the last states, ``[batch, dim]`` to ``[batch]``.
LogReward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Process:
    """What all samplers of one family share: the number of steps, the noise, the dimension.

    ``steps`` is T, at least 1; ``variance`` is sigma^2, that of the noise per unit of time, > 0; ``dim`` is that of the
    state, at least 1. Raises ``ValueError`` for numbers out of range.
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

    ``extra_std`` is the standard deviation of exploration noise, per step. Raises ``ValueError`` for a drift of the
    wrong shape or not finite, or a number out of range. Source: Euler-Maruyama; Sendera et al. (2024) for the noise.
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

    Returns the states, ``[n, steps + 1, dim]``, and the drift at all but the last, ``[n, steps, dim]``, for
    :func:`step_log_prob`. Each step is taken from a constant state: gradients flow through the drift at that state
    only, which is what the log-probability of a given path needs. Source: Euler-Maruyama.
    """
    check_positive_integers(n=n)
    check_generator(generator)
    check_number("extra_std", extra_std, at_least=0)
    start = torch.zeros(n, process.dim, dtype=dtype, device=generator.device)
    shape = (process.steps, n, process.dim)
    noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    noise *= math.sqrt(process.variance * process.dt + extra_std**2)
    times = process.times(start)
    # A drift may bring a faster record of its own, as companion.samplers.networks.DriftNetwork does.
    states, record = [start], drift.record(times, n) if hasattr(drift, "record") else _Record(drift, times)
    for k, step_noise in enumerate(noise):
        move = record.step(k, states[-1])
        states.append(torch.add(states[-1], move, alpha=process.dt) + step_noise)
    moves = record.moves()
    check_finite("The drift", moves, "Lower the rate of training, or clip.")
    return torch.stack(states).transpose(0, 1), moves.transpose(0, 1)


def log_prob(process: Process, drift: Drift, states: Tensor, *, extra_std: float = 0.0) -> Tensor:
    """Return the log-density of each step of given paths under a drift: ``[n, steps]``. Keeps gradients.

    ``states`` is ``[n, steps + 1, dim]``; with ``extra_std``, as in :func:`rollout`, it is the explored paths' own law.
    Raises ``ValueError`` for a wrong shape, or a number out of range. Source: the Gaussian density.
    """
    _check_states(process, states)
    move = ask("The drift", drift, states[:, :-1], process.times(states), like=states[:, :-1])
    check_finite("The drift", move, "Lower the rate of training, or clip.")
    return step_log_prob(process, states, move, extra_std=extra_std)


def step_log_prob(process: Process, states: Tensor, moves: Tensor, *, extra_std: float = 0.0) -> Tensor:
    """Return what :func:`log_prob` does, where the drifts are known already.

    ``moves``, which keeps its gradients, is ``[n, steps, dim]``, as :func:`traced_rollout` returns it. Raises
    ``ValueError`` for other shapes, or a negative ``extra_std``. Source: the Gaussian density.
    """
    _check_states(process, states)
    check_answer("The drift", moves, states[:, 1:])
    check_number("extra_std", extra_std, at_least=0)
    variance = process.variance * process.dt + extra_std**2
    squares = (states[:, 1:] - states[:, :-1] - process.dt * moves).square().sum(dim=2)
    return -0.5 * squares / variance - 0.5 * process.dim * math.log(2 * math.pi * variance)


@dataclass(frozen=True, eq=False)
class Store:
    """Paths kept to be drawn again, and their score under the reference.

    ``states`` is ``[paths, steps + 1, dim]``, ``log_ref`` ``[paths, steps]``, nats, ``log_reward`` ``[paths]``;
    ``weights``, ``[paths]``, >= 0, say how often each is drawn, in proportion. Raises ``ValueError`` for tensors that
    do not fit in shape, dtype or device, or are not finite, or no weights.
    """

    states: Tensor
    log_ref: Tensor
    log_reward: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        states = self.states
        rule = "floats, [paths, steps + 1, dim], one path or more. Make it with resampled_prior_paths."
        check_tensor("states of the store", states, (None, None, None), rule)
        one_each = states[:, 0, 0]
        likes = {"states": states, "log_ref": states[:, 1:, 0], "log_reward": one_each, "weights": one_each}
        for name, like in likes.items():
            check_answer(f"{name} of the store", getattr(self, name), like)
            check_finite(f"{name} of the store", getattr(self, name), "Leave such paths out.")
        check_shares("weights of the store", self.weights, len(states))


@storable
@dataclass(frozen=True)
class Exploration:
    """The behaviour of a :class:`DiffusionSampler`: fresh paths with more noise, and paths from its store.

    ``noise`` is the standard deviation added to each fresh step, >= 0, a number, or one that fades; ``replayed`` is the
    share of each batch that comes from the store, up to iteration ``replay_until``; None replays to the end. Raises
    ``ValueError`` for a number out of range, or an end of what never begins. Source: Sendera et al. (2024).
    """

    noise: float | Fading = 0.0
    replayed: float = 0.0
    replay_until: int | None = None

    def __post_init__(self) -> None:
        check_fading("noise", self.noise)
        check_replay(self.replayed, self.replay_until)

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

    Raises ``ValueError`` for a drift or a store of another process, for what is no function, and wherever one returns
    another shape, dtype or device, or writes over its states. Source: Venkatraman et al. (2024).
    """

    def __init__(
        self, process: Process, policy: Drift, reference: Drift, log_reward: LogReward, *, store: Store | None = None
    ) -> None:
        check_kind("process", process, Process)
        for name, value in (("policy", policy), ("reference", reference), ("log_reward", log_reward)):
            if not callable(value) or isinstance(value, type):
                raise ValueError(f"{name} is {value!r}; expected a function or a module, made. Pass one.")
            other = getattr(value, "process", process)
            if other != process:
                raise ValueError(f"{name} is for {other}; expected {process}. Make it for this process.")
        self.process, self.policy, self.reference, self.log_reward = process, policy, reference, log_reward
        self.store = store
        if store is not None:
            self._check(store)

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained. Raises ``ValueError`` as :func:`companion.samplers.batch.weights_of`."""
        return weights_of(self.policy, self.reference, [self.store.states] if self.store else [])

    def constants(self) -> dict[str, object]:
        """Return what else the sampler is made of, by name: a checkpoint with another is that of another run."""
        return {name: getattr(self, name) for name in ("process", "reference", "log_reward", "store")}

    def draw(
        self, n: int, generator: torch.Generator, behaviour: Exploration | None = None, iteration: int = 0
    ) -> Batch:
        """Draw ``n`` paths, ``round(share * n)`` of them from the store, where any are replayed, the rest fresh.

        Raises ``ValueError`` for another sampler's behaviour, a share of no store, or a log-reward that is not finite.
        """
        behaviour = Exploration() if behaviour is None else behaviour
        check_draw(n, generator, behaviour, Exploration)
        device = self.parameters()[0].device
        if generator.device.type != device.type:
            raise ValueError(f"generator is on {generator.device}; expected {device} as the policy. Make it there.")
        old = round(behaviour.replayed_at(iteration) * n)
        parts = [self._fresh(n - old, generator, at(behaviour.noise, iteration))] if old < n else []
        parts += [self._stored(old, generator)] if old else []
        if len(parts) == 1:
            return parts[0]
        names = ("log_pi", "log_ref", "log_reward", "states")
        return Batch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def log_weights(self, states: Tensor, *, beta: float = 1.0) -> Tensor:
        """Return e of paths, ``[n, steps + 1, dim]``: ``[n]``, float64: as those of a batch, whatever its dtype."""
        log_pi, log_ref = (log_prob(self.process, drift, states).double() for drift in (self.policy, self.reference))
        log_reward = ask("log_reward", self.log_reward, states[:, -1], like=states[:, -1, 0])
        return Batch(log_pi, log_ref, log_reward.double()).log_weights(beta=beta)

    @torch.no_grad()
    def _check(self, store: Store) -> None:
        """Refuse paths of another process or reference: a few of them, scored again, show it."""
        check_kind("store", store, Store)
        _check_states(self.process, store.states)
        found, kept = log_prob(self.process, self.reference, store.states[:4]), store.log_ref[:4]
        if not torch.allclose(found, kept, rtol=1e-2, atol=1e-2):  # far beyond rounding, far within another variance
            gap = (found - kept).abs().max().item()
            given = f"log_ref of the store is {gap:.3g} nats from that of its paths under this reference and process"
            raise ValueError(f"{given}; expected the same. Draw the store from them, with resampled_prior_paths.")

    def _fresh(self, n: int, generator: torch.Generator, noise: float) -> Batch:
        dtype = self.parameters()[0].dtype
        states, moves = traced_rollout(self.process, self.policy, n, generator, extra_std=noise, dtype=dtype)
        log_pi = step_log_prob(self.process, states, moves)
        log_behaviour = step_log_prob(self.process, states, moves.detach(), extra_std=noise)
        with torch.no_grad():
            log_ref = log_prob(self.process, self.reference, states)
            log_reward = ask("log_reward", self.log_reward, states[:, -1], like=states[:, -1, 0])
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
    log_reward: LogReward,
    n: int,
    generator: torch.Generator,
    *,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Store:
    """Draw ``n`` paths of the reference, to be replayed in proportion to r(x)^beta: nearly paths of the target.

    As ``n`` grows the law of a replayed path tends to p*(tau). Raises ``ValueError`` as :func:`rollout` does, and for
    ``beta <= 0``. Source: importance resampling; its use here is off-policy, which claim O6 allows.
    """
    check_number("beta", beta, above=0)
    with torch.no_grad():
        states = rollout(process, reference, n, generator, dtype=dtype)
        log_r = ask("log_reward", log_reward, states[:, -1], like=states[:, -1, 0])
        weights = torch.softmax(beta * log_r, dim=0)  # -inf, no reward, is weight 0
        check_finite("the weights of the paths", weights, "Mend the log-reward: no NaN, no +inf, not all of it -inf.")
        kept = weights > 1e-3 / n  # a path that will hardly ever be drawn need not be kept
        states = states[kept].contiguous()
        return Store(states, log_prob(process, reference, states), log_r[kept], weights[kept])


class _Record:
    """Calls any drift step by step, and keeps what it returned, with the graph of each step."""

    def __init__(self, drift: Drift, times: Tensor) -> None:
        self.drift, self.times = drift, times
        self.kept: list[Tensor] = []

    def step(self, k: int, state: Tensor) -> Tensor:
        move = ask("The drift", self.drift, state, self.times[k], like=state)
        self.kept.append(move)
        return move.detach()

    def moves(self) -> Tensor:
        return torch.stack(self.kept)


def _check_states(process: Process, states: Tensor) -> None:
    shape = (None, process.steps + 1, process.dim)
    check_tensor("states", states, shape, f"[n, {shape[1]}, {shape[2]}]. Use rollout's.", least=0)


def ask(name: str, function: Callable[..., Tensor], states: Tensor, *times: Tensor, like: Tensor) -> Tensor:
    """Call a function of the user's on states, and return what it says of them, which need not be finite.

    Raises ``ValueError`` unless that is as :func:`check_answer` asks, and the states are as they were.
    """
    before = None if states.is_inference() else states._version  # in inference mode torch counts no versions
    answer = function(states, *times)
    check_answer(name, answer, like)
    if before is not None and states._version != before:
        raise ValueError(f"{name} wrote over the states that it got; expected them as they were. Clone them first.")
    return answer


def check_answer(name: str, answer: Tensor, like: Tensor) -> None:
    """Refuse what is no tensor of the shape, dtype and device of ``like``. Raises ``ValueError``."""
    if _kind(answer) != _kind(like):
        mend = "Give one number for each path, of a drift one for each entry of each state, by torch's functions."
        raise ValueError(f"{name} is {_kind(answer)}; expected {_kind(like)}, as the states. {mend}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return type(value).__name__
