"""Claim L7: a coin with one logit for all tosses, Gaussian steps of fixed variance, and the study of their gap.

The oracles are a regression in plain Python, and the precision matrices of whole paths.
"""

import math
from fractions import Fraction

import pytest
import torch
from inputs import assert_agree, generator, tensor

from companion import mdp, rtb, targets
from companion.samplers import DiffusionSampler, diffusion, drifts
from experiments import step_gap

# A coin with one logit. A batch holds each path as often as a coin with odds of `odds` to one for heads would draw it.

TOSSES = 3
LOG_R = [0.3, 1.9, 1.4, 2.2]
COINS = mdp.lattice(TOSSES).with_log_reward(tensor(LOG_R))
PATHS = mdp.enumerate_paths(COINS)


def batch(odds: int) -> mdp.Paths:
    """Return every path, odds**heads times."""
    heads = PATHS.ends - PATHS.ends.min()
    return PATHS.select(torch.arange(len(PATHS)).repeat_interleave(odds**heads))


def coin(logit: torch.Tensor) -> torch.Tensor:
    """Return the policy that shows heads with this logit at every toss, ``[edges]``."""
    return mdp.log_softmax(COINS, logit * (torch.arange(len(COINS.source)) % 2))


def along(paths: mdp.Paths, logit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the log-probabilities, the references and log r of paths."""
    return paths.per_step(coin(logit)), paths.per_step(COINS.log_ref), paths.per_step(COINS.rewards).sum(1)


def regression(weights: list) -> torch.Tensor:
    """Return the slope of the least-squares line of LOG_R on 0, 1, ..., for weights with sum one."""
    mean = sum(w * h for h, w in enumerate(weights))
    top = math.fsum(float(w * (h - mean)) * LOG_R[h] for h, w in enumerate(weights))
    return tensor(top / float(sum(w * (h - mean) ** 2 for h, w in enumerate(weights))))


def heads_law(odds: int) -> list[Fraction]:
    return [math.comb(TOSSES, h) * Fraction(odds**h, (1 + odds) ** TOSSES) for h in range(TOSSES + 1)]


@pytest.mark.claim("L7")
def test_the_logit_of_least_loss_is_a_regression_slope_that_depends_on_the_paths():
    slopes = {odds: regression(heads_law(odds)) for odds in (1, 2, 5)}
    for odds, slope in slopes.items():
        paths = batch(odds)

        def loss(logit, paths=paths):
            return rtb.vargrad_loss(*along(paths, logit))

        gradients = {other: torch.func.grad(loss)(logit) for other, logit in slopes.items()}
        assert_agree(gradients.pop(odds), 0.0, 20.0)
        assert min(abs(gradient) for gradient in gradients.values()) > 1e-2
        assert all(loss(slope) < loss(slope + step) for step in (-2.0, -0.1, 0.1, 2.0))


@pytest.mark.claim("L7")
def test_on_its_own_paths_a_policy_rests_where_the_kl_to_the_target_is_stationary():
    logit = tensor(0.0)
    for _ in range(200):
        logit = regression(mdp.marginal(COINS, PATHS, PATHS.log_prob(coin(logit))).tolist())
    own = PATHS.log_prob(coin(logit))

    def loss(logit):
        error = rtb.residual(*along(PATHS, logit), tensor(0.0))
        return (own.exp() * (error - (own.exp() * error).sum()).square()).sum()

    def divergence(logit):
        steps, refs, log_r = along(PATHS, logit)
        log_p = steps.sum(1)
        return (log_p.exp() * (log_p - (refs.sum(1) + log_r).log_softmax(0))).sum()

    assert divergence(logit) > 1e-3
    for function in (loss, divergence):
        assert_agree(torch.func.grad(function)(logit), 0.0, 50.0)


# Gaussian steps of fixed variance: the reference is Brownian motion on the line, the target's end a narrower Gaussian.

CASES = pytest.mark.parametrize(("steps", "variance", "narrow"), [(1, 1.0, 0.25), (3, 2.0, 0.5), (6, 5.0, 0.3)])


def setting(steps: int, variance: float, narrow: float) -> tuple[diffusion.Process, targets.Tilt]:
    """Return the process and the tilt from N(0, variance) to N(0, narrow)."""
    laws = (
        targets.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), spread)
        for spread in (variance, narrow)
    )
    return diffusion.Process(steps=steps, variance=variance, dim=1), targets.Tilt(*laws)


def log_weight(process, tilt, drift, states: torch.Tensor) -> torch.Tensor:
    """Return e of paths ``[n, steps]``, the states after the first."""
    states = torch.cat([torch.zeros(len(states), 1), states], dim=1).double()[..., None]
    prior = drifts.MixtureDrift(process, tilt.prior)
    return DiffusionSampler(process, drift, prior, tilt.log_reward).log_weights(states)


def linear(process, gains: torch.Tensor):
    """Return the drift whose mean at step k is gains[k] times the state."""
    return lambda states, times: ((gains - 1) * process.steps)[:, None] * states


def precision(gains: torch.Tensor, step_variance: float) -> torch.Tensor:
    """Return the precision matrix of the states 1 to T of s' = gain s + noise, from 0."""
    moves = torch.eye(len(gains), dtype=torch.float64) - torch.diag(gains[1:], -1)
    return moves.T @ moves / step_variance


def of_target(process, narrow: float) -> torch.Tensor:
    """Return the precision matrix of the paths of p*."""
    matrix = precision(torch.ones(process.steps, dtype=torch.float64), process.variance * process.dt)
    matrix[-1, -1] += 1 / narrow - 1 / process.variance
    return matrix


def divergence(policy: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the KL of two centred Gaussians, given their precision matrices."""
    return 0.5 * (torch.trace(target @ policy.inverse()) - len(policy) + policy.logdet() - target.logdet())


def curvature(function, steps: int) -> torch.Tensor:
    """Return the matrix of second derivatives at zero, in reverse twice: forwards torch warns of what it deprecates."""
    return torch.func.jacrev(torch.func.jacrev(function))(torch.zeros(steps, dtype=torch.float64))


def narrowing(steps: int, variance: float, narrow: float) -> torch.Tensor:
    """Return y_k, by its closed form: kappa at step k + 1, times the variance of a step."""
    v, kappa = variance / steps, 1 / narrow - 1 / variance
    return tensor([v / (1 / kappa + v * (steps - 1 - k)) for k in range(steps)])


@pytest.mark.claim("L7")
@CASES
def test_the_drift_in_closed_form_has_the_smallest_gap_and_the_gap_is_that_of_the_formula(steps, variance, narrow):
    process, tilt = setting(steps, variance, narrow)
    y, target = narrowing(steps, variance, narrow), of_target(process, narrow)
    best, one = drifts.MixtureDrift(process, tilt.posterior), torch.ones(1, 1, dtype=torch.float64)
    gains = torch.cat([1 + process.dt * best(one, time) for time in process.times(one)])[:, 0]
    assert_agree(gains[1:], 1 / (1 + y[1:]), 10.0)  # the first step starts at zero, whatever its gain

    def gap(gains):
        return divergence(precision(gains, process.variance * process.dt), target)

    assert_agree(gap(gains), 0.5 * (y - y.log1p()).sum(), 100.0)
    assert_agree(torch.func.grad(gap)(gains), torch.zeros_like(gains), 1000.0)
    random = torch.randn(5, steps, generator=generator(1), dtype=torch.float64)
    assert steps == 1 or all(gap(gains + step) > gap(gains) for step in random)


@pytest.mark.claim("L7")
@CASES
def test_the_log_weight_of_a_path_is_the_log_ratio_of_two_gaussians(steps, variance, narrow):
    """For the best drift and for any other gains, on any paths; log Z is zero."""
    process, tilt = setting(steps, variance, narrow)
    states = torch.randn(20, steps, generator=generator(2), dtype=torch.float64)
    best = drifts.MixtureDrift(process, tilt.posterior)
    gains = 1 / (1 + narrowing(steps, variance, narrow))
    other = torch.rand(steps, generator=generator(3), dtype=torch.float64)
    for drift, means in ((best, gains), (linear(process, other), other)):
        policy, target = precision(means, variance / steps), of_target(process, narrow)
        squares = torch.einsum("ni,ij,nj->n", states, policy - target, states)
        expected = 0.5 * (squares + target.logdet() - policy.logdet())
        assert_agree(log_weight(process, tilt, drift, states), expected, 1000.0)


@pytest.mark.claim("L7")
@CASES
def test_at_the_best_drift_the_residual_and_its_gradient_keep_their_variance(steps, variance, narrow):
    """The residual is a quadratic form; the gradient is along a push, with four points of Gauss and Hermite a step."""
    process, tilt = setting(steps, variance, narrow)
    y, best = narrowing(steps, variance, narrow), drifts.MixtureDrift(process, tilt.posterior)
    hessian = curvature(lambda path: log_weight(process, tilt, best, path[None])[0], steps)
    covariance = precision(1 / (1 + y), variance / steps).inverse()
    spread = 0.5 * torch.trace(hessian @ covariance @ hessian @ covariance)
    assert_agree(spread, 0.5 * y.square().sum(), 1000.0)
    if steps > 4:
        return
    # By hand: nodes and weights of the rule are the roots of x^4 - 6 x^2 + 3, and 1/12 (3 -+ root of 6).
    root = math.sqrt(6)
    at = tensor([s * math.sqrt(3 + r * root) for r in (-1, 1) for s in (-1, 1)])
    weights = tensor([(3 - r * root) / 12 for r in (-1, 1) for _ in (-1, 1)])
    index = torch.cartesian_prod(*[torch.arange(4)] * steps).reshape(-1, steps)
    noise, law = at[index], weights[index].prod(1)
    states, gains = [torch.zeros(len(noise))], 1 / (1 + y)
    for k in range(steps):
        states.append(gains[k] * states[-1] + math.sqrt(variance / steps) * noise[:, k])
    e = log_weight(process, tilt, best, torch.stack(states[1:], dim=1))
    gradient = ((law * e).sum() - e) * noise.sum(1) / math.sqrt(steps)
    assert_agree((law * gradient).sum(), 0.0, 1000.0)
    assert_agree((law * gradient.square()).sum(), (1 + 4 / steps) * spread, 1000.0)


@pytest.mark.claim("L7")
def test_noise_around_its_own_means_leaves_the_best_drift_in_place_and_paths_of_the_prior_do_not():
    """The loss is half the variance of a quadratic form of Gaussian paths, whichever these are."""
    steps, variance, narrow = 4, 1.0, 0.25
    process, tilt = setting(steps, variance, narrow)
    best = 1 / (1 + narrowing(steps, variance, narrow))

    def loss(gains, covariance):
        def of_path(path):
            return log_weight(process, tilt, linear(process, gains), path[None])[0]

        product = curvature(of_path, steps) @ covariance
        return 0.25 * torch.trace(product @ product)

    gradient = torch.func.grad(loss)
    for step_variance in (0.25, 0.3, 2.0):
        own = precision(best, step_variance).inverse()
        assert_agree(gradient(best, own), torch.zeros(steps), 1000.0)
    paths_of_prior = precision(torch.ones(steps, dtype=torch.float64), 0.25).inverse()
    assert gradient(best, paths_of_prior).abs().max() > 0.1
    gains = best.clone().requires_grad_()
    descent = torch.optim.LBFGS([gains], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        total = loss(gains, paths_of_prior)
        total.backward()
        return total

    descent.step(closure)
    found, target = gains.detach(), of_target(process, narrow)
    assert loss(found, paths_of_prior) < 0.9 * loss(best, paths_of_prior)
    gaps = [divergence(precision(x, 0.25), target) for x in (best, found)]
    assert gaps[1] > 1.5 * gaps[0]


@pytest.mark.claim("L7")
@pytest.mark.parametrize("narrow", [0.9, 0.3, 0.01])
@pytest.mark.parametrize("variance", [1.0, 5.0])
def test_the_gap_and_the_variance_fall_like_one_over_the_number_of_steps(variance, narrow):
    kappa = 1 / narrow - 1 / variance
    limit = kappa**2 * variance**2 / (4 * (1 + kappa * variance))
    for steps in (1, 2, 5, 40, 300):
        y = narrowing(steps, variance, narrow)
        policy = precision(1 / (1 + y), variance / steps)
        process, _ = setting(steps, variance, narrow)
        gap = float(divergence(policy, of_target(process, narrow)))
        upper = (1 + kappa * variance / steps) * limit / steps
        assert (1 - 1e-6) * limit / steps <= gap <= upper
        assert_agree((y.square() / (1 + y)).sum(), 4 * limit / steps, 100.0)
        assert 2 * limit / steps <= 0.5 * float(y.square().sum()) <= (1 + 1e-12) * 2 * upper


@pytest.mark.claim("L7")
@pytest.mark.parametrize("slope", [-2.0, 0.7])
def test_where_log_r_is_linear_the_steps_of_the_target_have_the_variance_of_the_reference(slope):
    """They are the reference's, moved; log Z is that of a Gaussian's moment generating function."""
    steps, variance = 4, 3.0
    process = diffusion.Process(steps=steps, variance=variance, dim=1)
    states = torch.randn(20, steps + 1, 1, generator=generator(5), dtype=torch.float64)
    states[:, 0] = 0.0

    def log_ratio(drift):
        sampler = DiffusionSampler(process, lambda s, t: s * 0 + drift, lambda s, t: s * 0, lambda x: slope * x[:, 0])
        return 0.5 * slope**2 * variance - sampler.log_weights(states)

    assert_agree(log_ratio(slope * variance), torch.zeros(20), 100.0)
    assert log_ratio(0.9 * slope * variance).abs().max() > 0.1


# The study.


@pytest.fixture
def study(monkeypatch):
    """The study's module, which scores few paths at once."""
    monkeypatch.setattr(step_gap, "AT_ONCE", 300)
    return step_gap


def test_the_study_measures_the_gap_of_a_single_gaussian(study):
    """Which is known, and so is the spread of the log-weights; within five standard errors."""
    process, tilt = setting(20, 5.0, 0.3)
    y = narrowing(20, 5.0, 0.3)
    e = study.log_weights(process, tilt, generator(0), 4000)
    assert e.shape == (4000,) and e.dtype == torch.float64
    gap, spread = 0.5 * (y - y.log1p()).sum(), 0.5 * y.square().sum()
    assert abs(e.mean() + gap) < 5 * (spread / 4000).sqrt()
    assert 0.7 < e.var() / spread < 1.3


def test_a_run_of_the_study_is_the_gap_of_its_own_numbers(study):
    task = study.TASKS[0] | {"paths": 400}
    first, second = (study.run(task, None).measures for _ in range(2))
    assert first == second
    assert first["gap"] == first["log_z"] - first["elbo"] > 0 and first["residual_variance"] > 0
    assert {task["seed"] for task in study.TASKS} == set(range(5))
    assert len({task["name"] for task in study.TASKS}) == len(study.TASKS) == 30
