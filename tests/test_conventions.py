"""Each source's own formula, literally and in plain numpy, against ours with the conversion written out.

And the table of factors in the chapter, read from its page, row by row.

Sources: Venkatraman et al. (2024) and their code; Nachum et al. (2017a, 2017b); torchgfn 2.4.1; Deleu et al.
(2025) and their code; TRL's RLOO. Ours: residuals in nats (RTB) or in units of reward (Trust-PCL); losses are
half mean squares.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import assert_agree, generator

from companion import reinforce, rtb, trust_pcl
from companion.claims import notebook

SEEDS = range(3)
BATCH, STEPS = 5, 4
#: Not 1/2, where alpha/2 and alpha^2 are one number; nor 1 or 2.
ALPHA, BETA = 0.3, 1 / 0.3
#: The size of a residual's terms, squared, with room for ALPHA and BETA; inputs are of order one.
SIZE = 400.0


class Inputs:
    """Random paths, as tensors for our functions and as arrays for the sources' formulas."""

    def __init__(self, seed: int):
        random = generator(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        self.log_pi, self.log_ref, self.log_behaviour = -normal(3, BATCH, STEPS).abs()
        self.rewards, self.log_reward, self.log_z = normal(BATCH, STEPS), normal(BATCH), normal()
        self.values = normal(BATCH, STEPS + 1)
        self.values[:, -1] = 0.0

    def numpy(self) -> dict[str, np.ndarray]:
        """The inputs as arrays, by name."""
        return {name: value.numpy() for name, value in vars(self).items()}

    def paths(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The inputs that all path-wise objectives share."""
        return self.log_pi, self.log_ref, self.log_reward


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_rtb_paper(seed):
    """Its equation (9): the squared logarithm of a ratio of products, one path at a time, beta = 1."""
    x = Inputs(seed)
    n = x.numpy()
    p_theta, p_ref = np.exp(n["log_pi"]).prod(axis=1), np.exp(n["log_ref"]).prod(axis=1)
    z, r = np.exp(n["log_z"]), np.exp(n["log_reward"])
    paper = np.log(z * p_theta / (r * p_ref)) ** 2
    # the paper: no half, no mean, r for r^beta. Ours: the residual squared; twice the loss is its mean.
    assert_agree(rtb.residual(*x.paths(), x.log_z).square(), paper, SIZE)
    assert_agree(2 * rtb.loss(*x.paths(), x.log_z), paper.mean(), SIZE)
    # a tempered reward is the paper's r, raised to beta
    tempered = np.log(z * p_theta / (r**BETA * p_ref)) ** 2
    assert_agree(rtb.residual(*x.paths(), x.log_z, beta=BETA).square(), tempered, SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_rtb_authors_code(seed):
    """Half a mean square, the reward multiplied by beta in the logarithm: ours as it stands."""
    x = Inputs(seed)
    n = x.numpy()
    logpf, logpf_prior = n["log_pi"].sum(axis=1), n["log_ref"].sum(axis=1)
    code = 0.5 * ((logpf + n["log_z"] - logpf_prior - BETA * n["log_reward"]) ** 2).mean()
    assert_agree(rtb.loss(*x.paths(), x.log_z, beta=BETA), code, SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "d"), [(0, STEPS), (1, 2), (3, 1)])
def test_pcl(seed, start, d):
    """Nachum et al. (2017a): the sum over sub-paths of half the square of C, entropy weight tau."""
    x = Inputs(seed)
    n, tau, gamma = x.numpy(), ALPHA, 0.875
    total = 0.0
    for k in range(BATCH):
        consistency = -n["values"][k, start] + gamma**d * n["values"][k, start + d]
        for j in range(d):
            reward, log_pi = n["rewards"][k, start + j], n["log_pi"][k, start + j]
            consistency += gamma**j * (reward - tau * log_pi)
        total += consistency**2 / 2
    # PCL: a sum. Ours: a mean over the batch; its tau is our entropy_weight, and there is no KL.
    options = {"kl_weight": 0.0, "entropy_weight": tau, "gamma": gamma, "start": start, "stop": start + d}
    ours = trust_pcl.loss(x.log_pi, x.log_ref, x.rewards, x.values, **options)
    assert_agree(BATCH * ours, total, BATCH * SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "d"), [(0, STEPS), (1, 2), (3, 1)])
def test_trust_pcl(seed, start, d):
    """Nachum et al. (2017b): the sum of C squared, without a half; tau + lambda on log pi."""
    x = Inputs(seed)
    n, tau, lam, gamma = x.numpy(), 0.25, ALPHA, 0.875
    consistencies = np.zeros(BATCH)
    for k in range(BATCH):
        consistencies[k] = -n["values"][k, start] + gamma**d * n["values"][k, start + d]
        for j in range(d):
            reward, log_pi, log_lagged = (n[name][k, start + j] for name in ("rewards", "log_pi", "log_ref"))
            consistencies[k] += gamma**j * (reward - (tau + lam) * log_pi + lam * log_lagged)
    # Trust-PCL: tau is our entropy_weight, lambda our kl_weight, log pi~ our log_ref; no half, a sum.
    options = {"kl_weight": lam, "entropy_weight": tau, "gamma": gamma, "start": start, "stop": start + d}
    inputs = x.log_pi, x.log_ref, x.rewards, x.values
    assert_agree(trust_pcl.residual(*inputs, **options), consistencies, SIZE)
    assert_agree(2 * BATCH * trust_pcl.loss(*inputs, **options), (consistencies**2).sum(), 2 * BATCH * SIZE)


def trained_by_trust_pcl_code(x: Inputs, log_pi, value, *, tau: float, lam: float, critic_weight: float):
    """What objective.py differentiates on full paths, gamma = 1: the residual is held constant in both products."""
    log_probs = log_pi.sum(dim=1)
    relative = log_probs - x.log_ref.sum(dim=1)
    future = x.rewards.sum(dim=1) - tau * log_probs - lam * relative
    adv = (-value + future).detach()
    return (-adv * log_probs).mean() + critic_weight * (-adv * value).mean()


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("tau", "lam", "critic_weight"), [(0.0, ALPHA, 1.0), (0.0, ALPHA, 0.1), (0.25, ALPHA, 0.1)])
def test_what_the_code_of_trust_pcl_trains(seed, tau, lam, critic_weight):
    """Nachum et al. (2017b), objective.py: of half the square, over tau + lambda, for the policy; as it is for V."""
    x = Inputs(seed)
    log_pi, value = x.log_pi.clone().requires_grad_(), (ALPHA * x.log_z).clone().requires_grad_()
    code = trained_by_trust_pcl_code(x, log_pi, value, tau=tau, lam=lam, critic_weight=critic_weight)
    of_policy, of_value = torch.autograd.grad(code, (log_pi, value))
    values = trust_pcl.full_path_values(value, log_pi)
    ours = trust_pcl.loss(log_pi, x.log_ref, x.rewards, values, kl_weight=lam, entropy_weight=tau)
    in_policy, in_value = torch.autograd.grad(ours, (log_pi, value))
    assert_agree(of_policy, in_policy / (tau + lam), SIZE)
    assert_agree(of_value, critic_weight * in_value, SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_code_of_trust_pcl_trains_is_reinforce_with_a_critic(seed):
    """Entropy weight 0: the policy gradient with V as the baseline, and the critic's regression on the return."""
    x = Inputs(seed)
    log_pi, value = x.log_pi.clone().requires_grad_(), (ALPHA * x.log_z).clone().requires_grad_()
    code = trained_by_trust_pcl_code(x, log_pi, value, tau=0.0, lam=ALPHA, critic_weight=0.1)
    of_policy, of_value = torch.autograd.grad(code, (log_pi, value))
    arguments = (log_pi, x.log_ref, x.rewards.sum(dim=1))
    policy_loss = reinforce.kl_loss(*arguments, beta=BETA, baseline=value.item())
    critic_loss = reinforce.critic_loss(*arguments, value, beta=BETA)
    assert_agree(of_policy, torch.autograd.grad(policy_loss, log_pi)[0], SIZE)
    assert_agree(of_value, 0.1 * torch.autograd.grad(critic_loss, value)[0], SIZE)


#: The numbers that the table writes as factors.
FACTORS = {"1": 1.0, "1/2": 0.5, r"\alpha/2": ALPHA / 2, r"\alpha^2/2": ALPHA**2 / 2, r"\alpha^2": ALPHA**2}
#: The start of each row's first column, as the page has it; the formulas below are in this order.
ROWS = (
    "RTB, the paper",
    "RTB, the authors' code",
    "torchgfn 2.4.1 {cite}`lahlou2023b`, `RelativeTrajectoryBalanceGFlowNet`",
    "torchgfn 2.4.1, `TrustPCLGFlowNet`",
    "PCL",
    "Trust-PCL {cite}`nachum2017b`, the authors' code, `objective.py`, entropy weight 0: reported",
    "the same code: trained, gradient in $\\theta$",
    "the same code: trained, gradient in $V(s_0)$, critic weight 1",
    "this book, `rtb.loss`",
    "this book, `trust_pcl.loss`",
)


def factors_on_the_page() -> list[tuple[str, str]]:
    """Return the first and the last column of E6's table: each source, and its factor without dollars."""
    path = notebook(Path(__file__).parents[1], "the-equivalence")
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    (text,) = [cell for cell in cells if ":label: E6\n" in cell]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(row[0], row[-1].strip("$")) for row in rows if row[0] != "source"]


def losses_per_path(x: Inputs, log_pi, log_z) -> list[torch.Tensor]:
    """Return, for each of ROWS, what its source squares or multiplies, path by path, from one log Z = V / alpha."""
    log_p, log_ref, log_r = log_pi.sum(dim=1), x.log_ref.sum(dim=1), x.rewards.sum(dim=1)
    value = ALPHA * log_z
    score = log_p - log_ref - BETA * log_r
    consistency = -value + log_r - ALPHA * (log_p - log_ref)
    held = consistency.detach()
    squares = [((log_z.exp() * log_p.exp()) / ((log_r * BETA).exp() * log_ref.exp())).log() ** 2]
    squares += [0.5 * (log_p + log_z - log_ref - BETA * log_r) ** 2, 0.5 * (score + log_z) ** 2]
    squares += [ALPHA**2 * 0.5 * (score + log_z) ** 2, 0.5 * (-value + (x.rewards - ALPHA * log_pi).sum(dim=1)) ** 2]
    squares += [consistency**2, -held * log_p, -held * value]
    ends = torch.nn.functional.pad(value.expand(BATCH)[:, None], (0, STEPS))
    one_by_one = [
        (rtb.loss(pi, ref, rewards.sum(dim=1), log_z, beta=BETA), trust_pcl.loss(pi, ref, rewards, v, kl_weight=ALPHA))
        for pi, ref, rewards, v in zip(*(y[:, None] for y in (log_pi, x.log_ref, x.rewards, ends)), strict=True)
    ]
    return squares + [torch.stack(column) for column in zip(*one_by_one, strict=True)]


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda row: ROWS[row][:30])
def test_every_factor_on_the_page(row, seed):
    """The source's formula is the factor times RTB's residual at beta = 1 / alpha, squared, or has that gradient."""
    source, written = factors_on_the_page()[row]
    assert source.startswith(ROWS[row])
    x, factor = Inputs(seed), FACTORS[written]
    log_pi, log_z = x.log_pi.clone().requires_grad_(), x.log_z.clone().requires_grad_()
    theirs = losses_per_path(x, log_pi, log_z)[row]
    weight = 0.0 if source.startswith("PCL") else 1.0  # PCL has no reference
    square = factor * rtb.residual(log_pi, weight * x.log_ref, x.rewards.sum(dim=1), log_z, beta=BETA).square()
    if "gradient in" in source:
        wanted = log_pi if "theta" in source else log_z
        theirs, square = (torch.autograd.grad(side.sum(), wanted)[0] for side in (theirs, square))
    assert_agree(theirs, square, SIZE)


@pytest.mark.claim("E6")
def test_the_page_has_no_other_rows():
    """Or a row would stand there that nothing compares."""
    assert len(factors_on_the_page()) == len(ROWS)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_paper_on_trust_pcl_and_rtb(seed):
    """Deleu et al. (2025): with V(s_0) = alpha log Z, half of C squared is alpha^2 times RTB's."""
    x = Inputs(seed)
    n, first = x.numpy(), ALPHA * x.log_z
    values = torch.cat([first.expand(BATCH, 1), x.values[:, 1:]], dim=1)
    log_ratio = (n["log_pi"] - n["log_ref"]).sum(axis=1)
    consistency = -ALPHA * n["log_z"] + n["rewards"].sum(axis=1) - ALPHA * log_ratio
    balance = n["log_z"] + log_ratio - n["rewards"].sum(axis=1) / ALPHA
    ours = trust_pcl.loss(x.log_pi, x.log_ref, x.rewards, values, kl_weight=ALPHA)
    theirs = rtb.loss(x.log_pi, x.log_ref, x.rewards.sum(dim=1), x.log_z, beta=BETA)
    assert_agree(ours, 0.5 * (consistency**2).mean(), SIZE)
    assert_agree(theirs, 0.5 * (balance**2).mean(), SIZE)
    assert_agree(ours, ALPHA**2 * 0.5 * (balance**2).mean(), SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_vargrad(seed):
    """The RTB paper's equation (23): log Z estimated by the batch, squares without a half, divided by n."""
    x = Inputs(seed)
    n = x.numpy()
    estimates = BETA * n["log_reward"] + n["log_ref"].sum(axis=1) - n["log_pi"].sum(axis=1)
    log_z_hat = estimates.mean()
    paper = ((log_z_hat - estimates) ** 2).mean()
    # the paper: no half. Both are the biased variance, np.var with ddof = 0.
    assert_agree(2 * rtb.vargrad_loss(*x.paths(), beta=BETA), paper, 2 * SIZE)
    assert_agree(2 * rtb.vargrad_loss(*x.paths(), beta=BETA), np.var(estimates, ddof=0), 2 * SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_torchgfn(seed):
    """Its scores leave log Z out; RTB halves the square; log-variance does not, its relative form does."""
    x = Inputs(seed)
    n = x.numpy()
    scores = n["log_pi"].sum(axis=1) - n["log_ref"].sum(axis=1) - BETA * n["log_reward"]
    relative_trajectory_balance = 0.5 * ((scores + n["log_z"]) ** 2).mean()
    log_partition_variance = ((scores - scores.mean()) ** 2).mean()
    relative_log_partition_variance = 0.5 * log_partition_variance
    assert_agree(rtb.residual(*x.paths(), x.log_z, beta=BETA) - x.log_z, scores, SIZE)
    assert_agree(rtb.loss(*x.paths(), x.log_z, beta=BETA), relative_trajectory_balance, SIZE)
    assert_agree(2 * rtb.vargrad_loss(*x.paths(), beta=BETA), log_partition_variance, 2 * SIZE)
    assert_agree(rtb.vargrad_loss(*x.paths(), beta=BETA), relative_log_partition_variance, SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_off_policy_reinforce_of_the_papers_code(seed):
    """Deleu et al.'s code: the advantage less its plain mean; weights tempered by the number of steps T."""
    x = Inputs(seed)
    n = x.numpy()
    logq, logp, logq_b = (n[name].sum(axis=1) for name in ("log_pi", "log_ref", "log_behaviour"))
    adv = n["log_reward"] - (1 / BETA) * (logq - logp)
    adv = adv - adv.mean()
    exponentials = np.exp((logq - logq_b) / STEPS)
    w = exponentials / exponentials.sum()
    code = -(w * adv * logq).sum()
    # the code: ours as it stands, with the behaviour given per step
    options = {"beta": BETA, "log_behaviour": x.log_behaviour, "weights": "tempered"}
    assert_agree(reinforce.kl_loss(*x.paths(), **options), code, SIZE)


@pytest.mark.claim("E6")
@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_of_trl(seed):
    """TRL: rewards less beta_TRL times the sum of k1, less the mean of the others; beta_TRL = alpha."""
    x = Inputs(seed)
    n, beta_trl = x.numpy(), ALPHA
    k1 = n["log_pi"] - n["log_ref"]
    rewards = n["log_reward"] - beta_trl * k1.sum(axis=1)
    baseline = (rewards.sum() - rewards) / (BATCH - 1)
    advantages = rewards - baseline
    trl = (-advantages * n["log_pi"].sum(axis=1)).mean()
    # TRL: its beta weighs the KL, so it is our alpha, and our beta is its reciprocal
    ours = reinforce.kl_loss(*x.paths(), beta=1 / beta_trl, baseline="leave_one_out")
    assert_agree(ours, trl, SIZE)
    # the gradient on each step is TRL's: minus the advantage over n
    log_pi = x.log_pi.clone().requires_grad_()
    reinforce.kl_loss(log_pi, *x.paths()[1:], beta=1 / beta_trl, baseline="leave_one_out").backward()
    assert_agree(log_pi.grad, np.repeat(-advantages[:, None] / BATCH, STEPS, axis=1), SIZE)
