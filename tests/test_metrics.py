"""Measures against constants worked out by hand, and against laws whose answer is known."""

import math

import pytest
import torch
from inputs import generator, in_one_line, tensor

from companion import mdp, metrics, rtb, targets
from companion.samplers import Batch
from companion.validation import NotFiniteError

TWO = targets.GaussianMixture(tensor([[0.0, 0.0], [3.0, 4.0]]), tensor([0.25, 0.75]), 2.0)


@pytest.mark.claim("X2")
def test_mode_weights_count_the_points_nearest_to_each_mean():
    """Three of four points lie by the first mean."""
    points = tensor([[0.0, 1.0], [1.0, 0.0], [-5.0, 0.0], [3.0, 3.0]])
    assert metrics.mode_weights(points, TWO).tolist() == [0.75, 0.25]


def test_a_mode_that_is_never_visited_has_a_weight_of_zero():
    """Also the last: there are as many weights as means."""
    assert metrics.mode_weights(tensor([[0.0, 1.0], [1.0, 0.0]]), TWO).tolist() == [1.0, 0.0]
    assert metrics.mode_weights(tensor([[3.0, 3.0]]), TWO).tolist() == [0.0, 1.0]


def test_total_variation_and_kl_of_two_small_laws():
    """|1/2 - 1/4| and |1/2 - 3/4|, halved; KL = 1/2 log 2 + 1/2 log 2/3; what has probability zero costs nothing."""
    p, q = tensor([0.5, 0.5]), tensor([0.25, 0.75])
    assert metrics.total_variation(p, q) == 0.25
    assert abs(metrics.kl_divergence(p.log(), q.log()) - 0.5 * math.log(4 / 3)) < 1e-15
    sure = tensor([0.0, 1.0]).log()
    assert abs(metrics.kl_divergence(sure, q.log()) - math.log(4 / 3)) < 1e-15
    assert metrics.kl_divergence(q.log(), sure) == math.inf


@pytest.mark.claim("X2")
def test_sliced_wasserstein_of_a_shift_in_one_dimension_is_the_shift():
    """On a line all directions are one, up to sign; the order of the points does not matter."""
    x = torch.randn(50, 1, generator=generator(0), dtype=torch.float64)
    y = x.flip(0) + 3.0
    distance = metrics.sliced_wasserstein(x, y, generator(1))
    torch.testing.assert_close(distance, tensor(3.0))


@pytest.mark.claim("X2")
def test_sliced_wasserstein_of_a_shift_in_the_plane_is_the_shift_over_root_two():
    """A direction meets the shift (3, 4) with its cosine; the mean squared cosine is 1/2: 5 / sqrt 2, statistically."""
    x = torch.randn(50, 2, generator=generator(0), dtype=torch.float64)
    distance = metrics.sliced_wasserstein(x, x + tensor([3.0, 4.0]), generator(1), projections=4000)
    assert abs(distance - 5 / math.sqrt(2)) < 0.1
    assert metrics.sliced_wasserstein(x, x.clone(), generator(1)) == 0


def test_log_weights_bound_log_z_and_are_minus_the_residual_without_it():
    """On an enumerated problem: the mean under the policy is below log Z, under the target above."""
    random = generator(3)
    problem = mdp.randomise(mdp.small_graph(), random)
    paths = mdp.enumerate_paths(problem)
    policy, best = mdp.random_policy(problem, random), mdp.solve(problem, kl_weight=0.5)
    steps, refs = paths.per_step(policy), paths.per_step(problem.log_ref)
    log_reward = paths.per_step(problem.rewards).sum(dim=1)
    e = Batch(steps, refs, log_reward).log_weights(beta=2.0)
    torch.testing.assert_close(e, -rtb.residual(steps, refs, log_reward, tensor(0.0), beta=2.0))
    elbo = mdp.expectation(e, steps.sum(dim=1))
    eubo = mdp.expectation(e, paths.log_prob(best.log_policy))
    assert elbo < best.values[0] / 0.5 < eubo


def test_importance_sampling_and_effective_sample_size():
    """Weights 1, 1, 2: mean 4/3; (sum)^2 / sum of squares = 16/6, over 3 = 8/9."""
    weights = tensor([1.0, 1.0, 2.0]).log()
    torch.testing.assert_close(metrics.importance_log_z(weights), tensor(4 / 3).log())
    torch.testing.assert_close(metrics.effective_sample_size(weights), tensor(8 / 9))
    torch.testing.assert_close(metrics.effective_sample_size(weights + 1000.0), tensor(8 / 9))


def test_a_path_of_weight_zero_counts_among_the_paths():
    """Weights 0, 1, 1: mean 2/3, effective sample size 4/2 over 3."""
    weights = tensor([0.0, 1.0, 1.0]).log()
    torch.testing.assert_close(metrics.importance_log_z(weights), tensor(2 / 3).log())
    torch.testing.assert_close(metrics.effective_sample_size(weights), tensor(2 / 3))


def test_log_z_keeps_the_digits_of_its_weights():
    """Equal weights e: log Z = 1, to the last digits of float64."""
    assert abs(metrics.importance_log_z(torch.ones(3, dtype=torch.float64)).item() - 1) < 1e-15


#: A law of two outcomes.
LAW = tensor([0.25, 0.75])


@pytest.mark.parametrize(
    "bad",
    [tensor([0.25, 0.7501]), tensor([0.25, 0.75 - 2e-5]), tensor([-0.25, 1.25]), tensor([math.nan, 1.0])]
    + [
        tensor([math.inf, 0.0]),
        tensor([]),
        tensor([[0.25, 0.75]]),
        tensor(1.0),
        torch.tensor([0, 1]),
        [0.25, 0.75],
        None,
    ],
    ids=in_one_line,
)
def test_what_is_no_law_is_refused(bad):
    """On either side, however large the other; a law is one to five digits."""
    for p, q in ((bad, LAW), (LAW, bad), (bad, bad)):
        with pytest.raises(ValueError, match="expected"):
            metrics.total_variation(p, q)
    log_bad = bad.log() if isinstance(bad, torch.Tensor) and bad.is_floating_point() else bad
    for p, q in ((log_bad, LAW.log()), (LAW.log(), log_bad), (log_bad, log_bad)):
        with pytest.raises(ValueError, match="expected"):
            metrics.kl_divergence(p, q)


def test_probabilities_are_no_log_probabilities():
    with pytest.raises(ValueError, match=r"exp\(log_p\) sums to probability 3.4.*; expected 1"):
        metrics.kl_divergence(LAW, LAW)


def test_a_law_of_seven_digits_is_one():
    near = LAW + tensor([0.0, 2e-6])
    assert metrics.total_variation(near, LAW) < 2e-6
    assert abs(metrics.kl_divergence(near.log(), LAW.log())) < 1e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_points_that_are_nowhere_are_in_no_mode_and_at_no_distance(bad):
    points = tensor([[0.0, 1.0], [3.0, bad]])
    with pytest.raises(NotFiniteError, match=r"x holds 1 value\(s\) that are infinite or NaN"):
        metrics.mode_weights(points, TWO)
    for name, x, y in (("x", points, points * 0), ("y", points.new_zeros(2, 2), points)):
        with pytest.raises(NotFiniteError, match=rf"{name} holds \d value\(s\) that are infinite or NaN"):
            metrics.sliced_wasserstein(x, y, generator(0))


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(0, 2).double(), torch.zeros(2).double(), torch.zeros(2, 2, 2).double(), torch.zeros(2, 0).double()]
    + [torch.zeros(2, 2, dtype=torch.int64), [[0.0, 0.0]], None],
    ids=in_one_line,
)
def test_what_are_no_points_is_refused(bad):
    for call in (
        lambda: metrics.mode_weights(bad, TWO),
        lambda: metrics.sliced_wasserstein(bad, bad, generator(0)),
    ):
        with pytest.raises(ValueError, match=r"(points|x) .*; expected"):
            call()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([-math.inf, -math.inf], "-inf throughout"),
        ([math.nan, 0.0], "NaN or"),
        ([math.inf, 0.0], "NaN or"),
        ([], "expected"),
    ],
    ids=in_one_line,
)
def test_weights_that_have_no_mean_are_refused(bad, words):
    for call in (metrics.importance_log_z, metrics.effective_sample_size):
        with pytest.raises(ValueError, match=f"log_weight .*{words}"):
            call(tensor(bad))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.total_variation(tensor([0.5, 0.5]), tensor([1.0])),
        lambda: metrics.kl_divergence(tensor([0.0]), tensor([0.0]).float()),
        lambda: metrics.sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2), torch.Generator()),
        lambda: metrics.sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), None),
        lambda: metrics.sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), torch.Generator(), projections=0),
        lambda: metrics.importance_log_z(torch.zeros(0)),
        lambda: metrics.effective_sample_size(torch.zeros(2, 2)),
        lambda: metrics.effective_sample_size(torch.tensor([1, 2])),
        lambda: metrics.importance_log_z([0.0, 1.0]),
        lambda: metrics.mode_weights(torch.zeros(3, 2), TWO),
        lambda: metrics.mode_weights(torch.zeros(3, 2).double(), None),
        lambda: metrics.mode_weights(torch.zeros(3, 3).double(), TWO),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_laws_and_weights_that_do_not_fit_are_refused_by_name():
    half, third = tensor([0.5, 0.5]), tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^p is \(2,\) .*, q \(3,\)"):
        metrics.total_variation(half, third)
    with pytest.raises(ValueError, match=r"^log_p is \(2,\) .*, log_q \(3,\)"):
        metrics.kl_divergence(half.log(), third.log())
    for bad, given in (([0.0], "list"), (tensor([[0.0]]), r"\(1, 1\) torch.float64")):
        with pytest.raises(ValueError, match=f"^log_weight is {given}; expected"):
            metrics.importance_log_z(bad)
