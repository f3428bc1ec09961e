"""Relative trajectory balance (RTB), as Venkatraman et al. (2024) write it.

A prior sampler draws a path tau with probability p_ref(tau), and a reward r(x) scores its last state. RTB trains a
second sampler p_theta, with a learned scalar log Z, until on every path

    Z p_theta(tau) = p_ref(tau) r(x)^beta .

Its loss is the squared logarithm of the ratio of the two sides. Chapter ``relative-trajectory-balance`` derives it;
chapter ``the-equivalence`` sets it beside :mod:`companion.trust_pcl`, with which this module shares no code.

Two optional keywords, integers ``[batch]`` each, describe the paths. ``group`` says which condition a path belongs to:
a statistic of the batch is then taken within each group, and the loss is still the mean over all paths. ``steps`` is
the true length of each path, ``1 <= steps <= columns``: a nonzero entry of a per-step input beyond it is refused.
"""

import torch
from torch import Tensor

from companion.validation import Marks, check_flow, check_group, check_number, check_paths, check_scalar, check_span


def residual(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, log_z: Tensor, *, beta: float = 1.0, steps: Marks = None
) -> Tensor:
    """Return the RTB residual of each path, ``log_z + sum(log_pi - log_ref) - beta * log_reward``.

    Args:
        log_pi: ``[batch, steps]``, nats; log-probability of each step under the policy trained. Keeps its gradient.
        log_ref: ``[batch, steps]``, nats; the same steps under the reference (prior). A constant.
        log_reward: ``[batch]``, log r(x) of the state each path ends in, finite. A constant.
        log_z: 0-d, or ``[batch]`` with one per condition; log Z. Keeps its gradient.
        beta: inverse temperature, > 0; 1/alpha in the notation of chapter ``kl-regularised-rl``.
        steps: true lengths: zeros from a path's end on; given ``steps``, a nonzero entry there is refused.

    Returns ``[batch]``, in nats; zero for every path exactly when the policy samples p_ref(tau) r(x)^beta / Z. Raises
    ``ValueError`` for a wrong rank, shape, dtype or device, a value that is not finite, ``beta <= 0``, or wrong steps.
    Source: Venkatraman et al. (2024), equation (8), the constraint. Derived in chapter ``relative-trajectory-balance``.
    """
    check_paths(log_pi, steps=steps, log_ref=log_ref, log_reward=log_reward)
    check_number("beta", beta, above=0)
    check_scalar("log_z", log_z, log_pi)
    return log_z + (log_pi - log_ref).sum(dim=1) - beta * log_reward


def loss(
    log_pi: Tensor,
    log_ref: Tensor,
    log_reward: Tensor,
    log_z: Tensor,
    *,
    beta: float = 1.0,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return half the mean squared RTB residual, a scalar in nats squared.

    Arguments, padding (zeros from a path's end on; given ``steps``, a nonzero entry there is refused) and errors as in
    :func:`residual`. The paths may come from any behaviour. Without a statistic of the batch ``group`` is only checked.
    Source: Venkatraman et al. (2024), equation (9) without half, at beta = 1; chapter ``relative-trajectory-balance``.
    """
    balance = residual(log_pi, log_ref, log_reward, log_z, beta=beta, steps=steps)
    check_group(group, log_pi)
    return 0.5 * balance.square().mean()


def vargrad_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, *, beta: float = 1.0, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return half the batch variance of the RTB residual, a scalar in nats squared: RTB with the batch's best log Z.

    Arguments, padding (zeros from a path's end on; given ``steps``, a nonzero entry there is refused) and errors as in
    :func:`residual`, without ``log_z``, with at least two paths (of each group). The variance is divided by n, not by
    n - 1: it is the minimum of :func:`loss` over a scalar ``log_z`` (of each group). Source: Richter et al. (2020),
    VarGrad; Zhang et al. (2023) for log Z from the batch; Venkatraman et al. (2024), equation (23), there without the
    half. Derived in chapter ``relative-trajectory-balance``.
    """
    check_paths(log_pi, group=group, steps=steps, minimum=2, log_ref=log_ref, log_reward=log_reward)
    check_number("beta", beta, above=0)
    log_ratio = (log_pi - log_ref).sum(dim=1) - beta * log_reward
    return 0.5 * (log_ratio - _mean(log_ratio, group)).square().mean()


def sub_trajectory_residual(
    log_pi: Tensor, log_ref: Tensor, log_flow: Tensor, *, start: int, stop: int, steps: Marks = None
) -> Tensor:
    """Return the relative sub-trajectory balance residual between states ``start`` and ``stop`` of each path.

    It is ``log_flow[start] + sum(log_pi - log_ref) - log_flow[stop]`` over the steps from ``start`` up to, not
    including, ``stop``. One step is relative detailed balance; the whole path is :func:`residual`.

    Args:
        log_pi, log_ref: as in :func:`residual`.
        log_flow: ``[batch, steps + 1]``, nats; log F(s_t), with ``beta * log_reward`` last, and from the end of a
            padded path on: given ``steps``, a change there is refused too. Keeps its gradient.
        start, stop: indices of the first and the last state, ``0 <= start < stop <= columns``.
        steps: true lengths: zeros from a path's end on; given ``steps``, a nonzero entry there is refused.

    Returns ``[batch]``, in nats. Raises ``ValueError`` as :func:`residual`, and for a span outside the path. Source:
    sub-trajectory balance, Madan et al. (2023), relative to a prior. Derived in chapter ``the-equivalence``.
    """
    check_paths(log_pi, steps=steps, log_ref=log_ref)
    check_flow(log_flow, log_pi, steps)
    check_span(start, stop, log_pi.shape[1])
    log_ratio = (log_pi - log_ref)[:, start:stop].sum(dim=1)
    return log_flow[:, start] + log_ratio - log_flow[:, stop]


def _mean(values: Tensor, group: Marks) -> Tensor:
    """Return the mean over each path's group, ``[batch]``; without groups that of the batch, 0-d."""
    if group is None:
        return values.mean()
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # a sum in half precision stops growing
    sums = wide.new_zeros(len(sizes)).index_add(0, index, wide)
    mean: Tensor = (sums / sizes)[index].to(values.dtype)
    return mean
