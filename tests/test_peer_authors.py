"""Conformance with the paper's authors' code: its losses, recorded on paths of the released prior, against ours.

``peers/authors.npz`` holds numbers only, recorded in float64 from padideee/rtb-trustpcl-finetuning at 0088c84, its
losses unmodified: 20 paths of 100 steps each, with the released prior as reference and a randomly perturbed copy of it
as policy. ``tangent`` is the derivative of ``log_pi`` along one random direction of the policy's weights, and
``directional`` that of their loss: the gradient of ours in ``log_pi``, times ``tangent``, summed.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import reinforce, rtb, targets

with np.load(Path(__file__).parent / "peers/authors.npz", allow_pickle=False) as stored:
    RECORDED = {name: torch.from_numpy(stored[name]) for name in stored}
#: Relative. A path adds up 200 terms and a batch 20 paths, which cancel by up to a factor of some hundreds: 2,000 eps
#: would be 5e-13.
TOLERANCE = 1e-12
#: Their posterior has this standard deviation, the root of 0.3 to seven digits.
THEIR_STD = 0.5477222

#: What each recording is of: our loss, and the settings that the recording names.
LOSSES = {
    "rtb/beta1": partial(rtb.loss, beta=1.0),
    "rtb/beta2": partial(rtb.loss, beta=2.0),
    "reinforce_on/beta2": partial(reinforce.kl_loss, beta=2.0),
    "reinforce_off/beta1": partial(
        reinforce.kl_loss, beta=1.0, log_behaviour=RECORDED["reinforce_off/log_behaviour"], weights="tempered"
    ),
    "published/weight_01": partial(reinforce.published_baseline_loss, kl_weight=0.01),
}
#: The batches of paths; both temperatures of RTB were recorded on one.
PATHS = sorted({name.split("/")[0] for name in LOSSES})
each_loss = pytest.mark.parametrize("name", LOSSES)


def inputs(name: str, *fields: str) -> list[torch.Tensor]:
    """Return what was recorded of the paths that a loss was computed on."""
    return [RECORDED[f"{name.split('/')[0]}/{field}"].clone() for field in fields]


def loss_of(name: str, log_pi: torch.Tensor, log_z: torch.Tensor) -> torch.Tensor:
    """Return our loss on the recorded paths, with the log-probabilities given."""
    learned = (log_z,) if name.startswith("rtb") else ()
    return LOSSES[name](log_pi, *inputs(name, "log_ref", "log_reward"), *learned)


def assert_recorded(ours: torch.Tensor, name: str) -> None:
    """Assert that a number is the recorded one, to rounding."""
    torch.testing.assert_close(ours.detach(), RECORDED[name], rtol=TOLERANCE, atol=0.0)


def test_every_recording_is_compared_and_is_double_precision():
    """Twenty paths of a hundred steps, nothing padded; the paths of RTB serve both temperatures."""
    assert {name.rsplit("/", 1)[0] for name in RECORDED if name.endswith("/loss")} == set(LOSSES)
    assert all(value.dtype == torch.float64 for value in RECORDED.values())
    assert all(RECORDED[f"{name.split('/')[0]}/log_pi"].shape == (20, 100) for name in LOSSES)


@pytest.mark.claim("E6")
@each_loss
def test_the_loss(name):
    """Of RTB, of REINFORCE with the KL on and off policy, and of the published baseline: ours as they stand."""
    assert_recorded(loss_of(name, *inputs(name, "log_pi"), RECORDED["rtb/beta1/log_z"]), f"{name}/loss")


@pytest.mark.claim("E6")
@each_loss
def test_the_derivative_along_a_direction_of_the_policy(name):
    """Their loss along a direction in weights; ours in the log-probabilities, and theirs of those along it."""
    log_pi, tangent = inputs(name, "log_pi", "tangent")
    gradient = torch.func.grad(partial(loss_of, name))(log_pi, RECORDED["rtb/beta1/log_z"])
    assert_recorded((gradient * tangent).sum(), f"{name}/directional")


@pytest.mark.claim("E6")
@pytest.mark.parametrize("name", ["rtb/beta1", "rtb/beta2"])
def test_the_derivative_in_log_z(name):
    """Learned beside the policy."""
    gradient = torch.func.grad(partial(loss_of, name), argnums=1)(*inputs(name, "log_pi"), RECORDED[f"{name}/log_z"])
    assert_recorded(gradient, f"{name}/d_log_z")


def their_tilt() -> targets.Tilt:
    """The example with the standard deviation that their posterior has."""
    tilt = targets.twenty_five_to_nine(dtype=torch.float64)
    posterior = targets.GaussianMixture(tilt.posterior.means, tilt.posterior.weights, THEIR_STD**2)
    return targets.Tilt(tilt.prior, posterior)


@pytest.mark.claim("E6")
def test_the_reward():
    """At 200 points, and at the ends of all recorded paths; 1e-12 of the two log-densities that are subtracted."""
    points = [RECORDED["reward/x"], *(RECORDED[f"{paths}/end"] for paths in PATHS)]
    recorded = [RECORDED["reward/log_reward"], *(RECORDED[f"{paths}/log_reward"] for paths in PATHS)]
    x, theirs = torch.cat(points), torch.cat(recorded)
    tilt = their_tilt()
    size = tilt.prior.log_prob(x).abs() + tilt.posterior.log_prob(x).abs()
    assert bool(((tilt.log_reward(x) - theirs).abs() <= TOLERANCE * size).all())


def test_our_reward_differs_by_what_the_seven_digits_leave():
    """The root of 0.3 itself: 1.3e-6 of the exponent, half a thousandth of a nat at the points farthest out."""
    ours = targets.twenty_five_to_nine(dtype=torch.float64).log_reward(RECORDED["reward/x"])
    gap = (ours - RECORDED["reward/log_reward"]).abs()
    assert 1e-4 < gap.max() < 6e-4
    assert gap.median() < 1e-4
