"""Priors, rewards and posteriors with known answers: the mixture of twenty-five Gaussians that is tilted to nine.

A task is a prior over x and a posterior over x, both known in closed form; the reward is the ratio of their densities,
so that at beta = 1 the target p*(x) = prior(x) r(x) / Z is the posterior and Z = 1. Used in chapter
``twenty-five-modes-to-nine``. Source: Venkatraman et al. (2024), revisited by Deleu et al. (2025).
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from companion.validation import (
    check_finite,
    check_generator,
    check_kind,
    check_number,
    check_positive_integers,
    check_tensor,
)

#: Weights over 61 of the nine modes that the posterior keeps, by their means.
_KEPT = {
    (-10.0, -5.0): 4, (-5.0, -10.0): 10, (-5.0, 0.0): 4, (10.0, -5.0): 5, (0.0, 0.0): 10, (0.0, 5.0): 5,
    (5.0, -5.0): 4, (5.0, 0.0): 15, (5.0, 10.0): 4,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of Gaussians with one ``variance``, > 0, in every direction and component.

    ``means`` is ``[components, dim]``, ``weights`` ``[components]``, positive, with sum 1. Raises ``ValueError`` for a
    wrong shape, dtype or device, means that are not finite, or weights that are no law. Source: standard.
    """

    means: Tensor
    weights: Tensor
    variance: float

    def __post_init__(self) -> None:
        check_number("variance", self.variance, above=0)
        check_tensor("means", self.means, (None, None), "floats, [components, dim], not empty. Pass one per row.")
        check_finite("means", self.means, "Put each mean where it is.")
        rule = "[components], one weight per mean. Pass as many as means."
        check_tensor("weights", self.weights, (len(self.means),), rule)
        if self.weights.dtype != self.means.dtype or self.weights.device != self.means.device:
            raise ValueError("weights and means differ in dtype or device; expected one of each. Convert one of them.")
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise ValueError("weights are not positive with sum 1; expected a law. Normalise them, leave zeros out.")

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density at ``x``, ``[batch, dim]``: ``[batch]``. Keeps gradients."""
        self._check_points(x)
        squares = (x[:, None] - self.means).square().sum(dim=2)
        normaliser = 0.5 * self.means.shape[1] * math.log(2 * math.pi * self.variance)
        return (self.weights.log() - normaliser - 0.5 * squares / self.variance).logsumexp(dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` points, ``[n, dim]``. Raises ``ValueError`` without a generator."""
        check_positive_integers(n=n)
        check_generator(generator)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        means = self.means[component]
        noise = torch.randn(means.shape, generator=generator, dtype=means.dtype, device=means.device)
        return means + math.sqrt(self.variance) * noise

    def nearest(self, x: Tensor) -> Tensor:
        """Return each point's nearest mean, ``[batch, dim]`` to ``[batch]``, int64; ``ValueError`` if not finite."""
        self._check_points(x)
        check_finite("x", x, "Leave out the points of a sampler that diverged, or mend it.")
        return torch.cdist(x, self.means).argmin(dim=1)

    def _check_points(self, x: Tensor) -> None:
        dim = self.means.shape[1]
        rule = f"[batch, {dim}] of {self.means.dtype}. Pass points, one per row."
        check_tensor("x", x, (None, dim), rule, self.means.dtype, least=0)


@dataclass(frozen=True, eq=False)
class Tilt:
    """A ``prior``, and the ``posterior`` that a reward tilts it to; ``ValueError`` for no two mixtures in one space."""

    prior: GaussianMixture
    posterior: GaussianMixture

    def __post_init__(self) -> None:
        _check_one_space(prior=self.prior, posterior=self.posterior)

    def log_reward(self, x: Tensor) -> Tensor:
        """Return log r(x), the log-ratio of posterior and prior density, ``[batch]``, for ``x`` of ``[batch, dim]``."""
        return self.posterior.log_prob(x) - self.prior.log_prob(x)


def twenty_five_to_nine(*, dtype: torch.dtype = torch.float32) -> Tilt:
    """Return the example of Venkatraman et al. (2024): 25 equal modes on a grid, nine of which the posterior keeps."""
    axis = (-10.0, -5.0, 0.0, 5.0, 10.0)
    grid = list(product(axis, axis))
    prior = GaussianMixture(torch.tensor(grid, dtype=dtype), torch.full((25,), 1 / 25, dtype=dtype), 0.3)
    kept = torch.tensor(list(_KEPT.values()), dtype=dtype)
    return Tilt(prior, GaussianMixture(torch.tensor(list(_KEPT), dtype=dtype), kept / kept.sum(), 0.3))


def weights_on(whole: GaussianMixture, part: GaussianMixture) -> Tensor:
    """Return the weights of ``part`` over the means of ``whole``, zero where it has none: ``[components of whole]``.

    Raises ``ValueError`` for a mean of ``part`` that ``whole`` does not have, to the last digit, or has twice.
    """
    _check_one_space(whole=whole, part=part)
    same = (part.means[:, None] == whole.means).all(dim=2)
    if bool((same.sum(dim=1) != 1).any()):
        raise ValueError("part has a mean that whole has not, or has twice; expected each once. Pass the prior first.")
    return torch.zeros_like(whole.weights).index_add(0, same.long().argmax(dim=1), part.weights)


def tilted_mode_weights(tilt: Tilt, factor: float) -> Tensor:
    """Return the mode weights of prior(x) exp(factor r(x)), normalised: ``[components of the prior]``.

    Within a mode r(x) is nearly constant where modes are far apart: the ratio r_k of posterior weight and prior weight,
    0 where the posterior has none. So mode k has its prior weight times exp(factor r_k), up to the share of a component
    that lies nearer to another mean. The first published baseline with weight w and batches of n has the factor (1 -
    1/n) / (2w). Raises ``ValueError`` for two variances, a mean of the posterior that the prior does not have, or a
    factor out of range. Source: claim B1. Derived in chapter ``anatomy-of-a-baseline``.
    """
    check_number("factor", factor, at_least=0)
    check_kind("tilt", tilt, Tilt)
    if tilt.prior.variance != tilt.posterior.variance:
        given = f"{tilt.prior.variance:g} and {tilt.posterior.variance:g}"
        raise ValueError(f"The variances are {given}; expected one, or r(x) varies within a mode. Integrate instead.")
    reward = weights_on(tilt.prior, tilt.posterior) / tilt.prior.weights
    check_finite("factor * reward", factor * reward, "Pass a smaller factor.")
    return (tilt.prior.weights.log() + factor * reward).softmax(dim=0)


def _check_one_space(**mixtures: GaussianMixture) -> None:
    for name, mixture in mixtures.items():
        check_kind(name, mixture, GaussianMixture)
    kinds = {name: (mixture.means.shape[1], mixture.means.dtype) for name, mixture in mixtures.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"dim and dtype are {kinds}; expected mixtures in one space. Convert one of them.")
