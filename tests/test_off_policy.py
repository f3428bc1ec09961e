"""RTB and policy gradients on paths from elsewhere: the field, its zeros, and the noise at the optimum.

Expectations are sums over the lists of paths, or of all batches of two; nothing is sampled.
"""

import math

import pytest
import torch
from cases import ALPHA, SUMMED, Case, batch_gradients, behaviours, case, divergence, every_shape, gradient
from inputs import assert_agree, tensor
from torch import Tensor

from companion import mdp, reinforce, rtb


def angle(left: Tensor, right: Tensor) -> float:
    """The cosine of the angle between two gradients."""
    return float(left @ right / (left.norm() * right.norm()))


# At the optimum.


@pytest.mark.claim("O6")
@every_shape
def test_at_the_optimum_the_centred_residual_of_every_path_and_the_gradient_of_every_batch_are_zero(shape):
    """Three baselines, three weightings, three behaviours, all 64 or 81 batches of two paths."""
    c = case(shape)
    steps = c.policy(c.best_logits())
    size = c.size()
    residual = rtb.residual(steps, *c.constants, tensor(0.0), beta=1 / ALPHA)
    assert_agree(residual, torch.full_like(residual, -c.log_z), size)
    samplers = behaviours(c, c.best_logits())
    index, _ = mdp.enumerate_batches(samplers["uniform"].sum(dim=1), 2)
    options = [{"weights": "none"}] + [
        {"weights": weights, "law": samplers[name]}
        for weights in ("importance", "tempered")
        for name in ("on-policy", "prior", "uniform")
    ]
    for batch in index:
        inputs = steps[batch].requires_grad_(), c.log_ref[batch], c.log_reward[batch]
        for option in options:
            given_law = {"log_behaviour": option["law"][batch]} if "law" in option else {}
            for baseline in ("batch_mean", "leave_one_out", ALPHA * c.log_z):
                given_law |= {"weights": option["weights"], "baseline": baseline}
                noise = gradient(reinforce.kl_loss(*inputs, beta=1 / ALPHA, **given_law), inputs[0])
                assert_agree(noise, torch.zeros_like(noise), ALPHA * size)


@pytest.mark.claim("O6")
@every_shape
@pytest.mark.parametrize("weights", ["none", "importance", "tempered"])
def test_centring_removes_a_constant_that_is_added_to_every_log_reward(shape, weights):
    """Away from the optimum, by either mean; without a baseline the gradient moves by the constant times the scores."""
    c = case(shape)
    steps = c.policy(c.logits(4))
    drawn = {} if weights == "none" else {"log_behaviour": behaviours(c, c.logits(4))["uniform"]}
    options = {"beta": 1 / ALPHA, "weights": weights, **drawn}

    def of(log_reward, baseline):
        log_pi = steps.clone().requires_grad_()
        return gradient(reinforce.kl_loss(log_pi, c.log_ref, log_reward, baseline=baseline, **options), log_pi)

    for baseline in ("batch_mean", "leave_one_out"):
        assert_agree(of(c.log_reward + 7, baseline), of(c.log_reward, baseline), 7 + ALPHA * c.size(), roundings=SUMMED)
    assert (of(c.log_reward + 7, "none") - of(c.log_reward, "none")).abs().max() > 0.1


@pytest.mark.claim("O6")
@every_shape
def test_without_a_baseline_noise_stays_at_the_optimum_and_off_policy_the_fixed_point_moves(shape):
    """On-policy the mean is zero and the variance is not; off-policy the mean is -alpha log Z E_b[g]."""
    c = case(shape)
    best = c.best_logits()
    _, mean, variance = batch_gradients(c, best, 2, baseline="none")
    size = ALPHA * c.size()
    assert_agree(mean, torch.zeros_like(mean), size, roundings=SUMMED)
    # every path has the advantage alpha log Z: the trace is its square times E[|g|^2] / 2
    g = c.scores(best)
    spread = (ALPHA * c.log_z) ** 2 * (c.log_best.exp() @ g.square().sum(dim=1)) / 2
    assert_agree(variance, spread, size**2, roundings=SUMMED)
    assert variance > 0.1
    for name, steps in behaviours(c, best).items():
        law = steps.sum(dim=1)
        logits = best.clone().requires_grad_()
        log_pi = c.policy(logits)
        # the loss is linear in the paths: its mean is that of single paths
        singles = [
            reinforce.kl_loss(
                log_pi[k : k + 1], c.log_ref[k : k + 1], c.log_reward[k : k + 1], beta=1 / ALPHA, baseline="none"
            )
            for k in range(len(c.paths))
        ]
        moved = gradient(mdp.expectation(torch.stack(singles), law), logits)
        assert_agree(moved, -ALPHA * c.log_z * (law.exp() @ g), size, roundings=SUMMED)
        assert (moved.norm() > 0.1) == (name != "on-policy")


# Off-policy.


def off_policy_gradient(c: Case, logits: Tensor, law: Tensor, log_z: float | None = None) -> Tensor:
    """The exact expected gradient of half the squared residual, with a fixed log Z, or with the best one."""
    logits = logits.clone().requires_grad_()
    residual = rtb.residual(c.policy(logits), *c.constants, tensor(log_z or 0.0), beta=1 / ALPHA)
    if log_z is None:
        residual = residual - mdp.expectation(residual, law)
    return gradient(mdp.expectation(0.5 * residual.square(), law), logits)


def reverse_kl_gradient(c: Case, logits: Tensor) -> Tensor:
    """The gradient of KL(p, p*)."""
    logits = logits.clone().requires_grad_()
    return gradient(divergence(c.policy(logits).sum(dim=1), c.log_best), logits)


@pytest.mark.claim("O7")
@every_shape
def test_off_policy_the_field_is_not_the_importance_weighted_one_but_has_its_zero(shape):
    """Angles away from the optimum; both vanish there. The package's losses on the list of paths agree with both."""
    c = case(shape)
    names, cosines = ("prior", "uniform", "another"), []
    for seed in range(3):
        logits = c.logits(seed)
        ours = reverse_kl_gradient(c, logits)
        for name in names:
            law = behaviours(c, logits)[name].sum(dim=1)
            cosines.append(angle(off_policy_gradient(c, logits, law), ours))
        # the list of all paths, each once: drawn uniformly, its weights are the probabilities themselves
        at = logits.clone().requires_grad_()
        log_pi, n = c.policy(at), len(c.paths)
        law = torch.full((n,), -math.log(n), dtype=torch.float64)
        inputs, once = (log_pi, *c.constants), torch.zeros_like(log_pi)
        size = c.size(log_pi.detach().sum(dim=1))
        weighted = reinforce.kl_loss(*inputs, beta=1 / ALPHA, weights="importance", log_behaviour=once)
        assert_agree(gradient(weighted, at), ALPHA * ours, ALPHA * size, roundings=SUMMED)
        vargrad = gradient(rtb.vargrad_loss(*inputs, beta=1 / ALPHA), at)
        assert_agree(vargrad, off_policy_gradient(c, logits, law), size, roundings=SUMMED)
        assert angle(vargrad, ours) < 0.99
    assert max(cosines) < 0.99
    best, size = c.best_logits(), c.size()
    zero = torch.zeros_like(best)
    assert_agree(reverse_kl_gradient(c, best), zero, size, roundings=SUMMED)
    for name in names:
        assert_agree(off_policy_gradient(c, best, behaviours(c, best)[name].sum(dim=1)), zero, size, roundings=SUMMED)


@pytest.mark.claim("O7")
@every_shape
@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_a_fixed_wrong_log_z_moves_the_zero_off_policy_and_not_on_policy(shape, wrong):
    """At the optimum the residual is the error of log Z on every path: its mean gradient is that times E_b[g]."""
    c = case(shape)
    best, size = c.best_logits(), c.size()
    for name, steps in behaviours(c, best).items():
        law = steps.sum(dim=1)
        found = off_policy_gradient(c, best, law, c.log_z + wrong)
        assert_agree(found, wrong * (law.exp() @ c.scores(best)), size, roundings=SUMMED)
        assert (found.norm() > 0.1) == (name != "on-policy")
        right = off_policy_gradient(c, best, law, c.log_z)
        assert_agree(right, torch.zeros_like(right), size, roundings=SUMMED)


def advantages(c: Case, logits: Tensor) -> Tensor:
    """What each edge adds to the expected log p/p*, [edges]: delta + W(next) - W(here), backwards from the ends."""
    log_pi = mdp.log_softmax(c.problem, logits)
    delta = log_pi - c.problem.log_ref - c.problem.rewards / ALPHA
    ahead = torch.zeros(c.problem.n_states, dtype=torch.float64)
    for edge in reversed(range(len(delta))):  # in descending order of their source
        source, target = int(c.problem.source[edge]), int(c.problem.target[edge])
        ahead[source] += log_pi[edge].exp() * (delta[edge] + ahead[target])
    return delta + ahead[c.problem.target] - ahead[c.problem.source]


@pytest.mark.claim("O8")
@every_shape
def test_the_gradient_is_zero_only_where_the_centred_residual_has_no_variance(shape):
    """Along the policy's own advantages the slope is that variance, on-policy or off: 200 policies, mild and extreme.

    So the norm of the gradient is at least the variance over the norm of the advantages, and the variance is positive.
    """
    c = case(shape)
    for seed in range(200):
        logits = (0.1, 1.0, 3.0, 8.0)[seed % 4] * c.logits(seed)
        if seed % 4 == 0:
            logits = logits + c.best_logits()  # near the optimum
        direction = advantages(c, logits)
        log_p = c.policy(logits).sum(dim=1)
        laws = {name: steps.sum(dim=1) for name, steps in behaviours(c, logits).items()}
        for name, law in laws.items():
            if name == "on-policy":
                found = reverse_kl_gradient(c, logits)
            elif name == ("prior", "another")[seed % 2]:
                found = off_policy_gradient(c, logits, law)
            else:
                continue
            gap = log_p - c.log_best
            variance = (law.exp() * (gap - (law.exp() * gap).sum()).square()).sum()
            size = c.size(log_p) * (1 + direction.abs().sum())
            assert_agree(found @ direction, variance, size, roundings=SUMMED)
            assert variance > 1e-6 and found.norm() >= 0.999 * variance / direction.norm() > 0


@pytest.mark.claim("O8")
@every_shape
@pytest.mark.parametrize("where", ["on-policy", "off-policy"])
def test_descent_ends_at_the_posterior_from_wherever_it_starts(shape, where):
    """L-BFGS from ten standard normal starts: KL(p, p*) below 1e-12 for both objectives.

    From far out it may land where the policy is all but deterministic: the gradient is small there, and not zero.
    """
    c = case(shape)
    law = behaviours(c, c.best_logits())["another"].sum(dim=1)
    for seed in range(10):
        logits = c.logits(100 + seed).requires_grad_()

        def objective(logits=logits):
            log_pi = c.policy(logits)
            if where == "on-policy":
                return divergence(log_pi.sum(dim=1), c.log_best)
            residual = rtb.residual(log_pi, *c.constants, tensor(0.0), beta=1 / ALPHA)
            return 0.5 * mdp.expectation((residual - mdp.expectation(residual, law)).square(), law)

        descent = torch.optim.LBFGS(
            [logits], max_iter=400, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure(logits=logits, descent=descent, objective=objective):
            descent.zero_grad()
            loss = objective()
            loss.backward()
            return loss

        assert divergence(c.policy(logits).sum(dim=1), c.log_best) > 0.01
        descent.step(closure)
        assert divergence(c.policy(logits).sum(dim=1), c.log_best) < 1e-12
