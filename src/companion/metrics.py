"""How near a sampler is to its target: measures that a collapsed model cannot fool, and the bounds on log Z.

A sampler that keeps one mode of many has a *higher* mean reward than the right one, and an effective sample size that
need not look worse. So these compare whole distributions. Used in chapter ``twenty-five-modes-to-nine``.
"""

import math

import torch
from torch import Tensor

from companion.targets import GaussianMixture
from companion.validation import (
    check_finite,
    check_generator,
    check_kind,
    check_law,
    check_minus_infinity_only,
    check_positive_integers,
    check_tensor,
)

#: How far a law may sum from one: seven digits are stored, and float32 has no more.
_SLACK = 1e-5


def mode_weights(points: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return the share of the points, ``[n, dim]``, nearest to each mean of a mixture: ``[components]``, sum 1.

    Raises ``ValueError`` for points of another shape or dtype, none, or not finite. Source: Venkatraman et al. (2024).
    """
    check_kind("mixture", mixture, GaussianMixture)
    check_tensor("points", points, (None, None), "floats, [n, dim], not empty. Pass one per row.")
    counts = torch.bincount(mixture.nearest(points), minlength=len(mixture.means))
    return counts.to(points.dtype) / len(points)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Return half the sum of absolute differences of two laws, ``[outcomes]``; errors as :func:`kl_divergence`."""
    check_law("p", p, _SLACK)
    check_law("q", q, _SLACK)
    _check_same(p=p, q=q)
    return 0.5 * (p - q).abs().sum()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p, q) of laws over listed outcomes, ``[outcomes]``, nats; 0 log 0 is 0; misfits: ``ValueError``."""
    check_kind("log_p", log_p, Tensor)
    check_kind("log_q", log_q, Tensor)
    p = log_p.exp()
    check_law("exp(log_p)", p, _SLACK)
    check_law("exp(log_q)", log_q.exp(), _SLACK)
    _check_same(log_p=log_p, log_q=log_q)
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum()


def sliced_wasserstein(x: Tensor, y: Tensor, generator: torch.Generator, *, projections: int = 200) -> Tensor:
    """Return the sliced 2-Wasserstein distance of two clouds of as many points, ``[n, dim]`` each.

    The root of the mean, over random directions, of the squared 2-Wasserstein distance of the projections. Two samples
    of one law have a distance above zero, the noise floor: report it beside. Raises ``ValueError`` for no points,
    clouds that do not fit, or points that are not finite. Source: standard.
    """
    for name, cloud in (("x", x), ("y", y)):
        check_tensor(name, cloud, (None, None), "floats, [n, dim], not empty. Pass one per row.")
        check_finite(name, cloud, "Leave out the points of a sampler that diverged, or mend it.")
    _check_same(x=x, y=y)
    check_generator(generator)
    check_positive_integers(projections=projections)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=x.dtype, device=x.device)
    directions = directions / directions.norm(dim=0)
    gaps: Tensor = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return gaps.square().mean().sqrt()


def importance_log_z(log_weight: Tensor) -> Tensor:
    """Return the importance-sampling estimate of log Z from the log-weights of the policy's own paths, ``[batch]``.

    Raises ``ValueError`` for another shape, NaN or +inf, or weights that are all zero.
    """
    _check_log_weight(log_weight)
    return log_weight.logsumexp(dim=0) - math.log(len(log_weight))


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """Return the effective sample size over n, ``[n]`` and errors as in :func:`importance_log_z`: 1 if all equal."""
    _check_log_weight(log_weight)
    return 1 / (log_weight.softmax(dim=0).square().sum() * len(log_weight))


def _check_log_weight(log_weight: Tensor) -> None:
    check_tensor("log_weight", log_weight, (None,), "floats, [n], one log-weight per path. Take a sampler's.")
    check_minus_infinity_only("log_weight", log_weight)
    if bool(log_weight.isneginf().all()):
        raise ValueError("log_weight is -inf throughout; expected one path whose weight is not zero. Draw more paths.")


def _check_same(**both: Tensor) -> None:
    kinds = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in both.items()}
    if len(set(kinds.values())) > 1:
        (name, given), (other, kind) = kinds.items()
        mend = "Draw as many points, or list the same outcomes."
        raise ValueError(f"{name} is {given}, {other} {kind}; expected the same of both. {mend}")
