"""When off-policy exploration pays: how rare the rewarded region is under the prior, against exploration noise (X3).

Nine modes in the plane, three of which the target keeps, in equal parts; together they hold a share ``rarity`` of the
prior. The prior's drift is known in closed form, and a network that starts at zero is added to it. One method is
used throughout, RTB with log Z from the batch: without exploration its gradient is that of on-policy REINFORCE + KL
(claim O4), so the first column of the map is the on-policy method. Read by chapter ``when-off-policy-pays``.
"""

from itertools import product
from pathlib import Path

import torch

from companion import metrics, objectives, samplers, targets, training
from companion.samplers import diffusion, drifts, networks
from experiments.common import Outcome, fine_tune, generator, main, settings

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
SCHEDULE = training.Schedule(
    iterations=ITERATIONS, batch=BATCH, rate=3e-3, decay=training.Linear(since=ITERATIONS // 2)
)


def exploring(noise: float) -> samplers.Exploration | None:
    """The behaviour of a column of the map; none, the sampler's own paths, in the first."""
    fading = samplers.Fading(noise, ITERATIONS // 10, 9 * ITERATIONS // 10)
    return samplers.Exploration(noise=fading) if noise else None


TASKS = [
    {"name": f"rarity-{rarity:g}-noise-{noise:g}-{seed}", "rarity": rarity, "noise": noise, "seed": seed}
    | settings(objectives.VarGrad(), SCHEDULE, exploring(noise))
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


def start(task: dict) -> tuple[samplers.DiffusionSampler, torch.Generator]:
    """What a run begins with: the sampler at the prior, and the source of its draws."""
    process, tilt, seed = diffusion.Process(steps=STEPS), problem(task["rarity"]), task["seed"]
    prior = drifts.MixtureDrift(process, tilt.prior)
    policy = CorrectedDrift(prior, networks.DriftNetwork(process, generator(seed, 1), width=WIDTH))
    return samplers.DiffusionSampler(process, policy, prior, tilt.log_reward), generator(seed, 2)


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune from the prior, and measure the modes that were found."""
    sampler, draws = start(task)
    history = fine_tune(task, sampler, draws, checkpoint=checkpoint)
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
    main("rarity_map")
