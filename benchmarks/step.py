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
from companion.samplers.diffusion import Process
from companion.samplers.networks import DriftNetwork
from companion.samplers import DiffusionSampler
from companion.targets import GaussianMixture, Tilt, twenty_five_to_nine
from companion.training import Settings, fine_tune


def sampler(size: Size, device: str = "cpu") -> DiffusionSampler:
    """Return a policy to be trained, and a frozen prior of the same network and the same, untrained, weights."""
    process = Process(steps=size.steps, variance=VARIANCE)
    policy, prior = (
        DriftNetwork(process, torch.Generator().manual_seed(0), width=size.width).to(device) for _ in range(2)
    )
    tilt = twenty_five_to_nine()
    log_reward = Tilt(_on(tilt.prior, device), _on(tilt.posterior, device)).log_reward
    return DiffusionSampler(process, policy, prior.requires_grad_(False), log_reward)


def settings(size: Size, iterations: int) -> Settings:
    """Return the published settings, over so many iterations, all with the exploration of the first ones."""
    return Settings(
        iterations=iterations,
        batch=size.batch,
        rate=RATE,
        scalar_rate=SCALAR_RATE,
        exploration=EXPLORATION,
        explore_until=iterations,
        explore_to=iterations,
    )


def training(size: Size, device: str = "cpu") -> Callable[[int], None]:
    """Return a function that trains for so many iterations, from where it stopped."""
    trained, draws = sampler(size, device), torch.Generator(device).manual_seed(1)
    return lambda iterations: fine_tune(trained, settings(size, iterations), draws)


def _on(mixture: GaussianMixture, device: str) -> GaussianMixture:
    return GaussianMixture(mixture.means.to(device), mixture.weights.to(device), mixture.variance)


def _block(size: Size, device: str, iterations: int) -> Block:
    train = training(size, device)
    return lambda: {"step": seconds_per_step(lambda: train(iterations), 1, device) / iterations}


if __name__ == "__main__":
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    serve(chosen, lambda: _block(Size(*chosen.size), chosen.device, chosen.steps), {})
