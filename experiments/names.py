"""Names with a wish: every method from the prior of names, on three wishes, against the exact posterior (claim X4).

A wish is soft: r(x) is 1 where it is granted, exp(-6) elsewhere, so that every method is defined; at alpha = 1/2 the
posterior has nearly all of its mass on the wish. Each policy begins as the prior. It is told the wish's state and the
length of the name, so that p* is nearly in its class; the arms called blind are not. Read by chapter
``names-with-a-wish``.

Source: the methods are those of chapter ``twenty-five-modes-to-nine``; the settings were chosen on seed 100, which no
stored run has.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from companion import automata, objectives, plain
from companion.samplers import Fading
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import TextStore, TokenSampler, Writing, resampled_prior_texts
from companion.training import Linear, Schedule
from experiments import names_prior
from experiments.common import Outcome, fine_tune, generator, main, measured, settings

NEEDS = ("names_prior",)
MAX_LENGTH, LETTERS = names_prior.MAX_LENGTH, len(automata.LETTERS)
#: alpha = 1/2, and log r(x) where a wish is not granted.
BETA, FLOOR = 2.0, -6.0
WISHES = {
    "frequent": lambda: automata.ends_with("e"),
    "rare": lambda: automata.contains("w"),
    "very rare": lambda: automata.product(automata.contains("q"), automata.ends_with("n")),
}
ITERATIONS = 800
SCHEDULE = Schedule(iterations=ITERATIONS, batch=256, rate=1e-2, learned_rate=1e-1, decay=Linear(since=ITERATIONS // 3))
#: At first half of the texts are the prior's, and one token in twenty is any; both fade.
FROM_PRIOR = Writing(reference=Fading(0.5, ITERATIONS // 4, ITERATIONS * 3 // 4))
EXPLORING = replace(FROM_PRIOR, epsilon=Fading(0.05, ITERATIONS // 4, ITERATIONS * 3 // 4))
#: Where V is learned at every state, its network is made by :func:`objective_of`: weights have no plain form.
SUB_PATHS = {"kl_weight": 1 / BETA, "length": 1}
LIKELIHOOD = settings(objectives.MaximumLikelihood(), SCHEDULE, Writing(replayed=1.0))
LEAVE_ONE_OUT = objectives.Reinforce(BETA, baseline="leave_one_out")
PRIMARY = {
    "rtb": settings(objectives.RTB(BETA), SCHEDULE, EXPLORING),
    "vargrad": settings(objectives.VarGrad(BETA), SCHEDULE, EXPLORING),
    "trust-pcl": settings(None, replace(SCHEDULE, learned_rate=1e-2), EXPLORING) | {"sub_paths": SUB_PATHS},
    "reinforce-on-policy": settings(LEAVE_ONE_OUT, SCHEDULE),
    "reinforce-off-policy": settings(objectives.Reinforce(BETA, weights="tempered"), SCHEDULE, EXPLORING),
}
#: More methods: one claim says that the first is the second's twin; the likelihoods differ in what they are shown.
OTHERS = {
    "trust-pcl-whole": settings(objectives.TrustPCL(1 / BETA), SCHEDULE, EXPLORING),
    "reinforce-importance": settings(objectives.Reinforce(BETA, weights="importance"), SCHEDULE, EXPLORING),
    "published-baseline": settings(objectives.PublishedBaseline(kl_weight=0.01), SCHEDULE),
    "filtered": LIKELIHOOD | {"store": "granted"},
    "exact-samples": LIKELIHOOD | {"store": "posterior"},
    "blind-rtb": settings(objectives.RTB(BETA), SCHEDULE, EXPLORING) | {"blind": True},
    "blind-exact-samples": LIKELIHOOD | {"store": "posterior", "blind": True},
}
#: What draws the texts of RTB, on the very rare wish.
BEHAVIOURS = {
    "rtb-on-policy": settings(objectives.RTB(BETA), SCHEDULE),
    "rtb-from-prior": settings(objectives.RTB(BETA), SCHEDULE, FROM_PRIOR),
    "rtb-uniform": settings(objectives.RTB(BETA), SCHEDULE, replace(EXPLORING, reference=0.0)),
    "rtb-warm": settings(objectives.RTB(BETA), SCHEDULE, Writing(temperature=1.5)),
    "rtb-lagged": settings(objectives.RTB(BETA), SCHEDULE, Writing(refresh=50)),
    "rtb-replayed": settings(objectives.RTB(BETA), SCHEDULE, Writing(replayed=0.5)) | {"store": "prior"},
}
#: The two behaviours that lose the very rare wish, with log Z from where a text that does not grant it has no residual;
#: and with the log Z of the batch, which has no start.
LOW = {"objective": plain.to_plain(objectives.RTB(BETA, objectives.Scalar(BETA * FLOOR)))}
BATCH = {"objective": plain.to_plain(objectives.VarGrad(BETA))}
KEPT = {
    f"{name}-{ending}": BEHAVIOURS[name] | objective
    for ending, objective in (("low", LOW), ("batch", BATCH))
    for name in ("rtb-warm", "rtb-lagged")
}
SEEDS = range(5)
FEW = SEEDS[:3]
PLANS = (
    (PRIMARY, WISHES, SEEDS),
    (OTHERS, ("frequent", "very rare"), FEW),
    (BEHAVIOURS | KEPT, ("very rare",), FEW),
)
TASKS = [
    {
        "name": f"{name}-{wished}-{seed}".replace(" ", "-"),
        "method": name,
        "wish": wished,
        "seed": seed,
        "evaluate_every": 200,
    }
    | arm
    for arms, wishes, seeds in PLANS
    for seed in seeds
    for wished in wishes
    for name, arm in arms.items()
]
#: Texts of the prior that a store is made of: as many as a run draws.
STORED = ITERATIONS * SCHEDULE.batch


def wish(name: str) -> automata.Automaton:
    """A wish, soft."""
    return WISHES[name]().scored(0.0, FLOOR)


class SoftValues(torch.nn.Module):
    """V of every state of a text, learned: a network of contexts that is told what the policy is told."""

    def __init__(self, network: ContextNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch):
        """``[batch, steps + 1]``."""
        return self.of(batch.states)

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[rows, columns]``; in the last column every text has ended."""
        return torch.nn.functional.pad(self.network(tokens[:, :-1]).squeeze(2), (0, 1))


def start(task: dict) -> tuple[TokenSampler, objectives.Objective, torch.Generator]:
    """What a run begins with: the sampler at the prior, what it is trained towards, and the source of its draws."""
    prior, automaton, seed = names_prior.load(), wish(task["wish"]), task["seed"]
    told = {} if task.get("blind") else {"automaton": automaton, "max_length": MAX_LENGTH}
    policy = ContextNetwork(LETTERS, torch.Generator(), **told).with_weights(dict(prior.state_dict()))

    def sampler(reward=automaton, store=None):
        return TokenSampler(
            policy, prior, reward.log_reward, end=LETTERS, max_length=MAX_LENGTH, store=store, lagged=True
        )

    store = None
    if task.get("store") == "posterior":
        posterior = automata.Posterior(prior, automaton, max_length=MAX_LENGTH, beta=BETA)
        texts = automata.sample(posterior, automaton, STORED, generator(seed, 1), max_length=MAX_LENGTH)
        store = TextStore(texts, torch.ones(len(texts)))
    elif task.get("store"):
        reward = automaton.scored(0.0, -math.inf) if task["store"] == "granted" else automaton
        store = resampled_prior_texts(sampler(reward), STORED, generator(seed, 1), beta=BETA)
    return sampler(store=store), objective_of(task, automaton), generator(seed, 2)


def objective_of(task: dict, automaton: automata.Automaton) -> objectives.Objective:
    """The objective of a task, with a network of its own for the soft values of sub-paths."""
    if task["objective"] is not None:
        return plain.from_plain(task["objective"])
    told = {"automaton": automaton, "max_length": MAX_LENGTH}
    values = SoftValues(ContextNetwork(LETTERS, generator(task["seed"], 5), outputs=1, **told))
    return objectives.TrustPCL(value=objectives.Network(values), **task["sub_paths"])


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, and measure it exactly."""
    sampler, objective, draws = start(task)
    automaton, policy = wish(task["wish"]), sampler.policy
    posterior = automata.Posterior(sampler.reference, automaton, max_length=MAX_LENGTH, beta=BETA)

    @torch.no_grad()
    def evaluate():
        return {"kl": automata.kl_divergence(policy, posterior, automaton, max_length=MAX_LENGTH).item()}

    history = fine_tune(task, sampler, draws, objective, **measured(task, evaluate, checkpoint))
    measures = final_measures(policy, posterior, generator(task["seed"], 4))
    measures |= learned_measures(objective, history, posterior, generator(task["seed"], 6))
    keep = task["method"] == "rtb" and task["seed"] == 0
    return Outcome(measures, history, {k: v.numpy() for k, v in policy.state_dict().items()} if keep else {})


@torch.no_grad()
def final_measures(policy, posterior: automata.Posterior, draws: torch.Generator) -> dict[str, Any]:
    """Both relative entropies to the posterior and the mass on the wish, exact; and the first texts that are drawn."""
    automaton, limit = posterior.automaton, {"max_length": MAX_LENGTH}
    texts = automata.sample(policy, automaton, 12, draws, **limit)
    return {
        "kl": automata.kl_divergence(policy, posterior, automaton, **limit).item(),
        "forward_kl": automata.kl_divergence(posterior, policy, automaton, **limit).item(),
        "granted": automata.granted(policy, automaton, **limit).item(),
        "names": automata.decode(texts),
    }


@torch.no_grad()
def learned_measures(objective, history, posterior: automata.Posterior, draws: torch.Generator) -> dict[str, Any]:
    """What was learned beside the policy: log Z, and how far V is from the soft values on texts of the posterior."""
    value = getattr(objective, "value", None)
    if isinstance(value, objectives.Network):
        texts = automata.sample(posterior, posterior.automaton, 1000, draws, max_length=MAX_LENGTH)
        exact, learned = posterior.values(texts), BETA * value.module.of(texts)
        alive = (texts == LETTERS).cumsum(dim=1) <= 1
        return {
            "log_z": learned[0, 0].item(),
            "value_error": (learned - exact)[alive].square().mean().sqrt().item(),
            "value_spread": exact[alive].std().item(),
        }
    scale = BETA if isinstance(objective, objectives.TrustPCL) else 1.0
    scalar = [tensor.item() * scale for tensor in history.learned if tensor.ndim == 0]
    return {"log_z": scalar[0]} if scalar else {}


if __name__ == "__main__":
    main("names")
