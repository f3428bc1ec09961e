"""Other people's losses against their own numbers, against each other, and on what they should refuse.

Sources: the commits that :mod:`companion.family` names; ``tests/peers/worked.json`` says how its numbers were made.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from inputs import assert_agree, generator

from companion import family, reinforce, rtb

WORKED = json.loads((Path(__file__).parent / "peers" / "worked.json").read_text())
#: Two prompts, two paths each, of 2, 3, 1 and 3 tokens.
LENGTHS = [2, 3, 1, 3]
GROUP, STEPS = torch.tensor([0, 0, 1, 1]), torch.tensor(LENGTHS)
PAIRS = torch.tensor([[0, 1], [2, 3]])
PREFERRED = torch.tensor([[0, 1], [3, 2]])
BATCH = {"group": GROUP, "steps": STEPS}


def tokens(*rows: list[float]) -> torch.Tensor:
    """Rows of unequal length, padded with zeros."""
    return torch.tensor([row + [0.0] * (3 - len(row)) for row in rows], dtype=torch.float64)


LOG_PI = tokens([-0.9, -0.4], [-1.1, -0.2, -0.7], [-0.3], [-0.5, -1.3, -0.6])
LOG_REF = tokens([-1.2, -0.5], [-0.8, -0.4, -0.6], [-0.9], [-0.7, -1.0, -0.2])
LOG_OLD = {
    "calm": tokens([-1.0, -0.3], [-1.0, -0.3, -0.8], [-0.4], [-0.6, -1.1, -0.5]),
    "clips": tokens([-2.0, -0.1], [-0.6, -0.5, -2.1], [-1.8], [-0.2, -0.1, -1.0]),
}
REWARD = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
#: Less the mean of each prompt.
ADVANTAGE = torch.tensor([0.75, -0.75, -0.85, 0.85], dtype=torch.float64)


def partition(temperature: float) -> torch.Tensor:
    """``temperature log mean exp(r / temperature)`` of each path's prompt."""
    both = [temperature * math.log(sum(math.exp(r / temperature) for r in pair) / 2) for pair in ((1, -0.5), (0.3, 2))]
    return torch.tensor(both, dtype=torch.float64).repeat_interleave(2)


def grpo(old, **options):
    """The loss of GRPO at KL weight .3, where it has one."""
    if options.get("kl_weight") != 0.0:
        options = {"kl_weight": 0.3, "log_ref": LOG_REF} | options
    return lambda x: family.grpo_loss(x, old, REWARD, **BATCH, **options)


def losses(old: torch.Tensor) -> dict:
    """A loss for each row that was worked out, as a function of ``log_pi``."""
    only = {"steps": STEPS}
    return {
        "opmd mean": lambda x: family.opmd_loss(x, REWARD, kl_weight=0.3, **BATCH),
        "opmd log_mean_exp": lambda x: family.opmd_loss(x, REWARD, kl_weight=0.3, partition="log_mean_exp", **BATCH),
        "opmd shipped": lambda x: family.opmd_loss(x, REWARD, **BATCH),
        "rec k2": lambda x: family.dro_per_token_loss(x, old, ADVANTAGE, kl_weight=0.6, **only),
        "dro": lambda x: family.dro_per_token_loss(x, old, ADVANTAGE, kl_weight=0.3, **only),
        "prime_rl square": lambda x: family.prime_rl_loss(x, old, ADVANTAGE, kl_weight=0.3, **only),
        "prime_rl log_ratio": lambda x: family.prime_rl_loss(
            x, old, ADVANTAGE, kl_weight=0.3, penalty="log_ratio", **only
        ),
        "prime_rl weighted": lambda x: family.prime_rl_loss(
            x, old, ADVANTAGE, kl_weight=0.3, penalty="weighted", **only
        ),
        "grpo shipped": grpo(old, kl_weight=0.0),
        "grpo kl": grpo(old),
        "grpo k3": grpo(old, kl="k3"),
        "grpo no scale": grpo(old, scale="none"),
        "grpo batch": grpo(old, scale="batch"),
        "grpo sequence mean": grpo(old, normalisation="grpo"),
        "dr_grpo 512": grpo(old, scale="none", normalisation="dr_grpo", longest=512),
        "dr_grpo 3": grpo(old, scale="none", normalisation="dr_grpo", longest=3),
        "gspo": grpo(old, kl_weight=0.0, per_sequence=True, normalisation="grpo", clip=(3e-4, 4e-4)),
        "grpo sequence ratio": grpo(old, per_sequence=True),
        "grpo kl in reward": grpo(old, kl="reward", epsilon=1e-6),
        "rloo": lambda x: family.rloo_loss(x, old, LOG_REF, REWARD, kl_weight=0.3, **BATCH),
        "rloo shipped": lambda x: family.rloo_loss(x, old, LOG_REF, REWARD, **BATCH),
        "dpo": lambda x: family.dpo_loss(x, LOG_REF, PREFERRED, kl_weight=0.3, **only),
        "dpo shipped": lambda x: family.dpo_loss(x, LOG_REF, PREFERRED, kl_weight=0.1, **only),
        "dpo openrlhf": lambda x: family.dpo_loss(x, LOG_REF, PREFERRED, kl_weight=0.3, **only),
        "ipo": lambda x: family.ipo_loss(x, LOG_REF, PREFERRED, kl_weight=0.3, **only),
        "ipo per token": lambda x: family.ipo_loss(x, LOG_REF, PREFERRED, kl_weight=0.3, per_token=True, **only),
        "ipo per token shipped": lambda x: family.ipo_loss(
            x, LOG_REF, PREFERRED, kl_weight=0.1, per_token=True, **only
        ),
        "a_star_po": lambda x: family.a_star_po_loss(x, LOG_REF, REWARD, partition(0.3), kl_weight=0.3, **only),
        "a_star_po shipped": lambda x: family.a_star_po_loss(
            x, LOG_REF, REWARD, partition(0.5), kl_weight=1e-3, **only
        ),
    }


CASES = [(name, old) for name, found in WORKED["rows"].items() for old in found]


def test_every_row_that_was_worked_out_has_a_loss_and_every_loss_a_row():
    assert set(losses(LOG_OLD["calm"])) == set(WORKED["rows"])
    assert set(values()) == set(WORKED["values"])


@pytest.mark.claim("N1")
@pytest.mark.parametrize(("name", "old"), CASES)
def test_the_loss_and_its_gradient_are_those_of_the_source(name, old):
    """Twelve digits were recorded. The gradient says more: a detached weight leaves no mark on a value."""
    value, gradient = WORKED["rows"][name][old]
    x = LOG_PI.clone().requires_grad_()
    loss = losses(LOG_OLD[old])[name](x)
    (slope,) = torch.autograd.grad(loss, x)
    assert abs(loss.item() - value) < 1e-11
    within = torch.arange(3) < STEPS[:, None]
    assert (slope[within] - torch.tensor(gradient, dtype=torch.float64)).abs().max() < 1e-11


def values() -> dict:
    """A loss for each value that was worked out by hand, at the calm ``log_old``."""
    old, only = LOG_OLD["calm"], {"steps": STEPS}
    fixed, started, compared = (LOG_PI, LOG_REF, REWARD), (LOG_PI, old, REWARD), (LOG_PI, old)
    shaped = REWARD - 0.05 * (old - LOG_REF).sum(dim=1)
    quantile = torch.tensor([0.75, 0.25, 0.5, 1.0], dtype=torch.float64)
    v = torch.tensor([0.2, 0.2, 0.9, 0.9], dtype=torch.float64)
    log_z = torch.tensor([0.1, 0.1, -0.2, -0.2], dtype=torch.float64)
    flow = (LOG_PI, LOG_REF, old, REWARD)
    return {
        "dro": family.dro_loss(*fixed, v, kl_weight=0.3, **only),
        "a_star_po .5 .3": family.a_star_po_loss(*fixed, partition(0.5), kl_weight=0.3, **only),
        "tba": family.tba_loss(*fixed, kl_weight=0.3, **BATCH),
        "kimi": family.kimi_loss(*started, kl_weight=0.3, **BATCH),
        "kimi log_mean_exp": family.kimi_loss(*started, kl_weight=0.3, partition="log_mean_exp", **BATCH),
        "pmd": family.pmd_loss(*started, kl_weight=0.3, **BATCH),
        "pmd shipped": family.pmd_loss(*started, kl_weight=0.01, **BATCH),
        "pmd log_mean_exp shipped": family.pmd_loss(*started, kl_weight=0.01, partition="log_mean_exp", **BATCH),
        "variance": family.agro_loss(*fixed, kl_weight=0.3, **BATCH),
        "gvpo": family.gvpo_loss(*started, kl_weight=0.3, **BATCH),
        "gvpo shipped": family.gvpo_loss(*started, kl_weight=0.1, **BATCH),
        "flowrl": family.flowrl_loss(*flow, log_z, **BATCH),
        "flowrl without log z": family.flowrl_loss(*flow, 0 * log_z, longest_weight=10.0, **BATCH),
        "lm_vargrad": family.lm_vargrad_loss(*fixed, kl_weight=0.3, cutoff=0.1, **BATCH),
        "lm_vargrad without cutoff": family.lm_vargrad_loss(*fixed, kl_weight=0.3, **BATCH),
        "rebel": family.rebel_loss(*started, PAIRS, step_size=1.0, **only),
        "rebel with the kl in the reward": family.rebel_loss(*compared, shaped, PAIRS, step_size=1.0, **only),
        "rebel at 1/.3": family.rebel_loss(*started, PAIRS, step_size=1 / 0.3, **only),
        "qrpo": family.qrpo_loss(LOG_PI, LOG_REF, quantile, kl_weight=0.1, **only),
        "qrpo identity": family.qrpo_loss(LOG_PI, LOG_REF, quantile, kl_weight=0.3, transform="identity", **only),
        "ipo at .1": family.ipo_loss(LOG_PI, LOG_REF, PREFERRED, kl_weight=0.1, **only),
    }


@pytest.mark.claim("N1")
@pytest.mark.parametrize("name", WORKED["values"])
def test_the_value_is_that_worked_out_by_hand(name):
    assert values()[name].item() == pytest.approx(WORKED["values"][name], rel=1e-10)


# Losses that no source gives numbers for, by sums over the paths.


@pytest.mark.claim("N1")
def test_weighted_likelihoods_are_the_sums_that_they_are_said_to_be():
    total = [sum(row) for row in LOG_PI.tolist()]
    kept = -(total[0] + total[3]) / 2
    assert family.filtered_likelihood_loss(LOG_PI, REWARD, threshold=1.0, steps=STEPS).item() == pytest.approx(kept)
    weights = [math.exp(r / 0.3) for r in REWARD.tolist()]
    means = [sum(weights[:2]) / 2] * 2 + [sum(weights[2:]) / 2] * 2
    expected = -sum(w / mean * t for w, mean, t in zip(weights, means, total, strict=True)) / 4
    assert family.reward_weighted_loss(LOG_PI, REWARD, kl_weight=0.3, **BATCH).item() == pytest.approx(expected)


# Which of them are one, up to a factor; whole batches, one condition, random numbers.


class Draw:
    """Random paths of one condition in double precision, of unequal length."""

    def __init__(self, seed: int, batch: int = 6):
        random = generator(seed)
        self.steps = torch.randint(1, 5, (batch,), generator=random)
        inside = torch.arange(4) < self.steps[:, None]
        draw = [-torch.randn(batch, 4, generator=random, dtype=torch.float64).abs() * inside for _ in range(3)]
        self.log_pi, self.log_ref, self.log_old = draw
        self.log_reward = torch.randn(batch, generator=random, dtype=torch.float64)

    def slope(self, loss, *inputs, **options) -> torch.Tensor:
        """The gradient in ``log_pi``."""
        x = self.log_pi.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, *inputs, steps=self.steps, **options), x)
        return gradient


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [2, 6])
def test_the_log_variance_losses_are_one_up_to_a_factor(seed, n):
    """VarGrad, TBA, AGRO, GVPO from the same reference; in all of them a gradient through the mean is nothing."""
    x, alpha = Draw(seed, n), 0.3
    common = (x.log_ref, x.log_reward)
    vargrad = x.slope(rtb.vargrad_loss, *common, beta=1 / alpha)
    factors = {"tba": 2.0, "agro": alpha**2, "gvpo": alpha**2 * n / (n - 1)}
    for name, factor in factors.items():
        assert_agree(x.slope(getattr(family, f"{name}_loss"), *common, kl_weight=alpha), factor * vargrad, 100.0)


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
def test_losses_with_a_value_are_rtb_with_that_log_z(seed):
    """DRO, whose value is learned, and A*-PO, whose value is not; half a mean square, and a mean square."""
    x, alpha, value = Draw(seed), 0.3, torch.tensor(0.4, dtype=torch.float64)
    common = (x.log_ref, x.log_reward)
    ours = x.slope(rtb.loss, *common, value / alpha, beta=1 / alpha)
    for name, factor in {"dro": alpha**2, "a_star_po": 2 * alpha**2}.items():
        loss = getattr(family, f"{name}_loss")
        assert_agree(x.slope(loss, *common, value, kl_weight=alpha), factor * ours, 100.0)
    # the value of DRO learns what log Z learns: the derivative in V is alpha times that in log Z
    free = value.clone().requires_grad_()
    (in_value,) = torch.autograd.grad(family.dro_loss(x.log_pi, *common, free, kl_weight=alpha, steps=x.steps), free)
    (in_log_z,) = torch.autograd.grad(
        rtb.loss(x.log_pi, *common, (log_z := value / alpha).requires_grad_(), beta=1 / alpha, steps=x.steps), log_z
    )
    assert_agree(in_value, alpha * in_log_z, 100.0)


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_reward_for_log_z_is_one_loss_under_three_names(seed):
    """Kimi k1.5; OpenKimi, where all lengths are one and the mean leaves its path out; RTB with that number."""
    x, alpha, n = Draw(seed), 0.3, 6
    kimi = x.slope(family.kimi_loss, x.log_old, x.log_reward, kl_weight=alpha)
    held = x.log_reward.mean() / alpha
    assert_agree(kimi, 2 * alpha**2 * x.slope(rtb.loss, x.log_old, x.log_reward, held, beta=1 / alpha), 100.0)
    x.steps = torch.full((n,), 4)
    others = (x.log_reward.sum() - x.log_reward) / (n - 1)
    openkimi = x.slope(family.pmd_loss, x.log_old, x.log_reward, kl_weight=alpha)
    per_path = x.slope(rtb.loss, x.log_old, x.log_reward, others / alpha, beta=1 / alpha)
    assert_agree(openkimi, alpha / 4 * per_path, 100.0)


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [math.inf, 1.5])
def test_the_weight_of_flowrl_is_a_number_to_its_gradient(seed, most):
    """Its slope by hand: twice the weight times the bracket, over the length."""
    x, log_z = Draw(seed), torch.tensor(0.7, dtype=torch.float64)
    weight = (x.log_pi - x.log_old).sum(dim=1).exp().clamp(max=most)
    advantage = (x.log_reward - x.log_reward.mean()) / (x.log_reward.std() + 1e-6)
    bracket = log_z + (x.log_pi - x.log_ref).sum(dim=1) / x.steps - 2.0 * advantage
    slope = x.slope(family.flowrl_loss, x.log_ref, x.log_old, x.log_reward, log_z, scale=2.0, longest_weight=most)
    per_path = 2 * weight * bracket / x.steps / len(weight)
    assert_agree(slope, per_path[:, None].expand(6, 4), 1000.0)


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_a_log_variance_of_two(seed):
    """REBEL at eta = 1 / alpha is eight times VarGrad, pairs as groups: half a variance is an eighth of the square."""
    x, alpha = Draw(seed), 0.3
    pairs, group = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([0, 0, 1, 1, 2, 2])
    rebel = x.slope(family.rebel_loss, x.log_ref, x.log_reward, pairs, step_size=1 / alpha)
    vargrad = x.slope(rtb.vargrad_loss, x.log_ref, x.log_reward, beta=1 / alpha, group=group)
    assert_agree(rebel, 8 * vargrad, 100.0)


@pytest.mark.claim("N1")
@pytest.mark.parametrize("seed", range(3))
def test_on_policy_leave_one_out_and_the_log_variance_are_one(seed):
    """TRL's RLOO from paths of the policy: n / (n - 1) times alpha times the gradient of VarGrad."""
    x, alpha, n = Draw(seed), 0.3, 6
    x.log_old = x.log_pi
    rloo = x.slope(family.rloo_loss, x.log_old, x.log_ref, x.log_reward, kl_weight=alpha)
    vargrad = x.slope(rtb.vargrad_loss, x.log_ref, x.log_reward, beta=1 / alpha)
    assert_agree(rloo, alpha * n / (n - 1) * vargrad, 100.0)
    ours = x.slope(reinforce.kl_loss, x.log_ref, x.log_reward, beta=1 / alpha, baseline="leave_one_out")
    assert_agree(rloo, ours, 100.0)
    # verl's KL in the reward, without the deviation: the path's own reward is in the mean
    x.steps = torch.full((n,), 4)
    options = {"kl": "reward", "scale": "none", "log_ref": x.log_ref, "kl_weight": alpha, "normalisation": "grpo"}
    assert_agree(x.slope(family.grpo_loss, x.log_old, x.log_reward, **options), alpha * vargrad_of(x, alpha) / 4, 100.0)


def vargrad_of(x: Draw, alpha: float) -> torch.Tensor:
    """The gradient of VarGrad."""
    return x.slope(rtb.vargrad_loss, x.log_ref, x.log_reward, beta=1 / alpha)


@pytest.mark.claim("N2")
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_reward_on_texts_of_a_fixed_law_leads_to_the_root_of_its_equation(seed):
    """Every text once, the uniform law: ``log u + lambda w u = s`` by bisection in u, and lambda by bisection again."""
    made, alpha, n = generator(seed), 0.7, 5
    ref = torch.randn(n, generator=made, dtype=torch.float64).log_softmax(dim=0)
    reward = torch.randn(n, generator=made, dtype=torch.float64)
    held = (ref.exp() * reward).sum()  # at most alpha log Z, by Jensen, so that lambda is not negative

    def log_u(number: torch.Tensor) -> torch.Tensor:
        goal = (reward - held) / alpha
        low, high = torch.full_like(goal, -40.0), goal.clone()
        for _ in range(90):
            middle = (low + high) / 2
            above = middle + number * n * ref.exp() * middle.exp() > goal
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return low

    low, high = torch.tensor(0.0, dtype=torch.float64), torch.tensor(50.0, dtype=torch.float64)
    for _ in range(90):
        middle = (low + high) / 2
        above = (ref + log_u(middle)).logsumexp(dim=0) > 0
        low, high = (middle, high) if above else (low, middle)
    for logits, still in ((ref + log_u(low), True), ((ref + reward / alpha).log_softmax(dim=0), False)):
        x = logits.clone().requires_grad_()
        loss = family.a_star_po_loss(x.log_softmax(dim=0)[:, None], ref[:, None], reward, held, kl_weight=alpha)
        (slope,) = torch.autograd.grad(loss, x)
        assert (slope.abs().max() < 1e-12) == still, f"seed {seed}"


@pytest.mark.claim("N3")
@pytest.mark.parametrize("seed", range(3))
def test_dpo_and_ipo_are_of_the_difference_of_two_residuals(seed):
    """Their slopes by hand: of ``log(1 + exp(-alpha h))`` and ``(h - 1 / (2 alpha))^2``, h from RTB's residuals."""
    x, alpha, pairs = Draw(seed), 0.3, torch.tensor([[0, 1], [2, 3], [5, 4]])
    none = torch.zeros_like(x.log_reward)
    ell = rtb.residual(x.log_pi, x.log_ref, none, torch.tensor(1.3, dtype=torch.float64), beta=1 / alpha)
    h = ell[pairs[:, 0]] - ell[pairs[:, 1]]
    for loss, in_h in (
        (family.dpo_loss, -alpha / (1 + (alpha * h).exp())),
        (family.ipo_loss, 2 * (h - 1 / (2 * alpha))),
    ):
        per_path = torch.zeros_like(ell).index_add(0, pairs[:, 0], in_h).index_add(0, pairs[:, 1], -in_h) / 3
        assert_agree(x.slope(loss, x.log_ref, pairs, kl_weight=alpha), per_path[:, None].expand(6, 4), 100.0)


@pytest.mark.claim("F8")
@pytest.mark.parametrize("seed", range(3))
def test_a_plus_for_a_minus_puts_minus_the_mean_where_log_z_should_be(seed):
    """Against RTB with that number as log Z, held: the mean is not detached, so 3 + 1/n in place of 1 for the mean."""
    x, alpha, n = Draw(seed), 0.3, 6
    apart = (x.log_pi - x.log_ref).sum(dim=1) - x.log_reward / alpha
    expected = (apart + 3 * apart.mean())[:, None].expand(n, 4) / n
    assert_agree(x.slope(family.lm_vargrad_loss, x.log_ref, x.log_reward, kl_weight=alpha), expected, 100.0)


# What they refuse.

FIXED = (LOG_PI, LOG_REF, REWARD)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: family.tba_loss(*FIXED, kl_weight=0.0, **BATCH), "kl_weight is 0.0"),
        (lambda: family.tba_loss(*FIXED, kl_weight=0.3, group=torch.arange(4)), "expected at least 2"),
        (lambda: family.tba_loss(LOG_PI, LOG_REF[:, :2], REWARD, kl_weight=0.3), "log_ref has shape"),
        (lambda: family.tba_loss(LOG_PI, LOG_REF, REWARD[:, None], kl_weight=0.3), "log_reward has shape"),
        (
            lambda: family.tba_loss(*FIXED, kl_weight=0.3, steps=torch.tensor([1, 3, 1, 3])),
            "expected 0 from the path's end on",
        ),
        (lambda: family.tba_loss(LOG_PI, LOG_REF.clone().requires_grad_(), REWARD, kl_weight=0.3), "log_ref"),
        (lambda: family.kimi_loss(*FIXED, kl_weight=0.3, partition="median"), "partition is 'median'"),
        (lambda: family.opmd_loss(LOG_PI, REWARD, partition="median"), "partition is 'median'"),
        (lambda: family.pmd_loss(*FIXED, kl_weight=0.3, partition="median"), "partition is 'median'"),
        (lambda: family.prime_rl_loss(*FIXED, kl_weight=0.3, penalty="cube"), "penalty is 'cube'"),
        (lambda: family.prime_rl_loss(*FIXED, kl_weight=-0.3), "kl_weight is -0.3"),
        (lambda: family.grpo_loss(*FIXED, kl_weight=0.3), "kl_weight is 0.3"),
        (lambda: family.grpo_loss(*FIXED, log_ref=LOG_REF), "kl_weight is 0"),
        (lambda: family.grpo_loss(*FIXED, scale="std"), "scale is 'std'"),
        (lambda: family.grpo_loss(*FIXED, kl="k2"), "kl is 'k2'"),
        (lambda: family.grpo_loss(*FIXED, normalisation="dr_grpo"), "longest is None"),
        (lambda: family.grpo_loss(*FIXED, longest=8), "longest is 8"),
        (lambda: family.grpo_loss(*FIXED, normalisation="dr_grpo", longest=2), "longest is 2"),
        (lambda: family.grpo_loss(*FIXED, clip=(0.2, 0.0)), "clip is 0.0"),
        (lambda: family.rloo_loss(LOG_PI, LOG_REF, LOG_REF, REWARD, clip=0.0), "clip is 0.0"),
        (lambda: family.rebel_loss(*FIXED, torch.tensor([[0, 4]]), step_size=1.0), "pairs"),
        (lambda: family.rebel_loss(*FIXED, torch.tensor([[0.0, 1.0]]), step_size=1.0), "pairs"),
        (lambda: family.rebel_loss(*FIXED, PAIRS[:0], step_size=1.0), "pairs"),
        (lambda: family.rebel_loss(*FIXED, PAIRS, step_size=0.0), "step_size is 0.0"),
        (lambda: family.qrpo_loss(LOG_PI, LOG_REF, REWARD, kl_weight=0.1), "quantile reaches"),
        (lambda: family.qrpo_loss(LOG_PI, LOG_REF, REWARD / 2 + 1e-9, kl_weight=0.1), "quantile reaches"),
        (lambda: family.qrpo_loss(LOG_PI, LOG_REF, 0 * REWARD + 1, kl_weight=0.1, transform="sqrt"), "transform is"),
        (lambda: family.filtered_likelihood_loss(LOG_PI, REWARD, threshold=3.0), "No path reaches 3.0"),
        (lambda: family.dro_loss(*FIXED, REWARD[:3], kl_weight=0.3), "value has shape"),
        (lambda: family.a_star_po_loss(*FIXED, REWARD.clone().requires_grad_(), kl_weight=0.3), "value"),
        (lambda: family.lm_vargrad_loss(*FIXED, kl_weight=0.3, cutoff=-0.1), "cutoff is -0.1"),
        (lambda: family.flowrl_loss(LOG_PI, LOG_REF, LOG_REF, REWARD, REWARD, scale=0.0), "scale is 0.0"),
        (lambda: family.flowrl_loss(LOG_PI, LOG_REF, LOG_REF, REWARD, REWARD[:2]), "log_z has shape"),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, text):
    with pytest.raises(ValueError, match=text.replace("[", r"\[")):
        call()
