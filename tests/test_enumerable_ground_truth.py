"""Claim X1: with exact gradients each method ends at its own optimum, found by L-BFGS or a root of its field."""

import pytest
import torch
from inputs import tensor

from companion import mdp, reinforce, rtb, trust_pcl

ALPHA = 0.7
PROBLEM = mdp.randomise(mdp.lattice(3), torch.Generator().manual_seed(5), reward_scale=0.5)
PATHS = mdp.enumerate_paths(PROBLEM)
REFS, REWARDS = PATHS.per_step(PROBLEM.log_ref), PATHS.per_step(PROBLEM.rewards)
LOG_R = REWARDS.sum(dim=1)
UNIFORM = torch.full_like(REFS, 1 / len(PATHS)).log() / REFS.shape[1]


def one_step(steps, values, **weights):
    """Path consistency on every transition, the values being zero at the end."""
    table = PATHS.per_state(torch.where(PROBLEM.terminal, tensor(0.0), values))
    return sum(
        trust_pcl.loss(steps, REFS, REWARDS, table, start=t, stop=t + 1, **weights) for t in range(REFS.shape[1])
    )


MIXED = {"kl_weight": 0.3, "entropy_weight": 0.4, "gamma": 0.9}
LOSSES = {
    "rtb": (lambda s, v: rtb.loss(s, REFS, LOG_R, v[0] / ALPHA, beta=1 / ALPHA), {"kl_weight": ALPHA}),
    "vargrad": (lambda s, v: rtb.vargrad_loss(s, REFS, LOG_R, beta=1 / ALPHA), {"kl_weight": ALPHA}),
    "one step": (lambda s, v: one_step(s, v, **MIXED), MIXED),
}


def divergence(law, target):
    """KL(law, target) over the listed paths."""
    return float((law.exp() * (law - target)).sum())


@pytest.mark.claim("X1")
@pytest.mark.parametrize("name", LOSSES)
def test_squared_residuals_end_at_their_own_optimum(name):
    """By L-BFGS from the reference, on all paths once each; the optimum is from dynamic programming."""
    loss, weights = LOSSES[name]
    logits = PROBLEM.log_ref.clone().requires_grad_()
    values = torch.zeros(PROBLEM.n_states, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [logits, values], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        descent.zero_grad()
        total = loss(PATHS.per_step(mdp.log_softmax(PROBLEM, logits)), values)
        total.backward()
        return total

    descent.step(closure)
    law = PATHS.log_prob(mdp.log_softmax(PROBLEM, logits.detach()))
    assert divergence(law, PATHS.log_prob(mdp.solve(PROBLEM, **weights).log_policy)) < 1e-8


@pytest.mark.claim("X1")
@pytest.mark.parametrize("weights", ["none", "importance", "tempered"])
@pytest.mark.parametrize("baseline", ["batch_mean", "leave_one_out"])
def test_policy_gradients_end_at_the_posterior(baseline, weights):
    """By gradient descent with momentum; on uniform paths, on-policy by importance, and in between."""
    given = {} if weights == "none" else {"log_behaviour": UNIFORM}
    logits = PROBLEM.log_ref.clone().requires_grad_()
    descent = torch.optim.SGD([logits], lr=1.0, momentum=0.8)
    for _ in range(800):
        descent.zero_grad()
        steps = PATHS.per_step(mdp.log_softmax(PROBLEM, logits))
        reinforce.kl_loss(steps, REFS, LOG_R, beta=1 / ALPHA, baseline=baseline, weights=weights, **given).backward()
        descent.step()
    law = PATHS.log_prob(mdp.log_softmax(PROBLEM, logits.detach()))
    assert divergence(law, PATHS.log_prob(mdp.solve(PROBLEM, kl_weight=ALPHA).log_policy)) < 1e-8
