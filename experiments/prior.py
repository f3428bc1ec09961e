"""Trains the prior of the illustrative example, at the published settings, and says how well it is trained.

Source: Venkatraman et al. (2024): maximum likelihood on Brownian-bridge noised samples, 10,000 iterations of batch 500,
Adam at 1e-3. Two things differ, and bring the prior closer to its target: the rate falls to zero over the second half,
and the likelihood of an increment is averaged over that increment, which takes noise from its gradient and no more.
"""

from pathlib import Path

import torch

from companion import metrics, targets, training
from companion.samplers import diffusion, drifts, networks
from experiments.common import Outcome, generator, main

TASKS = [
    {"name": "prior", "seed": 0, "iterations": 10_000, "batch": 500, "rate": 1e-3, "decay_from": 5_000, "steps": 100}
]
SAMPLES = 100_000


def bridge_loss(process, network, mixture, batch, draws):
    """Minus the log-likelihood of Brownian-bridge noised samples, less its constant: ``[]``, and what to keep of it."""
    end = mixture.sample(batch, draws)[:, None]
    times = process.times(end)
    # The bridge from 0 to its end, step by step: given s_t and the end, the mean of the next increment is known,
    # dt (end - s_t)/(1 - t). Its average over the increment leaves the likelihood's minimum where it is.
    noise = torch.randn(batch, process.steps, process.dim, generator=draws)
    spread = (process.variance * times * (1 - times)).sqrt()
    states = times[:, None] * end + spread[:, None] * noise
    move = (end - states) / (1 - times[:, None])
    squares = (network(states, times) - move).square().sum(dim=2)
    loss = 0.5 * process.dt / process.variance * squares.sum(dim=1).mean()
    return loss, {}


def quality(process, drift, tilt, draws) -> dict:
    """How near the prior's samples are to the mixture, and the log Z of the tilt as it is under this prior."""
    ends = torch.cat([diffusion.rollout(process, drift, SAMPLES // 20, draws)[:, -1] for _ in range(20)])
    weights = metrics.mode_weights(ends, tilt.prior)
    offsets = ends - tilt.prior.means[tilt.prior.nearest(ends)]
    log_r = tilt.log_reward(ends).double()
    tilted = torch.zeros(25, dtype=torch.float64).index_add(0, tilt.prior.nearest(ends), log_r.softmax(dim=0))
    wanted = targets.weights_on(tilt.prior, tilt.posterior).double()
    return {
        "total_variation": metrics.total_variation(weights, tilt.prior.weights).item(),
        "variance_within_modes": offsets.square().mean().item(),
        "log_z": metrics.importance_log_z(log_r).item(),
        "log_z_standard_error": (log_r.exp().std() / log_r.exp().mean() / SAMPLES**0.5).item(),
        "best_total_variation": metrics.total_variation(tilted, wanted).item(),
        "best_leak": tilted[wanted == 0].sum().item(),
        "mean_log_reward": log_r.mean().item(),
    }


def train(task: dict, checkpoint: Path | None, *, stop_after: int | None = None):
    """Train the network by maximum likelihood: the network and its history."""
    process, tilt = diffusion.Process(steps=task["steps"]), targets.twenty_five_to_nine()
    network = networks.DriftNetwork(process, generator(task["seed"], 1))
    draws = generator(task["seed"], 2)
    half, whole = task["decay_from"], task["iterations"]
    history = training.optimise(
        lambda i: bridge_loss(process, network, tilt.prior, task["batch"], draws),
        [(list(network.parameters()), task["rate"])],
        whole,
        draws,
        rate_at=lambda i: 1.0 if i < half else (whole - i) / (whole - half),
        checkpoint=checkpoint,
        stop_after=stop_after,
        label=str(task),
    )
    return network, history


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Train the prior, and measure it beside the mixture's drift in closed form."""
    network, history = train(task, checkpoint)
    process, tilt = diffusion.Process(steps=task["steps"]), targets.twenty_five_to_nine()
    measures = {
        name: quality(process, drift, tilt, generator(task["seed"], 3))
        for name, drift in (("trained", network), ("closed_form", drifts.MixtureDrift(process, tilt.prior)))
    }
    return Outcome(measures, history, {name: value.numpy() for name, value in network.state_dict().items()})


if __name__ == "__main__":
    main("prior")
