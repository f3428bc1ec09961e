"""A policy that is a table: one logit for each edge of an enumerable problem, so that a run can be compared exactly.

On every path at once a loss is no estimate: its mean is an expectation under a law that draws all paths equally often,
and self-normalised importance weights make it one under the policy. Used in chapter ``enumerable-ground-truth``.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from companion.mdp import Paths, Problem, enumerate_paths, log_softmax
from companion.plain import storable
from companion.samplers.batch import Batch, Fading, at, check_draw, check_fading


@storable
@dataclass(frozen=True)
class UniformMixture:
    """A behaviour: at each step a uniform action with probability ``epsilon``, that may fade; ``ValueError`` if > 1."""

    epsilon: float | Fading = 0.0

    def __post_init__(self) -> None:
        check_fading("epsilon", self.epsilon, at_most=1)


@storable
@dataclass(frozen=True)
class EveryPath:
    """A behaviour: every path of the problem, once; as a law, each path equally often. Nothing is drawn."""


class TabularSampler:
    """A policy with one logit for each edge of an enumerable problem, a tree or graph with finite rewards.

    ``logits``, ``[edges]``, those of the reference by default, are to be trained: the policy is their softmax over the
    edges that leave a state. Raises ``ValueError`` for another shape, or no gradient. Source: :mod:`companion.mdp`.
    """

    def __init__(self, problem: Problem, logits: Tensor | None = None) -> None:
        logits = problem.log_ref.clone().requires_grad_() if logits is None else logits
        if logits.shape != problem.log_ref.shape or not logits.requires_grad:
            expected = f"{tuple(problem.log_ref.shape)}, one for each edge, that requires a gradient"
            mend = "Pass problem.log_ref.clone().requires_grad_()."
            raise ValueError(f"logits is {tuple(logits.shape)}; expected {expected}. {mend}")
        self.problem, self.logits, self.paths = problem, logits, enumerate_paths(problem)

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained: the logits."""
        return [self.logits]

    def constants(self) -> dict[str, object]:
        """Return what else the sampler is made of, by name: a checkpoint with another is that of another run."""
        return {"problem": self.problem}

    def log_policy(self) -> Tensor:
        """Return the policy, ``[edges]``, nats. Keeps gradients."""
        return log_softmax(self.problem, self.logits)

    def log_law(self) -> Tensor:
        """Return log p(tau) of every path, ``[paths]``, nats, in the order of ``paths``; a constant."""
        return self.paths.log_prob(self.log_policy().detach())

    def draw(
        self, n: int, generator: Generator, behaviour: UniformMixture | EveryPath | None = None, iteration: int = 0
    ) -> Batch:
        """Draw ``n`` paths, or list all ``n``; ``ValueError`` for another sampler's behaviour, or number of them."""
        behaviour = UniformMixture() if behaviour is None else behaviour
        check_draw(n, generator, behaviour, UniformMixture, EveryPath)
        if isinstance(behaviour, EveryPath):
            return self._every(n)
        epsilon, policy = at(behaviour.epsilon, iteration), self.log_policy().detach().exp()
        uniform = 1 / self.problem.out_degree[self.problem.source].to(policy)
        mixed = ((1 - epsilon) * policy + epsilon * uniform).log()
        law = self.paths.log_prob(mixed).exp()
        drawn = self.paths.select(torch.multinomial(law, n, replacement=True, generator=generator))
        return self._scored(drawn, drawn.per_step(mixed))

    def log_weights(self, paths: Paths, *, beta: float = 1.0) -> Tensor:
        """Return e of given paths, ``[n]``: see :meth:`companion.samplers.batch.Batch.log_weights`."""
        return self._scored(paths, None).log_weights(beta=beta)

    def _every(self, n: int) -> Batch:
        if n != len(self.paths):
            raise ValueError(f"n is {n} with every path asked for; expected {len(self.paths)}. Set the batch to that.")
        steps = (self.paths.edges >= 0).sum(dim=1, keepdim=True)
        law = -torch.tensor(float(n), dtype=self.logits.dtype).log()  # spread over the steps of each path
        return self._scored(self.paths, torch.where(self.paths.edges >= 0, law / steps, 0.0))

    def _scored(self, paths: Paths, log_behaviour: Tensor | None) -> Batch:
        by_edge = (self.log_policy(), self.problem.log_ref, self.problem.rewards)
        log_pi, log_ref, rewards = (paths.per_step(values) for values in by_edge)
        steps = (paths.edges >= 0).sum(dim=1)
        return Batch(log_pi, log_ref, rewards.sum(dim=1), log_behaviour, rewards, steps, states=paths.states)
