"""The symbolic vocabulary: what reduce proves, what it must not, and that the symbols are about the code."""

import subprocess
import sys

import pytest
import sympy
import torch
from inputs import agree, generator
from sympy import Sum, symbols

from companion import rtb, symbolic, trust_pcl
from companion.symbolic import (
    N,
    Phi,
    Q,
    R,
    T,
    V,
    Z,
    a,
    alpha,
    beta,
    d,
    eta,
    evaluate,
    gamma,
    i,
    k,
    lam,
    log_F,
    log_pi,
    log_r,
    log_ref,
    log_z,
    n,
    over_actions,
    over_path,
    over_paths,
    pi,
    pi_ref,
    reduce,
    replace_entries,
    rtb_residual,
    split_last,
    start,
    sub_trajectory_residual,
    t,
    trust_pcl_residual,
)

# reduce.

EQUAL = {
    "differences telescope": (over_path(Phi[t + 1] - Phi[t]), Phi[T] - Phi[0]),
    "another name of a step": (over_path(R[t]), Sum(R[k], (k, 0, T - 1))),
    "another name of an action": (over_actions(pi[a]), Sum(pi[i], (i, 1, n))),
    "the logarithm of a product": (
        sympy.log(pi_ref[a] * Z / alpha),
        sympy.log(pi_ref[a]) + sympy.log(Z) - sympy.log(alpha),
    ),
    "the logarithm of a ratio in a sum": (
        over_actions(sympy.log(pi[a] / pi_ref[a])),
        over_actions(sympy.log(pi[a]) - sympy.log(pi_ref[a])),
    ),
    "the logarithm of a square of a positive number": (
        over_path(sympy.log(pi[t] ** 2)),
        2 * over_path(sympy.log(pi[t])),
    ),
    "a constant, as often as the range is long": (Sum(Z, (t, 2, T)), (T - 1) * Z),
    "a constant beside a summand that varies": (Sum(R[t] + Z, (t, 2, T)), Sum(R[t], (t, 2, T)) + (T - 1) * Z),
}


@pytest.mark.parametrize("name", EQUAL)
def test_reduce_proves_an_identity(name):
    left, right = EQUAL[name]
    assert reduce(left - right) == 0


WRONG = {
    "a sign": over_path(log_pi[t] - log_ref[t]) - over_path(log_pi[t] + log_ref[t]),
    "a dropped term": over_path(R[t] - alpha * log_pi[t]) - over_path(R[t]),
    "a dropped step": over_path(R[t]) - Sum(R[t], (t, 0, T - 2)),
    "a step too many": over_path(R[t]) - Sum(R[t], (t, 0, T)),
    # Each of the next three ranges has T terms, as has 0, ..., T - 1; the terms are others.
    "a range one later": Sum(R[t], (t, 1, T)) - over_path(R[t]),
    "a range a path later": Sum(R[t], (t, T, 2 * T - 1)) - over_path(R[t]),
    "a range one earlier": Sum(R[t], (t, -1, T - 2)) - over_path(R[t]),
    "the next entry": over_path(R[t]) - over_path(R[t + 1]),
    "a shifted telescope": over_path(V[t + 1] - V[t]) - V[T],
    "a constant once too often": Sum(R[t] + Z, (t, 2, T)) - Sum(R[t], (t, 2, T)) - T * Z,
    "alpha for alpha squared": alpha**2 * over_path(R[t]) ** 2 - (alpha * over_path(R[t])) ** 2 / alpha,
    "a square of a sum": over_path(R[t]) ** 2 - over_path(R[t] ** 2),
    "a missing half": over_path(R[t]) ** 2 / 2 - over_path(R[t]) ** 2,
    "log of a sum": sympy.log(over_actions(pi[a] * sympy.exp(Q[a]))) - over_actions(sympy.log(pi[a]) + Q[a]),
    # log R^2 = 2 log |R|, and R may be negative.
    "log of a square": sympy.log(R[0] ** 2) - 2 * sympy.log(R[0]),
    "log of a square in a sum": over_path(sympy.log(R[t] ** 2) - 2 * sympy.log(R[t])),
    "a mean for a sum": over_path(R[t]) - over_path(R[t]) / T,
    "one entry": R[t] - R[t + 1],
    "paths for steps": over_path(R[t]) - over_paths(R[k]),
    "paths for actions": over_paths(pi[k]) / N - over_actions(pi[a]) / n,
}


@pytest.mark.parametrize("name", WRONG)
def test_reduce_does_not_prove_a_wrong_identity(name):
    assert reduce(WRONG[name]) != 0


def test_a_given_equation_is_used_whatever_its_index():
    policy = over_actions(pi[a] * Z) - Z
    assert reduce(policy) != 0
    assert reduce(policy, {over_actions(pi[a]): 1}) == 0
    assert reduce(policy, {Sum(pi[k], (k, 1, n)): 1}) == 0


def test_a_wrong_given_equation_proves_nothing():
    assert reduce(over_actions(pi[a] * Z) - Z, {over_actions(pi[a]): 2}) != 0
    assert reduce(over_actions(pi[a]) - 1, {over_actions(pi_ref[a]): 1}) != 0


@pytest.mark.parametrize("number", [sympy.S.One, sympy.log(2), sympy.Rational(1, 10**20), sympy.sqrt(2) - 1])
def test_a_number_that_is_not_zero_stays_itself(number):
    assert reduce(number) == number
    assert reduce(over_path(R[t]) - over_path(R[t]) + number) == number


SUMS_OF_SUMS = {
    "two indices": Sum(R[t] * V[k], (t, 0, T - 1), (k, 1, N)),
    "a sum inside": over_path(R[t] * over_paths(V[k])),
    "the inner range moves": over_path(Sum(R[k], (k, 0, t))),
}


@pytest.mark.parametrize("tool", [reduce, split_last])
@pytest.mark.parametrize("name", SUMS_OF_SUMS)
def test_a_sum_of_sums_is_refused(name, tool):
    with pytest.raises(ValueError, match="is a sum of sums; expected one index"):
        tool(SUMS_OF_SUMS[name])


def test_sums_of_symbolic_length_stay_sums():
    left = reduce(over_path(R[t] + 0))
    assert left.has(Sum) and T in left.free_symbols


# The other tools.


def test_the_last_term_is_split_off_every_sum():
    whole = over_path(R[t]) + 2 * Sum(V[i + 1], (i, 0, d - 1))
    parts = Sum(R[t], (t, 0, T - 2)) + R[T - 1] + 2 * (Sum(V[i + 1], (i, 0, d - 2)) + V[d])
    assert sympy.expand(split_last(whole) - parts) == 0
    assert split_last(whole) != whole


def test_splitting_the_last_term_changes_no_value():
    total = over_path(R[t] * gamma**t)
    values = {T: 4, gamma: 0.7, R: torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)}
    assert agree(evaluate(split_last(total), values), evaluate(total, values))
    # 1 - 2 * 0.7 + 0.5 * 0.49 + 3 * 0.343 = 1 - 1.4 + 0.245 + 1.029.
    assert agree(evaluate(total, values), 0.874)


def test_entries_are_replaced_inside_sums_and_of_one_base_alone():
    before = V[0] + over_path(V[t + 1] - R[t])
    after = replace_entries(before, V, lambda j: alpha * log_F[j])
    assert after == alpha * log_F[0] + over_path(alpha * log_F[t + 1] - R[t])
    assert replace_entries(before, Phi, lambda j: 0 * j) == before


def test_evaluate_computes_batches_logarithms_and_exponentials():
    by_step = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    found = evaluate(over_path(R[t]) + sympy.log(Z), {T: 2, R: by_step.T, Z: 1.0})
    assert agree(found, [3.0, 8.0])
    assert found.dtype == torch.float64
    # log(2 e^0 + 2 e^0) = log 4.
    weights = {n: 2, pi: torch.tensor([0.0, 2.0, 2.0]), Q: torch.zeros(3)}
    assert agree(
        evaluate(sympy.log(over_actions(pi[a] * sympy.exp(Q[a]))), weights),
        2 * torch.tensor(2.0).double().log(),
    )


#: Where torch cannot be imported: the sum of a symbolic number of differences.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from companion.symbolic import *
print(reduce(over_path(Phi[t + 1] - Phi[t])))
"""


def test_all_but_evaluate_works_where_there_is_no_torch():
    """As in a browser."""
    found = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, capture_output=True, text=True).stdout
    assert found.strip() == str(Phi[T] - Phi[0])
    without = WITHOUT_TORCH + "evaluate(T, {T: 1})"
    failed = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True)
    assert failed.returncode == 1 and "import of torch halted" in failed.stderr


@pytest.mark.parametrize(("missing", "name"), [(T, "T"), (R, "R"), (beta, "beta")])
def test_evaluate_names_the_symbol_without_a_value(missing, name):
    values = {T: 2, R: torch.ones(2), beta: 1.0}
    del values[missing]
    with pytest.raises(ValueError, match=f"No value for {name}; expected one for every free symbol"):
        evaluate(beta * over_path(R[t]), values)


def test_evaluate_needs_no_value_for_an_index_of_a_sum():
    assert agree(evaluate(over_path(R[t]), {T: 2, R: torch.ones(2)}), 2.0)


def test_a_free_entry_needs_its_index():
    with pytest.raises(ValueError, match="No value for t"):
        evaluate(R[t], {R: torch.ones(2)})


@pytest.mark.parametrize("name", ["T", "n", "d", "N"])
def test_horizons_and_numbers_are_symbols(name):
    assert getattr(symbolic, name) == symbols(name, integer=True, positive=True)


@pytest.mark.parametrize("residual", [trust_pcl_residual, sub_trajectory_residual])
def test_the_start_of_a_sub_path_may_not_hold_the_index_of_the_sum(residual):
    with pytest.raises(ValueError, match="expected an expression without i"):
        residual(sympy.S.One, start + i)
    assert start + t in {entry.indices[0] for entry in residual(sympy.S.One, start + t).doit().atoms(sympy.Indexed)}


# Claims: the algebra, and that its two sides are the functions of the package.


def numbers(batch: int, steps: int, seed: int) -> dict:
    """Return random per-step quantities and values of a batch of paths, named as in the torch functions."""
    random = generator(seed)
    names = ("log_pi", "log_ref", "rewards")
    found = {name: torch.randn(batch, steps, generator=random, dtype=torch.float64) for name in names}
    found["values"] = torch.randn(batch, steps + 1, generator=random, dtype=torch.float64)
    found["values"][:, -1] = 0
    return found


def entries(found: dict) -> dict:
    """Return the same quantities as values of the indexed bases, the index first."""
    return dict(zip((log_pi, log_ref, R, V), (tensor.T for tensor in found.values()), strict=True))


def one_residual(rtb_side: sympy.Expr) -> sympy.Expr:
    """Return Trust-PCL's residual in the setting of the theorem less an expression in RTB's."""
    residual = trust_pcl_residual().subs({gamma: 1, eta: 0, lam: alpha})
    residual = residual.subs({V[0]: alpha * log_z, V[T]: 0})
    return reduce(residual - rtb_side, {over_path(R[t]): log_r})


@pytest.mark.claim("E1")
def test_one_residual_for_every_horizon():
    difference = one_residual(-alpha * rtb_residual().subs(beta, 1 / alpha))
    assert difference == 0
    assert T in trust_pcl_residual().free_symbols and T in rtb_residual().free_symbols


@pytest.mark.claim("E1")
@pytest.mark.parametrize("factor", [alpha, -1, -(alpha**2), -alpha / 2])
def test_no_other_factor_joins_the_two_residuals(factor):
    assert one_residual(factor * rtb_residual().subs(beta, 1 / alpha)) != 0


@pytest.mark.claim("E1")
@pytest.mark.parametrize("wrong", [log_pi, log_ref])
def test_the_residuals_differ_once_a_term_is_dropped(wrong):
    dropped = replace_entries(rtb_residual(), wrong, lambda j: sympy.S.Zero).subs(beta, 1 / alpha)
    assert one_residual(-alpha * dropped) != 0
    assert one_residual(-alpha * rtb_residual()) != 0


@pytest.mark.claim("E1")
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_symbolic_rtb_residual_is_that_of_the_package(steps):
    found = numbers(6, steps, 70 + steps)
    log_reward = found["rewards"].sum(dim=1)
    values = {
        T: steps,
        beta: 1.7,
        log_z: 0.4,
        log_r: log_reward,
        log_pi: found["log_pi"].T,
        log_ref: found["log_ref"].T,
    }
    log_scalar = torch.tensor(0.4, dtype=torch.float64)
    ours = rtb.residual(found["log_pi"], found["log_ref"], log_reward, log_scalar, beta=1.7)
    assert agree(ours, evaluate(rtb_residual(), values), scale=20)


@pytest.mark.claim("E1", "P3")
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("kl", "entropy", "discount"), [(0.6, 0.0, 1.0), (0.6, 0.3, 0.8), (0.0, 1.2, 0.5)])
def test_the_symbolic_trust_pcl_residual_is_that_of_the_package(steps, kl, entropy, discount):
    found = numbers(6, steps, 80 + steps)
    ours = trust_pcl.residual(**found, kl_weight=kl, entropy_weight=entropy, gamma=discount)
    values = entries(found) | {T: steps, lam: kl, eta: entropy, gamma: discount}
    assert agree(ours, evaluate(trust_pcl_residual(), values), scale=20)


@pytest.mark.claim("P2")
def test_consistency_telescopes_by_induction_over_the_length():
    one = trust_pcl_residual(sympy.S.One, start + d).doit()
    longer = split_last(trust_pcl_residual(d + 1, start))
    assert reduce(longer - trust_pcl_residual(d, start) - gamma**d * one) == 0
    # The first length: one step is one step, whatever its start.
    assert reduce(trust_pcl_residual(sympy.S.One, start) - trust_pcl_residual(d, start).subs(d, 1).doit()) == 0


@pytest.mark.claim("P2")
def test_the_induction_fails_with_another_discount():
    one = trust_pcl_residual(sympy.S.One, start + d).doit()
    longer = split_last(trust_pcl_residual(d + 1, start))
    assert reduce(longer - trust_pcl_residual(d, start) - gamma ** (d + 1) * one) != 0
    assert reduce(longer - trust_pcl_residual(d, start) - one) != 0


@pytest.mark.claim("P2")
@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, 5), (1, 3), (4, 1)])
def test_the_residual_of_a_sub_path_is_the_discounted_sum_of_its_steps(first, length):
    found = numbers(6, 5, 90)
    weights = {"kl_weight": 0.6, "entropy_weight": 0.3, "gamma": 0.8}
    whole = trust_pcl.residual(**found, **weights, start=first, stop=first + length)
    steps = [trust_pcl.residual(**found, **weights, start=first + j, stop=first + j + 1) for j in range(length)]
    assert agree(whole, sum(0.8**j * step for j, step in enumerate(steps)), scale=20)
    values = entries(found) | {d: length, start: first, lam: 0.6, eta: 0.3, gamma: 0.8}
    assert agree(whole, evaluate(trust_pcl_residual(d, start), values), scale=20)


@pytest.mark.claim("P3")
def test_one_step_is_consistent_at_the_optimum_of_the_general_form():
    optimum = (R[start] + gamma * V[start + 1] + lam * log_ref[start] - V[start]) / (eta + lam)
    step = trust_pcl_residual(sympy.S.One, start).doit()
    assert reduce(step.subs(log_pi[start], optimum)) == 0
    assert reduce(step.subs(log_pi[start], optimum * (eta + lam) / lam)) != 0


@pytest.mark.claim("P3")
def test_without_a_kl_weight_the_general_form_is_pcl():
    pcl = -V[0] + gamma**T * V[T] + over_path(gamma**t * (R[t] - eta * log_pi[t]))
    assert reduce(trust_pcl_residual().subs(lam, 0) - pcl) == 0
    kl_only = -V[0] + gamma**T * V[T] + over_path(gamma**t * (R[t] - alpha * (log_pi[t] - log_ref[t])))
    assert reduce(trust_pcl_residual().subs({eta: 0, lam: alpha}) - kl_only) == 0
    assert reduce(trust_pcl_residual() - kl_only) != 0


def sub_path_difference(factor: sympy.Expr) -> sympy.Expr:
    """Return d-step Trust-PCL, V = alpha log F and no reward, less a factor times RTB's sub-path."""
    residual = trust_pcl_residual(d, start).subs({gamma: 1, eta: 0, lam: alpha})
    residual = replace_entries(residual, V, lambda j: alpha * log_F[j])
    residual = replace_entries(residual, R, lambda j: sympy.S.Zero)
    return reduce(residual - factor * sub_trajectory_residual())


@pytest.mark.claim("E5")
def test_sub_paths_agree_for_every_start_and_length():
    assert sub_path_difference(-alpha) == 0
    assert {d, start} <= sub_trajectory_residual().free_symbols
    for factor in (alpha, sympy.S.NegativeOne, -(alpha**2)):
        assert sub_path_difference(factor) != 0


@pytest.mark.claim("E5")
def test_the_last_sub_path_takes_the_reward_in_place_of_the_last_flow():
    # From s to the end log r is earned on the way and V(s_T) = 0, while log F(x) = beta log r.
    residual = trust_pcl_residual(T - start, start).subs({gamma: 1, eta: 0, lam: alpha})
    residual = residual.subs({V[T]: 0, V[start]: alpha * log_F[start]})
    ours = sub_trajectory_residual(T - start, start).subs(log_F[T], log_r / alpha)
    earned = {Sum(R[start + i], (i, 0, T - start - 1)): log_r}
    assert reduce(residual + alpha * ours, earned) == 0


@pytest.mark.claim("E5")
@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, 5), (1, 3), (4, 1)])
def test_the_symbolic_sub_path_residual_is_that_of_the_package(first, length):
    found = numbers(6, 5, 95)
    flow = found["values"] + 0.5
    span = {"start": first, "stop": first + length}
    ours = rtb.sub_trajectory_residual(found["log_pi"], found["log_ref"], flow, **span)
    values = {d: length, start: first, log_F: flow.T, log_pi: found["log_pi"].T, log_ref: found["log_ref"].T}
    assert agree(ours, evaluate(sub_trajectory_residual(), values), scale=20)
    # d-step Trust-PCL between non-terminal states, or to the end with the reward on the last step.
    alpha_ = 0.6
    states, rewards = alpha_ * flow, torch.zeros_like(found["log_pi"])
    rewards[:, -1], states[:, -1] = alpha_ * flow[:, -1], 0
    theirs = trust_pcl.residual(found["log_pi"], found["log_ref"], rewards, states, kl_weight=alpha_, **span)
    assert agree(theirs, -alpha_ * ours, scale=20)


def test_a_sum_over_paths_begins_with_the_first():
    assert symbolic.over_paths(k).limits == ((k, 1, N),)


def test_numbers_are_put_into_logarithms_and_exponentials():
    x = symbols("x", positive=True)
    numbers = torch.tensor([3.0, 5.0], dtype=torch.float64)
    value = symbolic.evaluate(sympy.log(x) + sympy.exp(2 * x), {x: numbers})
    torch.testing.assert_close(value, numbers.log() + (2 * numbers).exp())
