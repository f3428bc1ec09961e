"""The mixtures of the illustrative example, against torch's own and against constants worked out by hand."""

import math

import pytest
import torch
from inputs import generator, tensor

from companion import targets

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
    ],
)
def test_what_is_no_mixture_is_refused(changes, words):
    good = {"means": MIXTURE.means, "weights": MIXTURE.weights, "variance": 2.0}
    with pytest.raises(ValueError, match="expected") as refusal:
        targets.GaussianMixture(**(good | changes))
    assert words in str(refusal.value)


@pytest.mark.parametrize("bad", [tensor([1.0, 2.0]), torch.zeros(3, 3, dtype=torch.float64), None])
def test_points_of_another_shape_are_refused(bad):
    for function in (MIXTURE.log_prob, MIXTURE.nearest):
        with pytest.raises(ValueError, match=r"expected \[batch, 2\]"):
            function(bad)
