"""Other people's losses for fine-tuning a sampler of sequences, each as its source states it (claims N1 to N3).

Behind most of them stands one residual: something for log Z, plus ``sum(log_pi - log_ref)``, less the reward over a
temperature. They differ in what stands for log Z, in where the square sits, in whose reference is meant, and in what
divides. None is written through another, or through :mod:`companion.rtb`: chapter ``one-residual-many-names``, which is
about all of them, finds where they coincide. A commit is that of the code that was read; *text only*: none was.

Arguments of one name are one thing in all of them, constants but for ``log_pi`` and, where learned, ``value``.

* ``log_pi``: ``[batch, steps]``, nats; log-probability of each step under the policy trained. Keeps its gradient.
* ``log_ref``, ``log_old``: the same steps under a fixed reference; under the policy that began the round, or drew them.
* ``log_reward``: ``[batch]``, the source's reward r, finite. ``advantage``: ``[batch]``, what the caller makes of it.
* ``value``: 0-d, or ``[batch]`` with one for each condition: what stands for alpha log Z, in units of r.
* ``kl_weight``: alpha > 0, the weight of the KL, in units of r per nat.
* ``pairs``: ``[pairs, 2]``, integers: the rows of two paths of one condition, of which the first may be preferred.
* ``group``, ``steps``: as in :mod:`companion.rtb`. Without ``group`` the batch is one; without ``steps`` all columns
  count. A group's mean contains the path itself, unless said otherwise.

Each returns a scalar and raises ``ValueError`` for a wrong rank, shape, dtype or device, what is not finite, an unknown
option, a number outside its range, and a group too small for its statistic.
"""

import math

import torch
from torch import Tensor

from companion.validation import Marks, check_choice, check_constant, check_number, check_paths, check_scalar

#: What stands for alpha log Z: the mean reward, or ``alpha log mean exp(r / alpha)``.
PARTITIONS = ("mean", "log_mean_exp")
#: What :func:`grpo_loss` divides by: its group's or its batch's standard deviation, or nothing.
SCALES = ("group", "batch", "none")
#: How :func:`grpo_loss` averages over tokens: each path's mean, that of all tokens, or over a constant length.
NORMALISATIONS = ("grpo", "dapo", "dr_grpo")
#: The KL of :func:`grpo_loss`: two estimators in the loss, one in the reward.
KL_TERMS = ("k3", "k3_ratio", "reward")
#: The three generations of the penalty of :func:`prime_rl_loss`.
PENALTIES = ("log_ratio", "weighted", "square")


def dro_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, value: Tensor, *, kl_weight: float, steps: Marks = None
) -> Tensor:
    """Return DRO's loss, half the mean of ``(r - V(x) - tau sum(log_pi - log_ref))^2`` with V learned beside pi.

    Its tau is ``kl_weight``, its V ``value``, which keeps its gradient. Source: Richemond et al. (2024), text only.
    """
    _batch(log_pi, None, steps, kl_weight, log_reward=log_reward, log_ref=log_ref)
    check_scalar("value", value, log_pi)
    return 0.5 * (log_reward - value - kl_weight * (log_pi - log_ref).sum(dim=1)).square().mean()


def a_star_po_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, value: Tensor, *, kl_weight: float, steps: Marks = None
) -> Tensor:
    """Return A*-PO's loss, the mean of ``(beta2 sum(log_pi - log_ref) + V* - r)^2`` with V* fixed before training.

    Its beta2 is ``kl_weight``, shipped .001; its V* is ``value``, a constant: ``beta1 log mean exp(r / beta1)`` over
    paths of the reference, shipped at beta1 = .5. The entropy bonus of its code, .001 a token, is left to the caller.
    Source: Brantley et al. (2025); ZhaolinGao/A-PO at c8823a3, ``verl/trainer/apo/core_algos.py``.
    """
    _batch(log_pi, None, steps, kl_weight, log_reward=log_reward, log_ref=log_ref)
    check_scalar("value", value, log_pi)
    check_constant(value=value)
    return (kl_weight * (log_pi - log_ref).sum(dim=1) + value - log_reward).square().mean()


def tba_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, *, kl_weight: float, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return TBA's loss, the mean squared trajectory balance with the group's mean, detached, as log Z.

    Its kl_coef is ``kl_weight``; it falls during training. Reference: the model after supervised fine-tuning.
    Source: Bartoldson et al. (2025); bbartoldson/TBA at c6075e2, ``src/tba_trainer_tldr.py``.
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward, log_ref=log_ref)
    log_ratio = (log_pi - log_ref).sum(dim=1)
    log_z = _mean(log_reward / kl_weight - log_ratio, same).detach()
    return (log_z + log_ratio - log_reward / kl_weight).square().mean()


def kimi_loss(
    log_pi: Tensor,
    log_old: Tensor,
    log_reward: Tensor,
    *,
    kl_weight: float,
    partition: str = "mean",
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return Kimi k1.5's surrogate, the mean of ``(r - mean r - tau log_ratio)^2``, log_ratio summed over the tokens.

    Its tau is ``kl_weight``, its reference the policy that began the round. The mean reward stands for tau log Z, as in
    its equation (3), the gradient, which is that of this loss over -2 tau; ``partition="log_mean_exp"`` takes
    ``tau log mean exp(r / tau)``, which the report states first. Source: Kimi Team (2025), section 2.3.2, text only.
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward, log_old=log_old)
    centre = _partition(log_reward, same, kl_weight, partition)
    return (log_reward - centre - kl_weight * (log_pi - log_old).sum(dim=1)).square().mean()


def pmd_loss(
    log_pi: Tensor,
    log_old: Tensor,
    log_reward: Tensor,
    *,
    kl_weight: float,
    partition: str = "mean",
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return OpenKimi's mirror descent, the mean of ``tau/2 (A / tau - log_ratio)^2 / length``.

    A is r less what the *other* paths of the group give for tau log Z: their mean (``partition="mean"``, its ``rloo``)
    or, ``"log_mean_exp"``, its ``ploo``, ``m + tau log max(mean exp((r - m) / tau), 1e-8)``, m the group's largest r.
    Its tau is ``kl_weight``, shipped .01: there the bound 1e-8 is reached wherever one path alone is the best.
    Source: horizon-rl/OpenKimi at 3126d4c, ``openkimi/pmd/core_algos.py``.
    """
    same, mask = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward, log_old=log_old)
    check_choice("partition", partition, PARTITIONS)
    others = _others(same)
    if partition == "mean":
        centre = _mean(log_reward, others)
    else:
        largest = log_reward.where(same, -math.inf).amax(dim=1)
        shares = (((log_reward - largest[:, None]) / kl_weight).exp() * others).sum(dim=1) / others.sum(dim=1)
        centre = largest + kl_weight * shares.clamp(min=1e-8).log()
    log_ratio = (log_pi - log_old).sum(dim=1)
    squares = kl_weight / 2 * ((log_reward - centre) / kl_weight - log_ratio).square()
    return (squares / mask.sum(dim=1)).mean()


def agro_loss(
    log_pi: Tensor, log_ref: Tensor, log_reward: Tensor, *, kl_weight: float, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return AGRO's loss, half the variance in each group, under any behaviour, of ``r - beta sum(log_pi - log_ref)``.

    Its beta is ``kl_weight``. Which estimate of the variance its authors take could not be read; here it is divided by
    n. Source: Tang et al. (2025), abstract only; Richemond et al. (2024), appendix B, text only.
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward, log_ref=log_ref)
    shaped = log_reward - kl_weight * (log_pi - log_ref).sum(dim=1)
    return 0.5 * (shaped - _mean(shaped, same)).square().mean()


def gvpo_loss(
    log_pi: Tensor, log_old: Tensor, log_reward: Tensor, *, kl_weight: float, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return GVPO's loss, half the *sum* of ``[(R - mean R) - (r - mean r)]^2 / (n - 1)``, R = beta log_ratio.

    Its beta is ``kl_weight``, shipped .1; n is the size of the group; the mean of R is detached. Reference: the policy
    that began the round, so that nothing pulls in its first update, where R = 0. The paper's equation has no n - 1.
    Source: Zhang et al. (2025); jszkc/GVPO at 627aa25, ``GVPO/gvpo_core_algos.py``.
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward, log_old=log_old)
    implicit = kl_weight * (log_pi - log_old).sum(dim=1)
    apart = (implicit - _mean(implicit, same).detach()) - (log_reward - _mean(log_reward, same))
    return (0.5 * apart.square() / (same.sum(dim=1) - 1)).sum()


def flowrl_loss(
    log_pi: Tensor,
    log_ref: Tensor,
    log_old: Tensor,
    log_reward: Tensor,
    log_z: Tensor,
    *,
    scale: float = 15.0,
    longest_weight: float = math.inf,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return FlowRL's loss, the mean of ``w (log Z + mean_t log_pi - scale A - mean_t log_ref)^2``.

    A is r less the group's mean, over its standard deviation (n - 1) + 1e-6; means over tokens are each path's own.
    w is the detached ratio of the whole path to ``log_old``: as it is in the published code, at most
    ``longest_weight`` = 10 in its author's later recipes, and clipped to [.8, 1.2] in the paper. ``log_z`` is 0-d or
    ``[batch]``, from a network on the prompt, and keeps its gradient; a later recipe leaves it out.
    Source: Zhu et al. (2025); Xuekai-Zhu/FlowRL at decbc57, ``dp_actor.py``, and verl-project/verl-recipe at 21892b9.
    """
    same, mask = _batch(log_pi, group, steps, None, 2, log_reward=log_reward, log_ref=log_ref, log_old=log_old)
    check_number("scale", scale, above=0)
    check_scalar("log_z", log_z, log_pi)
    advantage = (log_reward - _mean(log_reward, same)) / (_deviation(log_reward, same) + 1e-6)
    weight = (log_pi - log_old).sum(dim=1).exp().detach().clamp(max=longest_weight)
    log_ratio = (log_pi - log_ref).sum(dim=1) / mask.sum(dim=1)
    return (weight * (log_z + log_ratio - scale * advantage).square()).mean()


def lm_vargrad_loss(
    log_pi: Tensor,
    log_ref: Tensor,
    log_reward: Tensor,
    *,
    kl_weight: float,
    cutoff: float = 0.0,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return half the mean of ``max((d + mean(d))^2 - cutoff, 0)``, d being ``sum(log_pi - log_ref) - r / alpha``.

    The log-variance loss has a minus there; with the plus, -mean(d) stands where log Z should. Its 1 / alpha goes from
    .9 to .99, and ``cutoff`` is .1. That each step but the last is detached with probability .7 is left out.
    Source: GFNOrg/diffusion-finetuning at 21bfa22, ``finetune_cond_data.py``.
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, log_reward=log_reward, log_ref=log_ref)
    check_number("cutoff", cutoff, at_least=0)
    apart = (log_pi - log_ref).sum(dim=1) - log_reward / kl_weight
    return 0.5 * ((apart + _mean(apart, same)).square() - cutoff).clamp(min=0).mean()


def rebel_loss(
    log_pi: Tensor, log_old: Tensor, log_reward: Tensor, pairs: Tensor, *, step_size: float, steps: Marks = None
) -> Tensor:
    """Return REBEL's loss, the mean over pairs of ``[(log_ratio_1 - log_ratio_2) - eta (r_1 - r_2)]^2``.

    Its eta is ``step_size``. Its scripts take ``.05 sum(log_old - log_ref)`` from r beforehand, at eta = 1.
    Source: Gao et al. (2024); ZhaolinGao/REBEL at 4ad7c11, ``src/tldr/rebel.py``.
    """
    _batch(log_pi, None, steps, None, log_reward=log_reward, log_old=log_old)
    check_number("step_size", step_size, above=0)
    first, second = _pairs(pairs, log_pi)
    log_ratio = (log_pi - log_old).sum(dim=1)
    return (log_ratio[first] - log_ratio[second] - step_size * (log_reward[first] - log_reward[second])).square().mean()


def dpo_loss(log_pi: Tensor, log_ref: Tensor, pairs: Tensor, *, kl_weight: float, steps: Marks = None) -> Tensor:
    """Return DPO's loss, the mean of ``-log sigmoid(beta (log_ratio_1 - log_ratio_2))``, the first preferred.

    Its beta is ``kl_weight``, shipped .1 by TRL.
    Source: Rafailov et al. (2023), equation (7); TRL 1.16.0, ``dpo_trainer.py``.
    """
    _batch(log_pi, None, steps, kl_weight, log_ref=log_ref)
    first, second = _pairs(pairs, log_pi)
    log_ratio = (log_pi - log_ref).sum(dim=1)
    return -torch.nn.functional.logsigmoid(kl_weight * (log_ratio[first] - log_ratio[second])).mean()


def ipo_loss(
    log_pi: Tensor, log_ref: Tensor, pairs: Tensor, *, kl_weight: float, per_token: bool = False, steps: Marks = None
) -> Tensor:
    """Return IPO's loss, the mean of ``(log_ratio_1 - log_ratio_2 - 1 / (2 tau))^2``, the first preferred.

    Its tau is ``kl_weight``. ``per_token`` takes each path's mean over its tokens for ``log_ratio``, as TRL does.
    Source: Azar et al. (2024), equation (17); TRL 1.16.0, ``dpo_trainer.py``.
    """
    _, mask = _batch(log_pi, None, steps, kl_weight, log_ref=log_ref)
    first, second = _pairs(pairs, log_pi)
    log_ratio = (log_pi - log_ref).sum(dim=1) / (mask.sum(dim=1) if per_token else 1)
    return (log_ratio[first] - log_ratio[second] - 1 / (2 * kl_weight)).square().mean()


def qrpo_loss(
    log_pi: Tensor, log_ref: Tensor, quantile: Tensor, *, kl_weight: float, transform: str = "log", steps: Marks = None
) -> Tensor:
    """Return QRPO's loss, the mean of ``(t(q) - beta log Z - beta sum(log_pi - log_ref))^2``.

    ``quantile``, ``[batch]`` in (0, 1], is the share of the reference's paths whose reward is no larger; t is the
    ``"log"``, its code's default, or the ``"identity"``, its README's. Its beta is ``kl_weight``. Z is that of a
    uniform quantile: ``beta / (1 + beta)``, or ``beta exp(1 / beta)``, where the code leaves out a -1.
    Source: Matrenok et al. (2025); CLAIRE-Labo/quantile-reward-policy-optimization at 0d80ee5, ``qrpo.py``.
    """
    _batch(log_pi, None, steps, kl_weight, log_reward=quantile, log_ref=log_ref)
    check_choice("transform", transform, ("log", "identity"))
    if bool(((quantile <= 0) | (quantile > 1)).any()):
        raise ValueError(f"quantile reaches {quantile.min()} and {quantile.max()}; expected (0, 1]. Pass shares.")
    if transform == "log":
        reward, log_z = quantile.log(), math.log(kl_weight / (1 + kl_weight))
    else:
        reward, log_z = quantile, math.log(kl_weight) + 1 / kl_weight
    return (reward - kl_weight * log_z - kl_weight * (log_pi - log_ref).sum(dim=1)).square().mean()


def dro_per_token_loss(
    log_pi: Tensor, log_old: Tensor, advantage: Tensor, *, kl_weight: float, steps: Marks = None
) -> Tensor:
    """Return the DRO of verl and tinker: the mean over all tokens of ``-A log_pi + beta/2 (log_pi - log_old)^2``.

    Its beta is ``kl_weight``: without default in verl, .05 in both examples. tinker's is the sum over the tokens, of
    the prompt too. Trinity-RFT's REC with ``regularizer="k2"`` has no half: twice its coefficient is ``kl_weight``.
    Source: verl 0.9.1, ``core_algos.py``; tinker 0.38.0, its documentation.
    """
    _, mask = _batch(log_pi, None, steps, kl_weight, log_reward=advantage, log_old=log_old)
    per_token = kl_weight / 2 * (log_pi - log_old).square() - advantage[:, None] * log_pi
    return per_token.sum() / mask.sum()


def prime_rl_loss(
    log_pi: Tensor,
    log_old: Tensor,
    advantage: Tensor,
    *,
    kl_weight: float,
    penalty: str = "square",
    steps: Marks = None,
) -> Tensor:
    """Return prime-rl's loss, a mean over all tokens, with ``ratio = exp(log_pi - log_old)`` and no token masked.

    ``-ratio A`` plus tau times ``"log_ratio"`` (from November 2025) or its ``"square"`` (from March 2026); between
    them, ``"weighted"``, the gradient of ``-[ratio (A - tau log_ratio)] log_pi``, the bracket detached. Its tau is
    ``kl_weight``, now .001. Its masks of tokens whose ratio has moved too far are left out.
    Source: PrimeIntellect-ai/prime-rl, ``loss.py`` at 450b375, 5f47740, 559b447.
    """
    _, mask = _batch(log_pi, None, steps, None, log_reward=advantage, log_old=log_old)
    check_number("kl_weight", kl_weight, at_least=0)
    check_choice("penalty", penalty, PENALTIES)
    log_ratio, gain = log_pi - log_old, advantage[:, None]
    if penalty == "weighted":
        per_token = -(log_ratio.exp() * (gain - kl_weight * log_ratio)).detach() * log_pi
    else:
        per_token = kl_weight * log_ratio ** (2 if penalty == "square" else 1) - log_ratio.exp() * gain
    return (per_token * mask).sum() / mask.sum()


def opmd_loss(
    log_pi: Tensor,
    log_reward: Tensor,
    *,
    kl_weight: float = 1.0,
    partition: str = "mean",
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return Trinity-RFT's OPMD, the mean over all tokens of ``-A log_pi / (1 + tau)``: no reference, no ratio.

    A is r less the group's mean (``partition="mean"``) or ``tau log mean exp(r / tau)`` (``"log_mean_exp"``). Its tau
    is ``kl_weight``, shipped 1. The library adds, by default, .001 times a squared log-ratio to a reference.
    Source: Trinity-RFT 0.6.0, ``opmd_policy_loss.py``, ``opmd_advantage.py``.
    """
    same, mask = _batch(log_pi, group, steps, kl_weight, 2, log_reward=log_reward)
    centre = _partition(log_reward, same, kl_weight, partition)
    return -((log_reward - centre)[:, None] * log_pi).sum() / mask.sum() / (1 + kl_weight)


def grpo_loss(
    log_pi: Tensor,
    log_old: Tensor,
    log_reward: Tensor,
    *,
    log_ref: Tensor | None = None,
    kl_weight: float = 0.0,
    kl: str = "k3_ratio",
    scale: str = "group",
    normalisation: str = "dapo",
    per_sequence: bool = False,
    clip: tuple[float, float] = (0.2, 0.2),
    epsilon: float = 1e-4,
    longest: int | None = None,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return GRPO's loss as TRL ships it; the defaults are TRL's: no reference, the group's standard deviation, DAPO.

    Args:
        kl: with ``kl_weight`` > 0 and ``log_ref``: ``"k3"`` in the loss, as published; ``"k3_ratio"``, times the ratio,
            TRL's ``use_bias_correction_kl``; or ``"reward"``, k1 of ``log_old`` in the reward, as verl's
            ``use_kl_in_reward``.
        scale: what divides r less the group's mean: a standard deviation (n - 1) + ``epsilon`` (1e-6 in verl) of the
            ``"group"`` or of the ``"batch"``, or ``"none"``.
        normalisation: ``"grpo"``, the mean of each path's mean; ``"dapo"``, the mean over all tokens; ``"dr_grpo"``,
            the sum over paths times ``longest``, the largest length that there can be.
        per_sequence: one ratio for each path, the exponential of its mean log-ratio, as in GSPO.
        clip: how far below and above 1 the ratio counts.

    Source: Shao et al. (2024); TRL 1.16.0, ``grpo_trainer.py``.
    """
    reference = log_old if log_ref is None else log_ref
    same, mask = _batch(log_pi, group, steps, None, 2, log_reward=log_reward, log_old=log_old, log_ref=reference)
    check_choice("kl", kl, KL_TERMS)
    check_choice("scale", scale, SCALES)
    check_number("kl_weight", kl_weight, at_least=0)
    for bound in clip:
        check_number("clip", bound, above=0)
    if (log_ref is None) != (kl_weight == 0):
        raise ValueError(f"kl_weight is {kl_weight}; expected it above 0 exactly with a log_ref. Pass both, or none.")
    if kl == "reward":
        log_reward = log_reward - kl_weight * (log_old - reference).sum(dim=1)
    advantage = log_reward - _mean(log_reward, same)
    if scale != "none":
        among = same if scale == "group" else torch.ones_like(same)
        advantage = advantage / (_deviation(log_reward, among) + epsilon)
    log_ratio = log_pi - log_old
    if per_sequence:
        log_ratio = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
    per_token = -torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None]).expand_as(log_pi)
    if kl != "reward":
        back = reference - log_pi
        per_token = per_token + kl_weight * (back.exp() - back - 1) * (ratio if kl == "k3_ratio" else 1)
    return _normalised(per_token * mask, mask, normalisation, longest)


def rloo_loss(
    log_pi: Tensor,
    log_old: Tensor,
    log_ref: Tensor,
    log_reward: Tensor,
    *,
    kl_weight: float = 0.05,
    clip: float = 0.2,
    group: Marks = None,
    steps: Marks = None,
) -> Tensor:
    """Return RLOO's loss as TRL ships it: ``-min(ratio A, clipped ratio A)``, one ratio for each path, the product.

    A is ``r - kl_weight sum(log_old - log_ref)`` less the mean of that over the *other* paths of the group.
    Source: Ahmadian et al. (2024); TRL 1.16.0, ``rloo_trainer.py``.
    """
    same, _ = _batch(log_pi, group, steps, None, 2, log_reward=log_reward, log_old=log_old, log_ref=log_ref)
    check_number("kl_weight", kl_weight, at_least=0)
    check_number("clip", clip, above=0)
    shaped = log_reward - kl_weight * (log_old - log_ref).sum(dim=1)
    advantage = shaped - _mean(shaped, _others(same))
    ratio = (log_pi - log_old).sum(dim=1).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def filtered_likelihood_loss(log_pi: Tensor, log_reward: Tensor, *, threshold: float, steps: Marks = None) -> Tensor:
    """Return the mean of ``-sum(log_pi)`` over paths with r from ``threshold`` on. Source: Zelikman et al. (2022)."""
    _batch(log_pi, None, steps, None, log_reward=log_reward)
    check_number("threshold", threshold)
    kept = log_reward >= threshold
    if not bool(kept.any()):
        raise ValueError(f"No path reaches {threshold}; the largest reward is {log_reward.max()}. Lower the threshold.")
    return -log_pi.sum(dim=1)[kept].mean()


def reward_weighted_loss(
    log_pi: Tensor, log_reward: Tensor, *, kl_weight: float, group: Marks = None, steps: Marks = None
) -> Tensor:
    """Return the mean of ``-w sum(log_pi)``, w being ``exp(r / kl_weight)`` over its mean in the group.

    Source: reward-weighted regression, Peters and Schaal (2007).
    """
    same, _ = _batch(log_pi, group, steps, kl_weight, log_reward=log_reward)
    tilt = log_reward / kl_weight
    return -((tilt - _log_mean_exp(tilt, same)).exp() * log_pi.sum(dim=1)).mean()


def _batch(
    log_pi: Tensor, group: Marks, steps: Marks, kl_weight: float | None, minimum: int = 1, **given: Tensor
) -> tuple[Tensor, Tensor]:
    """Check what a loss is given; return which paths share a group, ``[batch, batch]``, and which tokens count."""
    check_paths(log_pi, group=group, steps=steps, minimum=minimum, **given)
    if kl_weight is not None:
        check_number("kl_weight", kl_weight, above=0)
    every = log_pi.new_ones(len(log_pi), dtype=torch.bool)
    same = every[:, None] & every if group is None else group[:, None] == group
    columns = torch.arange(log_pi.shape[1], device=log_pi.device)
    return same, every[:, None] & (columns >= 0) if steps is None else columns < steps[:, None]


def _others(same: Tensor) -> Tensor:
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


def _partition(log_reward: Tensor, same: Tensor, kl_weight: float, partition: str) -> Tensor:
    check_choice("partition", partition, PARTITIONS)
    if partition == "mean":
        return _mean(log_reward, same)
    return kl_weight * _log_mean_exp(log_reward / kl_weight, same)


def _log_mean_exp(values: Tensor, among: Tensor) -> Tensor:
    sizes = among.sum(dim=1).to(values.dtype)  # the logarithm of integers is in single precision
    return values.where(among, -math.inf).logsumexp(dim=1) - sizes.log()


def _mean(values: Tensor, among: Tensor) -> Tensor:
    return (values * among).sum(dim=1) / among.sum(dim=1)


def _deviation(values: Tensor, among: Tensor) -> Tensor:
    """The standard deviation among each path's own, with n - 1."""
    squares = (values - _mean(values, among)[:, None]).square() * among
    return (squares.sum(dim=1) / (among.sum(dim=1) - 1)).sqrt()


def _normalised(per_token: Tensor, mask: Tensor, normalisation: str, longest: int | None) -> Tensor:
    check_choice("normalisation", normalisation, NORMALISATIONS)
    if (longest is None) != (normalisation != "dr_grpo"):
        raise ValueError(f"longest is {longest}; expected it exactly with normalisation='dr_grpo'. Pass it there.")
    if longest is not None and longest < int(mask.sum(dim=1).max()):
        raise ValueError(f"longest is {longest}, less than a path of {int(mask.sum(dim=1).max())}. Pass the largest.")
    if normalisation == "grpo":
        return (per_token.sum(dim=1) / mask.sum(dim=1)).mean()
    return per_token.sum() / (mask.sum() if longest is None else longest * len(mask))


def _pairs(pairs: Tensor, log_pi: Tensor) -> tuple[Tensor, Tensor]:
    integers = isinstance(pairs, Tensor) and pairs.dtype == torch.int64 and pairs.ndim == 2 and pairs.shape[1] == 2
    if not integers or not len(pairs) or bool(((pairs < 0) | (pairs >= len(log_pi))).any()):
        expected = f"[pairs, 2] of torch.int64, rows of a batch of {len(log_pi)}. Pass such rows."
        raise ValueError(f"pairs is {pairs}; expected {expected}")
    return pairs[:, 0], pairs[:, 1]
