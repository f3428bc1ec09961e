"""Times one training step of this package: the loop of companion.training.fine_tune, whole.

python -m benchmarks.step [--threads N] [--device cuda] [--size T BATCH WIDTH]
"""

from collections.abc import Callable

import torch

from benchmarks.worker import (
    EXPLORATION,
    RATE,
    SCALAR_RATE,
    VARIANCE,
    Block,
    Size,
    parser,
    seconds_per_step,
    serve,
)
from companion.objectives import RTB
from companion.samplers import DiffusionSampler, Exploration
from companion.samplers.diffusion import Process
from companion.samplers.networks import DriftNetwork
from companion.targets import GaussianMixture, Tilt, twenty_five_to_nine
from companion.training import Schedule, fine_tune

#: The exploration of the first iterations of the published schedule, in all of them.
BEHAVIOUR = Exploration(noise=EXPLORATION)


def sampler(size: Size, device: str = "cpu") -> DiffusionSampler:
    """Return a policy to be trained, and a frozen prior of the same network and the same, untrained, weights."""
    process = Process(steps=size.steps, variance=VARIANCE)
    policy, prior = (
        DriftNetwork(process, torch.Generator().manual_seed(0), width=size.width).to(device) for _ in range(2)
    )
    tilt = twenty_five_to_nine()
    log_reward = Tilt(_on(tilt.prior, device), _on(tilt.posterior, device)).log_reward
    return DiffusionSampler(process, policy, prior.requires_grad_(False), log_reward)


def schedule(size: Size, iterations: int) -> Schedule:
    """Return the published rates, over so many iterations."""
    return Schedule(iterations=iterations, batch=size.batch, rate=RATE, learned_rate=SCALAR_RATE)


def training(size: Size, device: str = "cpu") -> Callable[[int], None]:
    """Return a function that trains for so many iterations, from where it stopped."""
    given = {"behaviour": BEHAVIOUR, "generator": torch.Generator(device).manual_seed(1)}
    trained = sampler(size, device)
    return lambda iterations: fine_tune(trained, RTB(), schedule=schedule(size, iterations), **given)


def _on(mixture: GaussianMixture, device: str) -> GaussianMixture:
    return GaussianMixture(mixture.means.to(device), mixture.weights.to(device), mixture.variance)


def _block(size: Size, device: str, iterations: int) -> Block:
    train = training(size, device)
    return lambda: {"step": seconds_per_step(lambda: train(iterations), 1, device) / iterations}


if __name__ == "__main__":
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    serve(chosen, lambda: _block(Size(*chosen.size), chosen.device, chosen.steps), {})
