"""The update on texts that the policy wrote some updates ago: iterated exactly, and what theory says of it.

Near a fixed point at which the residual is zero, or one number, such an update is
``x' = x - rate F ((1 - share) x + share x_old)``, F the Fisher information and ``share`` a number of the method. Here
are the exact update, with every text weighted by its probability and the loss' own code behind it, the roots of that
equation, and the critical lag in closed form.

Source: Levin and May (1976), for ``x' = x - a x_old``; the rest is derived in the chapter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import mdp
from companion.samplers import Batch


@dataclass(frozen=True)
class Bench:
    """Texts that can be listed, and a policy of them.

    ``model`` returns the log-probability of each text's tokens, ``[texts, tokens]``, from its parameters, zeros from
    the end of a text on; ``log_ref`` is that of the reference, ``log_reward`` ``[texts]``, ``steps`` the lengths.
    """

    model: Callable[[Tensor], Tensor]
    log_ref: Tensor
    log_reward: Tensor
    steps: Tensor

    def law(self, parameters: Tensor) -> Tensor:
        """Return the log-probability of each text."""
        return self.model(parameters).sum(dim=1)

    def gradient(self, objective: Any, parameters: Tensor, old: Tensor, size: int = 1) -> Tensor:
        """Return the expected gradient of an objective on groups of ``size`` texts of ``old``: every group, weighted.

        An objective that learns a number has it behind the parameters of the policy, in both.
        """
        learns = len(objective.parameters(parameters))
        own, *learned = parameters.split([len(parameters) - learns, learns][: 1 + learns])
        before, own = old[: len(own)], own.clone().requires_grad_()
        log_pi, log_old = self.model(own), self.model(before).detach()
        groups, log_chance = mdp.enumerate_batches(log_old.sum(dim=1), size)
        rows, group = groups.reshape(-1), torch.arange(len(groups)).repeat_interleave(size)
        leaves = [log_pi.detach()[rows].requires_grad_()]
        leaves += [number.expand(len(rows)).clone().requires_grad_() for number in learned]
        options = {"steps": self.steps[rows], "group": group}
        batch = Batch(leaves[0], self.log_ref[rows], self.log_reward[rows], log_old[rows], **options)
        slopes = torch.autograd.grad(objective.loss(batch, leaves[1:]), leaves)
        weight = (len(groups) * log_chance.exp()).repeat_interleave(size)
        by_text = torch.zeros_like(log_pi).index_add(0, rows, slopes[0] * weight[:, None])
        (slope,) = torch.autograd.grad(log_pi, own, by_text)
        return torch.cat([slope, *[(each * weight).sum()[None] for each in slopes[1:]]])

    def fisher(self, parameters: Tensor, per_text: Tensor | None = None) -> Tensor:
        """Return the mean of ``per_text g g'``, g the score of a text; by default the Fisher information."""
        scores = torch.autograd.functional.jacobian(self.law, parameters)
        weight = self.law(parameters).exp() * (1.0 if per_text is None else per_text)
        return scores.T @ (weight[:, None] * scores)


#: From the parameters now, and those by which the texts were written, to a gradient.
Gradient = Callable[[Tensor, Tensor], Tensor]


def trajectory(gradient: Gradient, start: Tensor, *, lag: int, rate: float, updates: int) -> Tensor:
    """Return the parameters after each update on texts of ``lag`` updates ago, ``[updates + 1, parameters]``."""
    past = [start]
    for _ in range(updates):
        past.append(past[-1] - rate * gradient(past[-1], past[max(0, len(past) - 1 - lag)]))
    return torch.stack(past)


def growth(series: Tensor) -> float:
    """Return by what factor a series of numbers grows at each step in the end: of the recurrence that its tail obeys.

    A series of one root, or of a pair of complex ones, has ``x'' = c x' + d x``.
    """
    tail = (series / series.abs().max()).numpy()[-60:]
    pairs = np.stack([tail[1:-1], tail[:-2]], axis=1)
    c, d = np.linalg.lstsq(pairs, tail[2:], rcond=None)[0]
    return float(np.abs(np.roots([1.0, -c, -d])).max())


def multiplier(step: float, share: float, lag: int) -> float:
    """Return the largest modulus of the roots of ``z^(lag + 1) = z^lag (1 - step (1 - share)) - step share``."""
    polynomial = np.zeros(lag + 2)
    polynomial[0], polynomial[1] = 1.0, step * (1 - share) - 1
    polynomial[-1] += step * share
    return float(np.abs(np.roots(polynomial)).max())


def critical_lag(step: float, share: float) -> float:
    """Return the lag from which on the fixed point is unstable, in the limit of small steps; infinity if none is."""
    if share <= 0.5:
        return math.inf
    return math.acos(-(1 - share) / share) / (step * math.sqrt(2 * share - 1))


def critical_step(lag: int) -> float:
    """Return the largest stable ``step`` of ``x' = x - step x_old``: Levin and May (1976)."""
    return 2 * math.sin(math.pi / (2 * (2 * lag + 1)))
