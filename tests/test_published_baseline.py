"""Claims B1 and B3: the optimum of the first published baseline, and what it predicts on the 25 modes; its figures."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from inputs import assert_agree, tensor

from companion import metrics, plotting, reinforce, targets
from experiments import published_baseline as study

#: One decision among three objects: reference, rewards, and a policy that is no optimum.
REF, R, LOGITS = tensor([0.5, 0.3, 0.2]).log(), tensor([0.25, 1.0, 3.0]), tensor([0.3, -0.4, 0.2])
W = 0.4


def optimum(size: int) -> torch.Tensor:
    """The logarithm of p_ref exp((1 - 1/n) r / (2w)), normalised, in plain Python."""
    mass = [math.exp(ref + (1 - 1 / size) * r / (2 * W)) for ref, r in zip(REF.tolist(), R.tolist(), strict=True)]
    return tensor([math.log(m / math.fsum(mass)) for m in mass])


def mean_gradient(logits, size: int, r=R, weight: float = W) -> torch.Tensor:
    """The mean over all batches of the gradient of the package's loss, in the logits."""
    law, total = logits.softmax(0).tolist(), torch.zeros(3, dtype=torch.float64)
    for batch in itertools.product(range(3), repeat=size):
        x = logits.clone().requires_grad_()
        index = torch.tensor(batch)
        steps, refs = x.log_softmax(0)[index, None], REF[index, None]
        loss = reinforce.published_baseline_loss(steps, refs, r.log()[index], kl_weight=weight)
        total += math.prod(law[k] for k in batch) * torch.autograd.grad(loss, x)[0]
    return total


@pytest.mark.claim("B1")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_mean_gradient_is_2w_times_that_of_the_divergence_from_the_predicted_optimum(size):
    """In the logits of a softmax the gradient of KL(p, q) is p (d - E_p[d]), with d = log p - log q."""
    log_p = LOGITS.log_softmax(0)
    gap = log_p - optimum(size)
    expected = 2 * W * log_p.exp() * (gap - (log_p.exp() * gap).sum())
    assert_agree(mean_gradient(LOGITS, size), expected, 10.0)


@pytest.mark.claim("B1")
@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_gradient_vanishes_at_the_predicted_optimum_alone(size):
    """Not at that of another size of batch, of another weight, or at the posterior."""
    assert_agree(mean_gradient(optimum(size), size), torch.zeros(3), 10.0)
    for elsewhere in (optimum(size + 1), REF + 2 * (optimum(size) - REF), REF + R.log(), REF):
        assert mean_gradient(elsewhere, size).norm() > 0.005


@pytest.mark.claim("B1")
def test_the_optimum_keeps_an_object_of_reward_zero():
    """The posterior gives it no weight; here it keeps exp(0) times its reference."""
    zero = tensor([0.0, 1.0, 3.0])
    best = REF + 0.5 * zero / (2 * W)
    assert_agree(mean_gradient(best, 2, zero), torch.zeros(3), 10.0)
    assert best.softmax(0)[0] > 0.01


@pytest.mark.claim("B1")
def test_two_rewards_can_be_matched_and_three_cannot():
    """With r in {1, 3} the weight (1 - 1/n) (3 - 1) / (2 log 3) makes the tilt that of the posterior."""
    two, weight = tensor([1.0, 3.0, 1.0]), 0.5 * 2 / (2 * math.log(3))
    assert_agree(mean_gradient(REF + two.log(), 2, two, weight), torch.zeros(3), 10.0)
    tilt = (optimum(2) - REF) - R.log()
    assert (tilt - tilt.mean()).abs().max() > 0.1


EXAMPLE = targets.twenty_five_to_nine(dtype=torch.float64)
WANTED = targets.weights_on(EXAMPLE.prior, EXAMPLE.posterior)


def predicted(weight: float) -> torch.Tensor:
    """The mode weights at this weight, batches of 500."""
    return targets.tilted_mode_weights(EXAMPLE, (1 - 1 / 500) / (2 * weight))


@pytest.mark.claim("B3")
@pytest.mark.parametrize(
    ("weight", "variation", "leak"),
    [(0.01, 0.754, 0.0), (0.2, 0.742, 0.0), (0.5, 0.509, 0.025), (1.0, 0.309, 0.237), (2.0, 0.450, 0.450)],
)
def test_the_predicted_failure_is_that_of_the_sixty_firsts_in_plain_python(weight, variation, leak):
    """Each kept mode has the weight exp(f 25 share), each of the sixteen others 1; and three digits."""
    factor = 0.998 / (2 * weight)
    shares = [share / 61 for share in (4, 10, 4, 5, 10, 5, 4, 15, 4)]
    most = factor * 25 * max(shares)
    kept = [math.exp(factor * 25 * share - most) for share in shares]
    left = 16 * math.exp(-most)
    total = math.fsum(kept) + left
    half = math.fsum(abs(mass / total - share) for mass, share in zip(kept, shares, strict=True))
    by_hand = 0.5 * (half + left / total)
    ours = predicted(weight)
    assert abs(float(metrics.total_variation(ours, WANTED)) - by_hand) < 1e-12
    assert abs(float(ours[WANTED == 0].sum()) - left / total) < 1e-12
    assert abs(by_hand - variation) < 5e-4 and abs(left / total - leak) < 5e-4


@pytest.mark.claim("B3")
@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_the_predicted_mode_weights_are_those_of_an_integral_over_each_cell(weight):
    """By the midpoint rule, from numpy's own densities; the part of a mode beyond its cell is 1e-5."""
    steps, grid = 0.05, np.array([-10.0, -5, 0, 5, 10])
    axis = np.arange(-15, 15, steps) + steps / 2
    bumps = np.exp(-((axis[:, None] - grid) ** 2) / 0.6)
    prior = bumps.sum(1)[:, None] * bumps.sum(1)
    posterior = bumps @ WANTED.numpy().reshape(5, 5) @ bumps.T
    factor = 0.998 / (2 * weight)
    density = prior * np.exp(factor * (25 * posterior / prior - 25 * 15 / 61))
    cell = np.digitize(axis, [-7.5, -2.5, 2.5, 7.5])
    mass = np.array([[density[np.ix_(cell == i, cell == j)].sum() for j in range(5)] for i in range(5)])
    assert np.abs(mass.ravel() / mass.sum() - predicted(weight).numpy()).max() < 1e-5


@pytest.mark.claim("B3")
def test_no_weight_is_good_and_the_limits_are_one_mode_and_the_prior():
    """Total variation 1 - 15/61 towards zero, 16/25 towards infinity, and above 0.3 everywhere in between."""
    variation = [float(metrics.total_variation(predicted(w), WANTED)) for w in np.geomspace(0.01, 100, 200).tolist()]
    assert abs(variation[0] - 46 / 61) < 1e-6 and abs(variation[-1] - 16 / 25) < 0.01
    assert min(variation) > 0.3


def test_the_runs_that_start_at_the_optimum_are_trained_to_the_tilt_of_the_claim():
    """At the means, where r is the ratio of the weights."""
    log_tilt = study.predicted_log_tilt(EXAMPLE, 0.5, 500)(EXAMPLE.prior.means)
    assert_agree(log_tilt, 0.998 * 25 * WANTED, 100.0)
    assert study.WEIGHTS == (0.2, 0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("factor", "variance", "words"),
    [
        (-1.0, 0.3, "factor is -1.0; expected a finite Python number >= 0"),
        (math.inf, 0.3, "factor is inf"),
        (1.0, 0.2, "expected one, or r"),
    ],
)
def test_a_tilt_without_mode_weights_is_refused(factor, variance, words):
    posterior = targets.GaussianMixture(EXAMPLE.posterior.means, EXAMPLE.posterior.weights, variance)
    with pytest.raises(ValueError, match=words):
        targets.tilted_mode_weights(targets.Tilt(EXAMPLE.prior, posterior), factor)


def test_without_a_tilt_the_mode_weights_are_the_priors():
    assert_agree(targets.tilted_mode_weights(EXAMPLE, 0), EXAMPLE.prior.weights, 1.0)


def test_squares_have_the_area_of_their_weights_and_excluded_modes_are_hatched():
    means, kept = tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([True, True, False])
    laws = {"target": tensor([0.64, 0.36, 0.0]), "w": tensor([0.0, 0.16, 0.84])}
    figure = plotting.mode_grids(means, laws, kept=kept)
    assert not plt.get_fignums()
    figure.canvas.draw()
    first, second, empty = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["target", "w", ""] and not empty.patches
    areas = sorted(square.get_width() * square.get_height() / 1.9**2 for square in first.patches)
    assert areas == pytest.approx([0.0, 0.36 / 0.64, 1.0])
    hatched = [square for square in second.patches if square.get_hatch()]
    assert [square.get_center().tolist() for square in hatched] == [pytest.approx([2.0, 0.0])]


def test_curves_carry_the_points_and_intervals_of_their_panel():
    curves = {"variation": tensor([0.1, 0.2]), "leak": tensor([0.3, 0.4])}
    points = {"prior": {"variation": {1.0: (0.2, 0.1, 0.4)}, "leak": {1.0: (0.3, 0.3, 0.3)}}}
    figure = plotting.curves_with_points([0.5, 2.0], curves, points, xlabel="w", curve="predicted")
    assert not plt.get_fignums()
    figure.canvas.draw()
    assert [axes.get_ylabel() for axes in figure.axes] == list(curves)
    assert {axes.get_xlabel() for axes in figure.axes} == {"w"} and figure.axes[0].get_xscale() == "log"
    ((marks, caps, _),) = [container.lines for container in figure.axes[0].containers]
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([1.0], [0.2])
    assert [cap.get_ydata().tolist() for cap in caps] == [[pytest.approx(0.1)], [pytest.approx(0.4)]]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"predicted", "prior"}
