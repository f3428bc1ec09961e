"""Gaussian-transition samplers, against torch's densities, quadrature, and laws known in closed form."""

import math

import pytest
import torch
from inputs import generator, tensor

from companion import metrics, targets
from companion.samplers import diffusion, drifts, networks

PROCESS = diffusion.Process(steps=4, variance=2.0, dim=2)


def linear(states, times):
    """A drift with a known value: minus the state, plus the time in every coordinate."""
    return times[..., None] - states


@pytest.mark.claim("X3")
def test_a_path_follows_the_recursion():
    """s' = s + dt u(s, t) + noise, the noise drawn at once, in the order of the steps; exploration widens it."""
    for extra in (0.0, 0.5):
        paths = diffusion.rollout(PROCESS, linear, 3, generator(1), extra_std=extra, dtype=torch.float64)
        state = torch.zeros(3, 2, dtype=torch.float64)
        noises = torch.randn(4, 3, 2, generator=generator(1), dtype=torch.float64)
        for step in range(4):
            torch.testing.assert_close(paths[:, step], state, rtol=1e-14, atol=1e-14)
            state = state + 0.25 * (0.25 * step - state) + math.sqrt(2.0 * 0.25 + extra**2) * noises[step]
        torch.testing.assert_close(paths[:, 4], state, rtol=1e-14, atol=1e-14)


def test_log_probabilities_are_those_of_torch_distributions():
    """Step by step, with and without exploration."""
    paths = diffusion.rollout(PROCESS, linear, 5, generator(2), dtype=torch.float64)
    for extra in (0.0, 0.5):
        found = diffusion.log_prob(PROCESS, linear, paths, extra_std=extra)
        std = math.sqrt(2.0 * 0.25 + extra**2)
        for step in range(4):
            centre = paths[:, step] + 0.25 * (0.25 * step - paths[:, step])
            normal = torch.distributions.Normal(centre, std)
            expected = normal.log_prob(paths[:, step + 1]).sum(dim=1)
            torch.testing.assert_close(found[:, step], expected, rtol=1e-12, atol=1e-12)


def test_a_drift_is_called_once_for_all_steps_and_as_well_step_by_step():
    """The network's answer to [n, steps, dim] states and [steps] times is that to each step alone."""
    network = networks.DriftNetwork(PROCESS, generator(3)).double()
    paths = diffusion.rollout(PROCESS, network, 5, generator(4), dtype=torch.float64)
    times = PROCESS.times(paths)
    at_once = network(paths[:, :-1], times)
    for step in range(4):
        torch.testing.assert_close(at_once[:, step], network(paths[:, step], times[step]))


def test_gradients_reach_the_drift_and_a_rollout_keeps_none():
    network = networks.DriftNetwork(PROCESS, generator(3))
    paths = diffusion.rollout(PROCESS, network, 5, generator(4))
    assert not paths.requires_grad
    diffusion.log_prob(PROCESS, network, paths).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_network_depends_on_its_generator_alone():
    """Global state neither matters nor changes."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = networks.DriftNetwork(PROCESS, generator(5)).state_dict()
    torch.manual_seed(2)
    second = networks.DriftNetwork(PROCESS, generator(5)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_brownian_motion_needs_no_drift():
    """Where the mixture is the law of Brownian motion at time 1, one Gaussian of its variance, the drift is zero."""
    one = targets.GaussianMixture(tensor([[0.0, 0.0]]), tensor([1.0]), 2.0)
    states = torch.randn(7, 4, 2, generator=generator(6), dtype=torch.float64)
    states[:, 0] = 0  # every path begins there
    drift = drifts.MixtureDrift(PROCESS, one)(states, PROCESS.times(states))
    assert drift.abs().max() < 1e-14


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.9])
def test_the_drift_of_a_mixture_is_the_conditional_mean_of_the_end(time):
    """E[(s_1 - s_t) / (1 - t) | s_t] by quadrature: the law of s_1 is the mixture, and s_t given s_1 is a bridge."""
    process = diffusion.Process(steps=10, variance=5.0, dim=1)
    mixture = targets.GaussianMixture(tensor([[-2.0], [0.0], [3.0]]), tensor([0.2, 0.5, 0.3]), 0.3)
    found = drifts.MixtureDrift(process, mixture)
    ends = torch.linspace(-8, 9, 40_001, dtype=torch.float64)
    for state in (0.0,) if time == 0 else (-1.0, 0.3, 2.0):
        log_law = mixture.log_prob(ends[:, None])
        if time > 0:
            log_law = log_law - 0.5 * (state - time * ends) ** 2 / (5.0 * time * (1 - time))
        mean_end = (log_law.softmax(dim=0) * ends).sum()
        expected = (mean_end - state) / (1 - time)
        drift = found(tensor([[state]]), tensor(time))
        torch.testing.assert_close(drift[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_the_mixture_process_nearly_ends_in_the_mixture():
    """The example's prior at T = 100: 20,000 paths; equal modes within 5 standard errors; variance .33, not .30."""
    process = diffusion.Process()
    prior = targets.twenty_five_to_nine().prior
    ends = diffusion.rollout(process, drifts.MixtureDrift(process, prior), 20_000, generator(7))[:, -1]
    weights = metrics.mode_weights(ends, prior)
    assert (weights - 1 / 25).abs().max() < 5 * math.sqrt(0.04 * 0.96 / 20_000)
    within = (ends - prior.means[prior.nearest(ends)]).square().mean()
    assert 0.31 < within < 0.34


def good_states():
    """Paths of the right shape."""
    return torch.zeros(3, 5, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diffusion.Process(steps=0), "steps is 0"),
        (lambda: diffusion.Process(steps=2.5), "steps is 2.5"),
        (lambda: diffusion.Process(variance=-1.0), "variance is -1.0"),
        (lambda: diffusion.Process(dim=True), "dim is True"),
        (lambda: diffusion.rollout(PROCESS, linear, 0, generator(0)), "n is 0"),
        (lambda: diffusion.rollout(PROCESS, linear, 3, None), "generator is None"),
        (lambda: diffusion.rollout(PROCESS, linear, 3, generator(0), extra_std=-0.1), "extra_std is -0.1"),
        (lambda: diffusion.rollout(PROCESS, lambda s, t: s[:, :1], 3, generator(0)), "The drift is (3, 1)"),
        (lambda: diffusion.rollout(PROCESS, lambda s, t: s / 0, 3, generator(0)), "infinite or NaN"),
        (lambda: diffusion.log_prob(PROCESS, linear, good_states()[:, 1:]), "states is (3, 4, 2)"),
        (lambda: diffusion.log_prob(PROCESS, linear, good_states()[0]), "states is (5, 2)"),
        (lambda: diffusion.log_prob(PROCESS, linear, None), "states is NoneType"),
        (lambda: diffusion.log_prob(PROCESS, lambda s, t: None, good_states()), "The drift is NoneType"),
        (
            lambda: drifts.MixtureDrift(
                PROCESS, targets.GaussianMixture(torch.zeros(1, 3), torch.ones(1), variance=1.0)
            ),
            "dimension 3",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match="expected") as refusal:
        call()
    assert words in str(refusal.value)
