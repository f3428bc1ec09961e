"""Random transitions: what the losses keep of the equivalence, the optimum on-policy, and what luck does off-policy."""

import math

import pytest
import torch
from inputs import along, assert_agree, generator, random_graph, tensor
from oracles import edges_from, log_sum_exp, path_totals, random_policy, solve_equations

from companion import mdp, rtb, trust_pcl

ALPHA = 0.7
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def alternating(seed: int) -> tuple[mdp.Problem, torch.Tensor]:
    """Return a tree of four binary steps, random rewards on each, and whether an edge is nature's: the odd steps."""
    problem = mdp.randomise(mdp.tree(2, 4), generator(seed))
    return problem, ((problem.source >= 1) & (problem.source <= 2)) | (problem.source >= 7)


def meeting(seed: int) -> tuple[mdp.Problem, torch.Tensor]:
    """Return a random graph in which nature moves from the odd states."""
    problem = random_graph(seed, states=8)
    return problem, problem.source % 2 == 1


WITH_NATURE = pytest.mark.parametrize("game", [alternating, meeting])


def played(problem: mdp.Problem, nature: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """Return the policy with nature's moves as they are."""
    return torch.where(nature, problem.log_ref, policy)


def risk_neutral(problem: mdp.Problem, nature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the KL-regularised optimum and its values in plain Python: means where nature moves, soft maxima else."""
    values, log_pi = [0.0] * problem.n_states, problem.log_ref.tolist()
    for state in reversed(range(problem.n_states)):
        gains = {edge: float(problem.rewards[edge]) + values[after] for edge, after in edges_from(problem, state)}
        if gains and bool(nature[min(gains)]):
            values[state] = sum(math.exp(log_pi[edge]) * gain for edge, gain in gains.items())
        elif gains:
            values[state] = ALPHA * log_sum_exp([log_pi[edge] + gain / ALPHA for edge, gain in gains.items()])
            for edge, gain in gains.items():
                log_pi[edge] += (gain - values[state]) / ALPHA
    return tensor(log_pi), tensor(values)


def luck_of(problem: mdp.Problem, nature: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return by how much each move of nature beats its mean, zero on the agent's edges."""
    return torch.where(nature, problem.rewards + values[problem.target] - values[problem.source], 0.0)


def half_square(problem: mdp.Problem, log_z: torch.Tensor, law: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """Return half the mean square of the RTB residual under a law of the paths."""
    _, steps, refs, rewards = along(problem, policy)
    return mdp.expectation(0.5 * rtb.residual(steps, refs, rewards.sum(1), log_z, beta=1 / ALPHA).square(), law)


def slope(problem: mdp.Problem, nature: torch.Tensor, log_z: torch.Tensor, law: torch.Tensor, policy: torch.Tensor):
    """Return the gradient of the half square in the logits of the agent, at a policy."""

    def loss(logits):
        return half_square(problem, log_z, law, played(problem, nature, mdp.log_softmax(problem, logits)))

    return torch.func.grad(loss)(policy)


@pytest.mark.claim("L9")
@SEEDS
@WITH_NATURE
def test_the_probabilities_of_the_transitions_cancel_path_by_path(game, seed):
    problem, nature = game(seed)
    policy = played(problem, nature, random_policy(problem, seed))
    paths, steps, refs, rewards = along(problem, policy)
    own, own_refs = (paths.per_step(torch.where(nature, 0.0, x)) for x in (policy, problem.log_ref))
    first = trust_pcl.full_path_values(tensor(ALPHA * 0.3), own)
    left = trust_pcl.residual(own, own_refs, rewards, first, kl_weight=ALPHA)
    right = rtb.residual(steps, refs, rewards.sum(1), tensor(0.3), beta=1 / ALPHA)
    assert_agree(left, -ALPHA * right, 20.0)


@pytest.mark.claim("L9")
@SEEDS
@WITH_NATURE
def test_the_best_return_falls_short_of_log_z_by_the_divergence_to_the_posterior(game, seed):
    problem, nature = game(seed)
    best, values = risk_neutral(problem, nature)
    paths, _, refs, rewards = along(problem, best)
    log_weight = refs.sum(1) + rewards.sum(1) / ALPHA
    for policy in (best, played(problem, nature, random_policy(problem, seed))):
        law = path_totals(problem, policy, paths)
        shortfall = ALPHA * float((law.exp() * (law - log_weight + log_weight.logsumexp(0))).sum())
        earned = mdp.evaluate(problem, policy, kl_weight=ALPHA)[0]
        assert_agree(earned, ALPHA * log_weight.logsumexp(0) - shortfall, 50.0)
        assert shortfall > 1e-3
        assert earned <= values[0] + 1e-12
    assert_agree(mdp.evaluate(problem, best, kl_weight=ALPHA), values, 50.0)


@pytest.mark.claim("L9")
@SEEDS
@WITH_NATURE
def test_on_policy_the_gradient_is_that_of_the_return_whose_zero_is_not_the_posterior(game, seed):
    problem, nature = game(seed)
    posterior = played(problem, nature, mdp.solve(problem, kl_weight=ALPHA).log_policy)
    best, _ = risk_neutral(problem, nature)
    paths = mdp.enumerate_paths(problem)

    def earned(logits):
        policy = played(problem, nature, mdp.log_softmax(problem, logits))
        return mdp.evaluate(problem, policy, kl_weight=ALPHA)[0]

    for policy, zero in ((random_policy(problem, seed), False), (posterior, False), (best, True)):
        law = path_totals(problem, played(problem, nature, policy), paths)
        own = slope(problem, nature, tensor(0.3), law, policy)
        assert_agree(own, -torch.func.grad(earned)(policy) / ALPHA, 200.0)
        assert (own.abs().max() < 1e-12) == zero


@pytest.mark.claim("L9")
@SEEDS
@WITH_NATURE
def test_at_the_optimum_the_residual_is_the_luck_of_the_path_and_keeps_its_variance(game, seed):
    problem, nature = game(seed)
    best, values = risk_neutral(problem, nature)
    paths, steps, refs, rewards = along(problem, best)
    luck = luck_of(problem, nature, values)
    residual = rtb.residual(steps, refs, rewards.sum(1), values[0] / ALPHA, beta=1 / ALPHA)
    assert_agree(residual, -path_totals(problem, luck, paths) / ALPHA, 50.0)
    visits = mdp.visit_log_prob(problem, best)[problem.source]
    variance = float(((visits + problem.log_ref).exp() * luck.square()).sum()) / ALPHA**2
    law = path_totals(problem, best, paths)
    assert variance > 1e-3
    assert_agree(half_square(problem, values[0] / ALPHA, law, best), variance / 2, 100.0)


@pytest.mark.claim("L9")
@SEEDS
@WITH_NATURE
def test_zero_is_attained_where_the_rewards_have_no_luck_and_the_posterior_then_leaves_nature_alone(game, seed):
    problem, nature = game(seed)
    best, values = risk_neutral(problem, nature)
    loaded = mdp.solve(problem, kl_weight=ALPHA).log_policy
    assert (loaded - problem.log_ref)[nature].abs().max() > 1e-2
    fair = problem.with_rewards(problem.rewards - luck_of(problem, nature, values))
    solved = mdp.solve(fair, kl_weight=ALPHA)
    assert_agree(solved.log_policy, best, 50.0)
    assert_agree(solved.values[0], values[0], 50.0)
    _, steps, refs, rewards = along(fair, best)
    residual = rtb.residual(steps, refs, rewards.sum(1), values[0] / ALPHA, beta=1 / ALPHA)
    assert_agree(residual, torch.zeros_like(residual), 50.0)


@pytest.mark.claim("L9")
@SEEDS
def test_off_policy_luck_moves_the_minimiser_unless_it_comes_after_the_last_action(seed):
    problem, nature = alternating(seed)
    law = path_totals(problem, played(problem, nature, random_policy(problem, seed)), mdp.enumerate_paths(problem))
    early = nature & (problem.source < 7)
    for moved in (True, False):
        best, values = risk_neutral(problem, nature)
        gradient = slope(problem, nature, values[0] / ALPHA, law, best)
        largest = float(gradient.abs().max())
        assert largest > 1e-3 if moved else largest < 1e-12
        luck = luck_of(problem, nature, values)
        problem = problem.with_rewards(problem.rewards - torch.where(early, luck, 0.0))


@pytest.mark.claim("L9")
@SEEDS
def test_on_paths_recorded_from_the_optimum_bad_luck_turns_the_minimum_into_a_saddle(seed):
    problem, nature = alternating(seed)
    stakes = torch.zeros_like(problem.rewards).index_put((torch.arange(2, 6),), tensor([3.0, -3.0, 3.0, -3.0]))
    problem = problem.with_rewards(problem.rewards + stakes)  # on nature's first moves
    best, values = risk_neutral(problem, nature)
    paths = mdp.enumerate_paths(problem)
    law = path_totals(problem, best, paths)

    def loss(logits):
        return half_square(problem, values[0] / ALPHA, law, played(problem, nature, mdp.log_softmax(problem, logits)))

    curvature = torch.autograd.functional.hessian(loss, best)
    sure = path_totals(
        problem, luck_of(problem, nature & (problem.source < 3), values), paths
    )  # before the last action
    saddles = 0
    for state in range(3, 7):
        out = [edge for edge, _ in edges_from(problem, state)]
        through = paths.states[:, 2] == state
        residual = -sure[through][0] / ALPHA
        chance = best[out].exp()
        fisher = torch.diag(chance) - torch.outer(chance, chance)
        expected = law[through].exp().sum() * (1 - residual) * fisher
        assert_agree(curvature[out][:, out], expected, 200.0)
        saddles += bool(residual > 1)
    assert saddles > 0
    assert torch.linalg.eigvalsh(curvature)[0] < -1e-4


@pytest.mark.claim("L9")
@SEEDS
def test_transition_by_transition_the_optimum_is_a_zero_if_the_next_value_is_held(seed):
    problem, nature = alternating(seed)
    best, values = risk_neutral(problem, nature)
    paths, _, refs, rewards = along(problem, best)
    law = path_totals(problem, played(problem, nature, random_policy(problem, seed)), paths)

    def gradient(held):
        logits, learned = best.clone().requires_grad_(), values.clone().requires_grad_()
        steps = paths.per_step(played(problem, nature, mdp.log_softmax(problem, logits)))
        live = paths.per_state(learned)
        total = torch.zeros((), dtype=torch.float64)
        for begin, end in ((0, 2), (2, 4)):
            after = live[:, end:].detach() if held else live[:, end:]
            known = torch.cat([live[:, :end], after], dim=1)
            options = {"kl_weight": ALPHA, "start": begin, "stop": end}
            error = trust_pcl.residual(steps, refs, rewards, known, **options)
            total = total + mdp.expectation(0.5 * error.square(), law)
        return torch.cat(torch.autograd.grad(total, (logits, learned)))[: len(logits) + 7]  # the ends have no value

    assert_agree(gradient(True), torch.zeros(len(best) + 7, dtype=torch.float64), 200.0)
    assert gradient(False).abs().max() > 1e-2


@pytest.mark.claim("L9")
@SEEDS
def test_with_the_next_value_held_the_field_has_no_zero_but_the_optimum_wherever_one_looks_for_it(seed):
    problem, nature = alternating(seed)
    best, values = risk_neutral(problem, nature)
    paths, _, refs, rewards = along(problem, best)
    law = path_totals(problem, played(problem, nature, random_policy(problem, seed + 10)), paths).exp()
    own = torch.cat([~nature, torch.zeros(problem.n_states, dtype=torch.bool)])
    own[len(best) + problem.source[~nature]] = True

    def field(free):
        """The expected gradient in the agent's logits and values, as one follows it, written out without autograd."""
        point = torch.zeros(len(own), dtype=torch.float64).index_put((own.nonzero()[:, 0],), free)
        policy = played(problem, nature, mdp.log_softmax(problem, point[: len(best)]))
        steps, live = paths.per_step(policy), paths.per_state(point[len(best) :])
        in_edge, in_state = torch.zeros_like(best), torch.zeros_like(values)
        for begin in (0, 2):
            options = {"kl_weight": ALPHA, "start": begin, "stop": begin + 2}
            error = law * trust_pcl.residual(steps, refs, rewards, live, **options)
            in_edge = in_edge.index_add(0, paths.edges[:, begin], error)
            in_state = in_state.index_add(0, paths.states[:, begin], error)
        in_logit = -ALPHA * (in_edge - policy.exp() * in_state[problem.source])
        return torch.cat([in_logit, -in_state])[own]

    expected = torch.cat([best, values])[own]
    assert field(expected).abs().max() < 1e-12
    for start in range(3):
        end = solve_equations(field, torch.randn(len(expected), generator=generator(start), dtype=torch.float64))
        assert field(end).abs().max() < 1e-12
        point = torch.zeros(len(own), dtype=torch.float64).index_put((own.nonzero()[:, 0],), end)
        policy = played(problem, nature, mdp.log_softmax(problem, point[: len(best)]))
        found = torch.cat([policy, point[len(best) :]])[own]
        assert (found - expected).abs().max() < 1e-9
