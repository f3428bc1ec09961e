"""What the tests of training share: small samplers, a sampler that is watched, and a short run."""

import torch
from inputs import generator

from companion import mdp, samplers, targets, training
from companion.objectives import VarGrad
from companion.samplers import diffusion, drifts, networks

ALPHA = 0.5
PROBLEM = mdp.randomise(mdp.small_graph(), generator(0), reward_scale=2.0)
SOLUTION = mdp.solve(PROBLEM, kl_weight=ALPHA)
PATHS = mdp.enumerate_paths(PROBLEM)


def tabular() -> samplers.TabularSampler:
    """A sampler that starts at the reference."""
    return samplers.TabularSampler(PROBLEM)


def continuous(replayed=False) -> samplers.DiffusionSampler:
    """A small diffusion sampler, with a store where paths are replayed."""
    process, tilt = diffusion.Process(steps=4), targets.twenty_five_to_nine()
    prior = drifts.MixtureDrift(process, tilt.prior)
    store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, 20, generator(1)) if replayed else None
    policy = networks.DriftNetwork(process, generator(2), width=4)
    return samplers.DiffusionSampler(process, policy, prior, lambda x: 0.1 * tilt.log_reward(x), store=store)


class Watched:
    """A sampler that keeps what it was asked for and what it drew, and can be made to fail at a draw."""

    def __init__(self, sampler, fails_at=None, failure=None):
        self.sampler, self.fails_at, self.failure = sampler, fails_at, failure
        self.asked, self.batches = [], []

    def parameters(self):
        return self.sampler.parameters()

    def draw(self, n, generator, behaviour=None, iteration=0):
        self.asked.append((n, behaviour, iteration))
        if len(self.asked) - 1 == self.fails_at and isinstance(self.failure, BaseException):
            raise self.failure
        batch = self.sampler.draw(n, generator, behaviour, iteration)
        if len(self.asked) - 1 == self.fails_at:
            batch = self.failure(batch)
        self.batches.append(batch)
        return batch


def train(sampler, objective=None, draws=None, *, behaviour=None, options=None, **schedule) -> training.History:
    """Ten steps of 16 paths, unless the schedule says otherwise, towards VarGrad's optimum unless told otherwise."""
    schedule = {"iterations": 10, "batch": 16, "rate": 0.05} | schedule
    return training.fine_tune(
        sampler,
        objective or VarGrad(beta=1 / ALPHA),
        schedule=training.Schedule(**schedule),
        behaviour=behaviour,
        generator=draws or generator(1),
        **(options or {}),
    )


def weights_of(sampler) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [parameter.detach().clone() for parameter in sampler.parameters()]


def assert_equal(ours, theirs) -> None:
    """Assert that two lists of tensors are equal to the last bit."""
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
