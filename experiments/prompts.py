"""Prompts on the prior of names: one log Z for all, one for each, or the group's, on own texts and on the prior's.

A prompt is the first letter of a name. The wish is that of ``atlas_names.py``; the grade of a name also has a part that
its letter alone decides, so that log Z(x) lies near -1.5, -3 or -4.5 while p*(.|x) does not change. Of the letters
trained on half are drawn seven times as often as the others; five letters are never drawn. Read by chapter
``one-log-z-for-each-prompt``.

Source: the settings are those of ``atlas_names.py``; the attached network follows Zhu et al. (2025).
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import automata, objectives, plain
from companion.samplers import Batch
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import TokenSampler, Writing
from companion.training import Linear, Schedule
from experiments import names_prior
from experiments.atlas_names import LETTERS, MAX_LENGTH, Bench, Tables, p_star
from experiments.common import Outcome, fine_tune, generator, main, measured, settings

NEEDS = ("names_prior",)
BETA, FLOOR = 2.0, -2.0
#: What the letter adds to log r, in turn: log Z(x) is lower by BETA times it.
GRADES = torch.tensor([0.0, -0.75, -1.5], dtype=torch.float64)[torch.arange(LETTERS) % 3]
HELD_OUT = [4, 9, 14, 19, 24]
TRAINED = [x for x in range(LETTERS) if x not in HELD_OUT]
FREQUENT, RARE = TRAINED[::2], TRAINED[1::2]
#: The letter of each row of prompts.
ROWS = torch.tensor(sorted(FREQUENT * 7 + RARE))
ITERATIONS, BATCH = 300, 256
SCHEDULE = Schedule(
    iterations=ITERATIONS, batch=BATCH, rate=1e-2, learned_rate=1e-1, decay=Linear(since=ITERATIONS // 3)
)


@dataclass(frozen=True)
class Arm:
    """How log Z is had: an objective, or a network's kind; texts for each prompt drawn; what counts as one group."""

    objective: Any = None
    size: int = 1
    network: str = ""
    group: str = "letter"


#: Where log Z begins: near its least. From above, texts that are shown lose mass to those that are not.
START = -4.5
SCALAR = Arm(objectives.RTB(BETA, objectives.Scalar(START)))
TABLE = Arm(objectives.RTB(BETA, objectives.Table(LETTERS, START)))
WHOLE_BATCH = Arm(objectives.VarGrad(BETA), group="none")
GROUPS = {f"group-of-{n}": Arm(objectives.VarGrad(BETA), n, group="drawn") for n in (2, 8, 64)}
ALL = {"scalar": SCALAR, "table": TABLE} | GROUPS
ARMS = {
    "own": ALL | {"leave-one-out": Arm(objectives.Reinforce(BETA, baseline="leave_one_out"), 8, group="drawn")},
    "prior": ALL
    | {
        "network": Arm(network="detached"),
        "network-attached": Arm(network="attached"),
        "whole-batch": WHOLE_BATCH,
        "scalar-again": SCALAR,
        "table-again": TABLE,
        "whole-batch-again": WHOLE_BATCH,
    },
}
TASKS = [
    {"name": f"{name}-{texts}-{seed}", "arm": name, "texts": texts, "seed": seed, "evaluate_every": ITERATIONS}
    | settings(arm.objective, SCHEDULE, Writing(reference=1.0) if texts == "prior" else None)
    for texts, arms in ARMS.items()
    for name, arm in arms.items()
    for seed in (range(5, 10) if name.endswith("-again") else range(5))
]


class Prompted:
    """A sampler of names that begin with given letters: a text's group is its letter, the draw it came in, or none."""

    def __init__(self, sampler: TokenSampler, group: str) -> None:
        self.sampler, self.group = sampler, group

    def parameters(self) -> list[Tensor]:
        """Return those of the policy."""
        return self.sampler.parameters()

    def constants(self) -> dict[str, object]:
        """Return the sampler's, and what is a group."""
        return self.sampler.constants() | {"group": self.group}

    def draw(self, n: int, generator: torch.Generator, behaviour: Any = None, iteration: int = 0) -> Batch:
        """Draw as the sampler does."""
        batch = self.sampler.draw(n, generator, behaviour, iteration)
        if self.group == "none":
            return replace(batch, group=None)
        drawn = torch.arange(n) // self.sampler.group_size  # one writer alone leaves the order of the draws
        return replace(batch, group=drawn if self.group == "drawn" else ROWS[batch.group])


class Head(torch.nn.Module):
    """log Z(x) from the policy's own features of the prompt, which its loss trains too where they are ``attached``."""

    def __init__(self, policy: ContextNetwork, generator: torch.Generator, *, attached: bool) -> None:
        super().__init__()
        self._policy, self.attached = [policy], attached  # in a list: no submodule, whose weights would be its own
        width = policy.tokens.shape[2]
        self.weight = torch.nn.Parameter(torch.randn(width, generator=generator) / width)
        self.bias = torch.nn.Parameter(torch.tensor(START))

    def forward(self, batch: Batch) -> Tensor:
        """``[batch]``."""
        return self.of(batch.states[:, 0])

    def of(self, letters: Tensor) -> Tensor:
        """``[letters]``."""
        (policy,) = self._policy
        begin = policy.tokens[:-1, -1].sum(dim=0)  # of the places before the letter
        features = policy.rest[:2](begin + policy.tokens[-1, letters])
        return (features if self.attached else features.detach()).tanh() @ self.weight + self.bias


def wish() -> automata.Automaton:
    """The wish, without the letter's part."""
    return automata.ends_with("e").scored(0.0, FLOOR)


def log_reward(tokens: Tensor, lengths: Tensor) -> Tensor:
    """log r of rows, the letter's part included."""
    return wish().log_reward(tokens, lengths) + GRADES[tokens[:, 1]]


@cache
def exact() -> tuple[Tables, Tensor]:
    """p* of names, which after a letter is p*(.|x), and log Z(x), ``[letters]``."""
    prior = names_prior.load()
    posterior = automata.Posterior(prior, wish(), max_length=MAX_LENGTH, beta=BETA)
    begun = torch.stack([torch.full((LETTERS,), LETTERS), torch.arange(LETTERS)], dim=1)
    star = p_star(Bench(prior, wish(), max_length=MAX_LENGTH), 1 / BETA)
    return star, posterior.values(begun)[:, 1] + BETA * GRADES


@torch.no_grad()
def kl_by_letter(policy: automata.Law, star: Tables) -> Tensor:
    """Return the relative entropy of a policy to another law after each first letter, ``[letters]``: backwards."""
    bench = Bench(policy, wish(), max_length=MAX_LENGTH)
    laws, found = iter(reversed(star.tables)), []

    def backup(log_p: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        found.append((log_p.exp() * (log_p - next(laws) + later)).sum(dim=2))
        return log_p, found[-1]

    bench.backward(torch.zeros(MAX_LENGTH + 1, len(wish().moves), dtype=torch.float64), backup)
    return found[-2][torch.arange(LETTERS), wish().moves[0]]


def start(task: dict) -> tuple[Prompted, objectives.Objective, torch.Generator]:
    """What a run begins with: the sampler at the prior, what it is trained towards, and the source of its draws."""
    arm, prior, seed = ARMS[task["texts"]][task["arm"]], names_prior.load(), task["seed"]
    policy = ContextNetwork(LETTERS, torch.Generator(), automaton=wish(), max_length=MAX_LENGTH)
    policy = policy.with_weights(dict(prior.state_dict()))
    begun = torch.stack([torch.full_like(ROWS, LETTERS), ROWS], dim=1)
    options = {"end": LETTERS, "max_length": MAX_LENGTH, "prompts": begun, "group_size": arm.size}
    sampler = Prompted(TokenSampler(policy, prior, log_reward, **options), arm.group)
    if arm.network:
        head = Head(policy, generator(seed, 7), attached=arm.network == "attached")
        return sampler, objectives.RTB(BETA, objectives.Network(head)), generator(seed, 2)
    return sampler, plain.from_plain(task["objective"]), generator(seed, 2)


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, and measure it exactly, letter by letter."""
    sampler, objective, draws = start(task)
    star, log_z = exact()
    policy = sampler.sampler.policy

    def evaluate():
        kl = kl_by_letter(policy, star)
        return {name: kl[rows].mean().item() for name, rows in PARTS.items()}

    history = fine_tune(task, sampler, draws, objective, **measured(task, evaluate, checkpoint))
    measures: dict[str, Any] = evaluate() | {"by_letter": kl_by_letter(policy, star).tolist()}
    return Outcome(measures | learned(objective, history, log_z), history)


#: The letters that a measure is the mean over.
PARTS = {"trained": TRAINED, "frequent": FREQUENT, "rare": RARE, "held_out": HELD_OUT}


@torch.no_grad()
def learned(objective, history, log_z: Tensor) -> dict[str, Any]:
    """What was learned for log Z: the number, or how far the numbers are from the exact ones, root mean square."""
    how = getattr(objective, "log_z", None)
    if isinstance(how, objectives.Scalar):
        return {"log_z": history.learned[0].item()}
    if how is None:
        return {}
    found = history.learned[0] if isinstance(how, objectives.Table) else how.module.of(torch.arange(LETTERS))
    apart = (found.double() - log_z).square()
    return {
        f"log_z_error_{name}": apart[rows].mean().sqrt().item()
        for name, rows in (("frequent", FREQUENT), ("rare", RARE), ("held_out", HELD_OUT))
    }


if __name__ == "__main__":
    main("prompts")
