"""Independent oracles for exact answers: plain Python, recursion, math.exp, math.log; no function of the package."""

import math

import torch
from inputs import generator, tensor
from torch import Tensor

from companion import mdp


def random_policy(problem: mdp.Problem, seed: int) -> Tensor:
    """Return log-probabilities of a random policy, normalised here by hand, edge by edge."""
    logits = torch.randn(len(problem.source), generator=generator(seed), dtype=torch.float64).tolist()
    source = problem.source.tolist()
    total = {s: sum(math.exp(z) for z, at in zip(logits, source, strict=True) if at == s) for s in source}
    return torch.tensor([z - math.log(total[s]) for z, s in zip(logits, source, strict=True)], dtype=torch.float64)


def edges_from(problem: mdp.Problem, state: int) -> list[tuple[int, int]]:
    """Return the pairs (edge, next state) that leave a state, found by looking at every edge."""
    pairs = zip(problem.source.tolist(), problem.target.tolist(), strict=True)
    return [(edge, target) for edge, (source, target) in enumerate(pairs) if source == state]


def listed_paths(problem: mdp.Problem, state: int = 0) -> list[tuple[int, ...]]:
    """Return every path from a state as the tuple of its edges, by recursion."""
    out = edges_from(problem, state)
    return [(e, *rest) for e, target in out for rest in listed_paths(problem, target)] if out else [()]


def summed(by_edge: Tensor, paths: list[tuple[int, ...]]) -> list[float]:
    """Return the sum of an ``[edges]`` quantity along each listed path."""
    entries = by_edge.tolist()
    return [math.fsum(entries[edge] for edge in path) for path in paths]


def padded(by_edge: Tensor, paths: list[tuple[int, ...]]) -> Tensor:
    """Return an ``[edges]`` quantity along listed paths, ``[paths, steps]``, zero past each end."""
    steps, entries = max(map(len, paths)), by_edge.tolist()
    return tensor([[entries[edge] for edge in path] + [0.0] * (steps - len(path)) for path in paths])


def log_sum_exp(terms: list[float]) -> float:
    """Return log(sum(exp(terms))), shifted by the largest, -inf where all are."""
    most = max(terms)
    return most if most == -math.inf else most + math.log(sum(math.exp(x - most) for x in terms))


def soft_value(problem: mdp.Problem, state: int, lam: float, eta: float = 0.0, gamma: float = 1.0) -> float:
    """Return V*(s) by recursion: alpha log sum exp of the gains over alpha."""
    out, alpha = edges_from(problem, state), lam + eta
    if not out:
        return 0.0
    gains = [
        float(problem.rewards[e]) + gamma * soft_value(problem, s, lam, eta, gamma) + lam * float(problem.log_ref[e])
        for e, s in out
    ]
    return alpha * log_sum_exp([gain / alpha for gain in gains])


def policy_value(
    problem: mdp.Problem, log_pi: Tensor, state: int, lam: float, eta: float = 0.0, gamma: float = 1.0
) -> float:
    """Return the regularised value of a policy by recursion, actions of probability zero left out."""
    total = 0.0
    for e, s in edges_from(problem, state):
        log_p = float(log_pi[e])
        if log_p > -math.inf:
            gain = float(problem.rewards[e]) - eta * log_p - lam * (log_p - float(problem.log_ref[e]))
            total += math.exp(log_p) * (gain + gamma * policy_value(problem, log_pi, s, lam, eta, gamma))
    return total


def path_totals(problem: mdp.Problem, by_edge: Tensor, paths: mdp.Paths) -> Tensor:
    """Return the sum of a per-edge quantity along each of the paths, added up in Python."""
    by_edge = by_edge.tolist()
    return torch.tensor([sum(by_edge[e] for e in row if e >= 0) for row in paths.edges.tolist()], dtype=torch.float64)


def solve_equations(residuals, start: Tensor, *, steps: int = 200) -> Tensor:
    """Return a root of the equations found from a start by the method of Levenberg and Marquardt."""
    x, damping = start, 1.0
    for _ in range(steps):
        gap = residuals(x)
        if float(gap.abs().max()) < 1e-13:
            break
        slope = torch.autograd.functional.jacobian(residuals, x)
        normal = slope.T @ slope + damping * torch.eye(len(x), dtype=x.dtype)
        trial = x - torch.linalg.solve(normal, slope.T @ gap)
        better = bool(residuals(trial).square().sum() < gap.square().sum())
        x, damping = (trial, max(damping / 10, 1e-10)) if better else (x, damping * 10)
    return x
