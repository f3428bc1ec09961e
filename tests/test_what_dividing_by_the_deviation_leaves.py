"""Division by the deviation, beside the closed forms: the two flows without a reference and with one, bounds, a clamp.

Expected gradients come from automatic differentiation of objectives, where the chapter types updates.
"""

import math

import pytest
import torch
from torch import Tensor

from companion import family, fixed_points

pytestmark = pytest.mark.claim("F5")

REWARD = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.2, 0.25, 0.45], dtype=torch.float64)
START = torch.tensor([0.25, 0.15, 0.2, 0.4], dtype=torch.float64).log()
SUCCESS = 0.3


def objective(logits: Tensor, kl_weight: float) -> Tensor:
    """Return twice the arcsine of the root of the success, less the KL."""
    law = logits.log_softmax(dim=0)
    kl = (law.exp() * (law - REFERENCE.log())).sum()
    return 2 * (law.exp() @ REWARD).sqrt().asin() - kl_weight * kl


def flow(kl_weight: float, *, until: float, natural: bool = False) -> Tensor:
    """Return the law at a time, from START, by the midpoint rule, steps growing with time."""

    def slope(logits: Tensor) -> Tensor:
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(logits, kl_weight), logits)
        return gradient / logits.detach().softmax(dim=0) if natural else gradient

    logits, time = START, 0.0
    while time < until:
        step = min(0.002 if natural else 0.2 if kl_weight else 0.01 + 0.02 * time, until - time)
        logits = logits + step * slope(logits + step / 2 * slope(logits))
        time += step
    return logits.softmax(dim=0)


def test_without_a_reference_the_plain_gradient_ends_on_the_likelier_right_answer():
    """Two wrong answers become equally likely, and the share of the other right one falls as time to -4/3."""
    shares = [law[1] / law[:2].sum() for law in (flow(0.0, until=1e3), flow(0.0, until=1e4))]
    assert float(shares[1]) < 2e-3
    assert float(shares[0] / shares[1]) == pytest.approx(10 ** (4 / 3), rel=0.05)


def test_without_a_reference_the_natural_gradient_keeps_the_ratios_and_is_done_in_time():
    done = math.pi - 2 * math.asin(math.sqrt(0.4))
    for part in (0.5, 0.95):
        law = flow(0.0, until=part * done, natural=True)
        assert float(law[0] / law[1]) == pytest.approx(0.25 / 0.15, rel=1e-9)
        angle = part * done / 2 + math.asin(math.sqrt(0.4))
        assert float(law[:2].sum()) == pytest.approx(math.sin(angle) ** 2, abs=1e-5)


def test_with_a_reference_too_light_the_plain_gradient_ends_on_the_reference_given_that_it_is_right():
    law = flow(0.5, until=300.0)
    assert float(law[2:].sum()) < 1e-3
    assert float(law[1] / law[0]) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("exponent", [-0.35, -1, -2, -5, -10, -30, -100])
def test_the_critical_weight_lies_between_its_bounds(exponent):
    success = 10**exponent
    odds = math.log1p(-success) - math.log(success)
    assert 2 / (odds + 4 / 3) < fixed_points.critical_kl_weight(success) < 2 / odds


def test_a_small_reward_for_the_format_makes_four_points():
    law = torch.tensor([0.3, 0.5, 0.15, 0.05], dtype=torch.float64).log()
    levels = torch.tensor([0.0, 0.1, 1.0, 1.1], dtype=torch.float64)
    grid = torch.logspace(-2, 2, 2001, dtype=torch.float64)
    for kl_weight, pairs in ((1.2, 2), (0.93, 1), (0.8, 0)):
        found = fixed_points.standardised_tilts(law, levels, grid, kl_weight=kl_weight)
        assert [len(found[kind]) for kind in ("stable", "unstable")] == [pairs, pairs]


@pytest.mark.parametrize("group", [0, 8])
def test_a_clamp_of_k3_leaves_wrong_answers_unheld(group):
    """At a weight of .04 success rises everywhere; without the clamp it falls somewhere."""
    for clamp, ever_falls in ((10.0, False), (math.inf, True)):
        falls = []
        for p in torch.linspace(SUCCESS, 0.99999, 2000, dtype=torch.float64):
            law = REFERENCE * torch.where(REWARD > 0, p / SUCCESS, (1 - p) / (1 - SUCCESS))
            log_pi = law.log().requires_grad_()
            log_law = log_pi.log_softmax(dim=0)
            back = REFERENCE.log() - log_law
            gain = gain_in_groups(float(p), group) if group else float(1 / (p * (1 - p)).sqrt())
            k3 = (back.exp() - back - 1).clamp(max=clamp)
            loss = (law * (0.04 * k3 - gain * (REWARD - p) * log_law)).sum()
            (slope,) = torch.autograd.grad(-loss, log_pi)
            falls.append(float(slope[:2].sum()) < 0)
        assert any(falls) == ever_falls


def gain_in_groups(p: float, n: int) -> float:
    """Return the mean advantage of a success less that of a failure, n - 1 in the deviation."""
    terms = (math.comb(n, k) * p**k * (1 - p) ** (n - k) * math.sqrt(k * (n - k)) / n for k in range(1, n))
    return math.fsum(terms) / (p * (1 - p)) * math.sqrt((n - 1) / n)


def test_as_shipped_the_expected_update_is_the_flow_without_a_reference():
    """TRL's defaults, all groups of four; the factor is that of a group, not one over the deviation."""
    logits = START.clone().requires_grad_()
    log_law, total = logits.log_softmax(dim=0), torch.zeros((), dtype=torch.float64)
    for drawn in torch.cartesian_prod(*[torch.arange(4)] * 4):
        log_pi = log_law[drawn][:, None]
        loss = family.grpo_loss(log_pi, log_pi.detach(), REWARD[drawn], epsilon=1e-9)
        total = total + log_law.detach()[drawn].sum().exp() * loss
    (slope,) = torch.autograd.grad(total, logits)
    law, p = START.exp(), 0.4
    torch.testing.assert_close(-slope, gain_in_groups(p, 4) * law * (REWARD - p), rtol=1e-7, atol=1e-9)
