"""When off-policy exploration pays: how rare the rewarded region is under the prior, against exploration noise (X3).

Nine modes in the plane, three of which the target keeps, in equal parts; together they hold a share ``rarity`` of the
prior. The prior's drift is known in closed form, and a network that starts at zero is added to it. One method is
used throughout, RTB with log Z from the batch: without exploration its gradient is that of on-policy REINFORCE + KL
(claim O4), so the first column of the map is the on-policy method. Chapter 12 reads the results.
"""

from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from common import Outcome, generator, main

from companion import metrics, samplers, targets, training
from companion.samplers import diffusion, networks
from companion.training import Settings

STEPS, WIDTH, BATCH, ITERATIONS = 20, 32, 250, 600
#: Share of the prior on the three rewarded modes.
RARITIES = (0.6, 0.3, 0.1, 0.03, 0.01, 0.003)
#: Standard deviation added to each step at the start; it is held for a tenth of the run and gone at nine tenths. A step
#: of the sampler itself has a standard deviation of 0.5.
NOISES = (0.0, 0.2, 0.4, 0.8, 1.6)
SEEDS = range(5)
#: Share of the target on the six other modes: log r there is about -9, and finite everywhere.
FLOOR = 1e-4
KEPT = ((-5.0, 0.0), (5.0, 5.0), (0.0, -5.0))
TASKS = [
    {
        "name": f"rarity-{rarity:g}-noise-{noise:g}-{seed}",
        "rarity": rarity,
        "seed": seed,
        "settings": asdict(
            Settings(
                "vargrad",
                iterations=ITERATIONS,
                batch=BATCH,
                rate=3e-3,
                decay_from=ITERATIONS // 2,
                exploration=noise,
                explore_until=ITERATIONS // 10,
                explore_to=9 * ITERATIONS // 10,
            )
        ),
    }
    for seed, rarity, noise in product(SEEDS, RARITIES, NOISES)
]


class CorrectedDrift(torch.nn.Module):
    """A known drift plus a network, which starts at zero, so that training begins at the prior."""

    def __init__(self, base, network) -> None:
        super().__init__()
        self.base, self.network = base, network
        torch.nn.init.zeros_(network.last.weight)
        torch.nn.init.zeros_(network.last.bias)

    def forward(self, states, times):
        """The sum of both."""
        return self.base(states, times) + self.network(states, times)


def problem(rarity: float) -> targets.Tilt:
    """The prior with that share on the kept modes, and the posterior that leaves a share FLOOR to the others."""
    grid = list(product((-5.0, 0.0, 5.0), repeat=2))
    means, kept = torch.tensor(grid), torch.tensor([mean in KEPT for mean in grid])
    prior, posterior = (torch.where(kept, share / 3, (1 - share) / 6) for share in (rarity, 1 - FLOOR))
    return targets.Tilt(*(targets.GaussianMixture(means, weights, 0.3) for weights in (prior, posterior)))


def start(task: dict) -> tuple[samplers.DiffusionSampler, Settings, torch.Generator]:
    """What a run begins with: the sampler at the prior, its settings, and the source of its draws."""
    process, tilt, seed = diffusion.Process(steps=STEPS), problem(task["rarity"]), task["seed"]
    prior = diffusion.MixtureDrift(process, tilt.prior)
    policy = CorrectedDrift(prior, networks.DriftNetwork(process, generator(seed, 1), width=WIDTH))
    sampler = samplers.DiffusionSampler(process, policy, prior, tilt.log_reward)
    return sampler, Settings(**task["settings"]), generator(seed, 2)


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune from the prior, and measure the modes that were found."""
    sampler, settings, draws = start(task)
    history = training.fine_tune(sampler, settings, draws, checkpoint=checkpoint)
    tilt = problem(task["rarity"])
    ends = diffusion.rollout(sampler.process, sampler.policy, 5000, generator(task["seed"], 3))[:, -1]
    found = metrics.mode_weights(ends, tilt.prior)
    measures = {
        "mode_weights": found,
        "total_variation": metrics.total_variation(found, tilt.posterior.weights).item(),
        "modes_found": int((found[tilt.posterior.weights > 0.1] > 0.1).sum()),
    }
    return Outcome(measures, history)


if __name__ == "__main__":
    main("rarity_map", TASKS, run)
