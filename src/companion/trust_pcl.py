"""Trust-PCL, as Nachum et al. (2017b) write it.

An agent earns a reward at every step and pays for straying from a reference policy. Trust-PCL trains a policy and a
soft value function until, on every stretch of d transitions of every path, the path consistency

    V(s_0) - gamma^d V(s_d) = sum_i gamma^i (R_i - (eta + lambda) log pi(a_i | s_i) + lambda log pi_ref(a_i | s_i))

holds; eta weighs entropy (Nachum's tau) and lambda relative entropy. With lambda = 0 it is PCL (Nachum et al., 2017a).
Chapter ``path-consistency`` derives it; chapter ``the-equivalence`` sets it beside :mod:`companion.rtb`, with which it
shares no code; ``group`` and ``steps`` mean what they mean there.
"""

import torch
from torch import Tensor

from companion.validation import Marks, check_group, check_paths, check_scalar, check_span, check_values, check_weights


def residual(
    log_pi: Tensor,
    log_ref: Tensor,
    rewards: Tensor,
    values: Tensor,
    *,
    kl_weight: float,
    entropy_weight: float = 0.0,
    gamma: float = 1.0,
    start: int = 0,
    stop: int | None = None,
    steps: Marks = None,
) -> Tensor:
    """Return the path-consistency residual of each path, on the transitions from ``start`` to ``stop``, not included.

    It is ``-V[start] + gamma^d V[stop] + sum_i gamma^i (R - (entropy_weight + kl_weight) log_pi + kl_weight log_ref)``,
    with ``d = stop - start`` and i counted from 0 at ``start``.

    Args:
        log_pi: ``[batch, steps]``, nats; log-probability of each action under the policy trained. Keeps its gradient.
        log_ref: ``[batch, steps]``, nats; the same actions under the reference policy. A constant.
        rewards: ``[batch, steps]``, R of each transition. A constant.
        values: ``[batch, steps + 1]``, V of each state in units of reward; the last, V(s_T), is 0. Keeps its gradient.
        kl_weight: weight of the relative entropy, >= 0; Nachum's lambda, reward per nat.
        entropy_weight: weight of the entropy, >= 0; Nachum's tau, eta in this book. The two weights sum to > 0.
        gamma: discount, ``0 < gamma <= 1``.
        start, stop: indices of the first and the last state; by default the whole path.
        steps: zeros from a path's end on; given ``steps``, a nonzero entry there is refused, ``values`` too.

    Returns ``[batch]``, in units of reward; zero on every transition exactly at the optimal policy and soft values.
    Raises ``ValueError`` for a wrong rank, shape, dtype or device, a value that is not finite, a last value that is not
    zero, a weight or discount out of range, a span outside the path, or wrong steps. Source: Nachum et al. (2017b), the
    consistency error of Trust-PCL. Derived in chapter ``path-consistency``.
    """
    check_paths(log_pi, steps=steps, log_ref=log_ref, rewards=rewards)
    check_values(values, log_pi, steps)
    check_weights(kl_weight, entropy_weight, gamma)
    stop = log_pi.shape[1] if stop is None else stop
    check_span(start, stop, log_pi.shape[1])

    gains = rewards - (entropy_weight + kl_weight) * log_pi + kl_weight * log_ref
    length = stop - start
    discounts = (gamma ** torch.arange(length, dtype=torch.float64)).to(log_pi)  # a power in half precision is far off
    discounted = (discounts * gains[:, start:stop]).sum(dim=1)
    return -values[:, start] + gamma**length * values[:, stop] + discounted


def full_path_values(first_value: Tensor, log_pi: Tensor) -> Tensor:
    """Return ``values`` that hold V(s_0) in their first column and zero elsewhere: all that a full path looks at.

    ``first_value`` is V(s_0) in units of reward, 0-d, or ``[batch]`` with one per condition, and keeps its gradient; of
    ``log_pi``, ``[batch, steps]``, only shape, dtype and device are used. Returns ``[batch, steps + 1]``, for
    :func:`residual` and :func:`loss` without ``start`` and ``stop``. Raises ``ValueError`` for a wrong rank, shape,
    dtype or device, or not finite. Source: Nachum et al. (2017b), full paths. Derived in chapter ``path-consistency``.
    """
    check_paths(log_pi)
    check_scalar("first_value", first_value, log_pi)
    batch, steps = log_pi.shape
    return torch.nn.functional.pad(first_value.expand(batch)[:, None], (0, steps))


def loss(
    log_pi: Tensor,
    log_ref: Tensor,
    rewards: Tensor,
    values: Tensor,
    *,
    kl_weight: float,
    entropy_weight: float = 0.0,
    gamma: float = 1.0,
    start: int = 0,
    stop: int | None = None,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return half the mean squared path-consistency residual, a scalar in units of reward squared.

    Arguments, padding (zeros from a path's end on; given ``steps``, a nonzero entry there is refused) and errors as in
    :func:`residual`. The paths may come from any behaviour. Without a statistic of the batch ``group`` is only checked.
    Source: Nachum et al. (2017b), who sum it over the sub-paths wanted. Derived in chapter ``path-consistency``.
    """
    weights = {"kl_weight": kl_weight, "entropy_weight": entropy_weight, "gamma": gamma}
    consistency = residual(log_pi, log_ref, rewards, values, start=start, stop=stop, steps=steps, **weights)
    check_group(group, log_pi)
    return 0.5 * consistency.square().mean()
