"""Samplers to be fine-tuned: each draws paths under a behaviour, and scores them under every law that a loss may need.

An objective asks for the same few numbers whatever is sampled: the log-probability of each step under the policy, the
reference and the behaviour, and the log-reward of the end. A :class:`Batch` holds them. The behaviour may be the policy
itself, the policy with more noise, or a store of paths drawn before; the objective decides what it may be used for.
Chapter 10 uses the diffusion sampler; chapter 9's problems have the tabular one.

Source: the choices of behaviour in Venkatraman et al. (2024) and Sendera et al. (2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from companion.samplers.diffusion import Drift, Process, log_prob, rollout, step_log_prob, traced_rollout
from companion.mdp import Problem, enumerate_paths, log_softmax
from companion.validation import check_finite, check_generator, check_number, check_positive_integers


@dataclass(frozen=True, eq=False)
class Batch:
    """Paths as objectives see them.

    Attributes:
        log_pi: ``[batch, steps]``, nats; under the policy trained, with gradients.
        log_ref: ``[batch, steps]``, nats; under the reference.
        log_reward: ``[batch]``, log r(x).
        log_behaviour: ``[batch, steps]``, nats, under what drew the paths; None where some come from a store.
    """

    log_pi: Tensor
    log_ref: Tensor
    log_reward: Tensor
    log_behaviour: Tensor | None


class Sampler(Protocol):
    """What :func:`companion.training.fine_tune` asks of a sampler."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained."""

    def draw(self, n: int, generator: torch.Generator, *, exploration: float = 0.0, replayed: float = 0.0) -> Batch:
        """Draw ``n`` paths: a share ``replayed`` from the store, the rest with this much ``exploration``."""


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


class DiffusionSampler:
    """A drift to be fine-tuned, with its reference.

    Args:
        process: steps and noise, shared by policy and reference.
        policy: the drift to be trained, a module.
        reference: the drift of the prior; no gradient flows into it.
        log_reward: log r of the last states, ``[batch, dim]`` to ``[batch]``.
        store: paths to be replayed, as :func:`resampled_prior_paths` makes them.

    Source: Venkatraman et al. (2024). Used in chapter 10.
    """

    def __init__(
        self,
        process: Process,
        policy: torch.nn.Module,
        reference: Drift,
        log_reward: Callable[[Tensor], Tensor],
        *,
        store: Store | None = None,
    ) -> None:
        self.process, self.policy, self.reference, self.log_reward = process, policy, reference, log_reward
        self.store = store

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained: those of the policy."""
        return list(self.policy.parameters())

    def draw(self, n: int, generator: torch.Generator, *, exploration: float = 0.0, replayed: float = 0.0) -> Batch:
        """Draw ``n`` paths, ``round(replayed * n)`` of them from the store and the rest fresh.

        ``exploration`` is a standard deviation added to each fresh step. Raises ``ValueError`` for a share outside
        [0, 1], a share of a store that is not there, or a log-reward that is not finite.
        """
        check_positive_integers(n=n)
        check_generator(generator)
        check_number("replayed", replayed, at_least=0, at_most=1)
        old = round(replayed * n)
        parts = [self._fresh(n - old, generator, exploration)] if old < n else []
        parts += [self._stored(old, generator)] if old else []
        if len(parts) == 1:
            return parts[0]
        joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("log_pi", "log_ref", "log_reward")]
        return Batch(*joined, None)

    def _fresh(self, n: int, generator: torch.Generator, exploration: float) -> Batch:
        dtype = next(self.policy.parameters()).dtype
        states, moves = traced_rollout(self.process, self.policy, n, generator, extra_std=exploration, dtype=dtype)
        log_pi = step_log_prob(self.process, states, moves)
        log_behaviour = step_log_prob(self.process, states, moves.detach(), extra_std=exploration)
        with torch.no_grad():
            log_ref, log_reward = log_prob(self.process, self.reference, states), self.log_reward(states[:, -1])
        check_finite("log_reward", log_reward, "Give every x a positive reward that the dtype can hold.")
        return Batch(log_pi, log_ref, log_reward, log_behaviour)

    def _stored(self, n: int, generator: torch.Generator) -> Batch:
        if self.store is None:
            raise ValueError("replayed is above 0, but there is no store; expected one. Pass resampled_prior_paths'.")
        index = torch.multinomial(self.store.weights, n, replacement=True, generator=generator)
        log_pi = log_prob(self.process, self.policy, self.store.states[index])
        return Batch(log_pi, self.store.log_ref[index], self.store.log_reward[index], None)


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
    training begins. Raises ``ValueError`` as :func:`companion.samplers.diffusion.rollout` does, and for ``beta <= 0``.

    Source: importance resampling; its use here is off-policy, which chapter 7 allows. Used in chapter 10.
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


class TabularSampler:
    """A policy with one logit for each edge of an enumerable problem, so that a trained run can be compared exactly.

    Args:
        problem: a tree or graph with finite rewards.
        logits: ``[edges]``, to be trained; the policy is their softmax over the edges that leave a state.

    Source: the problems of :mod:`companion.mdp`. Used in chapter 9.
    """

    def __init__(self, problem: Problem, logits: Tensor) -> None:
        if logits.shape != problem.log_ref.shape or not logits.requires_grad:
            raise ValueError(
                f"logits is {tuple(logits.shape)}; expected {tuple(problem.log_ref.shape)}, one for each edge, that "
                "requires a gradient. Pass problem.log_ref.clone().requires_grad_()."
            )
        self.problem, self.logits, self.paths = problem, logits, enumerate_paths(problem)
        self.log_ref, rewards = self.paths.per_step(problem.log_ref), self.paths.per_step(problem.rewards)
        self.log_reward = rewards.sum(dim=1)

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained: the logits."""
        return [self.logits]

    def draw(self, n: int, generator: torch.Generator, *, exploration: float = 0.0, replayed: float = 0.0) -> Batch:
        """Draw ``n`` paths; with probability ``exploration`` a step is uniform instead of the policy's.

        Raises ``ValueError`` for an exploration outside [0, 1], or any ``replayed``: there is no store.
        """
        check_positive_integers(n=n)
        check_generator(generator)
        check_number("exploration", exploration, at_least=0, at_most=1)
        if replayed:
            raise ValueError(f"replayed is {replayed}; expected 0: a tabular sampler has no store. Leave it out.")
        log_policy = log_softmax(self.problem, self.logits)
        uniform = 1 / self.problem.out_degree[self.problem.source].to(log_policy)
        log_mixed = ((1 - exploration) * log_policy.detach().exp() + exploration * uniform).log()
        law = self.paths.log_prob(log_mixed)
        index = torch.multinomial(law.exp(), n, replacement=True, generator=generator)
        log_pi, log_behaviour = (self.paths.per_step(edge)[index] for edge in (log_policy, log_mixed))
        return Batch(log_pi, self.log_ref[index], self.log_reward[index], log_behaviour)
