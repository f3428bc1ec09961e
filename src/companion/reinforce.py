"""Policy gradients with a KL penalty: REINFORCE (Williams, 1992) on the reward log r(x) - (1/beta) log(p_theta/p_ref).

Two functions cover the design space of chapter ``estimators-and-the-design-space``: :func:`kl_loss` trains the policy,
under any baseline and any weights for paths that another sampler drew, and :func:`critic_loss` a learned baseline. The
value of ``kl_loss`` means nothing; its gradient is the policy gradient. ``group`` and ``steps`` mean what they mean in
:mod:`companion.rtb`; means, softmax and clipping are then those of each group.
"""

import torch
from torch import Tensor

from companion.validation import (
    Marks,
    check_choice,
    check_constant,
    check_finite,
    check_fits,
    check_minus_infinity_only,
    check_number,
    check_paths,
    check_per_path,
    check_scalar,
)

#: Baselines that :func:`kl_loss` knows by name; a number, or one for each path, is the fourth.
BASELINES = ("batch_mean", "leave_one_out", "none")
#: Ways in which :func:`kl_loss` weighs the paths of a batch.
WEIGHTS = ("none", "importance", "tempered")
#: Estimators of a KL divergence from one sample, by Schulman's names.
ESTIMATORS = ("k1", "k2", "k3")


def kl_loss(
    log_pi: Tensor,
    log_ref: Tensor,
    log_reward: Tensor,
    *,
    beta: float = 1.0,
    baseline: str | float | Tensor = "batch_mean",
    log_behaviour: Tensor | None = None,
    weights: str = "none",
    clip: float | None = None,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return a surrogate, ``-mean(A * sum(log_pi))``, whose gradient descends the KL-regularised return.

    A is the detached advantage, ``log_reward - (1/beta) sum(log_pi - log_ref)`` less the baseline.

    Args:
        log_pi, log_ref: ``[batch, steps]``, nats. The first keeps its gradient, the second is a constant.
        log_reward: ``[batch]``, log r(x), finite. A constant.
        beta: inverse temperature, > 0; the KL weight is 1/beta.
        baseline: ``"batch_mean"``, ``"leave_one_out"`` (both unweighted, whatever the weights), ``"none"``, or a
            number, such as the value that :func:`critic_loss` learns, or ``[batch]``, one for each path. A constant.
        log_behaviour: ``[batch, steps]``, nats; the steps under what drew them. A constant, just where weights use it.
        weights: ``"none"``, or for a weighted sum in place of the mean ``"importance"``, the softmax over the batch of
            ``sum(log_pi - log_behaviour)``, or ``"tempered"``, of that over ``steps`` or else the number of columns,
            as in Deleu et al. (2025): detached, and in a group of sum its share of the batch.
        clip: largest distance, > 0, of a path's return from the mean of its group or batch, in nats (beta times the
            unit of the return). It is applied before the baseline; None clips nothing.
        group, steps: as the module says; zeros from a path's end on; given ``steps``, a nonzero entry there is refused.

    Returns a scalar, in units of log r(x) times nats. Raises ``ValueError`` for a wrong rank, shape, dtype or device, a
    value that is not finite, ``beta <= 0``, an unknown baseline or weighting, fewer than two paths (of a group) where
    baseline, weights or clip use the batch, a ``log_behaviour`` that is missing or of no use, or an advantage that
    overflows. Source: Williams (1992); Ahmadian et al. (2024), leave-one-out. Derived in chapter
    ``on-policy-rtb-is-reinforce``, the weights in chapter ``off-policy-the-same-optimum``.
    """
    statistic = clip is not None or (isinstance(baseline, str) and baseline != "none")
    minimum = 2 if statistic or weights != "none" else 1
    behaviour = _behaviour(log_behaviour, weights)
    check_paths(log_pi, group=group, steps=steps, minimum=minimum, log_ref=log_ref, **behaviour)
    _check_baseline(baseline, log_pi)
    advantage = _uncentred_advantage(log_pi, log_ref, log_reward, beta)
    if clip is not None:
        check_number("clip", clip, above=0)
        mean = _mean(advantage, group)
        advantage = mean + (advantage - mean).clamp(-clip / beta, clip / beta)
    advantage = advantage - _baseline(advantage, baseline, group)
    return -_weighted_mean(advantage * log_pi.sum(dim=1), log_pi, log_behaviour, weights, group, steps)


def critic_loss(
    log_pi: Tensor,
    log_ref: Tensor,
    log_reward: Tensor,
    value: Tensor,
    *,
    beta: float = 1.0,
    log_behaviour: Tensor | None = None,
    weights: str = "none",
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return half the mean squared error of a learned baseline, V(s_0), as a forecast of the KL-regularised return.

    It trains ``value`` alone: the return ``log_reward - (1/beta) sum(log_pi - log_ref)`` is detached. With weights the
    mean becomes a weighted sum. Together with ``kl_loss(..., baseline=value.detach())``, times alpha = 1/beta, for the
    policy, it has the gradients of Trust-PCL on full paths: value / alpha is RTB's log Z.

    Args:
        log_pi, log_ref, log_reward, beta, log_behaviour, weights, group, steps: as in :func:`kl_loss`, but no gradient
            flows into ``log_pi``, and without weights ``group`` is only checked. Padding:
            zeros from a path's end on; given ``steps``, a nonzero entry there is refused.
        value: 0-d, or ``[batch]`` with one per condition; V(s_0) in units of log r(x). Keeps its gradient.

    Returns a scalar, in units of log r(x) squared. Raises ``ValueError`` as :func:`kl_loss`, and for a ``value`` of a
    wrong shape, dtype or device, or not finite. Source: the baseline of Williams (1992), fitted by least squares.
    Derived in chapter ``on-policy-rtb-is-reinforce``.
    """
    minimum, behaviour = 1 if weights == "none" else 2, _behaviour(log_behaviour, weights)
    check_paths(log_pi, group=group, steps=steps, minimum=minimum, log_ref=log_ref, **behaviour)
    check_scalar("value", value, log_pi)
    error = _uncentred_advantage(log_pi, log_ref, log_reward, beta) - value
    return 0.5 * _weighted_mean(error.square(), log_pi, log_behaviour, weights, group, steps)


def kl_estimator(log_pi: Tensor, log_ref: Tensor, *, kind: str, steps: Marks = None) -> Tensor:
    """Return k1, k2 or k3 of each step: an estimate of KL(pi, pi_ref) from one action that pi drew (k2 is biased).

    With the log-ratio l = log_pi - log_ref, k1 = l, k2 = l^2 / 2 and k3 = exp(-l) - 1 + l. Added to a loss it is
    differentiated; taken off a reward it is detached first. For whole paths pass sums over their steps, ``[batch, 1]``.

    Args:
        log_pi, log_ref: ``[batch, steps]``, nats. The first keeps its gradient, the second is a constant.
        kind: ``"k1"``, ``"k2"`` or ``"k3"``.
        steps: true lengths: zeros from a path's end on; given ``steps``, a nonzero entry there is refused.

    Returns ``[batch, steps]``, nats; zero in padding. Raises ``ValueError`` as :func:`kl_loss`, and for an unknown kind
    or an overflow. Source: Schulman (2020). Derived in chapter ``estimators-and-the-design-space``.
    """
    check_paths(log_pi, steps=steps, log_ref=log_ref)
    check_choice("kind", kind, ESTIMATORS)
    log_ratio = log_pi - log_ref
    if kind == "k1":
        penalty = log_ratio
    else:
        penalty = 0.5 * log_ratio.square() if kind == "k2" else torch.expm1(-log_ratio) + log_ratio
    check_finite(kind, penalty, "Pass paths on which the two policies differ less, a wider dtype, or choose k1.")
    return penalty


def published_baseline_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, *, kl_weight: float, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return the RL baseline that was first published beside RTB, a scalar.

    It is ``mean(-(r - mean r) log p + kl_weight (log p - log p_ref)^2)``, r = exp(log_reward). It misses the posterior.

    Args:
        log_pi: ``[batch, steps]``, nats, at least two paths (of each group). Keeps its gradient.
        log_ref: ``[batch, steps]``, nats. A constant.
        log_reward: ``[batch]``, log r(x); -inf, a zero reward, is allowed. A constant.
        kl_weight: weight of the squared log-ratio, >= 0.
        group, steps: as the module says; zeros from a path's end on; given ``steps``, a nonzero entry there is refused.

    Raises ``ValueError`` as :func:`kl_loss` (but for -inf rewards), for a negative weight, or for rewards that
    overflow. Source: the code of Venkatraman et al. (2024). Derived in chapter ``anatomy-of-a-baseline``.
    """
    check_paths(log_pi, group=group, steps=steps, minimum=2, log_ref=log_ref)
    check_fits("log_reward", log_reward, log_pi, log_pi.shape[:1], "[batch]")
    check_minus_infinity_only("log_reward", log_reward)
    check_constant(log_reward=log_reward)
    check_number("kl_weight", kl_weight, at_least=0)
    reward = log_reward.exp()
    check_finite("exp(log_reward)", reward, "Pass lower rewards: this objective needs r(x), not its log.")
    mean = _mean(reward, group)
    check_finite("the mean of exp(log_reward)", mean, "Pass lower rewards: their sum overflows.")
    log_ratio = (log_pi - log_ref).sum(dim=1)
    return (-(reward - mean) * log_pi.sum(dim=1) + kl_weight * log_ratio.square()).mean()


def _totals(values: Tensor, group: Marks) -> tuple[Tensor, Tensor | int]:
    """Return the sum over each path's group, ``[batch]``, and its size; without groups those of the batch."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # a sum in half precision stops growing
    if group is None:
        return wide.sum().expand(len(values)), len(values)
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    return wide.new_zeros(len(sizes)).index_add(0, index, wide)[index], sizes[index]


def _mean(values: Tensor, group: Marks) -> Tensor:
    total, count = _totals(values, group)
    return (total / count).to(values.dtype)


def _softmax(logits: Tensor, group: Marks) -> Tensor:
    """Return the softmax within each path's group, times the group's share of the batch: in all they sum to one."""
    if group is None:
        return torch.softmax(logits, dim=0)
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    largest = logits.new_zeros(len(sizes)).scatter_reduce(0, index, logits, "amax", include_self=False)
    weight = (logits - largest[index]).exp()
    total, count = _totals(weight, group)
    return (weight / total * count / len(weight)).to(logits.dtype)


def _baseline(returns: Tensor, baseline: str | float | Tensor, group: Marks) -> Tensor | float:
    if not isinstance(baseline, str):
        return baseline
    if baseline == "batch_mean":
        return _mean(returns, group)
    total, count = _totals(returns, group)
    return ((total - returns) / (count - 1)).to(returns.dtype) if baseline == "leave_one_out" else 0.0


def _uncentred_advantage(log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, beta: float) -> Tensor:
    check_per_path("log_reward", log_reward, log_pi)
    check_constant(log_reward=log_reward)
    check_number("beta", beta, above=0)
    advantage = (log_reward - (log_pi - log_ref).sum(dim=1) / beta).detach()
    check_finite("the return less the KL penalty", advantage, "Pass a larger beta, or smaller log-probabilities.")
    return advantage


def _weighted_mean(
    loss: Tensor, log_pi: Tensor, log_behaviour: Tensor | None, weights: str, group: Marks, steps: Marks
) -> Tensor:
    if log_behaviour is None:
        return loss.mean()
    log_weight = (log_pi - log_behaviour).sum(dim=1).detach()
    if weights == "tempered":
        log_weight = log_weight / log_pi.shape[1] if steps is None else log_weight / steps
    return (_softmax(log_weight, group) * loss).sum()


def _check_baseline(baseline: str | float | Tensor, log_pi: Tensor) -> None:
    if isinstance(baseline, Tensor):
        check_per_path("baseline", baseline, log_pi)
        check_constant(baseline=baseline)
    elif not isinstance(baseline, str):
        check_number("baseline", baseline)
    elif baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}; expected one of {BASELINES} or a number. Choose one of these.")


def _behaviour(log_behaviour: Tensor | None, weights: str) -> dict[str, Tensor]:
    """Return the behaviour by name, after checking that there is one exactly when weights use it."""
    check_choice("weights", weights, WEIGHTS)
    if (log_behaviour is None) != (weights == "none"):
        given = "missing" if log_behaviour is None else "given"
        expected = "it exactly when the weights use it. Pass both, or neither."
        raise ValueError(f"log_behaviour is {given} with weights={weights!r}; expected {expected}")
    return {} if log_behaviour is None else {"log_behaviour": log_behaviour}
