"""What the losses of :mod:`companion.family` converge to, in closed form or by backward recursion (claims F1 to F9).

Setting: finitely many paths of one step or more that form a tree, tabular logits, exact expectations, interior points
(every deterministic policy is stationary too); the reference stays fixed, also where a source takes the last policy.
*On-policy*: paths of the policy, detached; *off-policy*: of a fixed law b with full support. On a tree
``sum_y w(y) grad log pi(y) = 0`` iff w is proportional to pi. With p* for :func:`target`, beta for 1 / ``kl_weight``:

* p*: ``dro``, ``tba``, ``agro``, ``gvpo``; on-policy ``a_star_po``, ``rloo``, ``lm_vargrad``, and ``grpo`` with its KL
  in the reward, even over a deviation; ``dpo`` on Bradley-Terry preferences; ``rebel`` at beta = k ``step_size``,
  ``reward_weighted`` at k beta after k rounds; ``filtered_likelihood`` with rewards 0 and -inf; ``ipo`` with the chance
  of being preferred as the reward (per token in :func:`length_normalised`).
* :func:`stand_in`: ``a_star_po``, ``qrpo`` and, with ``steps``, ``pmd`` off-policy (on-policy
  :func:`residual_over_length`); ``kimi``, beta and c as in :func:`inclusive_mean`, on-policy p* at that beta;
  ``lm_vargrad`` by :func:`flipped_mean`. For a log-mean-exp that contains the path ``log_z`` is its mean given the
  path: known off-policy; on-policy it moves with the policy, and no closed form is known.
* :func:`length_normalised`: ``flowrl``, whose reward is the mean of A given the path.
* :func:`per_step_kl`, on-policy: ``"k2"`` for ``dro_per_token`` and ``grpo`` with ``"k3_ratio"``, ``"k3"`` for its
  ``"k3"``, rewards times :func:`inclusive_mean`; over a deviation :func:`standardised_success`. Off-policy, at each
  state, b's plain Q for the reward: ``dro_per_token`` :func:`stand_in`; ``prime_rl``, whose reference is b,
  ``"weighted"`` :func:`target`, ``"square"`` ``log u = -W_0((kappa - Q) / (2 alpha))``.
* None: ``opmd``, ``grpo`` at weight 0, ``prime_rl`` with ``"log_ratio"``: no pull to a reference. Averaged over each
  path's own length (``grpo`` with ``"grpo"``), the recursion also needs the policy's own mean reward: no closed form.

``log_ref`` and ``log_behaviour`` are laws of all paths, ``[paths]``, nats; ``log_reward`` is ``[paths]``; ``log_z``, c,
what stands for log Z: a number or ``[paths]``, nats; ``steps`` ``[paths]``, integers, true lengths. Results are
log-probabilities, ``[paths]``, unless said otherwise; all is float64. ``ValueError``: a wrong kind, shape or dtype,
what is no law, not finite or out of range, and where there is no solution. What names no source is ours. See
chapter ``what-your-loss-converges-to`` and, over a deviation, chapter ``what-dividing-by-the-deviation-leaves``.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from companion import mdp
from companion.validation import (
    check_choice,
    check_constant,
    check_counts,
    check_finite,
    check_fits,
    check_kind,
    check_law,
    check_like,
    check_minus_infinity_only,
    check_number,
    check_positive_integers,
    check_scalar,
)

#: One, or one for each path.
Number: TypeAlias = Tensor | float
#: True lengths, if given.
Marks: TypeAlias = Tensor | None

_HALVINGS, _POINTS, _PER_PATH = 80, 8001, "[paths], one entry per path"


def target(log_ref: Tensor, log_reward: Tensor, *, beta: float) -> Tensor:
    """Return p*, proportional to ``pi_ref exp(beta r)``; r may be -inf, but not all. Source: Korbak et al. (2022)."""
    _check_law("log_ref", log_ref)
    check_number("beta", beta, above=0)
    check_fits("log_reward", log_reward, log_ref, log_ref.shape, _PER_PATH)
    check_constant(log_reward=log_reward)
    check_minus_infinity_only("log_reward", log_reward)
    check_finite("the largest log_reward", log_reward.max(), "Lower the threshold.")
    return (log_ref + beta * log_reward).log_softmax(dim=0)


def stand_in(
    log_ref: Tensor, log_reward: Tensor, log_z: Number, *, beta: float, log_behaviour: Tensor, steps: Marks = None
) -> Tensor:
    """Return the minimum of ``E_b (c + log u - beta r)^2`` on the branch ``W_0``, u = pi / pi_ref, c = ``log_z``.

    ``log u = s - W_0(lambda w e^s)`` with s = beta r - c, w = pi_ref / b (times ``steps``, by which each square is
    divided, if given), lambda from normalisation. For ``c <= log Z + log(1 + (e - 1) min p*)`` it is the only
    stationary point; beyond, others have one path on ``W_-1``, and this one ends, at the latest at ``log Z + 1``.
    Source: Richemond et al. (2024), Proposition 1; Xu et al. (2026).
    """
    tilt, log_weight = _tilt(log_ref, log_reward, log_z, beta), _log_weight(log_ref, log_behaviour)
    return _main_branch(log_ref, tilt, log_weight if steps is None else log_weight + _lengths(steps, log_ref).log())


def flipped_mean(
    log_ref: Tensor, log_reward: Tensor, *, beta: float, log_behaviour: Tensor, attached: bool, size: int | None = None
) -> Tensor:
    """Return what ``(d + mean d)^2`` leads to off-policy, d = ``log(pi / pi_ref) - beta r``.

    It is :func:`stand_in` with c = f E_b d, solved for both: f = 1, or 3 for a mean that keeps its gradient
    (``attached``); in batches of ``size`` (n - 1) / (n + 1) or 3 (n - 1) / (n + 3). Source: none, it is ours.
    """
    tilt, log_weight = _tilt(log_ref, log_reward, 0.0, beta), _log_weight(log_ref, log_behaviour)
    check_kind("attached", attached, bool)
    factor = 3.0 if attached else 1.0
    if size is not None:
        check_positive_integers(size=size)
        factor *= (size - 1) / (size + factor)
    return _main_branch(log_ref, tilt, log_weight, factor / (1 + factor))


def inclusive_mean(beta: float, *, size: int) -> float:
    """Return ``(1 - 1/n) beta``: what a mean of ``size`` rewards that has the path's own, but no KL, makes of beta."""
    check_number("beta", beta, above=0)
    check_positive_integers(size=size)
    return beta * (1 - 1 / size)


def length_normalised(
    log_ref: Tensor, log_reward: Tensor, steps: Tensor, *, beta: float, log_z: Number | None = None
) -> Tensor:
    """Return the stationary point of the loss of Zhu et al. (2025), ``(log Z + log(pi / pi_ref) / |y| - beta r)^2``.

    ``pi_ref exp(|y| (beta r - c))``, on- and off-policy, where log Z is learned or centred (``log_z`` None); with c
    fixed, on-policy, ``pi_ref exp(|y| (beta r - c) + kappa |y|^2)``.
    """
    lengths, tilt = _lengths(steps, log_ref), _tilt(log_ref, log_reward, 0.0 if log_z is None else log_z, beta)
    return _normalised(log_ref, lengths * tilt, lengths if log_z is None else lengths.square())


def residual_over_length(log_ref: Tensor, log_reward: Tensor, log_z: Number, steps: Tensor, *, beta: float) -> Tensor:
    """Return the on-policy stationary point of ``(c + log(pi / pi_ref) - beta r)^2 / |y|``, c fixed.

    ``pi_ref exp(beta r - c + kappa |y|)``; a learned log Z gives p*. Source: none, it is ours; the loss, OpenKimi.
    """
    return _normalised(log_ref, _tilt(log_ref, log_reward, log_z, beta), _lengths(steps, log_ref))


def per_step_kl(problem: mdp.Problem, *, kl_weight: float, estimator: str) -> Tensor:
    """Return what a KL per step in the *loss*, summed, leads to on-policy, by backward recursion.

    At each state, with the policy's own plain Q: ``pi_ref exp(Q / alpha)`` for ``"k2"`` (and k3 times the ratio), the
    pole ``alpha pi_ref / (c - Q)``, c in ``(max Q, max Q + alpha]``, for ``"k3"``. Paths as
    :func:`companion.mdp.enumerate_paths` lists them; any graph will do. Source: Yao et al. (2026), the KL of later
    steps that is missing; Vojnovic and Yun (2025), the pole.
    """
    check_kind("problem", problem, mdp.Problem)
    check_number("kl_weight", kl_weight, above=0)
    check_choice("estimator", estimator, ("k2", "k3"))
    check_finite("rewards", problem.rewards, "Leave edges out that are never taken.")
    log_ref, rewards = problem.log_ref.double(), problem.rewards.double()
    values, log_policy = torch.zeros(problem.n_states, dtype=torch.float64), torch.empty_like(log_ref)
    for state in reversed(range(problem.n_states)):
        edges = (problem.source == state).nonzero().squeeze(1)
        if len(edges):
            gains = rewards[edges] + values[problem.target[edges]]
            here, tilt = log_ref[edges], gains / kl_weight
            log_policy[edges] = _pole(here, tilt) if estimator == "k3" else (here + tilt).log_softmax(dim=0)
            values[state] = log_policy[edges].exp() @ gains
    return mdp.enumerate_paths(problem).log_prob(log_policy)


def standardised_success(
    success: float, *, kl_weight: float, estimator: str, group: int = 0, correction: int = 0, epsilon: float = 0.0
) -> dict[str, list[float]]:
    """Return where the chance of success ends when rewards of 0 and 1 are centred and divided by their deviation.

    One decision, ``success`` under the reference, the KL outside. ``"reverse"``: the zeros, in x = logit p, of
    ``2 cosh(x/2) - alpha (x - logit q)``, and p = 1; ``"k3"``: one p, population only. ``group`` is the number of paths
    that the statistics are of, 0 for the population; ``correction`` 1 divides by n - 1; ``epsilon`` is added to the
    deviation: with it, or in groups, p = 1 repels, though the last p may round to it, and zeros are sought on a grid.
    ``stable`` and ``unstable`` for the gradient's flow, ascending. Source: Mroueh (2025); Vojnovic and Yun (2025).
    """
    logit = _check_success(success)
    check_choice("estimator", estimator, ("reverse", "k3"))
    check_number("kl_weight", kl_weight, above=0, at_most=1e100)
    check_number("epsilon", epsilon, at_least=0)
    check_counts(group=group, correction=correction)
    check_number("correction", correction, at_most=1 if group else 0)
    finite = bool(group or epsilon)
    if group == 1 or (finite and estimator == "k3"):
        expected = "groups of 2 or more, none with k3. Pass others."
        raise ValueError(f"group is {group}, epsilon {epsilon}; expected {expected}")
    if estimator == "k3":
        root = math.sqrt(1 + 4 * kl_weight**2 * success * (1 - success))
        return {"stable": [(1 + 2 * kl_weight**2 * success + root) / (2 + 2 * kl_weight**2)], "unstable": []}
    if finite:
        end = logit + float(_gain(torch.tensor([700.0]).double(), group, correction, epsilon)) / kl_weight + 1
        grid = torch.linspace(logit, min(end, max(logit, 0) + 80), _POINTS, dtype=torch.float64)
    else:  # one convex function: its least value parts the two zeros
        end = max(logit, 0) + 4 * math.log1p(kl_weight) + 4 * math.log1p(abs(logit)) + 20
        grid = torch.tensor([logit, max(logit, 2 * math.asinh(kl_weight))], dtype=torch.float64)
    grid = torch.cat([grid, grid.new_tensor([end])])
    zeros = _crossings(lambda x: _gain(x, group, correction, epsilon) - kl_weight * (x - logit), grid)
    ends = {name: torch.tensor(x, dtype=torch.float64).sigmoid().tolist() for name, x in zeros.items()}
    return ends if finite else ends | {"stable": [*ends["stable"], 1.0]}


def critical_kl_weight(success: float) -> float:
    """Return the weight of the KL below which p = 1 is all that is left of :func:`standardised_success`, population.

    ``sinh(x/2)`` at ``(x - logit q) tanh(x/2) = 2``, where two points meet; the equation is that of Mroueh (2025).
    """
    logit = _check_success(success)
    low = max(logit, 0.0)
    return math.sinh(_bisect(lambda x: 2 - (x - logit) * math.tanh(x / 2), low, low + 4) / 2)


def standardised_tilts(
    log_ref: Tensor, log_reward: Tensor, tilts: Tensor, *, kl_weight: float
) -> dict[str, list[float]]:
    """Return each B between the ascending ``tilts`` with ``B sigma(B) = 1 / alpha``, for rewards over their deviation.

    sigma(B) is the deviation of r under ``pi_ref exp(B r)``, which is then a fixed point. ``stable`` and ``unstable``
    for the *natural* gradient's flow; B to infinity attracts too. Source: none, it is ours.
    """
    _tilt(log_ref, log_reward, 0.0, 1.0)  # only to check
    check_number("kl_weight", kl_weight, above=0)
    check_kind("tilts", tilts, Tensor)
    if tilts.ndim != 1 or tilts.dtype != torch.float64 or not bool((tilts > 0).all() & (tilts.diff() > 0).all()):
        expected = "[points], float64, positive, ascending. Pass a grid."
        raise ValueError(f"tilts is {tuple(tilts.shape)}; expected {expected}")

    def excess(tilt: Tensor) -> Tensor:
        law = (log_ref + tilt[:, None] * log_reward).softmax(dim=1)
        apart = log_reward - (law @ log_reward)[:, None]
        return 1 / kl_weight - tilt * (law * apart.square()).sum(dim=1).sqrt()

    return _crossings(excess, tilts)


def log_lambert_w(x: Tensor, *, negative: bool = False) -> Tensor:
    """Return ``log W_0(exp(x))``, or with ``negative`` ``log(-W_0(-exp(x)))``, for x <= -1, where ``W_-1`` begins.

    The root of ``l + exp(l) = x``, or of ``l - exp(l) = x``; any shape. Source: none, it is Newton's method.
    """
    check_kind("x", x, Tensor)
    check_finite("x", x, "Leave these out.")
    if negative and bool((x > -1).any()):
        raise ValueError(f"x reaches {float(x.max()):g}; expected at most -1, or W_0(-exp(x)) is not real. Lower it.")
    sign = -1 if negative else 1
    log_w = -(-2 - 2 * x).sqrt() if negative else torch.where(x > 1, x.clamp(min=1).log(), x)
    for _ in range(_HALVINGS):  # Newton, from where it goes straight to the root
        slope = -torch.expm1(log_w) if negative else 1 + log_w.exp()
        step = (log_w + sign * torch.expm1(log_w) - (x - sign)) / slope.clamp(min=1e-300)
        log_w = log_w - step
        if bool((step.abs() <= 1e-16 * (1 + log_w.abs())).all()):
            break
    return log_w


def _main_branch(log_ref: Tensor, tilt: Tensor, log_weight: Tensor, feedback: float = 0.0) -> Tensor:
    """Return log pi with ``log u = tilt + feedback lambda - lambda w u`` on W_0, lambda from normalisation.

    Sought is ``log |lambda w u|`` where it is largest: at most 0 for lambda < 0. Feedback, in [0, 1), lowers c.
    """
    gap, height = float(torch.logsumexp(log_ref + tilt, dim=0)), tilt + log_weight
    sign, top = math.copysign(1.0, gap), float(height.max())
    if gap == 0:
        return log_ref + tilt

    def law(own: float) -> Tensor:
        log_rate = torch.tensor(own + sign * math.exp(own) - top, dtype=torch.float64)
        if feedback:
            log_rate = log_lambert_w(log_rate + math.log(feedback), negative=sign < 0) - math.log(feedback)
        moved = tilt + sign * feedback * log_rate.exp()
        x = (moved + log_weight + log_rate).clamp(max=math.inf if sign > 0 else -1)
        return log_ref + moved - sign * log_lambert_w(x, negative=sign < 0).exp()

    def excess(own: float) -> float:
        return sign * float(torch.logsumexp(law(own), dim=0))

    if sign < 0 and (gap < -1 or (feedback > 0 and top < math.log(feedback)) or excess(0.0) > 0):
        mend = "Pass a lower log_z, or another behaviour: one path would lie on W_-1, and several minima can coexist."
        raise ValueError(f"log Z - c is {gap:g}, too little for a solution on W_0; expected more. {mend}")
    most = math.log((gap + top - float(height.min())) / (1 - feedback)) if sign > 0 else 0.0
    return law(_bisect(excess, math.log(abs(gap)), most))


def _pole(log_ref: Tensor, tilt: Tensor) -> Tensor:
    """Return ``log(pi_ref / (c - tilt))`` with c above all of tilt, from normalisation."""
    below = tilt.max() - tilt

    def law(log_above: float) -> Tensor:
        return log_ref - (below + math.exp(log_above)).log()

    return law(_bisect(lambda x: float(law(x).logsumexp(dim=0)), float(log_ref[tilt.argmax()]), 0.0))


def _normalised(log_ref: Tensor, tilt: Tensor, slope: Tensor) -> Tensor:
    """Return ``log_ref + tilt - c slope`` with c from normalisation; slope > 0."""
    ratio = tilt / slope

    def law(c: float) -> Tensor:
        return log_ref + tilt - c * slope

    return law(_bisect(lambda c: float(law(c).logsumexp(dim=0)), float(ratio.min()), float(ratio.max())))


def _gain(x: Tensor, group: int, correction: int, epsilon: float) -> Tensor:
    """Return the mean advantage of a success less that of a failure, where logit p = x: ``[points]``."""
    if not group:
        return 1 / (0.5 / torch.cosh(x / 2) + epsilon)
    more = torch.arange(group - 1, dtype=torch.float64)  # successes among the n - 2 beside a success and a failure
    log_ways = math.lgamma(group - 1) - torch.lgamma(more + 1) - torch.lgamma(group - 1 - more)
    up, down = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    chance = (log_ways + more * up[:, None] + (group - 2 - more) * down[:, None]).exp()
    deviation = ((more + 1) * (group - 1 - more) / (group * (group - correction))).sqrt()
    return (chance * (1 - 1 / group) / (deviation + epsilon)).sum(dim=1)


def _crossings(excess: Callable[[Tensor], Tensor], grid: Tensor) -> dict[str, list[float]]:
    """Return where a function falls through zero between points of a grid, ``stable``, and rises, ``unstable``."""
    found: dict[str, list[float]] = {"stable": [], "unstable": []}
    above = excess(grid) > 0
    for j in above.diff().nonzero().squeeze(1).tolist():
        name, sign = ("stable", 1) if above[j] else ("unstable", -1)
        low, high = grid[j : j + 2].tolist()
        found[name].append(_bisect(lambda x: float(excess(grid.new_tensor([x]))), low, high, sign))
    return found


def _bisect(excess: Callable[[float], float], low: float, high: float, sign: int = 1) -> float:
    """Return where a function falls (rises, for ``sign`` -1) through zero between two points, to the last digit."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def _tilt(log_ref: Tensor, log_reward: Tensor, log_z: Number, beta: float) -> Tensor:
    """Check what most closed forms are given; return ``beta r - c``."""
    _check_law("log_ref", log_ref)
    check_number("beta", beta, above=0)
    check_like("log_reward", log_reward, log_ref, log_ref.shape, _PER_PATH)
    check_constant(log_reward=log_reward)
    if isinstance(log_z, Tensor):
        check_scalar("log_z", log_z, log_ref)
        check_constant(log_z=log_z)
    else:
        check_number("log_z", log_z)
    return beta * log_reward - log_z


def _lengths(steps: Tensor, log_ref: Tensor) -> Tensor:
    check_kind("steps", steps, Tensor)
    if steps.dtype not in (torch.int32, torch.int64) or steps.shape != log_ref.shape or bool((steps < 1).any()):
        expected = f"{_PER_PATH}, integers, 1 or more. Pass true lengths."
        raise ValueError(f"steps is {tuple(steps.shape)}; expected {expected}")
    return steps.double()


def _log_weight(log_ref: Tensor, log_behaviour: Tensor) -> Tensor:
    _check_law("log_behaviour", log_behaviour)
    check_like("log_behaviour", log_behaviour, log_ref, log_ref.shape, _PER_PATH)
    return log_ref - log_behaviour


def _check_law(name: str, law: Tensor) -> None:
    check_kind(name, law, Tensor)
    if law.dtype != torch.float64:
        raise ValueError(f"{name} is {law.dtype}; expected torch.float64. Convert it with .double().")
    check_constant(**{name: law})
    check_finite(name, law, "Leave paths out that cannot occur.")
    check_law(name, law.exp(), 1e-9)


def _check_success(success: float) -> float:
    """Return the logit of a probability in (0, 1)."""
    check_number("success", success, above=0)
    check_number("1 - success", 1 - success, above=0)
    return math.log(success) - math.log1p(-success)
