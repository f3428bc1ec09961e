"""Initial states that are drawn, discounts, paths never seen, zero rewards, moving references."""

import math

import pytest
import torch
from inputs import along, assert_agree, generator, random_graph, tensor
from oracles import random_policy

from companion import mdp, reinforce, rtb, symbolic, trust_pcl

ALPHA = 0.7
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def layered(seed: int) -> mdp.Problem:
    """Return three initial states, each with an edge to each of three middle states, and those to three objects.

    The reference is random; the reward is on the objects alone.
    """
    first = [(0, s) for s in (1, 2, 3)]
    middle = [(s, t) for s in (1, 2, 3) for t in (4, 5, 6)]
    last = [(s, t) for s in (4, 5, 6) for t in (7, 8, 9)]
    random = generator(seed)
    problem = mdp.randomise(mdp.from_edges(first + middle + last), random)
    return problem.with_log_reward(torch.randn(3, generator=random, dtype=torch.float64))


def normaliser_of_each_start(problem: mdp.Problem) -> dict[int, float]:
    """Return Z(s_0) of each state after the root, summed over the paths from there in plain Python."""
    paths, _, refs, rewards = along(problem, problem.log_ref)
    sums: dict[int, float] = {}
    for states, ref, reward in zip(paths.states.tolist(), refs.tolist(), rewards.tolist(), strict=True):
        sums[states[1]] = sums.get(states[1], 0.0) + math.exp(sum(ref[1:]) + sum(reward) / ALPHA)
    return sums


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    """Return half the sum of the absolute differences."""
    return float((p - q).abs().sum() / 2)


# L1: initial states that are drawn.


@pytest.mark.claim("L1")
@SEEDS
def test_with_one_scalar_per_start_both_residuals_vanish_at_the_conditional_optimum(seed):
    problem = layered(seed)
    policy = torch.where(problem.source == 0, problem.log_ref, mdp.solve(problem, kl_weight=ALPHA).log_policy)
    paths, steps, refs, rewards = along(problem, policy)
    by_start = normaliser_of_each_start(problem)
    log_z = tensor([math.log(by_start[s]) for s in paths.states[:, 1].tolist()])
    values = torch.zeros(len(paths), 4, dtype=torch.float64)
    values[:, 1] = ALPHA * log_z
    size = 20.0
    own = rtb.residual(steps[:, 1:], refs[:, 1:], rewards.sum(1), log_z, beta=1 / ALPHA)
    assert_agree(own, torch.zeros_like(own), size)
    consistency = trust_pcl.residual(steps, refs, rewards, values, kl_weight=ALPHA, start=1)
    assert_agree(consistency, torch.zeros_like(consistency), size)


@pytest.mark.claim("L1")
@SEEDS
def test_with_one_scalar_per_start_the_equivalence_holds_for_every_policy(seed):
    problem = layered(seed)
    paths, steps, refs, rewards = along(problem, random_policy(problem, seed))
    by_state = torch.randn(problem.n_states, generator=generator(seed), dtype=torch.float64)
    log_z = by_state[paths.states[:, 1]]
    values = torch.zeros(len(paths), 4, dtype=torch.float64)
    values[:, 1] = ALPHA * log_z
    left = trust_pcl.residual(steps, refs, rewards, values, kl_weight=ALPHA, start=1)
    right = rtb.residual(steps[:, 1:], refs[:, 1:], rewards.sum(1), log_z, beta=1 / ALPHA)
    assert_agree(left, -ALPHA * right, 20.0)


@pytest.mark.claim("L1")
@SEEDS
def test_the_marginal_of_a_drawn_start_is_biased_unless_the_start_is_forgotten(seed):
    problem = layered(seed)
    forgetful = problem.log_ref.clone()
    rows = forgetful[3:12].reshape(3, 3)
    rows[:] = rows[0].clone()  # every start has the same next step
    for case, biased in ((problem, True), (problem.with_reference(forgetful), False)):
        best = mdp.solve(case, kl_weight=ALPHA).log_policy
        drawn = torch.where(case.source == 0, case.log_ref, best)
        paths, _, refs, rewards = along(case, drawn)
        by_start = normaliser_of_each_start(case)
        log_z = tensor([math.log(by_start[s]) for s in paths.states[:, 1].tolist()])
        predicted = mdp.marginal(case, paths, refs.sum(1) + rewards.sum(1) / ALPHA - log_z)
        actual = mdp.visit_log_prob(case, drawn).exp()[case.terminals]
        target = mdp.visit_log_prob(case, best).exp()[case.terminals]
        assert_agree(actual, predicted, 20.0)
        assert (total_variation(actual, target) > 1e-6) == biased


@pytest.mark.claim("L1")
@SEEDS
def test_one_scalar_for_all_starts_leaves_half_the_variance_and_no_gradient_on_policy(seed):
    problem = layered(seed)
    policy = torch.where(problem.source == 0, problem.log_ref, mdp.solve(problem, kl_weight=ALPHA).log_policy)
    paths, steps, refs, rewards = along(problem, policy)
    chance = problem.log_ref[:3].exp()
    logs = tensor([math.log(z) for _, z in sorted(normaliser_of_each_start(problem).items())])
    best_scalar = (chance * logs).sum()

    def loss(logits):
        trained = torch.where(problem.source == 0, problem.log_ref, mdp.log_softmax(problem, logits))
        error = rtb.residual(paths.per_step(trained), refs, rewards.sum(1), best_scalar, beta=1 / ALPHA)
        return mdp.expectation(0.5 * error.square(), steps.sum(1))

    assert_agree(loss(policy), 0.5 * (chance * (logs - best_scalar).square()).sum(), 100.0)
    assert_agree(torch.func.grad(loss)(policy), torch.zeros_like(policy), 100.0)


# L2: discounts.


@pytest.mark.claim("L2")
def test_a_discounted_residual_weighs_each_step_by_its_discount_and_rtb_weighs_all_alike():
    random = generator(4)
    steps, refs, rewards = torch.randn(3, 5, 6, generator=random, dtype=torch.float64)
    values = trust_pcl.full_path_values(tensor(0.3), steps)

    def discounted(log_pi):
        return trust_pcl.residual(log_pi, refs, rewards, values, kl_weight=ALPHA, gamma=0.9).sum()

    def plain(log_pi):
        return rtb.residual(log_pi, refs, rewards.sum(1), tensor(0.3)).sum()

    weights = tensor([-ALPHA * 0.9**i for i in range(6)]).expand(5, 6)
    assert_agree(torch.func.grad(discounted)(steps), weights, 1.0)
    assert_agree(torch.func.grad(plain)(steps), torch.ones(5, 6, dtype=torch.float64), 1.0)


@pytest.mark.claim("L2")
def test_the_symbols_weigh_each_step_by_its_discount():
    log_pi = torch.randn(4, 5, generator=generator(5), dtype=torch.float64)
    moved = log_pi.clone()
    moved[:, 3] += 0.5
    names = (symbolic.log_ref, symbolic.R)
    rest = {name: torch.zeros(5, 4, dtype=torch.float64) for name in names}
    rest |= {symbolic.V: torch.zeros(6, 4, dtype=torch.float64), symbolic.T: 5}
    rest |= {symbolic.gamma: 0.9, symbolic.lam: ALPHA, symbolic.eta: 0.0}
    before, after = (
        symbolic.evaluate(symbolic.trust_pcl_residual(), rest | {symbolic.log_pi: x.T}) for x in (log_pi, moved)
    )
    assert_agree(after - before, tensor([-ALPHA * 0.9**3 * 0.5] * 4), 10.0)


@pytest.mark.claim("L2")
@SEEDS
def test_the_discounted_optimum_shuns_paths_through_states_of_high_value(seed):
    problem = random_graph(seed)
    solution = mdp.solve(problem, kl_weight=ALPHA, gamma=0.8)
    paths, steps, refs, rewards = along(problem, solution.log_policy)
    between = paths.per_state(solution.values)[:, 1:].sum(1)  # zero at the end of a path and in its padding
    predicted = (rewards.sum(1) - solution.values[0] - 0.2 * between) / ALPHA
    assert_agree(steps.sum(1) - refs.sum(1), predicted, 50.0)
    plain = paths.log_prob(mdp.solve(problem, kl_weight=ALPHA).log_policy)
    assert total_variation(steps.sum(1).exp(), plain.exp()) > 1e-3


# L6: behaviours without full support.


@pytest.mark.claim("L6")
@pytest.mark.parametrize("change", [-2.0, 1.0, 4.0])
def test_the_target_of_any_reward_that_agrees_on_the_visited_paths_has_zero_loss(change):
    problem = layered(6)
    log_r = tensor([0.5, 0.0, -0.5])
    problem = problem.with_log_reward(log_r)
    agreeing = mdp.solve(problem.with_log_reward(log_r + tensor([change, 0.0, 0.0])), kl_weight=ALPHA)
    paths, steps, refs, rewards = along(problem, agreeing.log_policy)
    seen = paths.ends != 7
    log_z = agreeing.values[0] / ALPHA

    def losses(chosen):
        first = trust_pcl.full_path_values(ALPHA * log_z, steps[chosen])
        return (
            rtb.loss(steps[chosen], refs[chosen], rewards.sum(1)[chosen], log_z, beta=1 / ALPHA),
            trust_pcl.loss(steps[chosen], refs[chosen], rewards[chosen], first, kl_weight=ALPHA),
        )

    assert max(losses(seen)) < 1e-26
    assert min(losses(torch.ones_like(seen))) > 1e-2
    target = paths.log_prob(mdp.solve(problem, kl_weight=ALPHA).log_policy)
    assert total_variation(steps.sum(1).exp(), target.exp()) > 0.1


# L5: zero rewards.


@pytest.mark.claim("L5")
def test_losses_with_log_r_in_them_refuse_a_zero_reward_and_say_what_to_do():
    steps, log_reward = torch.full((3, 2), -0.7, dtype=torch.float64), tensor([0.0, 1.0, -math.inf])
    rewards = torch.stack([torch.zeros_like(log_reward), log_reward], dim=1)
    values = torch.zeros(3, 3, dtype=torch.float64)
    for call in (
        lambda: rtb.loss(steps, steps, log_reward, tensor(0.0)),
        lambda: rtb.vargrad_loss(steps, steps, log_reward),
        lambda: reinforce.kl_loss(steps, steps, log_reward),
        lambda: trust_pcl.loss(steps, steps, rewards, values, kl_weight=ALPHA),
    ):
        with pytest.raises(ValueError, match=r"r\(x\) = 0"):
            call()


@pytest.mark.claim("L5")
def test_the_published_baseline_takes_a_zero_reward():
    steps, log_reward = tensor([[-0.5], [-1.0], [-2.0]]), tensor([0.0, math.log(2), -math.inf])
    loss = reinforce.published_baseline_loss(steps, torch.zeros_like(steps), log_reward, kl_weight=0.5)
    # rewards 1, 2, 0, mean 1; -(r - 1) log p is 0, 1, -2; half the squares 0.125, 0.5, 2
    assert_agree(loss, (0 + 1 - 2 + 0.125 + 0.5 + 2) / 3, 5.0)


@pytest.mark.claim("L5")
@SEEDS
def test_dynamic_programming_gives_no_mass_to_a_zero_reward_and_a_floor_its_predicted_bias(seed):
    problem = layered(seed)
    log_r = tensor([0.3, -0.4, -math.inf])
    paths, _, refs, _ = along(problem, problem.log_ref)
    prior = mdp.marginal(problem, paths, refs.sum(1))
    weight = prior * (log_r / ALPHA).exp()
    solved = mdp.solve(problem.with_log_reward(log_r), kl_weight=ALPHA).log_policy
    target = mdp.visit_log_prob(problem, solved).exp()[problem.terminals]
    assert target[2] == 0
    assert_agree(target, weight / weight.sum(), 10.0)
    for floor in (0.1, 1e-4):
        raised = problem.with_log_reward(log_r.clamp(min=math.log(floor)))
        policy = mdp.solve(raised, kl_weight=ALPHA).log_policy
        added = float(prior[2]) * floor ** (1 / ALPHA)
        bias = total_variation(mdp.visit_log_prob(problem, policy).exp()[problem.terminals], target)
        assert_agree(bias, added / (float(weight.sum()) + added), 10.0)
    assert mdp.evaluate(problem.with_log_reward(log_r), problem.log_ref, kl_weight=ALPHA)[0] == -math.inf


@pytest.mark.claim("L5")
@SEEDS
def test_leaving_forbidden_paths_out_ties_the_leak_to_log_z_and_keeps_the_rest_right(seed):
    problem = layered(seed)
    log_r = tensor([0.3, -0.4, -math.inf])
    free = mdp.solve(problem.with_log_reward(tensor([0.3, -0.4, 2.0])), kl_weight=ALPHA)
    paths, steps, refs, rewards = along(problem.with_log_reward(log_r), free.log_policy)
    allowed = paths.ends != 9
    kept = (steps[allowed], refs[allowed], rewards.sum(1)[allowed])
    assert rtb.loss(*kept, free.values[0] / ALPHA, beta=1 / ALPHA) < 1e-26
    law = steps.sum(1).exp()
    leak = law[~allowed].sum()
    log_z = (refs.sum(1) + rewards.sum(1) / ALPHA).logsumexp(0)
    assert leak > 0.1
    assert_agree(free.values[0] / ALPHA, log_z - torch.log1p(-leak), 20.0)
    target = (refs.sum(1) + rewards.sum(1) / ALPHA - log_z).exp()
    assert_agree(law[allowed] / (1 - leak), target[allowed], 20.0)


# L8: references that move.


def reset(problem: mdp.Problem, weights: list[float]) -> torch.Tensor:
    """Solve with each weight in turn, every solution being the next reference; return the last policy."""
    for kl_weight in weights:
        problem = problem.with_reference(mdp.solve(problem, kl_weight=kl_weight).log_policy)
    return problem.log_ref


def tilted(problem: mdp.Problem, exponent: float) -> torch.Tensor:
    """Return the log-law of the prior's paths tilted by the exponential of exponent times their return, listed."""
    _, _, refs, rewards = along(problem, problem.log_ref)
    return (refs.sum(1) + exponent * rewards.sum(1)).log_softmax(0)


@pytest.mark.claim("L8")
@SEEDS
@pytest.mark.parametrize("weights", [[ALPHA] * 4, [2.0, 0.5, 1.0], [10 * ALPHA] * 10])
def test_resetting_the_reference_adds_up_the_inverse_temperatures(seed, weights):
    problem = random_graph(seed)
    paths = mdp.enumerate_paths(problem)
    law = paths.log_prob(reset(problem, weights))
    assert_agree(law, tilted(problem, sum(1 / w for w in weights)), 500.0)


@pytest.mark.claim("L8")
def test_resetting_for_ever_ends_at_the_largest_reward():
    problem = layered(8).with_log_reward(tensor([0.0, 1.0, 0.5]))
    marginal = mdp.visit_log_prob(problem, reset(problem, [ALPHA] * 60)).exp()[problem.terminals]
    assert marginal[1] > 1 - 1e-12


@pytest.mark.claim("L8")
@SEEDS
def test_mirror_descent_that_keeps_the_prior_approaches_the_target(seed):
    problem, cost = random_graph(seed), 1.5
    paths, policy, share = mdp.enumerate_paths(problem), problem.log_ref, cost / (cost + ALPHA)
    for k in range(1, 6):
        rewards = problem.rewards - ALPHA * (policy - problem.log_ref)
        policy = mdp.solve(problem.with_reference(policy).with_rewards(rewards), kl_weight=cost + ALPHA).log_policy
        assert_agree(paths.log_prob(policy), tilted(problem, (1 - share**k) / ALPHA), 200.0)


@pytest.mark.claim("L8")
def test_a_lagged_reference_in_one_state_moves_by_its_share_of_the_exponent():
    problem = mdp.randomise(mdp.tree(4, 1), generator(9))
    reference = problem.log_ref
    for _ in range(10):
        policy = mdp.solve(problem.with_reference(reference), kl_weight=ALPHA).log_policy
        reference = mdp.log_softmax(problem, 0.9 * reference + 0.1 * policy)
    assert_agree(reference, tilted(problem, 1 / ALPHA), 200.0)


@pytest.mark.claim("L8")
def test_normalisers_telescope_over_the_rounds():
    growth = symbolic.over_path(symbolic.Phi[symbolic.t + 1] - symbolic.Phi[symbolic.t])
    assert symbolic.reduce(growth - symbolic.Phi[symbolic.T] + symbolic.Phi[0]) == 0
