"""The identities of the chapters from ``kl-regularised-rl`` to ``the-equivalence`` as properties of random input.

Every expected value is worked out here, in plain Python or numpy and in float64, from the numbers that the
functions are given; so two functions are never compared with each other alone. Tolerances are a few eps of
the size of the terms.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import PROPERTY, Batch, assert_agree, batches, generator, random_graph, tensor
from oracles import listed_paths, log_sum_exp, padded, random_policy, summed

from companion import mdp, reinforce, rtb, trust_pcl

ALPHAS = st.floats(-3, 3).map(lambda power: 10**power)
SEEDS = st.integers(0, 2**31)


def first_value(b: Batch, value: torch.Tensor) -> torch.Tensor:
    """Return [batch, steps + 1] with V(s_0) first; past it the batch's own values, which must not matter."""
    return torch.cat([value.expand(len(b.log_pi), 1), b.values[:, 1:]], dim=1)


def plain_rtb(b: Batch) -> np.ndarray:
    """RTB's residual times alpha, from the numbers of the batch: no beta, no loss of digits in 1/alpha."""
    log_pi, log_ref, rewards = (x.double().numpy() for x in (b.log_pi, b.log_ref, b.rewards))
    log_ratio = np.array([math.fsum(row) for row in (log_pi - log_ref)])
    return b.alpha * (float(b.log_z) + log_ratio) - np.array([math.fsum(row) for row in rewards])


@pytest.mark.claim("E1")
@PROPERTY
@given(batches())
def test_trust_pcl_residual_is_minus_alpha_times_rtb_residual(b):
    """On every path, however the reward is split over its steps."""
    alpha, expected = b.alpha, plain_rtb(b)
    ours = alpha * rtb.residual(b.log_pi, b.log_ref, b.log_reward, b.log_z, beta=1 / alpha).double()
    theirs = trust_pcl.residual(b.log_pi, b.log_ref, b.rewards, first_value(b, alpha * b.log_z), kl_weight=alpha)
    assert_agree(ours, expected, b.size(), b.dtype)
    assert_agree(theirs, -expected, b.size(), b.dtype)


@pytest.mark.claim("E2")
@PROPERTY
@given(batches())
def test_trust_pcl_loss_is_alpha_squared_times_rtb_loss(b):
    """On any batch whatever: nothing is assumed of where the paths come from."""
    alpha = b.alpha
    expected = (plain_rtb(b) ** 2).mean() / 2
    size = b.size().square().mean()  # of Delta^2 / 2, whose error is |Delta| times the error of Delta
    ours = rtb.loss(b.log_pi, b.log_ref, b.log_reward, b.log_z, beta=1 / alpha).double()
    theirs = trust_pcl.loss(b.log_pi, b.log_ref, b.rewards, first_value(b, alpha * b.log_z), kl_weight=alpha)
    assert_agree(alpha**2 * ours, expected, size, b.dtype)
    assert_agree(theirs, expected, size, b.dtype)


@pytest.mark.claim("E3")
@PROPERTY
@given(batches(), SEEDS, st.floats(-2, 4))
def test_gradients_differ_by_alpha_squared_in_the_policy_and_by_alpha_in_the_value(b, seed, power):
    """A softmax policy over three actions in as many states as there are steps; logits down to -1e4."""
    alpha, (batch, steps), random = b.alpha, b.log_pi.shape, generator(seed)
    logits = -(10**power) * torch.rand(steps, 3, generator=random, dtype=torch.float64)
    theta = logits.to(b.dtype).requires_grad_()
    actions = torch.randint(3, (batch, steps), generator=random)
    log_pi = torch.log_softmax(theta, dim=1)[torch.arange(steps), actions]
    log_z = b.log_z.clone().requires_grad_()
    value = (alpha * b.log_z).requires_grad_()
    ours = rtb.loss(log_pi, b.log_ref, b.log_reward, log_z, beta=1 / alpha)
    theirs = trust_pcl.loss(log_pi, b.log_ref, b.rewards, first_value(b, value), kl_weight=alpha)
    by_theta, by_log_z = (x.double() for x in torch.autograd.grad(ours, (theta, log_z), retain_graph=True))
    by_theta_too, by_value = (x.double() for x in torch.autograd.grad(theirs, (theta, value)))

    # by hand: Delta times the score, chosen action less probability, at each state; Delta alone for log Z
    now = Batch(log_pi.detach(), b.log_ref, b.rewards, b.values, b.log_z, b.lengths, alpha)
    delta, size = plain_rtb(now), now.size().mean()
    weights = torch.softmax(theta.detach().double(), dim=1).numpy()
    score = np.eye(3)[actions.numpy()] - weights
    gradient = (delta[:, None, None] * score).mean(axis=0)
    assert_agree(alpha**2 * by_theta, alpha * gradient, alpha * size, b.dtype)
    assert_agree(by_theta_too, alpha * gradient, alpha * size, b.dtype)
    assert_agree(alpha * by_log_z, delta.mean(), size, b.dtype)
    assert_agree(by_value, delta.mean(), size, b.dtype)


@pytest.mark.claim("E5")
@PROPERTY
@given(batches())
def test_every_sub_path_of_trust_pcl_is_minus_alpha_times_relative_sub_trajectory_balance(b):
    """Every start and stop, single transitions and padding too; rewards at the end only; log F = V/alpha."""
    alpha, (batch, steps) = b.alpha, b.log_pi.shape
    last = torch.arange(steps) == b.lengths[:, None] - 1
    rewards = torch.where(last, b.rewards, 0.0)
    log_reward = b.rewards[last]
    ended = torch.arange(steps + 1) >= b.lengths[:, None]
    log_flow = torch.where(ended, (1 / alpha) * log_reward[:, None], b.values / alpha)
    log_ratio = (b.log_pi.double() - b.log_ref.double()).tolist()
    flow = torch.where(ended, log_reward[:, None].double(), b.values.double()).tolist()  # alpha log F
    size = b.size() + b.values.double().abs().amax(dim=1) + log_reward.double().abs()
    for start in range(steps):
        for stop in range(start + 1, steps + 1):
            balance = [
                alpha * math.fsum(log_ratio[k][start:stop]) + flow[k][start] - flow[k][stop] for k in range(batch)
            ]
            span = {"start": start, "stop": stop}
            ours = rtb.sub_trajectory_residual(b.log_pi, b.log_ref, log_flow, **span).double()
            theirs = trust_pcl.residual(b.log_pi, b.log_ref, rewards, b.values, kl_weight=alpha, **span)
            assert_agree(alpha * ours, balance, size, b.dtype)
            assert_agree(theirs, -tensor(balance), size, b.dtype)


@st.composite
def weighted(draw) -> tuple[Batch, dict]:
    """Draw a batch with an entropy weight, a KL weight (either may vanish) and a discount."""
    b = draw(batches())
    share = draw(st.sampled_from([0.0, 1.0, None]))
    share = draw(st.floats(0.01, 0.99)) if share is None else share
    gamma = draw(st.sampled_from([1.0, 0.99, 0.5, 0.1]) | st.floats(0.05, 1.0))
    return b, {"entropy_weight": share * b.alpha, "kl_weight": (1 - share) * b.alpha, "gamma": gamma}


def exact_residual(b: Batch, k: int, weights: dict, start: int, stop: int) -> Fraction:
    """Trust-PCL's residual of path k in exact arithmetic, as Nachum et al. write it, step after step."""
    eta, lam, gamma = (Fraction(weights[name]) for name in ("entropy_weight", "kl_weight", "gamma"))
    total, discount = -Fraction(float(b.values[k, start])), Fraction(1)
    for t in range(start, stop):
        reward, log_pi, log_ref = (Fraction(float(x[k, t])) for x in (b.rewards, b.log_pi, b.log_ref))
        total += discount * (reward - eta * log_pi - lam * (log_pi - log_ref))
        discount *= gamma
    return total + discount * Fraction(float(b.values[k, stop]))


@pytest.mark.claim("P3")
@PROPERTY
@given(weighted(), st.data())
def test_residual_with_both_weights_and_a_discount_is_nachums_formula(drawn, data):
    """An entropy bonus and a KL penalty, added up in fractions; lambda = 0 (PCL) and eta = 0 too."""
    b, weights = drawn
    start = data.draw(st.integers(0, b.log_pi.shape[1] - 1))
    stop = data.draw(st.integers(start + 1, b.log_pi.shape[1]))
    expected = [float(exact_residual(b, k, weights, start, stop)) for k in range(len(b.log_pi))]
    found = trust_pcl.residual(b.log_pi, b.log_ref, b.rewards, b.values, start=start, stop=stop, **weights)
    size = b.size() + b.values.double().abs().sum(dim=1)
    assert_agree(found, expected, size, b.dtype)
    loss = trust_pcl.loss(b.log_pi, b.log_ref, b.rewards, b.values, start=start, stop=stop, **weights)
    assert_agree(loss, np.square(expected).mean() / 2, size.square().mean(), b.dtype)


@pytest.mark.claim("P2")
@PROPERTY
@given(weighted())
def test_a_residual_on_d_transitions_is_the_discounted_sum_of_single_ones(drawn):
    """Every start and stop; the single transitions both from the function and in fractions."""
    b, weights = drawn
    inputs, (batch, steps) = (b.log_pi, b.log_ref, b.rewards, b.values), b.log_pi.shape
    singles = [trust_pcl.residual(*inputs, start=t, stop=t + 1, **weights).double() for t in range(steps)]
    exact = [[exact_residual(b, k, weights, t, t + 1) for t in range(steps)] for k in range(batch)]
    size = b.size() + 2 * b.values.double().abs().sum(dim=1)
    gamma = Fraction(weights["gamma"])
    for start in range(steps):
        for stop in range(start + 1, steps + 1):
            found = trust_pcl.residual(*inputs, start=start, stop=stop, **weights)
            summed_up = sum(weights["gamma"] ** (t - start) * singles[t] for t in range(start, stop))
            assert_agree(found, summed_up, size, b.dtype)
            by_hand = [float(sum(gamma ** (t - start) * row[t] for t in range(start, stop))) for row in exact]
            assert_agree(found, by_hand, size, b.dtype)


@pytest.mark.claim("K6")
@PROPERTY
@given(batches(), SEEDS)
def test_no_split_of_the_reward_and_no_potential_moves_the_full_path_residual(b, seed):
    """The total, split anew over the real steps of each path; then a potential that is zero at both ends."""
    (batch, steps), random = b.log_pi.shape, generator(seed)
    values = first_value(b, b.alpha * b.log_z)
    expected = -plain_rtb(b)
    shares = torch.rand(batch, steps, generator=random, dtype=torch.float64)
    shares = shares.where(torch.arange(steps) < b.lengths[:, None], 0.0)
    split = (b.log_reward[:, None] * (shares / shares.sum(dim=1, keepdim=True))).to(b.dtype)
    potential = 10 * torch.randn(batch, steps + 1, generator=random, dtype=torch.float64).to(b.dtype)
    inner = (torch.arange(steps + 1) < b.lengths[:, None]) & (torch.arange(steps + 1) > 0)
    potential = torch.where(inner, potential, 0.0)
    shaped = split + potential[:, 1:] - potential[:, :-1]
    # in exact arithmetic: what the split and the shaping, rounded to the dtype, really sum to
    moved = [math.fsum(row) for row in (shaped.double() - b.rewards.double()).tolist()]
    size = b.size() + 2 * potential.double().abs().sum(dim=1)
    assert_agree(moved, torch.zeros(batch), size, b.dtype)
    for rewards in (split, shaped):
        found = trust_pcl.residual(b.log_pi, b.log_ref, rewards, values, kl_weight=b.alpha)
        assert_agree(found, expected, size, b.dtype)


@PROPERTY
@given(batches(min_batch=2))
def test_vargrad_loss_is_the_minimum_over_log_z_of_rtb_loss(b):
    """Its value, where the minimum is, and how the loss rises from it: by half the squared distance."""
    alpha, beta = b.alpha, 1 / b.alpha
    scaled = plain_rtb(b) - b.alpha * float(b.log_z)  # alpha times the log-ratio of each path
    expected = (np.square(scaled - scaled.mean()) / 2).mean()
    size = b.size().square().mean() + b.size().mean() ** 2
    vargrad = alpha**2 * rtb.vargrad_loss(b.log_pi, b.log_ref, b.log_reward, beta=beta).double()
    assert_agree(vargrad, expected, size, b.dtype)
    best = tensor(-scaled.mean() / alpha).to(b.dtype)
    for offset in (0.0, 1.0, -3.0):
        log_z = best + offset * (1 + best.abs())
        loss = alpha**2 * rtb.loss(b.log_pi, b.log_ref, b.log_reward, log_z, beta=beta).double()
        rise = (alpha * float(log_z) + scaled.mean()) ** 2 / 2
        assert_agree(loss, expected + rise, size + 50 * (alpha + b.size().max()) ** 2, b.dtype)


#: A loss, its inputs beside log_pi and log_ref, and its options.
LOSSES = {
    "rtb": (rtb.loss, "log_reward log_z", {"beta": 2.0}),
    "vargrad": (rtb.vargrad_loss, "log_reward", {"beta": 2.0}),
    "trust_pcl": (trust_pcl.loss, "rewards values", {"kl_weight": 0.5}),
    "published": (reinforce.published_baseline_loss, "log_reward", {"kl_weight": 0.5}),
    "clipped": (reinforce.kl_loss, "log_reward", {"baseline": "leave_one_out", "clip": 1.0}),
    "importance": (reinforce.kl_loss, "log_reward log_behaviour", {"weights": "importance"}),
    "tempered": (reinforce.kl_loss, "log_reward log_behaviour", {"weights": "tempered", "clip": 1.0}),
    "value": (reinforce.critic_loss, "log_reward value", {}),
    "tempered value": (reinforce.critic_loss, "log_reward value log_behaviour", {"weights": "tempered"}),
}


def loss_of(name: str, x: dict, *keywords: str) -> torch.Tensor:
    """The loss of the paths x, with these keywords of theirs."""
    function, inputs, options = LOSSES[name]
    return function(**{key: x[key] for key in ("log_pi", "log_ref", *inputs.split(), *keywords)}, **options)


def paths_in_groups(seed: int) -> dict[str, torch.Tensor]:
    """Random paths of 1 to 5 steps, zero past each end, in three groups of two or more, in any order."""
    random, n = generator(seed), 17
    steps = torch.randint(1, 6, (n,), generator=random)
    per_step = torch.randn(5, n, 5, generator=random, dtype=torch.float64).where(torch.arange(5) < steps[:, None], 0.0)
    x = dict(zip(("log_pi", "log_ref", "log_behaviour", "rewards", "values"), per_step, strict=True))
    few = torch.cat([torch.tensor([0, 0, 1, 1, 2, 2]), torch.randint(3, (n - 6,), generator=random)])
    x |= {"group": few[torch.randperm(n, generator=random)], "steps": steps}
    x["values"] = torch.nn.functional.pad(x["values"], (0, 1))
    per_path = torch.randn(3, n, generator=random, dtype=torch.float64) + x["group"]
    return x | dict(zip(("log_reward", "log_z", "value"), per_path, strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_of_groups_is_the_mean_of_their_own_losses_weighted_by_their_sizes(name, seed):
    """And so is its gradient, by ``torch.func`` here and by autograd there."""
    x, learned = paths_in_groups(seed), "value" if "value" in name else "log_pi"

    def ours(value):
        return loss_of(name, x | {learned: value}, "group", "steps")

    leaf = x[learned].clone().requires_grad_()
    parts = [{key: value[x["group"] == g] for key, value in (x | {learned: leaf}).items()} for g in range(3)]
    expected = sum(len(part["group"]) * loss_of(name, part, "steps") for part in parts) / len(x["group"])
    assert_agree(ours(x[learned]), expected, 1e3)
    assert_agree(torch.func.grad(ours)(x[learned]), torch.autograd.grad(expected, leaf)[0], 1e3)


@pytest.mark.parametrize("name", LOSSES)
def test_neither_the_names_nor_the_order_of_groups_matter_and_one_group_is_none(name):
    """Names that are far apart, or negative; all paths in any other order."""
    x = paths_in_groups(4)
    renamed = x | {"group": torch.tensor([2**40, -7, 3])[x["group"]]}
    order = torch.randperm(len(x["group"]), generator=generator(5))
    moved = {key: value[order] for key, value in renamed.items()}
    assert_agree(loss_of(name, moved, "group", "steps"), loss_of(name, x, "group", "steps"), 1e3)
    one = x | {"group": torch.full_like(x["group"], -3)}
    assert_agree(loss_of(name, one, "group", "steps"), loss_of(name, x, "steps"), 1e3)


def tilted(problem: mdp.Problem, alpha: float) -> tuple[list, list[float], float]:
    """Return the paths, log p* of each and log Z, from the list of paths alone."""
    paths = listed_paths(problem)
    returns = zip(summed(problem.log_ref, paths), summed(problem.rewards, paths), strict=True)
    weights = [log_ref + reward / alpha for log_ref, reward in returns]
    log_z = log_sum_exp(weights)
    return paths, [weight - log_z for weight in weights], log_z


def terminal_rewards(problem: mdp.Problem, seed: int) -> mdp.Problem:
    """Return the problem with a random log r(x) on the edges into x and nothing elsewhere."""
    log_reward = torch.randn(len(problem.terminals), generator=generator(seed), dtype=torch.float64)
    return problem.with_log_reward(log_reward)


def values_on(paths: list, first: float, steps: int) -> torch.Tensor:
    """Return [paths, steps + 1] with V(s_0) first, zero last, and in between numbers that must not matter."""
    values = torch.linspace(-3, 5, len(paths) * (steps + 1), dtype=torch.float64).view(len(paths), steps + 1)
    values[:, 0], values[:, -1] = first, 0.0
    return values


def per_state(problem: mdp.Problem, by_state: list[float], paths: list) -> torch.Tensor:
    """Return a quantity of states along listed paths, [paths, steps + 1]; the last is repeated as padding."""
    steps = max(map(len, paths))
    rows = [[0] + [int(problem.target[edge]) for edge in path] for path in paths]
    return tensor([[by_state[s] for s in row + row[-1:] * (steps + 1 - len(row))] for row in rows])


def soft_values(problem: mdp.Problem, alpha: float) -> list[float]:
    """Return V* of every state by recursion: V(s) = alpha log sum exp(log ref + (R + V(s')) / alpha)."""
    values = [0.0] * problem.n_states
    for state in reversed(range(problem.n_states)):
        leaving = (problem.source == state).nonzero().squeeze(1).tolist()
        if leaving:
            gains = [float(problem.rewards[e]) + values[int(problem.target[e])] for e in leaving]
            prior = [float(problem.log_ref[e]) for e in leaving]
            values[state] = alpha * log_sum_exp([p + g / alpha for p, g in zip(prior, gains, strict=True)])
    return values


def size_on(problem: mdp.Problem, alpha: float, *policies: torch.Tensor) -> float:
    """The size of the terms on any path of a problem; never below one."""
    logs = sum(float(policy.abs().sum()) for policy in (problem.log_ref, *policies))
    return 1 + alpha * logs + float(problem.rewards.abs().sum())


@pytest.mark.claim("P1")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_single_transitions_are_consistent_at_the_optimum_and_nowhere_else(seed, alpha):
    """Zero on every transition at pi* and V*; at another policy, or other values, just what is wrong."""
    problem = random_graph(seed)
    paths, values = listed_paths(problem), soft_values(problem, alpha)
    best = [
        float(p) + (float(r) + values[t] - values[s]) / alpha
        for p, r, s, t in zip(
            problem.log_ref, problem.rewards, problem.source.tolist(), problem.target.tolist(), strict=True
        )
    ]
    other = random_policy(problem, seed + 1)
    shift = torch.randn(problem.n_states, generator=generator(seed + 2), dtype=torch.float64)
    shift[problem.terminals] = 0.0
    fixed = padded(problem.log_ref, paths), padded(problem.rewards, paths)
    size = size_on(problem, alpha, other, tensor(best)) + float(shift.abs().sum())
    solution = mdp.solve(problem, kl_weight=alpha)
    assert_agree(solution.log_policy, best, size / alpha)
    for t in range(max(map(len, paths))):
        options = {"kl_weight": alpha, "start": t, "stop": t + 1}
        best_pi, other_pi = padded(tensor(best), paths), padded(other, paths)
        along = per_state(problem, values, paths)
        moved = per_state(problem, (tensor(values) + shift).tolist(), paths)
        assert_agree(trust_pcl.residual(best_pi, *fixed, along, **options), torch.zeros(len(paths)), size)
        gap = -alpha * (other_pi - best_pi)[:, t]
        assert_agree(trust_pcl.residual(other_pi, *fixed, along, **options), gap, size)
        off = per_state(problem, shift.tolist(), paths)
        assert_agree(trust_pcl.residual(best_pi, *fixed, moved, **options), off[:, t + 1] - off[:, t], size)


@pytest.mark.claim("P3")
@PROPERTY
@given(SEEDS, ALPHAS, st.floats(0, 1), st.floats(0.1, 1))
def test_every_sub_path_is_consistent_at_the_optimum_of_the_doubly_regularised_return(seed, alpha, share, gamma):
    """For every entropy weight, KL weight and discount."""
    problem, weights = random_graph(seed), {"entropy_weight": share * alpha, "kl_weight": (1 - share) * alpha}
    solution, paths = mdp.solve(problem, gamma=gamma, **weights), listed_paths(problem)
    inputs = [padded(x, paths) for x in (solution.log_policy, problem.log_ref, problem.rewards)]
    values = per_state(problem, solution.values.tolist(), paths)
    size = size_on(problem, alpha, solution.log_policy) + float(values.abs().max())
    steps = values.shape[1] - 1
    for start in range(steps):
        for stop in range(start + 1, steps + 1):
            found = trust_pcl.residual(*inputs, values, start=start, stop=stop, gamma=gamma, **weights)
            assert_agree(found, torch.zeros(len(paths)), size)


@pytest.mark.claim("P4")
@PROPERTY
@given(SEEDS, ALPHAS, st.floats(0.05, 0.95), st.floats(0.1, 1))
def test_entropy_and_kl_together_are_one_kl_to_a_tempered_reference(seed, alpha, share, gamma):
    """The same optimum, the same return of any policy, and the same residual on any path."""
    problem, policy = random_graph(seed), random_policy(random_graph(seed), seed + 1)
    both = {"entropy_weight": share * alpha, "kl_weight": (1 - share) * alpha, "gamma": gamma}
    one = {"kl_weight": alpha, "gamma": gamma}
    tempered, source = [(1 - share) * x for x in problem.log_ref.tolist()], problem.source.tolist()
    normaliser = {
        state: log_sum_exp([x for x, s in zip(tempered, source, strict=True) if s == state]) for state in set(source)
    }
    log_ref = tensor([x - normaliser[s] for x, s in zip(tempered, source, strict=True)])
    rewards = problem.rewards + alpha * tensor([normaliser[s] for s in source])
    single = problem.with_reference(log_ref).with_rewards(rewards)
    size = size_on(problem, alpha, policy, log_ref) + float(rewards.abs().sum())

    ours, theirs = mdp.solve(problem, **both), mdp.solve(single, **one)
    assert_agree(ours.values, theirs.values, size)
    assert_agree(ours.log_policy, theirs.log_policy, size / alpha)
    assert_agree(mdp.evaluate(problem, policy, **both), mdp.evaluate(single, policy, **one), size)
    paths = listed_paths(problem)
    values = values_on(paths, 1.5, max(map(len, paths)))
    residuals = [
        trust_pcl.residual(padded(policy, paths), padded(p.log_ref, paths), padded(p.rewards, paths), values, **weights)
        for p, weights in ((problem, both), (single, one))
    ]
    assert_agree(residuals[0], residuals[1], size + 5)


@pytest.mark.claim("P5")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_the_full_path_residual_measures_the_distance_from_the_posterior_and_from_alpha_log_z(seed, alpha):
    """It is alpha (log p* - log p) + alpha log Z - V(s_0): zero on all paths only if both gaps are."""
    problem = random_graph(seed)
    paths, log_best, log_z = tilted(problem, alpha)
    policy, values = (
        random_policy(problem, seed + 1),
        values_on(paths, alpha * log_z + 0.5, max(map(len, paths))),
    )
    fixed = padded(problem.log_ref, paths), padded(problem.rewards, paths)
    log_prob = summed(policy, paths)
    expected = [alpha * (star - p) - 0.5 for star, p in zip(log_best, log_prob, strict=True)]
    solution = mdp.solve(problem, kl_weight=alpha)
    size = size_on(problem, alpha, policy, solution.log_policy) + alpha * abs(log_z)
    found = trust_pcl.residual(padded(policy, paths), *fixed, values, kl_weight=alpha)
    assert_agree(found, expected, size)
    # and at the posterior the loss vanishes, under a behaviour that visits every path
    values[:, 0] = alpha * log_z
    at_best = trust_pcl.loss(padded(solution.log_policy, paths), *fixed, values, kl_weight=alpha)
    assert_agree(summed(solution.log_policy, paths), log_best, size / alpha)
    assert_agree(at_best.sqrt(), 0.0, size)


@pytest.mark.claim("R1")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_rtb_residual_measures_the_distance_from_the_posterior_and_from_log_z(seed, alpha):
    """It is log p - log p* + log Z_theta - log Z; at zero the marginal over x is p_ref(x) r(x)^beta / Z."""
    problem = terminal_rewards(random_graph(seed), seed + 1)
    paths, log_best, log_z = tilted(problem, alpha)
    policy, solution = random_policy(problem, seed + 2), mdp.solve(problem, kl_weight=alpha)
    log_ref, log_reward = padded(problem.log_ref, paths), tensor(summed(problem.rewards, paths))
    size = size_on(problem, alpha, policy, solution.log_policy) / alpha + abs(log_z)
    expected = [p - star + 0.5 for star, p in zip(log_best, summed(policy, paths), strict=True)]
    found = rtb.residual(padded(policy, paths), log_ref, log_reward, tensor(log_z + 0.5), beta=1 / alpha)
    assert_agree(found, expected, size)
    best = padded(solution.log_policy, paths)
    at_best = rtb.residual(best, log_ref, log_reward, tensor(log_z), beta=1 / alpha)
    assert_agree(at_best, torch.zeros(len(paths)), size)

    ends, prior = [int(problem.target[path[-1]]) for path in paths], summed(problem.log_ref, paths)
    weight = {x: 0.0 for x in sorted(set(ends))}
    for x, log_p, log_r in zip(ends, prior, log_reward.tolist(), strict=True):
        weight[x] += math.exp(log_p + log_r / alpha - log_z)
    visited = mdp.visit_log_prob(problem, solution.log_policy)[problem.terminals].exp()
    assert_agree(visited, list(weight.values()), size)


def visits(problem: mdp.Problem, log_policy: torch.Tensor) -> list[float]:
    """Return the log-probability that a path visits each state, from the list of paths alone."""
    paths = listed_paths(problem)
    total = [1.0] + [0.0] * (problem.n_states - 1)
    prefixes = {tuple(path[: k + 1]) for path in paths for k in range(len(path))}
    for prefix in prefixes:
        total[int(problem.target[prefix[-1]])] += math.exp(math.fsum(float(log_policy[e]) for e in prefix))
    return [math.log(p) for p in total]


@pytest.mark.claim("R2")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_rtb_is_trajectory_balance_with_the_backward_policy_that_the_prior_induces(seed, alpha):
    """TB with reward p_ref(x) r(x)^beta, on graphs where a state has several parents."""
    problem = terminal_rewards(random_graph(seed), seed + 1)
    paths, policy = listed_paths(problem), random_policy(problem, seed + 2)
    log_visit = visits(problem, problem.log_ref)
    size = size_on(problem, alpha, policy) / alpha
    assert_agree(mdp.visit_log_prob(problem, problem.log_ref), log_visit, size)
    edges = list(zip(problem.source.tolist(), problem.target.tolist(), problem.log_ref.tolist(), strict=True))
    log_backward = [log_visit[s] + p - log_visit[t] for s, t, p in edges]
    for state in range(1, problem.n_states):  # a policy: the parents of each state sum to one
        parents = [math.exp(b) for b, (_, t, _) in zip(log_backward, edges, strict=True) if t == state]
        assert_agree(math.fsum(parents), 1.0, size)

    log_reward, log_z = summed(problem.rewards, paths), 0.75
    balance = [
        log_z + forward - (log_visit[int(problem.target[path[-1]])] + log_r / alpha) - backward
        for path, forward, backward, log_r in zip(
            paths, summed(policy, paths), summed(tensor(log_backward), paths), log_reward, strict=True
        )
    ]
    inputs = padded(policy, paths), padded(problem.log_ref, paths), tensor(log_reward), tensor(log_z)
    assert_agree(rtb.residual(*inputs, beta=1 / alpha), balance, size)


@pytest.mark.claim("R3")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_trajectory_balance_is_path_consistency_with_entropy(seed, alpha):
    """Rewards alpha log P_B, and log r at the end, no KL: minus alpha times the TB residual of r^beta."""
    problem = terminal_rewards(random_graph(seed), seed + 1)
    paths, policy = listed_paths(problem), random_policy(problem, seed + 2)
    logits = torch.randn(len(problem.target), generator=generator(seed + 3), dtype=torch.float64).tolist()
    parents = {t: log_sum_exp([z for z, at in zip(logits, problem.target.tolist(), strict=True) if at == t])
               for t in range(1, problem.n_states)}  # fmt: skip
    log_backward = tensor([z - parents[t] for z, t in zip(logits, problem.target.tolist(), strict=True)])
    log_reward, log_z = summed(problem.rewards, paths), -0.5
    balance = [
        log_z + forward - log_r / alpha - backward
        for forward, backward, log_r in zip(summed(policy, paths), summed(log_backward, paths), log_reward, strict=True)
    ]
    rewards = padded(alpha * log_backward + problem.rewards, paths)
    values = values_on(paths, alpha * log_z, max(map(len, paths)))
    unused = padded(problem.log_ref, paths)
    options = {"kl_weight": 0.0, "entropy_weight": alpha}
    found = trust_pcl.residual(padded(policy, paths), unused, rewards, values, **options)
    size = size_on(problem, alpha, policy, log_backward) + alpha
    assert_agree(found, -alpha * tensor(balance), size)


@pytest.mark.claim("K6")
@PROPERTY
@given(SEEDS, ALPHAS)
def test_no_potential_moves_the_posterior_or_the_soft_value_of_the_root(seed, alpha):
    """Both from the list of paths and their totals; the solver is given the rewards shaped."""
    problem = terminal_rewards(random_graph(seed), seed + 1)
    paths, log_best, log_z = tilted(problem, alpha)
    potential = torch.randn(problem.n_states, generator=generator(seed + 2), dtype=torch.float64)
    potential[0], potential[problem.terminals] = 0.0, 0.0
    shaped = problem.with_rewards(problem.rewards + potential[problem.target] - potential[problem.source])
    size = size_on(problem, alpha) + size_on(shaped, alpha) + alpha * abs(log_z)
    for version in (problem, shaped):
        solution = mdp.solve(version, kl_weight=alpha)
        assert_agree(solution.values[0], alpha * log_z, size)
        assert_agree(
            summed(solution.log_policy, paths),
            log_best,
            size / alpha + float(solution.log_policy.abs().sum()),
        )
