"""The exact solver: constants by hand, plain Python oracles on random graphs, bad input, gradients, claims.

In the tests that carry a claim the two sides take different routes: dynamic programming on one, a list of
paths or recursion on the other.
"""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import EPS, agree, generator, in_one_line, problems, random_dag, tensor
from oracles import edges_from, listed_paths, path_totals, policy_value, random_policy, soft_value, solve_equations
from torch.distributions import Categorical, kl_divergence

from companion import mdp, rtb, trust_pcl

LOG = math.log
SHAPES = ("tree", "lattice", "dag")
WEIGHTS = [(0.7, 0.0, 1.0), (2.5, 0.0, 0.8), (0.4, 0.9, 1.0), (0.0, 1.3, 0.9), (0.3, 0.2, 0.5)]


def logs(*numbers: float) -> torch.Tensor:
    """Return the logarithms of the numbers, float64."""
    return torch.tensor([LOG(x) if x else -math.inf for x in numbers], dtype=torch.float64)


def three_paths() -> mdp.Problem:
    """Return the tree 0 -> 1 -> {3, 4}, 0 -> 2, with exp(R/2) = 2, 6, 3, 3/2 on its edges 01, 02, 13, 14."""
    problem = mdp.from_edges([(0, 1), (0, 2), (1, 3), (1, 4)])
    return problem.with_reference(logs(1 / 2, 1 / 2, 1 / 3, 2 / 3)).with_rewards(2 * logs(2, 6, 3, 3 / 2))


def shortcut() -> mdp.Problem:
    """Return the graph 0 -> 1 -> 2, 0 -> 2, 2 -> {3, 4}, with exp(R) = 2, 2, 5, 2, 4 on its edges."""
    problem = mdp.from_edges([(0, 1), (0, 2), (1, 2), (2, 3), (2, 4)])
    return problem.with_reference(logs(1 / 4, 3 / 4, 1, 1 / 2, 1 / 2)).with_rewards(logs(2, 2, 5, 2, 4))


# Constants worked out by hand.


def test_a_tree_of_three_paths_is_solved_as_by_hand():
    solution = mdp.solve(three_paths(), kl_weight=2.0)
    # V(1) = 2 log(1/3 * 3 + 2/3 * 3/2) = 2 log 2; V(0) = 2 log(1/2 * 2 * 2 + 1/2 * 6) = 2 log 5.
    assert agree(solution.values, [2 * LOG(5), 2 * LOG(2), 0, 0, 0])
    # pi*(1|0) = (1/2 * 2 * 2)/5, pi*(2|0) = (1/2 * 6)/5, pi*(3|1) = (1/3 * 3)/2, pi*(4|1) = (2/3 * 3/2)/2.
    assert agree(solution.log_policy, logs(2 / 5, 3 / 5, 1 / 2, 1 / 2))
    # p*(2) = 3/5, p*(3) = 2/5 * 1/2 = p*(4); the other states are no ends.
    log_visits = mdp.visit_log_prob(three_paths(), solution.log_policy)
    assert agree(log_visits, logs(1, 2 / 5, 3 / 5, 1 / 5, 1 / 5))


def test_a_graph_with_a_shortcut_is_solved_as_by_hand():
    solution = mdp.solve(shortcut(), kl_weight=1.0)
    # V(2) = log(2/2 + 4/2) = log 3; V(1) = log(5 * 3);
    # V(0) = log(1/4 * 2 * 15 + 3/4 * 2 * 3) = log(7.5 + 4.5).
    assert agree(solution.values, [LOG(12), LOG(15), LOG(3), 0, 0])
    # pi*(1|0) = 7.5/12, pi*(2|0) = 4.5/12, pi*(3|2) = 1/3, pi*(4|2) = 2/3.
    assert agree(solution.log_policy, logs(5 / 8, 3 / 8, 1, 1 / 3, 2 / 3))
    # Paths to 2: 0-1-2 and 0-2; each goes on to 3 and to 4.
    assert mdp.path_counts(shortcut()).tolist() == [1, 1, 2, 2, 2]
    assert mdp.count_paths(shortcut()) == 4


def test_discounted_values_are_as_by_hand():
    values = mdp.solve(shortcut(), kl_weight=1.0, gamma=0.5).values
    # V(2) = log 3; V(1) = log 5 + V(2)/2 = log(5 sqrt 3);
    # V(0) = log(2/4 * sqrt(5 sqrt 3) + 2 * 3/4 * sqrt 3).
    first = LOG(0.5 * math.sqrt(5 * math.sqrt(3)) + 1.5 * math.sqrt(3))
    assert agree(values, [first, LOG(5 * math.sqrt(3)), LOG(3), 0, 0])


def test_values_with_entropy_alone_are_as_by_hand():
    values = mdp.solve(shortcut(), kl_weight=0.0, entropy_weight=1.0).values
    # V(2) = log(2 + 4); V(1) = log(5 * 6); V(0) = log(2 * 30 + 2 * 6): the reference plays no part.
    assert agree(values, [LOG(72), LOG(30), LOG(6), 0, 0])


def test_the_return_of_the_reference_is_as_by_hand():
    problem = three_paths()
    # V(1) = 1/3 * 2 log 3 + 2/3 * 2 log 3/2; V(0) = 1/2 (2 log 2 + V(1)) + 1/2 * 2 log 6; no KL to itself.
    second = 2 / 3 * LOG(3) + 4 / 3 * LOG(3 / 2)
    expected = [LOG(2) + second / 2 + LOG(6), second, 0, 0, 0]
    assert agree(mdp.evaluate(problem, problem.log_ref, kl_weight=0.0), expected)
    assert agree(mdp.evaluate(problem, problem.log_ref, kl_weight=2.0), expected)


def test_the_regularised_return_of_a_certain_path_is_as_by_hand():
    # Always 0 -> 2: R = 2 log 6, entropy 0, KL = log(1 / (1/2)) = log 2.
    # At state 1, always to 4: R = 2 log 3/2, KL = log(1 / (2/3)) = log 3/2.
    log_policy = logs(0, 1, 0, 1)
    values = mdp.evaluate(three_paths(), log_policy, kl_weight=2.0, entropy_weight=0.5)
    assert agree(values, [2 * LOG(6) - 2 * LOG(2), 2 * LOG(3 / 2) - 2 * LOG(3 / 2), 0, 0, 0])


def test_the_paths_of_the_shortcut_are_as_by_hand():
    paths = mdp.enumerate_paths(shortcut())
    rows = dict(zip(map(tuple, paths.edges.tolist()), paths.states.tolist(), strict=True))
    expected = {
        (0, 2, 3): [0, 1, 2, 3],
        (0, 2, 4): [0, 1, 2, 4],
        (1, 3, -1): [0, 2, 3, 3],
        (1, 4, -1): [0, 2, 4, 4],
    }
    assert rows == expected
    # p_ref: 1/4 * 1 * 1/2 for the long paths, 3/4 * 1/2 for the short.
    law = logs(*[1 / 8 if row[0] == 0 else 3 / 8 for row in paths.edges.tolist()])
    assert agree(paths.log_prob(shortcut().log_ref), law)
    # p_ref(3) = 1/8 + 3/8 = p_ref(4).
    assert agree(mdp.marginal(shortcut(), paths, law), [1 / 2, 1 / 2])
    # E[length] = 1/8 (3 + 3) + 3/8 (2 + 2) = 9/4.
    assert agree(mdp.expectation((paths.edges >= 0).sum(1).double(), law), 9 / 4)


def test_per_step_looks_up_zero_past_the_end_and_per_state_repeats_the_last():
    paths = mdp.enumerate_paths(shortcut())
    short = int((paths.edges[:, -1] == -1).nonzero()[0])
    assert paths.per_step(torch.full((5,), 7.0))[short].tolist() == [7, 7, 0]
    end = int(paths.ends[short])
    assert paths.per_state(torch.arange(5.0))[short].tolist() == [0, 2, end, end]


def test_a_lattice_counts_paths_by_pascals_triangle():
    problem = mdp.lattice(5)
    counts = mdp.path_counts(problem)[problem.terminals].tolist()
    assert counts == [1, 5, 10, 10, 5, 1]


def test_a_zero_reward_leaves_the_rest_as_by_hand():
    # r = 0 on 2: V(0) = 2 log(1/2 * 2 * 2) = 2 log 2 and 0 -> 1 is certain.
    some = mdp.solve(three_paths().with_rewards(2 * logs(2, 0, 3, 3 / 2)), kl_weight=2.0)
    assert agree(some.values, [2 * LOG(2), 2 * LOG(2), 0, 0, 0])
    assert agree(some.log_policy, logs(1, 0, 1 / 2, 1 / 2))


def test_a_state_with_only_dead_paths_is_worth_minus_infinity_and_keeps_the_reference():
    # r = 0 on 3 and 4: V(1) = -inf, pi*(1|0) = 0, V(0) = 2 log(1/2 * 6) = 2 log 3.
    problem = three_paths().with_rewards(2 * logs(2, 6, 0, 0))
    solution = mdp.solve(problem, kl_weight=2.0)
    assert agree(solution.values, [2 * LOG(3), -math.inf, 0, 0, 0])
    assert agree(solution.log_policy, logs(0, 1, 1 / 3, 2 / 3))
    assert agree(mdp.evaluate(problem, solution.log_policy, kl_weight=2.0)[0], 2 * LOG(3))


def test_a_problem_of_dead_paths_alone_is_worth_minus_infinity():
    problem = three_paths().with_log_reward(logs(0, 0, 0))
    solution = mdp.solve(problem, kl_weight=2.0)
    assert solution.values.tolist() == [-math.inf, -math.inf, 0, 0, 0]
    torch.testing.assert_close(solution.log_policy, problem.log_ref, rtol=1e-15, atol=1e-15)


# Oracles on random graphs.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("lam", "eta", "gamma"), WEIGHTS)
def test_solve_agrees_with_recursion(shape, lam, eta, gamma):
    problem = problems(11)[shape]
    solution = mdp.solve(problem, kl_weight=lam, entropy_weight=eta, gamma=gamma)
    assert agree(solution.values, exact_values(problem, lam, eta, gamma), scale=10)
    for state in range(problem.n_states):
        for edge, target in edges_from(problem, state):
            gain = problem.rewards[edge] + gamma * soft_value(problem, target, lam, eta, gamma)
            gain += lam * problem.log_ref[edge] - soft_value(problem, state, lam, eta, gamma)
            assert agree(solution.log_policy[edge], gain / (lam + eta), scale=10 / (lam + eta))


def exact_values(problem, lam, eta=0.0, gamma=1.0):
    """Return the soft value of every state by recursion, float64."""
    found = [soft_value(problem, state, lam, eta, gamma) for state in range(problem.n_states)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("lam", "eta", "gamma"), [*WEIGHTS, (0.0, 0.0, 0.7)])
def test_evaluate_agrees_with_recursion(shape, lam, eta, gamma):
    problem = problems(12)[shape]
    log_pi = random_policy(problem, 13)
    found = [policy_value(problem, log_pi, s, lam, eta, gamma) for s in range(problem.n_states)]
    values = mdp.evaluate(problem, log_pi, kl_weight=lam, entropy_weight=eta, gamma=gamma)
    assert agree(values, torch.tensor(found, dtype=torch.float64), scale=10)


@pytest.mark.parametrize(("lam", "eta", "gamma"), WEIGHTS)
def test_the_solution_is_worth_its_values_and_beats_other_policies(lam, eta, gamma):
    problem = problems(14)["dag"]
    weights = {"kl_weight": lam, "entropy_weight": eta, "gamma": gamma}
    solution = mdp.solve(problem, **weights)
    assert agree(mdp.evaluate(problem, solution.log_policy, **weights), solution.values, scale=10)
    for seed in range(5):
        values = mdp.evaluate(problem, random_policy(problem, seed), **weights)
        assert bool((values <= solution.values + 64 * EPS * 10).all())
        assert float(values[0]) < float(solution.values[0]) - 1e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(states=st.integers(3, 11), seed=st.integers(0, 10**6), alpha=st.sampled_from([1e-2, 0.3, 1.0, 7.0, 1e2]))
def test_any_random_graph_agrees_with_recursion(states, seed, alpha):
    draws = generator(seed)
    problem = mdp.randomise(random_dag(states, draws), draws)
    rewards = problem.rewards.masked_fill(torch.rand(len(problem.rewards), generator=draws) < 0.2, -math.inf)
    problem = problem.with_rewards(rewards)
    solution = mdp.solve(problem, kl_weight=alpha)
    assert agree(solution.values, exact_values(problem, alpha), scale=20 * (1 + alpha))
    paths = mdp.enumerate_paths(problem)
    assert sorted(map(real_edges, paths.edges.tolist())) == sorted(listed_paths(problem))
    total = torch.logsumexp(paths.log_prob(solution.log_policy), dim=0)
    assert agree(total, torch.tensor(0.0), scale=100 * (1 + 1 / alpha))


def real_edges(row: list[int]) -> tuple[int, ...]:
    """Return a row of edges without the padding, which must all stand at its end."""
    kept = tuple(edge for edge in row if edge >= 0)
    assert row[len(kept) :] == [-1] * (len(row) - len(kept))
    return kept


def test_random_graphs_have_paths_of_unequal_length():
    lengths = {len(path) for path in listed_paths(random_dag(10, generator(15)))}
    assert len(lengths) >= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_enumeration_lists_every_path_once(shape):
    problem = problems(16)[shape]
    paths = mdp.enumerate_paths(problem)
    assert sorted(map(real_edges, paths.edges.tolist())) == sorted(listed_paths(problem))
    assert len(paths) == mdp.count_paths(problem) == len(listed_paths(problem))
    assert bool(problem.terminal[paths.ends].all())
    for row, visited in zip(paths.edges.tolist(), paths.states.tolist(), strict=True):
        walk = [0] + [int(problem.target[edge]) for edge in real_edges(row)]
        assert visited == walk + walk[-1:] * (len(row) + 1 - len(walk))


@pytest.mark.parametrize("shape", SHAPES)
def test_path_counts_and_visits_agree_with_the_list_of_paths(shape):
    problem = problems(17)[shape]
    log_pi = random_policy(problem, 18)
    counts, visits = [1] + [0] * (problem.n_states - 1), [1.0] + [0.0] * (problem.n_states - 1)
    prefixes = {path[: i + 1] for path in listed_paths(problem) for i in range(len(path))}
    for prefix in prefixes:
        end = int(problem.target[prefix[-1]])
        counts[end] += 1
        visits[end] += math.exp(sum(float(log_pi[edge]) for edge in prefix))
    assert mdp.path_counts(problem).tolist() == counts
    assert agree(mdp.visit_log_prob(problem, log_pi).exp(), torch.tensor(visits, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_marginals_and_expectations_agree_with_the_list_of_paths(shape):
    problem = problems(19)[shape]
    log_pi = random_policy(problem, 20)
    paths = mdp.enumerate_paths(problem)
    mass = dict.fromkeys(problem.terminals.tolist(), 0.0)
    mean = 0.0
    for path in listed_paths(problem):
        probability = math.exp(sum(float(log_pi[edge]) for edge in path))
        mass[int(problem.target[path[-1]])] += probability
        mean += probability * sum(float(problem.rewards[edge]) for edge in path)
    law = paths.log_prob(log_pi)
    assert agree(mdp.marginal(problem, paths, law), torch.tensor(list(mass.values()), dtype=torch.float64))
    assert agree(mdp.visit_log_prob(problem, log_pi)[problem.terminals].exp(), mdp.marginal(problem, paths, law))
    returns = paths.per_step(problem.rewards).sum(dim=1)
    assert agree(mdp.expectation(returns, law), torch.tensor(mean, dtype=torch.float64), scale=10)
    both = mdp.expectation(torch.stack([returns, -returns], dim=1), law)
    assert agree(both, torch.stack([both[0], -both[0]]))


def test_draws_follow_the_law_and_repeat_with_the_seed():
    problem = problems(21)["dag"]
    paths = mdp.enumerate_paths(problem)
    law = paths.log_prob(random_policy(problem, 22))
    drawn = mdp.draw(paths, law, 20_000, generator(23))
    again = mdp.draw(paths, law, 20_000, generator(23))
    assert torch.equal(drawn.edges, again.edges) and torch.equal(drawn.states, again.states)
    number = {tuple(row): i for i, row in enumerate(paths.edges.tolist())}
    counts = torch.bincount(torch.tensor([number[tuple(row)] for row in drawn.edges.tolist()]), minlength=len(paths))
    expected = 20_000 * law.exp()
    # Five standard deviations of a binomial count; one more for the paths that are hardly ever drawn.
    assert bool(((counts - expected).abs() <= 5 * expected.sqrt() + 1).all())


def test_a_path_of_probability_zero_is_never_drawn():
    paths = mdp.enumerate_paths(three_paths())
    law = paths.log_prob(logs(1, 0, 1 / 3, 2 / 3))
    assert 2 not in mdp.draw(paths, law, 500, generator(24)).ends.tolist()


def test_solving_and_listing_three_to_the_tenth_paths_agree():
    problem = mdp.randomise(mdp.tree(3, 10), generator(25))
    paths = mdp.enumerate_paths(problem)
    assert len(paths) == mdp.count_paths(problem) == 3**10
    assert paths.edges.shape == (3**10, 10)
    returns = paths.per_step(problem.rewards).sum(dim=1)
    log_z = torch.logsumexp(paths.log_prob(problem.log_ref) + returns / 0.7, dim=0)
    assert agree(mdp.solve(problem, kl_weight=0.7).values[0], 0.7 * log_z, scale=100)


def test_with_log_reward_puts_the_reward_on_the_edges_that_enter_each_end():
    problem = shortcut().with_log_reward(logs(2, 3))
    assert agree(problem.rewards, [0, 0, 0, LOG(2), LOG(3)])
    # An end with two parents is paid whichever way it is entered: 1 -> 2 and 0 -> 2.
    doubled = mdp.from_edges([(0, 1), (0, 2), (1, 2)]).with_log_reward(logs(5))
    assert agree(doubled.rewards, logs(1, 5, 5))


def test_randomising_repeats_with_the_seed_and_scales_its_rewards():
    one, two = (mdp.randomise(mdp.tree(2, 3), generator(26), reward_scale=scale) for scale in (1.0, 3.0))
    assert torch.equal(one.log_ref, two.log_ref) and agree(3 * one.rewards, two.rewards)
    assert float(mdp.randomise(mdp.tree(2, 3), generator(26), reward_scale=0).rewards.abs().max()) == 0
    assert one.rewards.std() > 0.1


def test_edges_may_be_given_in_any_order_and_in_float32():
    problem = mdp.from_edges([(1, 4), (0, 2), (1, 3), (0, 1)], dtype=torch.float32)
    assert problem.source.tolist() == [0, 0, 1, 1] and problem.target.tolist() == [1, 2, 3, 4]
    assert mdp.solve(problem, kl_weight=1.0).values.dtype == torch.float32
    assert problem.terminals.tolist() == [2, 3, 4]


@pytest.mark.parametrize(("law", "size"), [((0.2, 0.3, 0.5), 1), ((0.2, 0.3, 0.5), 4), ((0.25, 0.75), 3), ((1.0,), 3)])
def test_every_ordered_batch_is_listed_once_with_its_probability(law, size):
    index, log_prob = mdp.enumerate_batches(logs(*law), size)
    assert index.dtype == torch.int64 and index.shape == (len(law) ** size, size)
    by_hand = {batch: math.prod(law[k] for k in batch) for batch in product(range(len(law)), repeat=size)}
    assert sorted(map(tuple, index.tolist())) == sorted(by_hand)
    expected = torch.tensor([by_hand[tuple(batch)] for batch in index.tolist()], dtype=torch.float64)
    assert agree(log_prob.exp(), expected) and agree(log_prob.exp().sum(), 1.0)


@pytest.mark.parametrize("shape", ("tree", "dag"))
@pytest.mark.parametrize("size", [1, 2])
def test_the_mean_over_batches_of_a_batch_mean_is_the_mean_over_paths(shape, size):
    problem = problems(71)[shape]
    paths = mdp.enumerate_paths(problem)
    law, returns = paths.log_prob(random_policy(problem, 72)), path_totals(problem, problem.rewards, paths)
    index, log_prob = mdp.enumerate_batches(law, size)
    assert agree(mdp.expectation(returns[index].mean(dim=1), log_prob), (law.exp() * returns).sum())
    # and of the square: E[mean^2] = E[x]^2 + Var(x)/n
    mean = (law.exp() * returns).sum()
    variance = (law.exp() * (returns - mean) ** 2).sum()
    assert agree(mdp.expectation(returns[index].mean(dim=1) ** 2, log_prob), mean**2 + variance / size)
    # the batches go to Paths.select as they are
    assert torch.equal(paths.select(index[-1]).edges, paths.edges[index[-1]])


def test_a_path_of_probability_zero_is_in_batches_of_probability_zero():
    index, log_prob = mdp.enumerate_batches(logs(0, 1), 2)
    assert {tuple(i): p for i, p in zip(index.tolist(), log_prob.exp().tolist(), strict=True)} == {
        (0, 0): 0.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 1.0,
    }  # fmt: skip


def test_as_many_batches_as_the_limit_are_listed_and_no_more():
    assert len(mdp.enumerate_batches(logs(0.5, 0.5), 3, limit=24)[0]) == 8  # 8 batches of 3
    with pytest.raises(ValueError, match=r"There are 2\^3 batches of 3; expected at most 23 entries. Raise limit"):
        mdp.enumerate_batches(logs(0.5, 0.5), 3, limit=23)
    with pytest.raises(ValueError, match="Raise limit"):
        mdp.enumerate_batches(logs(0.5, 0.5), 10**8)
    with pytest.raises(ValueError, match=r"There are 10\^7 batches of 7; expected at most 1000000"):
        mdp.enumerate_batches(torch.full((10,), -math.log(10), dtype=torch.float64), 7)


def test_log_probabilities_of_batches_keep_gradients():
    """Each path is in every place of half of the 4 batches: the sum counts it 4 times."""
    law = logs(0.5, 0.5).requires_grad_()
    mdp.enumerate_batches(law, 2)[1].sum().backward()
    assert law.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("bad", [None, 7])
def test_nothing_is_drawn_from_global_state(bad):
    problem = mdp.tree(2, 1)
    with pytest.raises(ValueError, match="expected a torch.Generator"):
        mdp.random_policy(problem, bad)
    with pytest.raises(ValueError, match="expected a torch.Generator"):
        mdp.draw(mdp.enumerate_paths(problem), logs(0.5, 0.5), 3, bad)


# Gradients.


def test_gradients_flow_through_log_softmax_per_step_and_expectation():
    problem = problems(27)["dag"]
    paths = mdp.enumerate_paths(problem)
    logits = torch.randn(len(problem.source), generator=generator(28), dtype=torch.float64, requires_grad=True)

    def mean_return(logits):
        log_pi = mdp.log_softmax(problem, logits)
        returns = paths.per_step(problem.rewards - 0.5 * (log_pi - problem.log_ref)).sum(dim=1)
        return mdp.expectation(returns, paths.log_prob(log_pi))

    assert torch.autograd.gradcheck(mean_return, logits)
    (by_paths,) = torch.autograd.grad(mean_return(logits), logits)
    value = mdp.evaluate(problem, mdp.log_softmax(problem, logits), kl_weight=0.5)[0]
    (by_recursion,) = torch.autograd.grad(value, logits)
    assert agree(by_paths, by_recursion, scale=10) and float(by_paths.abs().max()) > 1e-3


def test_log_softmax_is_that_of_torch_in_each_state_even_for_huge_logits():
    problem = problems(29)["tree"]
    logits = 1e4 * torch.randn(len(problem.source), generator=generator(30), dtype=torch.float64)
    expected = torch.log_softmax(logits.reshape(-1, 3), dim=1).reshape(-1)
    assert agree(mdp.log_softmax(problem, logits), expected)


# Bad input.

S, X = torch.tensor([0, 0]), torch.tensor([1, 2])
HALF = logs(1 / 2, 1 / 2)
ZERO = torch.zeros(2, dtype=torch.float64)


def one_step() -> mdp.Problem:
    """Return two actions in one state."""
    return mdp.tree(2, 1)


def two_paths() -> mdp.Paths:
    """Return the paths of :func:`one_step`."""
    return mdp.enumerate_paths(one_step())


BAD = {
    "cycle": (lambda: mdp.from_edges([(0, 1), (1, 2), (2, 1)]), "does not lead to a higher number"),
    "loop": (lambda: mdp.from_edges([(0, 1), (1, 1)]), "does not lead to a higher number"),
    "negative state": (lambda: mdp.from_edges([(-1, 1)]), "does not lead to a higher number"),
    "double edge": (lambda: mdp.from_edges([(0, 1), (0, 1)]), "Two edges join the same states"),
    "orphan": (lambda: mdp.from_edges([(0, 1), (2, 3)]), "No edge leads to state 2"),
    "orphan after the root": (lambda: mdp.from_edges([(0, 2), (2, 3)]), "No edge leads to state 1"),
    "no pairs": (lambda: mdp.from_edges([(0, 1, 2)]), "An edge is no pair of integers"),
    "states as floats": (lambda: mdp.from_edges([(0, 1), (0, 2.0)]), "An edge is no pair of integers"),
    "states as truth values": (lambda: mdp.from_edges([(0, True)]), "An edge is no pair of integers"),
    "sources in int32": (lambda: mdp.Problem(S.int(), X, HALF, ZERO), "torch.int32; expected int64"),
    "targets in int32": (lambda: mdp.Problem(S, X.int(), HALF, ZERO), "torch.int32; expected int64"),
    "sources as a list": (lambda: mdp.Problem([0, 0], X, HALF, ZERO), "source is list; expected int64"),
    "targets as a list": (lambda: mdp.Problem(S, [1, 2], HALF, ZERO), "target is list; expected int64"),
    "no edges": (lambda: mdp.from_edges([]), "not empty"),
    "unsorted": (
        lambda: mdp.Problem(torch.tensor([1, 0]), torch.tensor([2, 1]), ZERO, ZERO),
        "ascending order",
    ),
    "edges of two lengths": (
        lambda: mdp.Problem(S, X[:1], HALF, ZERO),
        r"target is \(1,\) torch.int64; expected int64 \(2,\)",
    ),
    "unnormalised": (
        lambda: mdp.Problem(S, X, logs(0.5, 0.6), ZERO),
        "Normalise it with companion.mdp.log_softmax",
    ),
    "impossible edge": (lambda: mdp.Problem(S, X, logs(1, 0), ZERO), "Leave impossible edges out"),
    "NaN reference": (lambda: one_step().with_reference(HALF * math.nan), "log_ref holds infinite or NaN"),
    "reference of wrong shape": (
        lambda: one_step().with_reference(logs(1)),
        r"log_ref is \(1,\) torch.float64; expected floats, \(2,\)",
    ),
    "reference as integers": (lambda: one_step().with_reference(S), r"log_ref is .* torch.int64; expected floats"),
    "reference as a list": (lambda: one_step().with_reference([0.5, 0.5]), "log_ref is list"),
    "NaN reward": (lambda: one_step().with_rewards(ZERO * math.nan), r"rewards hold NaN or \+inf"),
    "infinite reward": (lambda: one_step().with_rewards(ZERO + math.inf), r"rewards hold NaN or \+inf"),
    "rewards of wrong shape": (lambda: one_step().with_rewards(ZERO[:, None]), r"rewards is \(2, 1\)"),
    "too many log-rewards": (
        lambda: one_step().with_log_reward(torch.zeros(3)),
        "one entry per terminal state",
    ),
    "two dtypes": (
        lambda: one_step().with_log_reward(torch.zeros(2)),
        "rewards is torch.float32; expected torch.float64",
    ),
    "NaN log-reward": (lambda: one_step().with_log_reward(ZERO * math.nan), "rewards hold NaN"),
    "no branches": (lambda: mdp.tree(0, 2), "branching is 0; expected a positive integer"),
    "no steps": (lambda: mdp.tree(2, 0), "steps is 0; expected a positive integer"),
    "half a step": (lambda: mdp.tree(2, 1.5), "steps is 1.5; expected a positive integer"),
    "true steps": (lambda: mdp.lattice(True), "steps is True; expected a positive integer"),
    "no lattice": (lambda: mdp.lattice(-1), "steps is -1; expected a positive integer"),
    "negative scale": (
        lambda: mdp.randomise(one_step(), generator(0), reward_scale=-1.0),
        "reward_scale is -1.0",
    ),
    "negative KL weight": (lambda: mdp.solve(one_step(), kl_weight=-1.0), "kl_weight is -1.0"),
    "negative entropy weight": (
        lambda: mdp.solve(one_step(), kl_weight=1.0, entropy_weight=-0.5),
        "entropy_weight is -0.5",
    ),
    "no weight at all": (lambda: mdp.solve(one_step(), kl_weight=0.0), r"kl_weight \+ entropy_weight is 0.0"),
    "NaN weight": (lambda: mdp.solve(one_step(), kl_weight=math.nan), "kl_weight is nan"),
    "tensor weight": (
        lambda: mdp.solve(one_step(), kl_weight=torch.tensor(1.0)),
        "Pass a plain float in that range, no tensor",
    ),
    "no discount": (lambda: mdp.solve(one_step(), kl_weight=1.0, gamma=0.0), "gamma is 0.0"),
    "discount above one": (lambda: mdp.solve(one_step(), kl_weight=1.0, gamma=1.1), "gamma is 1.1"),
    "negative weight of a policy": (
        lambda: mdp.evaluate(one_step(), HALF, kl_weight=-1.0),
        "kl_weight is -1.0",
    ),
    "entropy of a policy": (
        lambda: mdp.evaluate(one_step(), HALF, kl_weight=1.0, entropy_weight=-1.0),
        "entropy_weight is -1.0",
    ),
    "discount of a policy": (
        lambda: mdp.evaluate(one_step(), HALF, kl_weight=1.0, gamma=2.0),
        "gamma is 2.0",
    ),
    "policy of wrong shape": (
        lambda: mdp.evaluate(one_step(), logs(1), kl_weight=1.0),
        r"log_policy is \(1,\)",
    ),
    "visits of wrong shape": (lambda: mdp.visit_log_prob(one_step(), logs(1)), r"log_policy is \(1,\)"),
    "too many paths": (
        lambda: mdp.enumerate_paths(mdp.tree(2, 5), limit=31),
        "has 32 paths; expected at most 31",
    ),
    "marginal of wrong shape": (
        lambda: mdp.marginal(one_step(), two_paths(), logs(1)),
        r"log_prob is \(1,\) torch.float64; expected floats, \[2\]",
    ),
    "mean of wrong shape": (
        lambda: mdp.expectation(torch.ones(3).double(), HALF),
        r"values is \(3,\) torch.float64; expected \[paths, ...\] of torch.float64, paths being 2",
    ),
    "mean of another dtype": (
        lambda: mdp.expectation(torch.ones(2), HALF),
        r"values is \(2,\) torch.float32; expected \[paths, ...\] of torch.float64",
    ),
    "law of wrong rank": (
        lambda: mdp.expectation(torch.ones(2, 2).double(), HALF[:, None]),
        r"log_behaviour is \(2, 1\) torch.float64; expected floats, \[paths\]",
    ),
    "no batch": (lambda: mdp.enumerate_batches(HALF, 0), "size is 0; expected a positive integer"),
    "half a batch": (lambda: mdp.enumerate_batches(HALF, 1.5), "size is 1.5; expected a positive integer"),
    "true batch": (lambda: mdp.enumerate_batches(HALF, True), "size is True; expected a positive integer"),
    "no limit of batches": (lambda: mdp.enumerate_batches(HALF, 2, limit=0), "limit is 0; expected a positive integer"),
    "batches of an unnormalised law": (
        lambda: mdp.enumerate_batches(logs(0.5, 0.4), 2),
        "log_behaviour sums to probability 0.9; expected 1",
    ),
    "law above one": (lambda: mdp.expectation(ZERO, logs(0.5, 0.6)), "sums to probability 1.1; expected 1"),
    "law below one": (lambda: mdp.expectation(ZERO, logs(0.5, 0.4)), "sums to probability 0.9; expected 1"),
    "law above one in the last digits": (
        lambda: mdp.expectation(ZERO, logs(0.5, 0.5 + 1e-9)),
        "log_behaviour sums to probability 1.000000001; expected 1",
    ),
    "policy above one in the last digits": (
        lambda: mdp.evaluate(one_step(), HALF + 1e-9, kl_weight=1.0),
        "log_policy sums to a log-probability of 1e-09",
    ),
    "marginal of an unnormalised law": (
        lambda: mdp.marginal(one_step(), two_paths(), logs(0.5, 0.4)),
        "log_prob sums to probability 0.9; expected 1",
    ),
    "draws from an unnormalised law": (
        lambda: mdp.draw(two_paths(), logs(0.5, 0.4), 5, generator(0)),
        "log_behaviour sums to probability 0.9; expected 1",
    ),
    "no paths at all": (lambda: mdp.enumerate_paths(one_step(), limit=0), "limit is 0; expected a positive integer"),
    "half a limit": (lambda: mdp.enumerate_paths(one_step(), limit=2.5), "limit is 2.5; expected a positive integer"),
    "true limit": (lambda: mdp.enumerate_paths(one_step(), limit=True), "limit is True; expected a positive integer"),
    "paths beyond int64": (lambda: mdp.count_paths(mdp.lattice(64)), r"expected at most 2\^53"),
    "weights too small": (
        lambda: mdp.solve(one_step().with_rewards(ZERO + 1), kl_weight=1e-310),
        "The weights sum to 1e-310; expected more",
    ),
    "NaN logits": (lambda: mdp.log_softmax(one_step(), ZERO * math.nan), r"logits hold NaN or \+inf"),
    "infinite logits": (lambda: mdp.log_softmax(one_step(), ZERO + math.inf), r"logits hold NaN or \+inf"),
    "policy of another dtype": (
        lambda: mdp.evaluate(one_step(), HALF.float(), kl_weight=1.0),
        "log_policy is torch.float32; expected torch.float64 as log_ref",
    ),
    "visits of another dtype": (
        lambda: mdp.visit_log_prob(one_step(), HALF.float()),
        "log_policy is torch.float32; expected torch.float64 as log_ref",
    ),
    "logits of another dtype": (
        lambda: mdp.log_softmax(one_step(), HALF.float()),
        "logits is torch.float32; expected torch.float64 as log_ref",
    ),
    "NaN policy": (lambda: mdp.evaluate(one_step(), HALF * math.nan, kl_weight=1.0), "log_policy sums to .* nan"),
    "infinite policy": (lambda: mdp.visit_log_prob(one_step(), HALF + math.inf), "log_policy sums to .* inf"),
    "NaN mean": (lambda: mdp.expectation(ZERO * math.nan, HALF), "values hold NaN, or infinities of both signs"),
    "mean of both infinities": (
        lambda: mdp.expectation(torch.tensor([math.inf, -math.inf]).double(), HALF),
        "values hold NaN, or infinities of both signs",
    ),
    "mean of a list": (lambda: mdp.expectation([1.0, 2.0], HALF), "values is a list; expected a Tensor"),
    "law as a list": (lambda: mdp.expectation(ZERO, [0.0, 1.0]), "log_behaviour is list; expected floats"),
    "law as integers": (
        lambda: mdp.expectation(torch.tensor([1]), torch.tensor([0])),
        r"log_behaviour is \(1,\) torch.int64; expected floats",
    ),
    "infinite law": (
        lambda: mdp.expectation(ZERO, torch.tensor([math.inf, -math.inf]).double()),
        "log_behaviour sums to probability inf; expected 1",
    ),
    "NaN law": (lambda: mdp.expectation(ZERO, HALF * math.nan), "sums to probability nan; expected 1"),
    "empty law": (
        lambda: mdp.expectation(ZERO[:0], ZERO[:0]),
        r"log_behaviour is \(0,\) torch.float64; expected floats",
    ),
    "marginal of a list": (lambda: mdp.marginal(one_step(), two_paths(), [0.5, 0.5]), "log_prob is list"),
    "marginal of no paths": (lambda: mdp.marginal(one_step(), HALF, HALF), "paths is a Tensor; expected a Paths"),
    "marginal of the paths of a larger problem": (
        lambda: mdp.marginal(one_step(), mdp.enumerate_paths(mdp.tree(2, 2)), logs(*[1 / 4] * 4)),
        "A path ends where the problem goes on",
    ),
    "marginal of the paths of a smaller problem": (
        lambda: mdp.marginal(mdp.tree(2, 2), two_paths(), HALF),
        "A path ends where the problem goes on",
    ),
    "draws from no paths": (lambda: mdp.draw(HALF, HALF, 5, generator(0)), "paths is a Tensor; expected a Paths"),
    "draws from a list": (lambda: mdp.draw(two_paths(), [0.5, 0.5], 5, generator(0)), "log_behaviour is list"),
    "too few edges": (lambda: two_paths().per_step(ZERO[:1]), r"by_edge is \(1,\); expected .* at least 2 entries"),
    "edges as a list": (lambda: two_paths().per_step([1.0, 2.0]), "by_edge is list; expected a tensor"),
    "edges in a matrix": (lambda: two_paths().log_prob(ZERO.expand(2, 2)), r"by_edge is \(2, 2\); expected a tensor"),
    "too few states": (lambda: two_paths().per_state(ZERO), r"by_state is \(2,\); expected .* at least 3 entries"),
    "paths that are none": (lambda: mdp.Paths(1, 2), "edges is int; expected int64"),
    "paths as floats": (lambda: mdp.Paths(X[:, None], torch.zeros(2, 2)), "torch.float32; expected int64"),
    "paths without a last state": (
        lambda: mdp.Paths(X[:, None], X[:, None]),
        "expected int64, .*, a state more than edges",
    ),
    "edges that are none": (lambda: mdp.from_edges(None), "An edge is no pair of integers"),
    "states alone": (lambda: mdp.from_edges([1, 2]), "An edge is no pair of integers"),
    "an edge as text": (lambda: mdp.from_edges(["01"]), "An edge is no pair of integers"),
    "edges of no floating dtype": (lambda: mdp.from_edges([(0, 1)], dtype=torch.int64), "torch.int64; expected floats"),
    "log-rewards as integers": (lambda: one_step().with_log_reward(S), "torch.int64; expected floats"),
    "infinite weight": (lambda: mdp.solve(one_step(), kl_weight=math.inf), "kl_weight is inf"),
    "nothing drawn": (
        lambda: mdp.draw(two_paths(), HALF, 0, generator(0)),
        "n is 0; expected a positive integer",
    ),
    "draws of wrong shape": (
        lambda: mdp.draw(two_paths(), logs(1), 5, generator(0)),
        r"log_behaviour is \(1,\) torch.float64; expected floats, \[2\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_what_was_given(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [None, 3, "tree", mdp.enumerate_paths(mdp.tree(2, 1))], ids=in_one_line)
def test_what_is_no_problem_is_refused(bad):
    for call in (
        lambda: mdp.solve(bad, kl_weight=1.0),
        lambda: mdp.evaluate(bad, HALF, kl_weight=1.0),
        lambda: mdp.enumerate_paths(bad),
        lambda: mdp.count_paths(bad),
        lambda: mdp.path_counts(bad),
        lambda: mdp.visit_log_prob(bad, HALF),
        lambda: mdp.marginal(bad, two_paths(), HALF),
        lambda: mdp.log_softmax(bad, HALF),
        lambda: mdp.random_policy(bad, generator(0)),
        lambda: mdp.randomise(bad, generator(0)),
    ):
        with pytest.raises(ValueError, match=r"problem is a \w+; expected a Problem"):
            call()


@pytest.mark.parametrize(
    "bad",
    [torch.tensor([-1]), torch.tensor([2]), torch.tensor([True, False]), torch.tensor([0.0]), torch.tensor([[0, 1]])]
    + [torch.tensor(0), [0], 0, None],
    ids=in_one_line,
)
def test_paths_are_selected_by_their_numbers_alone(bad):
    """Else a negative number would count from the end, and truth values would leave paths out."""
    with pytest.raises(ValueError, match=r"index is .*; expected \[n\], int64, of 0 to 1"):
        two_paths().select(bad)


def test_a_law_with_an_impossible_path_must_still_sum_to_one():
    with pytest.raises(ValueError, match="expected 1"):
        mdp.expectation(ZERO, logs(0, 0.5))


def test_log_softmax_refuses_logits_of_wrong_shape():
    with pytest.raises(ValueError, match="logits"):
        mdp.log_softmax(one_step(), torch.zeros(1, dtype=torch.float64))


# Claims.


@pytest.mark.claim("K1")
@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_gibbs_variational_principle(n, alpha):
    problem = mdp.tree(n, 1)
    q = torch.randn(n, generator=generator(40 + n), dtype=torch.float64)
    log_ref = random_policy(problem, 41)
    log_pi = random_policy(problem, 42)
    value = mdp.evaluate(problem.with_reference(log_ref).with_rewards(q), log_pi, kl_weight=alpha)[0]
    best = Categorical(logits=log_ref + q / alpha)
    expected = alpha * torch.logsumexp(log_ref + q / alpha, 0) - alpha * kl_divergence(Categorical(logits=log_pi), best)
    assert agree(value, expected, scale=10 * (1 + alpha))
    solution = mdp.solve(problem.with_reference(log_ref).with_rewards(q), kl_weight=alpha)
    assert agree(solution.log_policy, best.logits, scale=10 / alpha)
    assert agree(solution.log_policy, mdp.log_softmax(problem, log_ref + q / alpha), scale=10 / alpha)


@pytest.mark.claim("K2")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_soft_bellman_equation(shape, alpha):
    problem = problems(43)[shape]
    solution = mdp.solve(problem, kl_weight=alpha)
    values = solution.values.tolist()
    for state in range(problem.n_states):
        out = edges_from(problem, state)
        if not out:
            assert values[state] == 0
            continue
        mean = sum(
            math.exp(float(problem.log_ref[e])) * math.exp((float(problem.rewards[e]) + values[s]) / alpha)
            for e, s in out
        )
        assert abs(values[state] - alpha * LOG(mean)) <= 64 * EPS * 20
        for e, s in out:
            gain = float(problem.rewards[e]) + values[s] - values[state]
            assert abs(float(solution.log_policy[e] - problem.log_ref[e]) - gain / alpha) <= 64 * EPS * 20 / alpha
    assert agree(solution.values, exact_values(problem, alpha), scale=10)


@pytest.mark.claim("K3")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_path_form_of_the_optimal_policy(shape, alpha):
    problem = problems(44)[shape]
    solution = mdp.solve(problem, kl_weight=alpha)
    paths = mdp.enumerate_paths(problem)
    log_ref, returns = (path_totals(problem, quantity, paths) for quantity in (problem.log_ref, problem.rewards))
    expected = log_ref + (returns - soft_value(problem, 0, alpha)) / alpha
    assert agree(paths.log_prob(solution.log_policy), expected, scale=20 * (1 + 1 / alpha))


def posterior(problem, alpha):
    """Return paths, log p*(tau) and log Z from the list of paths alone."""
    paths = mdp.enumerate_paths(problem)
    weight = path_totals(problem, problem.log_ref, paths) + path_totals(problem, problem.rewards, paths) / alpha
    return paths, weight - torch.logsumexp(weight, 0), torch.logsumexp(weight, 0)


@pytest.mark.claim("K4")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_the_soft_value_is_log_z_and_the_marginal_is_the_posterior(shape, alpha):
    problem = problems(45)[shape]
    log_r = torch.randn(len(problem.terminals), generator=generator(46), dtype=torch.float64)
    problem = problem.with_log_reward(log_r)
    solution = mdp.solve(problem, kl_weight=alpha)
    paths, _, log_z = posterior(problem, alpha)
    assert agree(solution.values[0], alpha * log_z, scale=20)
    # p_ref(x) r(x)^beta / Z, with p_ref(x) added up path by path in Python.
    prior = dict.fromkeys(problem.terminals.tolist(), 0.0)
    for path in listed_paths(problem):
        prior[int(problem.target[path[-1]])] += math.exp(sum(float(problem.log_ref[e]) for e in path))
    expected = torch.tensor(list(prior.values()), dtype=torch.float64) * (log_r / alpha).exp() / log_z.exp()
    assert agree(mdp.visit_log_prob(problem, solution.log_policy)[problem.terminals].exp(), expected)
    assert agree(mdp.marginal(problem, paths, paths.log_prob(solution.log_policy)), expected)


@pytest.mark.claim("K5")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_the_regularised_return_is_the_soft_value_less_a_reverse_kl(shape, alpha):
    problem = problems(47)[shape]
    log_pi = random_policy(problem, 48)
    paths, log_best, log_z = posterior(problem, alpha)
    law = path_totals(problem, log_pi, paths)
    divergence = (law.exp() * (law - log_best)).sum()
    value = mdp.evaluate(problem, log_pi, kl_weight=alpha)[0]
    assert float(divergence) > 1e-3
    assert agree(value, alpha * log_z - alpha * divergence, scale=20 * (1 + alpha))


def shaped(problem, seed):
    """Return the problem with rewards shaped by a random potential, zero at the root and at the ends."""
    potential = torch.randn(problem.n_states, generator=generator(seed), dtype=torch.float64)
    potential[0], potential[problem.terminals] = 0, 0
    return problem.with_rewards(problem.rewards + potential[problem.target] - potential[problem.source])


def split(problem, log_r, seed):
    """Return a tree whose every path earns log r(x) in random parts, the last edge paying what is left."""
    parts = torch.randn(len(problem.source), generator=generator(seed), dtype=torch.float64)
    ends = dict(zip(problem.terminals.tolist(), log_r.tolist(), strict=True))
    for path in listed_paths(problem):
        rest = sum(float(parts[edge]) for edge in path[:-1])
        parts[path[-1]] = ends[int(problem.target[path[-1]])] - rest
    return problem.with_rewards(parts)


@pytest.mark.claim("K6")
@pytest.mark.parametrize("shape", [*SHAPES, "split"])
def test_only_the_total_return_matters_to_the_full_path(shape):
    alpha = 0.6
    problem = problems(49)["tree" if shape == "split" else shape]
    log_r = torch.randn(len(problem.terminals), generator=generator(50), dtype=torch.float64)
    plain = problem.with_log_reward(log_r)
    other = split(plain, log_r, 51) if shape == "split" else shaped(plain, 51)
    assert float((plain.rewards - other.rewards).abs().max()) > 0.1
    paths, log_best, log_z = posterior(plain, alpha)
    log_pi = paths.per_step(random_policy(problem, 52))
    values = torch.zeros(len(paths), log_pi.shape[1] + 1, dtype=torch.float64)
    values[:, 0] = 0.3
    log_ref = paths.per_step(problem.log_ref)
    end = dict(zip(problem.terminals.tolist(), log_r.tolist(), strict=True))
    total = torch.tensor([end[x] for x in paths.ends.tolist()], dtype=torch.float64)
    expected = total - 0.3 - alpha * (log_pi - log_ref).sum(dim=1)
    for version in (plain, other):
        solution = mdp.solve(version, kl_weight=alpha)
        assert agree(solution.values[0], alpha * log_z, scale=20)
        assert agree(paths.log_prob(solution.log_policy), log_best, scale=40)
        residual = trust_pcl.residual(log_pi, log_ref, paths.per_step(version.rewards), values, kl_weight=alpha)
        assert agree(residual, expected, scale=20)


def one_step_residuals(problem, log_pi, values, **weights):
    """Return the residual of every transition, each a path of one step between states of those values."""
    columns = [quantity[:, None] for quantity in (log_pi, problem.log_ref, problem.rewards)]
    ends = torch.where(problem.terminal, 0.0, values)
    # V(s_T) = 0 is for the last value of a path: append a step that earns nothing and ends it.
    padded = [torch.cat([column, torch.zeros_like(column)], dim=1) for column in columns]
    states = torch.stack([ends[problem.source], ends[problem.target], torch.zeros_like(ends[problem.target])], dim=1)
    return trust_pcl.residual(*padded, states, start=0, stop=1, **weights)


@pytest.mark.claim("P1")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_every_transition_is_consistent_at_the_optimum_and_at_nothing_else(shape, alpha):
    problem = problems(53)[shape]
    solution = mdp.solve(problem, kl_weight=alpha)
    at_optimum = one_step_residuals(problem, solution.log_policy, solution.values, kl_weight=alpha)
    assert agree(at_optimum, torch.zeros_like(at_optimum), scale=20)
    inner = (~problem.terminal).nonzero().squeeze(1).tolist()
    for seed, state in enumerate(inner):
        moved = solution.values.clone()
        moved[state] += 0.1
        assert float(one_step_residuals(problem, solution.log_policy, moved, kl_weight=alpha).abs().max()) > 1e-3
        noise = torch.randn(len(problem.source), generator=generator(seed), dtype=torch.float64)
        other = mdp.log_softmax(problem, solution.log_policy + noise)
        for values in (solution.values, moved, mdp.evaluate(problem, other, kl_weight=alpha)):
            assert float(one_step_residuals(problem, other, values, kl_weight=alpha).abs().max()) > 1e-3


@pytest.mark.claim("P1")
@pytest.mark.parametrize("seed", range(4))
def test_solving_the_one_step_equations_from_any_start_leads_to_the_optimum(seed):
    problem = mdp.randomise(random_dag(7, generator(54)), generator(55))
    edges = len(problem.source)

    def residuals(x):
        return one_step_residuals(problem, mdp.log_softmax(problem, x[:edges]), x[edges:], kl_weight=0.8)

    start = 2 * torch.randn(edges + problem.n_states, generator=generator(seed), dtype=torch.float64)
    found = solve_equations(residuals, start)
    solution = mdp.solve(problem, kl_weight=0.8)
    # The equations are solved to 1e-13; their condition costs a few digits.
    assert float((mdp.log_softmax(problem, found[:edges]) - solution.log_policy).abs().max()) < 1e-9
    inner = ~problem.terminal
    assert float((found[edges:] - solution.values)[inner].abs().max()) < 1e-9
    assert agree(solution.values, exact_values(problem, 0.8), scale=10)


@pytest.mark.claim("P4")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("lam", "eta"), [(0.4, 0.9), (0.9, 0.4), (0.0, 1.3), (0.7, 0.0)])
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_entropy_and_kl_together_are_one_kl(shape, lam, eta, gamma):
    problem = problems(56)[shape]
    alpha = lam + eta
    log_ref, shift = torch.empty_like(problem.log_ref), torch.empty_like(problem.log_ref)
    for state in range(problem.n_states):
        out = [edge for edge, _ in edges_from(problem, state)]
        if out:
            normaliser = LOG(sum(math.exp(float(problem.log_ref[e])) ** (lam / alpha) for e in out))
            log_ref[out] = lam / alpha * problem.log_ref[out] - normaliser
            shift[out] = alpha * normaliser
    single = problem.with_reference(log_ref).with_rewards(problem.rewards + shift)
    both = mdp.solve(problem, kl_weight=lam, entropy_weight=eta, gamma=gamma)
    one = mdp.solve(single, kl_weight=alpha, gamma=gamma)
    assert agree(both.values, one.values, scale=20) and agree(both.log_policy, one.log_policy, scale=20 / alpha)
    log_pi = random_policy(problem, 57)
    left = mdp.evaluate(problem, log_pi, kl_weight=lam, entropy_weight=eta, gamma=gamma)
    assert agree(left, mdp.evaluate(single, log_pi, kl_weight=alpha, gamma=gamma), scale=20)


def full_path_residuals(problem, paths, log_pi, first_value, alpha):
    """Return Trust-PCL's residual on every path; the values between its ends must not matter."""
    steps = paths.edges.shape[1]
    values = torch.linspace(-2, 3, len(paths) * (steps + 1), dtype=torch.float64).view(len(paths), steps + 1)
    first, last = torch.arange(steps + 1) == 0, torch.arange(steps + 1) == steps
    values = torch.where(first, first_value, torch.where(last, 0.0, values))
    per_step = (paths.per_step(quantity) for quantity in (log_pi, problem.log_ref, problem.rewards))
    return trust_pcl.residual(*per_step, values, kl_weight=alpha)


@pytest.mark.claim("P5")
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_full_path_loss_under_full_support_is_reached_by_the_posterior_alone(shape):
    alpha = 0.8
    problem = problems(58)[shape]
    paths, log_best, log_z = posterior(problem, alpha)
    behaviour = paths.log_prob(random_policy(problem, 59))
    assert float(behaviour.exp().min()) > 0

    def loss(log_pi, first_value):
        residual = full_path_residuals(problem, paths, log_pi, first_value, alpha)
        return float(mdp.expectation(residual.square(), behaviour))

    best = mdp.solve(problem, kl_weight=alpha).log_policy
    assert loss(best, alpha * log_z) < (64 * EPS * 40) ** 2
    assert loss(best, alpha * log_z + 0.1) > 1e-3
    assert loss(random_policy(problem, 60), alpha * log_z) > 1e-3
    assert agree(paths.log_prob(best), log_best, scale=40)


@pytest.mark.claim("P5")
@pytest.mark.parametrize("seed", range(3))
def test_solving_the_full_path_equations_from_any_start_leads_to_the_posterior(seed):
    alpha = 0.8
    problem = mdp.randomise(random_dag(7, generator(61)), generator(62))
    paths, log_best, log_z = posterior(problem, alpha)

    def residuals(x):
        return full_path_residuals(problem, paths, mdp.log_softmax(problem, x[:-1]), x[-1], alpha)

    start = torch.randn(len(problem.source) + 1, generator=generator(seed), dtype=torch.float64)
    found = solve_equations(residuals, start)
    law = path_totals(problem, mdp.log_softmax(problem, found[:-1]), paths)
    assert float((law - log_best).abs().max()) < 1e-9
    assert abs(float(found[-1] - alpha * log_z)) < 1e-9


@pytest.mark.claim("R2")
@pytest.mark.parametrize("shape", SHAPES)
def test_rtb_is_trajectory_balance_with_the_backward_policy_of_the_prior(shape):
    beta, log_z = 1.4, torch.tensor(0.7, dtype=torch.float64)
    problem = problems(63)[shape]
    paths = mdp.enumerate_paths(problem)
    log_pi = paths.per_step(random_policy(problem, 64))
    log_r = torch.randn(len(paths), generator=generator(65), dtype=torch.float64)
    log_visits = mdp.visit_log_prob(problem, problem.log_ref)
    log_back = log_visits[problem.source] + problem.log_ref - log_visits[problem.target]
    # A backward policy: over the parents of each state it sums to one.
    mass = torch.zeros(problem.n_states, dtype=torch.float64).index_add(0, problem.target, log_back.exp())
    assert agree(mass[1:], torch.ones(problem.n_states - 1))
    # Trajectory balance: log Z + sum log P_F - log reward - sum log P_B, with reward p_ref(x) r(x)^beta.
    log_reward = log_visits[paths.ends] + beta * log_r
    balance = log_z + log_pi.sum(dim=1) - log_reward - path_totals(problem, log_back, paths)
    ours = rtb.residual(log_pi, paths.per_step(problem.log_ref), log_r, log_z, beta=beta)
    assert agree(ours, balance, scale=40)


@pytest.mark.claim("R4")
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_regularised_rl_needs_no_correction_and_maxent_rl_counts_paths(shape):
    alpha = 0.7
    problem = problems(66)[shape]
    log_r = torch.randn(len(problem.terminals), generator=generator(67), dtype=torch.float64)
    problem = problem.with_log_reward(log_r)
    ends = [int(problem.target[path[-1]]) for path in listed_paths(problem)]
    number = torch.tensor([ends.count(x) for x in problem.terminals.tolist()], dtype=torch.float64)
    paths, _, log_z = posterior(problem, alpha)
    prior = mdp.marginal(problem, paths, path_totals(problem, problem.log_ref, paths))

    def marginal(**weights):
        return mdp.visit_log_prob(problem, mdp.solve(problem, **weights).log_policy)[problem.terminals].exp()

    weight = (log_r / alpha).exp()
    maxent, kl = marginal(kl_weight=0.0, entropy_weight=alpha), marginal(kl_weight=alpha)
    assert agree(maxent, number * weight / (number * weight).sum())
    assert agree(mdp.path_counts(problem)[problem.terminals].double(), number)
    assert agree(kl, prior * weight / (prior * weight).sum())
    assert float((maxent - kl).abs().max()) > 1e-3
    # RTB is content with the KL-regularised solution, and not with the other.
    columns = paths.per_step(problem.log_ref), paths.per_step(problem.rewards).sum(dim=1), log_z
    for weights, content in (
        ({"kl_weight": alpha}, True),
        ({"kl_weight": 0.0, "entropy_weight": alpha}, False),
    ):
        log_pi = paths.per_step(mdp.solve(problem, **weights).log_policy)
        worst = float(rtb.residual(log_pi, *columns, beta=1 / alpha).abs().max())
        assert worst <= 64 * EPS * 40 if content else worst > 1e-2


@pytest.mark.parametrize("bad", [torch.full((2, 2), 0.25).log(), [0.0], torch.tensor(0.0), torch.tensor([0])])
def test_batches_of_what_is_no_law_of_paths_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected floats, \[paths\]"):
        mdp.enumerate_batches(bad, 2)


def test_the_running_example_has_these_edges():
    problem = mdp.small_graph()
    edges = list(zip(problem.source.tolist(), problem.target.tolist(), strict=True))
    layers = [(0, 1), (0, 2), (0, 3)], [(1, 4), (1, 5)], [(2, 5), (2, 6)], [(3, 6), (3, 9)]
    assert edges == [*sum(layers, []), (4, 7), (4, 8), (5, 8), (6, 8), (6, 9)]


def test_random_rewards_have_the_spread_of_a_standard_normal_unless_said_otherwise():
    problem = mdp.tree(2, 3)
    plain, doubled = (mdp.randomise(problem, generator(5), **scale) for scale in ({}, {"reward_scale": 2.0}))
    torch.testing.assert_close(doubled.rewards, 2 * plain.rewards)


def test_a_discount_of_zero_is_refused_by_evaluation():
    problem = mdp.tree(2, 2)
    with pytest.raises(ValueError, match="gamma is 0.0; expected a finite Python number > 0"):
        mdp.evaluate(problem, problem.log_ref, kl_weight=1.0, gamma=0.0)


def test_as_many_paths_as_the_limit_are_listed():
    assert len(mdp.enumerate_paths(mdp.tree(2, 3), limit=8)) == 8
    with pytest.raises(ValueError, match="8"):
        mdp.enumerate_paths(mdp.tree(2, 3), limit=7)


def test_a_path_that_ends_just_beyond_the_states_of_the_problem_is_refused():
    paths = mdp.enumerate_paths(mdp.tree(2, 1))
    beyond = mdp.Paths(paths.edges, paths.states + 1)
    with pytest.raises(ValueError, match="A path ends where the problem goes on"):
        mdp.marginal(mdp.tree(2, 1), beyond, logs(0.5, 0.5))


@pytest.mark.parametrize(
    ("bad", "given"), [([0.0], "list"), (torch.zeros(2, 2), r"\(2, 2\) torch.float32")], ids=["list", "matrix"]
)
def test_what_was_given_in_place_of_a_law_or_a_reward_is_said(bad, given):
    with pytest.raises(ValueError, match=f"log_behaviour is {given}; expected"):
        mdp.enumerate_batches(bad, 2)
    with pytest.raises(ValueError, match=f"log_reward is {given}; expected"):
        mdp.tree(2, 1).with_log_reward(bad)


def test_a_law_may_be_off_by_the_rounding_of_its_largest_logarithm():
    """exp(-x) is rounded x times more than 1 is: for two paths 66 x 700 eps beside -700, and 66 eps beside -1."""

    def beside(log_prob: float, missing: float) -> torch.Tensor:
        law = tensor([math.log1p(-math.exp(log_prob) - missing * EPS), log_prob])
        return mdp.expectation(tensor([0.0, 0.0]), law)

    assert beside(-700.0, 46_000) == 0 and beside(-1.0, 50) == 0
    for log_prob, missing in ((-700.0, 46_500), (-1.0, 100)):
        with pytest.raises(ValueError, match="sums to probability"):
            beside(log_prob, missing)


def test_a_policy_may_be_off_by_the_rounding_of_its_state():
    """With one action 16 (8 + 1) = 144 eps, met to the last bit: the sum of one exponential loses nothing."""
    problem = mdp.from_edges([(0, 1)])
    for sign in (1, -1):
        assert mdp.evaluate(problem, tensor([sign * 144 * EPS]), kl_weight=0.0).tolist() == [0, 0]
        with pytest.raises(ValueError, match="log_policy sums to a log-probability"):
            mdp.evaluate(problem, tensor([sign * 150 * EPS]), kl_weight=0.0)


def test_a_law_without_any_probability_is_refused():
    with pytest.raises(ValueError, match="sums to probability 0"):
        mdp.expectation(tensor([0.0, 0.0]), logs(0, 0))


def test_along_no_path_there_is_nothing_to_look_up():
    none = mdp.enumerate_paths(mdp.tree(2, 1)).select(torch.empty(0, dtype=torch.int64))
    assert none.per_step(torch.empty(0)).shape == (0, 1) and none.per_state(torch.empty(0)).shape == (0, 2)
