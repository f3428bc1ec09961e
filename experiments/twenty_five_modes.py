"""The illustrative example: every method from the trained prior, at the published settings, several seeds (claim X2).

Beside the published settings stand runs of the on-policy method with one remedy each for its early collapse.

Source: Venkatraman et al. (2024); the corrected baselines are those of Deleu et al. (2025). Read by chapter
``twenty-five-modes-to-nine``.
"""

import copy
from pathlib import Path

import torch

from companion import metrics, objectives, samplers, targets
from companion.samplers import diffusion, drifts, networks
from companion.training import Schedule
from experiments.common import RESULTS, Outcome, fine_tune, generator, main, settings

NEEDS = ("prior",)
#: The published exploration: a standard deviation of 0.5 a step to iteration 500, falling to none at 4,500.
EXPLORING = samplers.Exploration(noise=samplers.Fading(0.5, 500, 4500))
#: The defaults: 5,000 iterations of batch 500, Adam at 1e-3, and at 1e-1 for log Z.
PUBLISHED = {
    "rtb": settings(objectives.RTB(), Schedule(), EXPLORING),
    "vargrad": settings(objectives.VarGrad(), Schedule(), EXPLORING),
    "trust-pcl": settings(objectives.TrustPCL(), Schedule(), EXPLORING),
    "reinforce-off-policy": settings(objectives.Reinforce(weights="tempered"), Schedule(), EXPLORING),
    "reinforce-on-policy": settings(objectives.Reinforce(), Schedule()),
    "published-baseline": settings(objectives.PublishedBaseline(kl_weight=0.01), Schedule()),
}
#: Remedies for the early collapse of the on-policy method, over the first iterations; the first is none.
SHORT = Schedule(iterations=800)
ON_POLICY = objectives.Reinforce()
REMEDIES = {
    "remedy-none": settings(ON_POLICY, SHORT),
    "remedy-exploration": settings(ON_POLICY, SHORT, samplers.Exploration(noise=samplers.Fading(0.5, 80, 720))),
    "remedy-annealed-beta": settings(objectives.Annealed(ON_POLICY, over=500), SHORT),
    "remedy-clipped-residual": settings(objectives.Reinforce(clip=5.0), SHORT),
    "remedy-replayed-start": settings(ON_POLICY, SHORT, samplers.Exploration(replayed=0.5, replay_until=300)),
}
SEEDS = range(5)
TASKS = [
    {"name": f"{name}-{seed}", "method": name, "seed": seed} | arm | {"evaluate_every": every}
    for arms, seeds, every in ((PUBLISHED, SEEDS, 250), (REMEDIES, SEEDS[:3], 50))
    for seed in seeds
    for name, arm in arms.items()
]
TASKS += [{"name": f"guidance-{seed}", "method": "guidance", "seed": seed, "strength": 1.0} for seed in SEEDS]

#: Points behind a measure while training runs, and at the end.
POINTS, FINAL_POINTS, STORED_PATHS = 2000, 10_000, 20_000


def start(task: dict) -> tuple[samplers.DiffusionSampler, torch.Generator]:
    """What a run begins with: the sampler at the prior, with a store if it replays, and the source of its draws."""
    process, tilt, seed = diffusion.Process(), targets.twenty_five_to_nine(), task["seed"]
    prior, store = load_prior(process), None
    if task["behaviour"] and task["behaviour"]["replayed"]:
        store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, STORED_PATHS, generator(seed, 1))
    policy = copy.deepcopy(prior).requires_grad_(True)
    return samplers.DiffusionSampler(process, policy, prior, tilt.log_reward, store=store), generator(seed, 2)


def load_prior(process: diffusion.Process) -> networks.DriftNetwork:
    """The trained prior, to be left as it is."""
    return networks.DriftNetwork.load(process, RESULTS / "prior" / "prior.npz").requires_grad_(False)


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, or guide the prior, and measure what comes out."""
    tilt, seed = targets.twenty_five_to_nine(), task["seed"]
    if task["method"] == "guidance":
        process = diffusion.Process()
        prior = load_prior(process)
        guided = drifts.GuidedDrift(process, prior, tilt.log_reward, strength=task["strength"])
        return Outcome(final_measures(samplers.DiffusionSampler(process, guided, prior, tilt.log_reward), tilt, seed))
    sampler, draws = start(task)
    process, policy = sampler.process, sampler.policy
    history = fine_tune(
        task,
        sampler,
        draws,
        evaluate=lambda: mode_measures(process, policy, tilt, generator(seed, 3), POINTS),
        evaluate_every=task["evaluate_every"],
        checkpoint=checkpoint,
    )
    measures = final_measures(sampler, tilt, seed)
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


def final_measures(sampler: samplers.DiffusionSampler, tilt, seed: int) -> dict:
    """Everything that is reported of a finished model, from 10,000 samples and as many paths of the target."""
    process, prior = sampler.process, sampler.reference
    with torch.no_grad():
        states = diffusion.rollout(process, sampler.policy, FINAL_POINTS, generator(seed, 4))
        own = sampler.log_weights(states)
        store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, 4 * FINAL_POINTS, generator(seed, 5))
        index = torch.multinomial(store.weights, FINAL_POINTS // 2, replacement=True, generator=generator(seed, 6))
        of_target = sampler.log_weights(store.states[index])
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


if __name__ == "__main__":
    main("twenty_five_modes")
