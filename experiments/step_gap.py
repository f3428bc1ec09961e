"""How far Gaussian kernels of fixed variance stay from the target: the gap over the number of steps (claim L7).

The illustrative example without any network: prior and policy are the drifts in closed form that take Brownian motion
to the prior and to the posterior mixture. With finitely many steps no drift has paths that follow p*; measured is what
this one lacks, log Z less the ELBO. It need not be the best drift of its class (for a single Gaussian it is), so what
is measured bounds the smallest gap of the class from above.

Fixed before these runs, after a pilot run: the gap falls "like 1/T" if the slope of log(gap) over log(T), from T = 25
on and one slope for each seed, has its 95 per cent interval within (-1.15, -0.85). Read by chapter
``where-no-policy-of-the-class-is-right``.
"""

from itertools import product
from pathlib import Path

import torch

from companion import metrics, targets
from companion.samplers import DiffusionSampler, diffusion, drifts
from experiments.common import Outcome, generator, main

STEPS = (12, 25, 50, 100, 200, 400)
SEEDS = range(5)
#: Paths of each run, and how many are scored at once: the mixture looks at every component in every state.
PATHS, AT_ONCE = 5000, 250
TASKS = [
    {"name": f"steps-{steps}-{seed}", "steps": steps, "seed": seed, "paths": PATHS}
    for seed, steps in product(SEEDS, STEPS)
]


def log_weights(process, tilt, draws: torch.Generator, n: int) -> torch.Tensor:
    """The log-weight of the target on ``n`` paths of the posterior's drift, drawn and scored in float64."""
    policy, prior = (drifts.MixtureDrift(process, mixture) for mixture in (tilt.posterior, tilt.prior))
    states = diffusion.rollout(process, policy, n, draws, dtype=torch.float64)
    sampler = DiffusionSampler(process, policy, prior, tilt.log_reward)
    return torch.cat([sampler.log_weights(part) for part in states.split(AT_ONCE)])


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Measure the gap and the spread of the residual at one number of steps."""
    process, tilt = diffusion.Process(steps=task["steps"]), targets.twenty_five_to_nine(dtype=torch.float64)
    own = log_weights(process, tilt, generator(task["seed"], task["steps"]), task["paths"])
    log_z, elbo = metrics.importance_log_z(own).item(), own.mean().item()
    measures = {"log_z": log_z, "elbo": elbo, "gap": log_z - elbo, "residual_variance": own.var().item()}
    return Outcome(measures)


if __name__ == "__main__":
    main("step_gap")
