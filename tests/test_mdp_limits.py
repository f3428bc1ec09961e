"""The exact solver where numbers are at their limits: gradients, huge counts, underflow, logits of 1e8, tolerances."""

import math

import pytest
import torch
from inputs import agree, generator, random_dag
from oracles import listed_paths, log_sum_exp, path_totals, random_policy

from companion import mdp

GRAPHS = {"small": mdp.small_graph, "dag": lambda: random_dag(10, generator(1))}


def logs(*numbers: float) -> torch.Tensor:
    """Return the logarithms of the numbers, float64."""
    return torch.tensor([math.log(x) if x else -math.inf for x in numbers], dtype=torch.float64)


def through_edges(problem: mdp.Problem, log_paths: torch.Tensor) -> torch.Tensor:
    """Return the probability that a path takes each edge, added up path by path."""
    taken = [0.0] * len(problem.source)
    for path, log_p in zip(mdp.enumerate_paths(problem).edges.tolist(), log_paths.tolist(), strict=True):
        for edge in path:
            taken[edge] += math.exp(log_p) * (edge >= 0)
    return torch.tensor(taken, dtype=torch.float64)


# Gradients through the solution.


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("alpha", [0.4, 3.0])
def test_the_gradient_of_the_value_is_how_often_the_best_policy_takes_each_edge(graph, alpha):
    problem = mdp.randomise(GRAPHS[graph](), generator(2))
    rewards, log_ref = problem.rewards.clone().requires_grad_(), problem.log_ref.clone().requires_grad_()
    value = mdp.solve(problem.with_rewards(rewards).with_reference(log_ref), kl_weight=alpha).values[0]
    by_reward, by_reference = torch.autograd.grad(value, (rewards, log_ref))
    # V = alpha log sum_tau exp(log p_ref + R / alpha), so dV/dR_e = P*(e) and dV/dlog pi_ref(e) = alpha P*(e).
    paths = mdp.enumerate_paths(problem)
    weights = path_totals(problem, problem.log_ref, paths) + path_totals(problem, problem.rewards, paths) / alpha
    visits = through_edges(problem, torch.log_softmax(weights, dim=0))
    assert agree(by_reward, visits) and agree(by_reference, alpha * visits)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_solution_is_differentiated_as_by_finite_differences(graph):
    problem = mdp.randomise(GRAPHS[graph](), generator(3))

    def solution(rewards):
        found = mdp.solve(problem.with_rewards(rewards), kl_weight=0.5, entropy_weight=0.3, gamma=0.9)
        return found.values, found.log_policy

    assert torch.autograd.gradcheck(solution, problem.rewards.clone().requires_grad_())


@pytest.mark.parametrize("graph", GRAPHS)
def test_log_visits_are_differentiated_as_by_finite_differences(graph):
    problem = GRAPHS[graph]()
    logits = torch.randn(len(problem.source), generator=generator(9), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mdp.visit_log_prob(problem, mdp.log_softmax(problem, x)), logits)


# Counts and lists of paths.


def test_the_running_example_has_ten_states_and_nine_paths_of_two_and_three_steps():
    problem = mdp.small_graph()
    lengths = [len(path) for path in listed_paths(problem)]
    assert problem.n_states == 10 and mdp.count_paths(problem) == len(lengths) == 9
    assert sorted(lengths) == [2] + [3] * 8
    # 7 is reached by 0-1-4, 9 by 0-2-6, 0-3-6 and 0-3, the other five paths lead to 8.
    counts = mdp.path_counts(problem)
    assert problem.terminals.tolist() == [7, 8, 9] and counts[7:].tolist() == [1, 5, 3]


def test_paths_are_counted_up_to_two_to_the_53_and_refused_beyond():
    assert mdp.count_paths(mdp.lattice(53)) == 2**53
    counts = mdp.path_counts(mdp.lattice(53))
    assert counts.dtype == torch.int64 and int(counts[-27]) == math.comb(53, 27)
    with pytest.raises(ValueError, match=r"There are about .* paths; expected at most 2\^53"):
        mdp.count_paths(mdp.lattice(54))


@pytest.mark.parametrize("n", [1, 3, 7])
def test_paths_are_drawn_with_replacement_however_few(n):
    paths = mdp.enumerate_paths(mdp.tree(3, 1))
    assert mdp.draw(paths, logs(0, 1, 0), n, generator(4)).ends.tolist() == [2] * n


def test_a_random_policy_has_standard_normal_logits():
    problem = mdp.tree(3, 2)
    logits = torch.randn(12, generator=generator(5), dtype=torch.float64)
    by_hand = torch.log_softmax(logits.reshape(4, 3), dim=1).reshape(12)
    assert agree(mdp.random_policy(problem, generator(5)), by_hand)
    assert agree(mdp.randomise(problem, generator(5)).log_ref, by_hand)


# Numbers that underflow, and digits that get lost.


def test_an_action_whose_probability_underflows_costs_nothing_even_where_its_reward_is_minus_infinity():
    # exp(-800) = 0 in float64; the other action is certain and earns 3.
    problem = mdp.tree(2, 1).with_rewards(torch.tensor([3.0, -math.inf], dtype=torch.float64))
    log_policy = torch.tensor([0.0, -800.0], dtype=torch.float64)
    # J = 3 - 2 KL, with KL = log(1 / (1/2)); without a KL weight J = 3.
    assert agree(mdp.evaluate(problem, log_policy, kl_weight=2.0)[0], 3 - 2 * math.log(2))
    assert agree(mdp.evaluate(problem, log_policy, kl_weight=0.0)[0], 3.0)


@pytest.mark.parametrize("graph", GRAPHS)
def test_log_visits_keep_their_digits_at_extreme_rewards_and_so_does_their_gradient(graph):
    problem = mdp.randomise(GRAPHS[graph](), generator(6), reward_scale=2000.0)
    logits = mdp.solve(problem, kl_weight=0.5).log_policy.requires_grad_()
    log_policy = mdp.log_softmax(problem, logits)
    log_visits = mdp.visit_log_prob(problem, log_policy)
    prefixes = {path[: i + 1] for path in listed_paths(problem) for i in range(len(path))}
    log_prob = {prefix: sum(log_policy[list(prefix)].tolist()) for prefix in prefixes}
    by_hand = [
        log_sum_exp([log_prob[prefix] for prefix in prefixes if int(problem.target[prefix[-1]]) == state])
        for state in range(1, problem.n_states)
    ]
    assert min(by_hand) < -1000  # beyond what exp can hold
    assert agree(log_visits, [0.0, *by_hand])
    (slope,) = torch.autograd.grad(log_visits[problem.terminals].sum(), logits)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0.1


def test_an_infinite_value_does_not_matter_where_the_law_is_zero():
    values = torch.tensor([[2.0, 5.0], [-math.inf, math.nan]], dtype=torch.float64)
    assert mdp.expectation(values, logs(1, 0)).tolist() == [2, 5]
    assert mdp.expectation(values[:, 0], torch.tensor([0.0, -800.0], dtype=torch.float64)) == 2


def test_an_expectation_does_not_renormalise_its_law():
    law = logs(1 / 4, 3 / 4).requires_grad_()
    (slope,) = torch.autograd.grad(mdp.expectation(torch.tensor([2.0, 4.0], dtype=torch.float64), law), law)
    # d/dlog p_i of sum_j p_j x_j is p_i x_i = 2/4 and 3; renormalised, it would be p_i (x_i - 3.5).
    assert agree(slope, [0.5, 3.0])
    # A law that is 2^-47 = 7e-15 too large is within rounding; so much too large is the mean of 1.
    ones = torch.ones(2, dtype=torch.float64)
    assert abs(float(mdp.expectation(ones, logs(0.5, 0.5 + 2**-47))) - 1 - 2**-47) < 2**-50


def test_log_softmax_keeps_its_digits_for_logits_of_any_size():
    logits = torch.tensor([1e8, 1e8 + 1, -1e8, -1e8 - 2], dtype=torch.float64)
    problem = mdp.from_edges([(0, 1), (0, 2), (1, 3), (1, 4)])
    # log(1 / (1 + e)), log(e / (1 + e)); log(1 / (1 + e^-2)), log(e^-2 / (1 + e^-2)).
    first, second = -math.log1p(math.e), -math.log1p(math.exp(-2))
    assert agree(mdp.log_softmax(problem, logits), [first, 1 + first, second, second - 2])


def test_log_softmax_takes_minus_infinity_for_an_edge_never_taken():
    assert agree(mdp.log_softmax(mdp.tree(3, 1), logs(1, 0, 3)), logs(1 / 4, 0, 3 / 4))


# Tolerances.


def test_a_state_of_two_actions_is_held_to_its_own_tolerance_beside_one_of_ten_thousand():
    edges = [(0, state) for state in range(1, 10_001)] + [(1, 10_001), (1, 10_002)]
    problem = mdp.from_edges(edges, dtype=torch.float32)  # 10,000 rounded logarithms still sum to one
    off = problem.log_ref.clone()
    off[-2:] += 1e-4
    with pytest.raises(ValueError, match="log_ref sums to a log-probability of 0.0001 at some state"):
        problem.with_reference(off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_policy_normalised_in_its_own_dtype_is_accepted(dtype):
    wide = mdp.from_edges([(0, state) for state in range(1, 5001)], dtype=dtype)
    log_policy = mdp.random_policy(wide, generator(7))
    assert log_policy.dtype == dtype
    log_visits = mdp.visit_log_prob(wide, log_policy)
    assert bool((log_visits[1:] - log_policy).abs().max() <= 4 * torch.finfo(dtype).eps * log_policy.abs().max())
    deep = mdp.tree(3, 6)
    law = mdp.enumerate_paths(deep).log_prob(random_policy(deep, 8)).to(dtype)
    assert abs(float(mdp.expectation(torch.ones_like(law), law)) - 1) < 1e-4
