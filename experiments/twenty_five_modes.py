"""The illustrative example: every method from the trained prior, at the published settings, several seeds (claim X2).

Beside the published settings stand runs of the on-policy method with one remedy each for its early collapse.

Source: Venkatraman et al. (2024); the corrected baselines are those of Deleu et al. (2025). For chapter 10.
"""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from common import RESULTS, Outcome, generator, main

from companion import metrics, samplers, targets, training
from companion.samplers import diffusion, networks
from companion.training import Settings

#: The published exploration: a standard deviation of 0.5 a step to iteration 500, falling to none at 4,500.
EXPLORING = {"exploration": 0.5, "explore_until": 500, "explore_to": 4500}
PUBLISHED = {
    "rtb": Settings("rtb", **EXPLORING),
    "vargrad": Settings("vargrad", **EXPLORING),
    "trust-pcl": Settings("trust_pcl", **EXPLORING),
    "reinforce-off-policy": Settings("reinforce", weights="tempered", **EXPLORING),
    "reinforce-on-policy": Settings("reinforce"),
    "published-baseline": Settings("published", kl_weight=0.01),
}
#: Remedies for the early collapse of the on-policy method, over the first iterations; the first is none.
SHORT = {"iterations": 800}
REMEDIES = {
    "remedy-none": Settings("reinforce", **SHORT),
    "remedy-exploration": Settings("reinforce", exploration=0.5, explore_until=80, explore_to=720, **SHORT),
    "remedy-annealed-beta": Settings("reinforce", anneal_beta=500, **SHORT),
    "remedy-clipped-residual": Settings("reinforce", clip=5.0, **SHORT),
    "remedy-replayed-start": Settings("reinforce", replayed=0.5, replay_until=300, **SHORT),
}
SEEDS = range(5)
TASKS = [
    {"name": f"{name}-{seed}", "method": name, "seed": seed, "settings": asdict(settings), "evaluate_every": every}
    for arms, seeds, every in ((PUBLISHED, SEEDS, 250), (REMEDIES, SEEDS[:3], 50))
    for seed in seeds
    for name, settings in arms.items()
]
TASKS += [{"name": f"guidance-{seed}", "method": "guidance", "seed": seed, "strength": 1.0} for seed in SEEDS]

#: Points behind a measure while training runs, and at the end.
POINTS, FINAL_POINTS, STORED_PATHS = 2000, 10_000, 20_000


def start(task: dict) -> tuple[samplers.DiffusionSampler, Settings, torch.Generator]:
    """What a run begins with: the sampler at the prior, its settings, and the source of its draws."""
    process, tilt, seed = diffusion.Process(), targets.twenty_five_to_nine(), task["seed"]
    prior, settings = load_prior(process), Settings(**task["settings"])
    store = None
    if settings.replayed:
        store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, STORED_PATHS, generator(seed, 1))
    policy = copy.deepcopy(prior).requires_grad_(True)
    sampler = samplers.DiffusionSampler(process, policy, prior, tilt.log_reward, store=store)
    return sampler, settings, generator(seed, 2)


def load_prior(process: diffusion.Process) -> networks.DriftNetwork:
    """The trained prior, to be left as it is."""
    return networks.DriftNetwork.load(process, RESULTS / "prior" / "prior.npz").requires_grad_(False)


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, or guide the prior, and measure what comes out."""
    tilt, seed = targets.twenty_five_to_nine(), task["seed"]
    if task["method"] == "guidance":
        process = diffusion.Process()
        prior = load_prior(process)
        guided = diffusion.GuidedDrift(process, prior, tilt.log_reward, strength=task["strength"])
        return Outcome(final_measures(process, guided, prior, tilt, seed))
    sampler, settings, draws = start(task)
    process, policy = sampler.process, sampler.policy
    history = training.fine_tune(
        sampler,
        settings,
        draws,
        evaluate=lambda: mode_measures(process, policy, tilt, generator(seed, 3), POINTS),
        evaluate_every=task["evaluate_every"],
        checkpoint=checkpoint,
    )
    measures = final_measures(process, policy, sampler.reference, tilt, seed)
    kept = {name: value.numpy() for name, value in policy.state_dict().items()} if seed == 0 else {}
    return Outcome(measures, history, kept)


def mode_measures(process, drift, tilt, draws, n: int) -> dict:
    """Total variation of the mode weights, and the share on the sixteen modes that the posterior excludes."""
    ends = diffusion.rollout(process, drift, n, draws)[:, -1]
    return of_modes(ends, tilt)


def of_modes(ends, tilt) -> dict:
    """The two measures of given samples."""
    found = metrics.mode_weights(ends, tilt.prior)
    wanted = targets.weights_on(tilt.prior, tilt.posterior)
    return {
        "total_variation": metrics.total_variation(found, wanted).item(),
        "leak": found[wanted == 0].sum().item(),
    }


def final_measures(process, drift, prior, tilt, seed: int) -> dict:
    """Everything that is reported of a finished model, from 10,000 samples and as many paths of the target."""
    with torch.no_grad():
        states = diffusion.rollout(process, drift, FINAL_POINTS, generator(seed, 4))
        own = log_weights(process, drift, prior, tilt, states)
        store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, 4 * FINAL_POINTS, generator(seed, 5))
        index = torch.multinomial(store.weights, FINAL_POINTS // 2, replacement=True, generator=generator(seed, 6))
        of_target = log_weights(process, drift, prior, tilt, store.states[index])
    exact = tilt.posterior.sample(FINAL_POINTS, generator(seed, 7))
    distance = metrics.sliced_wasserstein(states[:, -1], exact, generator(seed, 8))
    log_r = tilt.log_reward(states[:, -1])
    return of_modes(states[:, -1], tilt) | {
        "mode_weights": metrics.mode_weights(states[:, -1], tilt.prior),
        "sliced_wasserstein": distance.item(),
        "elbo": own.mean().item(),
        "eubo": of_target.mean().item(),
        "importance_log_z": metrics.importance_log_z(own).item(),
        "effective_sample_size": metrics.effective_sample_size(own).item(),
        "residual_variance": own.var().item(),
        "mean_log_reward": log_r.mean().item(),
        "mean_reward": log_r.exp().mean().item(),
    }


def log_weights(process, drift, prior, tilt, states):
    """The log-weight of the target on each path: its mean is the ELBO over the model's paths, the EUBO over p*'s."""
    log_pi, log_ref = (diffusion.log_prob(process, d, states) for d in (drift, prior))
    return metrics.log_weights(log_pi.double(), log_ref.double(), tilt.log_reward(states[:, -1]).double())


if __name__ == "__main__":
    main("twenty_five_modes", TASKS, run)
