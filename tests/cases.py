"""Problems of which every path is listed, and the quantities of policy gradients on them, by enumeration.

Scores, advantages and divergences are worked out here from the lists of paths; nothing is sampled.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from inputs import generator, tensor
from torch import Tensor

from companion import mdp, reinforce

ALPHA = 0.7
SHAPES = {"graph": mdp.small_graph, "tree": lambda: mdp.tree(2, 3)}
#: Rounding allowed, in eps of the size of the terms: sums over up to nine paths, or over all batches of them.
SUMMED = 64


@dataclass(frozen=True)
class Case:
    """A random problem, all of its paths, and its posterior, which is worked out from their list."""

    problem: mdp.Problem
    paths: mdp.Paths
    log_ref: Tensor
    log_reward: Tensor
    log_best: Tensor
    log_z: float

    @property
    def constants(self) -> tuple[Tensor, Tensor]:
        return self.log_ref, self.log_reward

    def policy(self, logits: Tensor) -> Tensor:
        """log pi of every step of every path, [paths, steps]."""
        return self.paths.per_step(mdp.log_softmax(self.problem, logits))

    def best_logits(self) -> Tensor:
        """Logits of the posterior's policy."""
        return mdp.solve(self.problem, kl_weight=ALPHA).log_policy

    def logits(self, seed: int) -> Tensor:
        """Random logits, [edges]."""
        return torch.randn(len(self.problem.source), generator=generator(seed), dtype=torch.float64)

    def scores(self, logits: Tensor) -> Tensor:
        """grad log p(tau) in the logits, [paths, edges], by hand: edge taken, less its probability if open."""
        pi, source = mdp.log_softmax(self.problem, logits).exp(), self.problem.source
        rows = torch.zeros(len(self.paths), len(source), dtype=torch.float64)
        for row, path in zip(rows, self.paths.edges.tolist(), strict=True):
            for edge in (e for e in path if e >= 0):
                row -= torch.where(source == source[edge], pi, 0.0)
                row[edge] += 1
        return rows

    def advantage(self, log_p: Tensor) -> Tensor:
        """log r - alpha log p/p_ref, [paths], which is alpha (log Z - log p/p*)."""
        return self.log_reward - ALPHA * (log_p - self.log_ref.sum(dim=1))

    def size(self, *others: Tensor) -> float:
        """The size of terms over alpha: at most this, on any path."""
        logs = [self.log_ref.sum(dim=1), self.log_best, *others]
        largest = sum(float(x.detach().abs().max()) for x in [*logs, self.log_reward / ALPHA])
        return 1 + abs(self.log_z) + largest


@cache
def case(shape: str) -> Case:
    """The problem of this shape; log Z is far from zero."""
    problem = mdp.randomise(SHAPES[shape](), generator(11))
    problem = problem.with_rewards(problem.rewards + 2.0 * (problem.source == 0))
    paths = mdp.enumerate_paths(problem)
    log_ref, log_reward = paths.per_step(problem.log_ref), paths.per_step(problem.rewards).sum(dim=1)
    weights = [p + r / ALPHA for p, r in zip(log_ref.sum(dim=1).tolist(), log_reward.tolist(), strict=True)]
    log_z = math.log(math.fsum(map(math.exp, weights)))
    assert log_z > 1
    return Case(problem, paths, log_ref, log_reward, tensor(weights) - log_z, log_z)


def uniform(c: Case) -> Tensor:
    """The law that draws each edge of a state alike, [edges]."""
    return -c.problem.out_degree[c.problem.source].double().log()


def behaviours(c: Case, logits: Tensor) -> dict[str, Tensor]:
    """log-probabilities of every step under four samplers, [paths, steps]."""
    per_edge = {
        "on-policy": mdp.log_softmax(c.problem, logits),
        "prior": c.problem.log_ref,
        "uniform": uniform(c),
        "another": mdp.log_softmax(c.problem, c.logits(99)),
    }
    return {name: c.paths.per_step(log_b) for name, log_b in per_edge.items()}


def gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar."""
    (found,) = torch.autograd.grad(value, at, retain_graph=True)
    return found


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p, q) of two laws over the paths."""
    return (log_p.exp() * (log_p - log_q)).sum()


def every_shape(test):
    """Run a test on the graph and on the tree."""
    return pytest.mark.parametrize("shape", SHAPES)(test)


def batch_gradients(c: Case, logits: Tensor, size: int, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of kl_loss in the logits for every on-policy batch, its mean, and its trace of covariance."""
    steps = c.policy(logits)
    index, log_prob = mdp.enumerate_batches(steps.sum(dim=1), size)
    scores, found = c.scores(logits), []
    for batch in index:
        log_pi = steps[batch].requires_grad_()
        loss = reinforce.kl_loss(log_pi, c.log_ref[batch], c.log_reward[batch], beta=1 / ALPHA, **options)
        by_step = gradient(loss, log_pi)
        assert torch.equal(by_step, by_step[:, :1].expand_as(by_step))
        found.append(by_step[:, 0] @ scores[batch])
    found = torch.stack(found)
    mean = mdp.expectation(found, log_prob)
    return found, mean, mdp.expectation((found - mean).square().sum(dim=1), log_prob)
