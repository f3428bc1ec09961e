"""The mixtures of the illustrative example, against torch's own and against constants worked out by hand."""

import math

import pytest
import torch
from inputs import generator, tensor

from companion import targets
from companion.validation import NotFiniteError

EXAMPLE = targets.twenty_five_to_nine(dtype=torch.float64)
MIXTURE = targets.GaussianMixture(tensor([[0.0, 0.0], [3.0, 4.0]]), tensor([0.25, 0.75]), 2.0)


def test_the_density_is_that_of_torch_distributions():
    """An independent implementation, at a hundred points."""
    spread = torch.distributions.Independent(torch.distributions.Normal(MIXTURE.means, math.sqrt(2.0)), 1)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(MIXTURE.weights), spread)
    x = 5 * torch.randn(100, 2, generator=generator(0), dtype=torch.float64)
    torch.testing.assert_close(MIXTURE.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=0)


def test_samples_have_the_moments_of_the_mixture():
    """Mean 0.75 (3, 4); variance 2 + 0.25 * 0.75 * (9, 16) = (3.6875, 5); five standard errors of 200,000 samples."""
    x = MIXTURE.sample(200_000, generator(0))
    assert ((x.mean(dim=0) - tensor([2.25, 3.0])).abs() < 5 * (tensor([3.6875, 5.0]) / 200_000).sqrt()).all()
    assert ((x.var(dim=0) - tensor([3.6875, 5.0])).abs() < 0.1).all()


def test_a_point_belongs_to_the_nearest_mean():
    """(1, 2) is at distance 2.2 from the first mean and 2.8 from the second; (2, 3) nearer to the second."""
    assert MIXTURE.nearest(tensor([[1.0, 2.0], [2.0, 3.0]])).tolist() == [0, 1]


def test_the_example_has_25_equal_modes_of_which_9_are_kept():
    """Its weights over 61."""
    prior, posterior = EXAMPLE.prior, EXAMPLE.posterior
    assert prior.means.shape == (25, 2) and prior.variance == posterior.variance == 0.3
    assert len(set(map(tuple, prior.means.tolist()))) == 25
    assert set(map(tuple, posterior.means.tolist())) <= set(map(tuple, prior.means.tolist()))
    assert (61 * posterior.weights).round().tolist() == [4, 10, 4, 5, 10, 5, 4, 15, 4]


def test_the_reward_is_the_ratio_of_the_densities():
    """At the best mode 25 * 15/61, up to its neighbours, 5 away; in a mode that is dropped, tiny."""
    best, dropped = EXAMPLE.log_reward(tensor([[5.0, 0.0], [10.0, 10.0]]))
    assert abs(best - math.log(25 * 15 / 61)) < 1e-12
    assert dropped < -30  # the nearest kept mode, (5, 10), is 5 away: 25 / 0.6 = 42 nats
    at_prior = EXAMPLE.log_reward(EXAMPLE.prior.sample(20_000, generator(1)))
    assert at_prior.max() < 1.82 and -37 < at_prior.mean() < -33


def test_the_normaliser_at_beta_one_is_one():
    """E_prior[r] = 1, by 100,000 samples, within five standard errors."""
    r = EXAMPLE.log_reward(EXAMPLE.prior.sample(100_000, generator(2))).exp()
    assert abs(r.mean() - 1) < 5 * r.std() / math.sqrt(100_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variance": 0.0}, "variance is 0.0"),
        ({"variance": math.nan}, "variance is nan"),
        ({"means": tensor([1.0, 2.0])}, "means"),
        ({"means": torch.zeros(2, 2, dtype=torch.int64)}, "means"),
        ({"weights": tensor([1.0])}, "weights"),
        ({"weights": tensor([0.5, 0.6])}, "sum 1"),
        ({"weights": tensor([1.0, 0.0])}, "positive"),
        ({"weights": tensor([0.25, 0.75]).float()}, "dtype"),
        ({"weights": tensor([0.25, 0.75 + 2e-6])}, "sum 1"),
        ({"weights": tensor([0.25, 0.75 - 2e-6])}, "sum 1"),
        ({"weights": tensor([0.25, math.nan])}, "positive"),
        ({"weights": tensor([math.inf, 0.75])}, "sum 1"),
        ({"weights": tensor([[0.25, 0.75]])}, "weights"),
        ({"weights": [0.25, 0.75]}, "weights"),
        ({"variance": -1.0}, "variance is -1.0"),
        ({"variance": math.inf}, "variance is inf"),
        ({"variance": tensor(1.0)}, "variance"),
        ({"means": tensor([[0.0, 0.0], [3.0, math.nan]])}, "means holds 1 value(s) that are infinite or NaN"),
        ({"means": tensor([[0.0, 0.0], [3.0, -math.inf]])}, "means holds 1 value(s) that are infinite or NaN"),
        ({"means": torch.zeros(2, 0).double()}, "means is (2, 0)"),
        ({"means": torch.zeros(0, 2).double(), "weights": tensor([])}, "means is (0, 2)"),
        ({"means": [[0.0, 0.0], [3.0, 4.0]]}, "means is list"),
    ],
)
def test_what_is_no_mixture_is_refused(changes, words):
    good = {"means": MIXTURE.means, "weights": MIXTURE.weights, "variance": 2.0}
    with pytest.raises(ValueError, match="expected") as refusal:
        targets.GaussianMixture(**(good | changes))
    assert words in str(refusal.value)


def test_weights_of_seven_digits_are_a_law():
    assert targets.GaussianMixture(MIXTURE.means, tensor([0.25, 0.75 + 5e-7]), 2.0).weights[1] > 0.75


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_mean_is_nearest_to_a_point_that_is_nowhere(bad):
    with pytest.raises(NotFiniteError, match=r"x holds 1 value\(s\) that are infinite or NaN"):
        MIXTURE.nearest(tensor([[0.0, bad], [1.0, 1.0]]))


PLANE = targets.GaussianMixture(tensor([[0.0, 0.0], [3.0, 4.0], [5.0, 5.0]]), tensor([0.2, 0.3, 0.5]), 2.0)


@pytest.mark.parametrize(
    "other",
    [
        None,
        PLANE.means,
        targets.GaussianMixture(tensor([[0.0], [3.0]]), tensor([0.25, 0.75]), 2.0),
        targets.GaussianMixture(MIXTURE.means.float(), MIXTURE.weights.float(), 2.0),
    ],
    ids=["none", "a tensor", "a line", "float32"],
)
def test_mixtures_of_two_spaces_are_refused(other):
    for call in (
        lambda: targets.Tilt(MIXTURE, other),
        lambda: targets.Tilt(other, MIXTURE),
        lambda: targets.weights_on(PLANE, other),
        lambda: targets.weights_on(other, MIXTURE),
        lambda: targets.tilted_mode_weights(other, 1.0),
    ):
        with pytest.raises(ValueError, match="expected (a GaussianMixture|mixtures in one space|a Tilt)"):
            call()


def test_weights_are_put_on_the_means_that_have_them():
    """In the order of the whole, zero where the part has none; however many there are."""
    assert targets.weights_on(PLANE, MIXTURE).tolist() == [0.25, 0.75, 0.0]
    back = targets.GaussianMixture(MIXTURE.means.flip(0), MIXTURE.weights.flip(0), 2.0)
    assert targets.weights_on(PLANE, back).tolist() == [0.25, 0.75, 0.0]
    means = 100 + torch.randn(60, 2, generator=generator(3))
    many = targets.GaussianMixture(means, torch.full((60,), 1 / 60), 0.3)
    assert torch.equal(targets.weights_on(many, many), many.weights)


@pytest.mark.parametrize("gap", [1e-12, 1e-3, 0.5, 100.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mean_that_is_nearly_one_of_the_whole_is_not_taken_for_it(gap, sign):
    near = targets.GaussianMixture(tensor([[0.0, sign * gap], [3.0, 4.0]]), tensor([0.25, 0.75]), 2.0)
    with pytest.raises(ValueError, match="part has a mean that whole has not, or has twice; expected each once"):
        targets.weights_on(PLANE, near)


def test_a_mean_that_the_whole_has_twice_is_refused():
    """Its weight would go to the first."""
    twice = targets.GaussianMixture(tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]), tensor([0.2, 0.3, 0.5]), 2.0)
    with pytest.raises(ValueError, match="part has a mean that whole has not, or has twice; expected each once"):
        targets.weights_on(twice, MIXTURE)


def test_a_factor_whose_product_with_the_reward_overflows_is_refused():
    """Where it is finite there is a law: all weight on the mode with the largest r."""
    tilt = targets.twenty_five_to_nine(dtype=torch.float64)
    law = targets.tilted_mode_weights(tilt, 1e300)
    assert law.sum() == law.max() == 1 and tilt.prior.means[law.argmax()].tolist() == [5.0, 0.0]
    with pytest.raises(ValueError, match=r"factor \* reward holds .* Pass a smaller factor"):
        targets.tilted_mode_weights(tilt, 1e308)


@pytest.mark.parametrize("bad", [tensor([1.0, 2.0]), torch.zeros(3, 3, dtype=torch.float64), None])
def test_points_of_another_shape_are_refused(bad):
    for function in (MIXTURE.log_prob, MIXTURE.nearest):
        with pytest.raises(ValueError, match=r"expected \[batch, 2\]"):
            function(bad)


def test_samples_are_drawn_in_the_dtype_of_the_mixture():
    """One mode at 0 with variance 1: its samples are the noise itself, all of its digits."""
    mixture, draws = targets.GaussianMixture(tensor([[0.0, 0.0]]), tensor([1.0]), 1.0), generator(3)
    torch.multinomial(mixture.weights, 5, replacement=True, generator=draws)
    noise = torch.randn(5, 2, generator=draws, dtype=torch.float64)
    assert torch.equal(mixture.sample(5, generator(3)), noise)


@pytest.mark.parametrize(("bad", "given"), [([0.0], "list"), (torch.zeros(2, 2), r"\(2, 2\) torch.float32")])
def test_what_was_given_in_place_of_points_is_said(bad, given):
    with pytest.raises(ValueError, match=given):
        MIXTURE.nearest(bad)
