"""Rows of the atlas on the prior of names: each loss against its own predicted target, and against p* (F1 to F5).

The wish is a name that ends with *e*, which the prior grants to one name in five; log r(x) is 0 where it is granted and
-1 elsewhere, which to every loss here is a reward of 1 or 0. Each loss is its source's, from :mod:`companion.family`;
each policy begins as the prior and is told the wish's state and the length. Where the target is the prior times a
function of length and reward, a closed form over classes of texts gives that function; a KL per token asks for backward
recursion over the nodes of :mod:`companion.automata`, with plain Q. Read by chapters ``what-your-loss-converges-to``
and ``what-dividing-by-the-deviation-leaves``.

Source: :mod:`companion.fixed_points`; the settings are those of ``names.py``, with fewer iterations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import automata, objectives, plain
from companion import fixed_points as fp
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import TokenSampler, Writing
from companion.training import Linear, Schedule
from experiments import names_prior
from experiments.atlas_losses import EPSILON, Agro, DroPerToken, FlowRL, Grouped, Grpo, Kimi, Rloo
from experiments.common import Outcome, fine_tune, generator, main, measured, settings

NEEDS = ("names_prior",)
MAX_LENGTH, LETTERS = names_prior.MAX_LENGTH, len(automata.LETTERS)
#: log r(x) where the wish is not granted.
FLOOR = -1.0
ITERATIONS, BATCH = 500, 256
SCHEDULE = Schedule(
    iterations=ITERATIONS, batch=BATCH, rate=1e-2, learned_rate=1e-1, decay=Linear(since=ITERATIONS // 3)
)

# Predicted targets.


class Tables:
    """A law of texts given by its tables, one for each length."""

    def __init__(self, tables: list[Tensor], order: int) -> None:
        self.tables, self.order = tables, order

    def table(self, length: int) -> Tensor:
        """Return log-probabilities, as :class:`companion.automata.Law` does."""
        return self.tables[length]


#: From log p_ref of the tokens and what they lead to, ``[contexts, states, A + 1]``, to the law and the node's value.
Backup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Bench:
    """A prior and a wish, node by node; and class by class, texts of one length that end in one state.

    Attributes:
        log_ref, log_reward, steps: of the classes that the prior reaches, ``[classes]``, as
            :mod:`companion.fixed_points` takes them of paths.
    """

    def __init__(self, prior: automata.Law, automaton: automata.Automaton, *, max_length: int) -> None:
        self.automaton, self.max_length, self.order = automaton, max_length, prior.order
        nodes = list(automata.flow(prior, automaton, max_length=max_length))
        self.tables = [table.detach() for _, table in nodes[:-1]]
        mass = torch.stack([(share * table[:, :, -1].exp()).sum(dim=0) for share, table in nodes]).detach()
        self.reached, self._mass = mass > 0, mass
        self.log_ref = mass[self.reached].log().log_softmax(dim=0)
        self.log_reward = automaton.log_score.expand_as(mass)[self.reached]
        self.steps = (torch.arange(max_length + 1)[:, None] + 1).expand_as(mass)[self.reached]

    def of_classes(self, law: Tensor) -> Tables:
        """Return the prior times what makes a law of the classes, ``[classes]``, of the prior's."""
        tilt = torch.zeros_like(self._mass)
        tilt[self.reached] = law - self.log_ref
        return self.backward(tilt, soft)

    def per_token(self, backup: Backup, scale: float = 1.0) -> Tables:
        """Return the law that backward recursion gives with ``scale`` times the reward."""
        return self.backward((scale * self.automaton.log_score).expand_as(self._mass), backup)

    def backward(self, ends: Tensor, backup: Backup) -> Tables:
        """Go from the longest texts backwards; ``ends`` is the value of a text that ends, ``[lengths, states]``."""
        value, tables = ends[-1].expand(self.automaton.letters ** min(self.max_length, self.order), -1), []
        for log_ref, end in zip(reversed(self.tables), reversed(ends[:-1]), strict=True):
            gains = [self._ahead(value, len(log_ref)), end[:, None].expand(len(log_ref), -1, 1)]
            law, value = backup(log_ref, torch.cat(gains, dim=2))
            tables.insert(0, law)
        return Tables(tables, self.order)

    def granted(self, law: automata.Law) -> float:
        """Return the mass on the wish."""
        return automata.granted(law, self.automaton, max_length=self.max_length).item()

    def kl(self, first: automata.Law, second: automata.Law) -> float:
        """Return the relative entropy of two laws."""
        return automata.kl_divergence(first, second, self.automaton, max_length=self.max_length).item()

    def _ahead(self, value: Tensor, contexts: int) -> Tensor:
        """The value at the node that each letter leads to: ``[contexts, states, A]``."""
        moves, letters = self.automaton.moves, self.automaton.letters
        after = value.reshape(-1, letters, len(moves))  # by the letters that are kept, and the new one
        after = after.repeat(contexts // len(after), 1, 1)  # whatever the letter that drops out
        return after[:, torch.arange(letters), moves]


def soft(log_ref: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """Soft values: each text is weighted by exp of what stands at its end."""
    value = (log_ref + gains).logsumexp(dim=2)
    return log_ref + gains - value[:, :, None], value


def exponential(kl_weight: float) -> Backup:
    """The tilt by exp(Q / alpha), Q the policy's own plain return."""

    def backup(log_ref: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        law = (log_ref + gains / kl_weight).log_softmax(dim=2)
        return law, (law.exp() * gains).sum(dim=2)

    return backup


def pole(kl_weight: float) -> Backup:
    """The tilt by alpha / (c - Q), c from normalisation, Q the policy's own plain return."""

    def backup(log_ref: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        best = gains.max(dim=2, keepdim=True)
        below, weight = (best.values - gains) / kl_weight, log_ref.exp()
        above = weight.gather(2, best.indices)  # (c - max Q) / alpha, from below its value
        for _ in range(60):  # Newton on one over the sum, a concave function: it rises to the root
            total = (weight / (below + above)).sum(dim=2, keepdim=True)
            slope = (weight / (below + above).square()).sum(dim=2, keepdim=True)
            step = total * (total - 1) / slope
            above = above + step
            if bool((step.abs() <= 1e-14 * above).all()):
                break
        law = (log_ref - (below + above).log()).log_softmax(dim=2)
        return law, (law.exp() * gains).sum(dim=2)

    return backup


def gap(success: float, size: int, spread: float) -> float:
    """Mean advantage of a granted text less that of another, over the standard deviation of groups of ``size``.

    ``spread`` is the difference of their rewards. With f the share of a group that is granted and s its standard
    deviation, it is the mean of ``spread f (1 - f) / (s + epsilon)``, over ``p (1 - p)``.
    """
    count = torch.arange(1, size, dtype=torch.float64)
    share = count / size
    deviation = spread * (share * (1 - share) * size / (size - 1)).sqrt() + EPSILON
    chance = torch.distributions.Binomial(size, torch.tensor(success, dtype=torch.float64)).log_prob(count).exp()
    return float((chance * spread * share * (1 - share) / deviation).sum() / (success * (1 - success)))


def p_star(bench: Bench, kl_weight: float) -> Tables:
    """The target of the book."""
    return bench.of_classes(fp.target(bench.log_ref, bench.log_reward, beta=1 / kl_weight))


def own(bench: Bench, loss) -> Tables:
    """The target of a loss that says what it is, p* of its temperature."""
    return p_star(bench, loss.kl_weight if isinstance(loss, Grouped) else 1 / loss.beta)


def lower_beta(bench: Bench, loss: Grouped) -> Tables:
    """F6: a mean that contains the text's own reward."""
    return p_star(bench, 1 / fp.inclusive_mean(loss.beta, size=loss.size))


def mean_for_log_z(bench: Bench, loss: Grouped) -> Tables:
    """F1 on the prior's texts, the mean reward for log Z."""
    beta = fp.inclusive_mean(loss.beta, size=loss.size)
    mean = beta * float(bench.log_ref.exp() @ bench.log_reward)
    law = fp.stand_in(bench.log_ref, bench.log_reward, mean, beta=beta, log_behaviour=bench.log_ref)
    return bench.of_classes(law)


def over_length(bench: Bench, loss: Grouped) -> Tables:
    """F2, the log-ratio over the length."""
    beta = fp.inclusive_mean(loss.beta, size=loss.size)
    return bench.of_classes(fp.length_normalised(bench.log_ref, bench.log_reward, bench.steps, beta=beta))


def per_token(bench: Bench, loss: Grouped) -> Tables:
    """F3, the KL per token; the batch's mean leaves the text out."""
    return bench.per_token(exponential(loss.kl_weight))


def per_token_in_groups(bench: Bench, loss: Grpo) -> Tables:
    """F3 or F4; the group's mean contains the text."""
    backup = pole if loss.kl == "k3" else exponential
    return bench.per_token(backup(loss.kl_weight), scale=1 - 1 / loss.size)


def standardised(bench: Bench, loss: Grpo) -> Tables:
    """F5: F3 with the advantage's own gap for the reward's, where the mass on the wish is the one that it is for."""
    spread = float(bench.automaton.log_score.max() - bench.automaton.log_score.min())
    backup, (low, high) = exponential(loss.kl_weight), (0.01, 1 - 1e-9)
    for _ in range(40):
        middle = (low + high) / 2
        law = bench.per_token(backup, scale=gap(middle, loss.size, spread) / spread)
        low, high = (middle, high) if bench.granted(law) > middle else (low, middle)
    return law


# Rows.


@dataclass(frozen=True)
class Row:
    """A loss, its target, whether it is shown the prior's texts or its policy's own, and how many at a time."""

    objective: Any
    target: Callable[[Bench, Any], Tables] = own
    from_prior: bool = False
    batch: int = BATCH


ROWS = {
    "rtb": Row(objectives.RTB(beta=4.0)),
    "kimi-prior-texts": Row(Kimi(), mean_for_log_z, from_prior=True),
    "flowrl": Row(FlowRL(kl_weight=0.5), over_length),
    "dro-per-token": Row(DroPerToken(), per_token),
    "grpo-k3": Row(Grpo(kl="k3"), per_token_in_groups),
    "grpo-std-above": Row(Grpo(kl_weight=0.8, scale="group"), standardised),
    "grpo-std-below": Row(Grpo(kl_weight=0.5, scale="group"), standardised),
    "kimi": Row(Kimi(), lower_beta),
    "kimi-larger-batches": Row(Kimi(), lower_beta, batch=4 * BATCH),
    "kimi-pairs": Row(Kimi(size=2), lower_beta),
    "grpo-k3-ratio": Row(Grpo(), per_token_in_groups),
    "rloo": Row(Rloo(size=8)),
    "rtb-prior-texts": Row(objectives.RTB(beta=4.0), from_prior=True),
    "vargrad-prior-texts": Row(Agro(), from_prior=True),
}
TASKS = [
    {"name": f"{name}-{seed}", "method": name, "seed": seed, "evaluate_every": 250}
    | settings(row.objective, replace(SCHEDULE, batch=row.batch), Writing(reference=1.0) if row.from_prior else None)
    for name, row in ROWS.items()
    for seed in range(5)
]


def wish() -> automata.Automaton:
    """The wish, soft."""
    return automata.ends_with("e").scored(0.0, FLOOR)


@cache
def bench() -> Bench:
    """The prior of names and the wish."""
    return Bench(names_prior.load(), wish(), max_length=MAX_LENGTH)


@lru_cache(maxsize=1)
def predicted(method: str) -> dict[str, Tables]:
    """What a row is measured against: its own target, and p* at its temperature."""
    row = ROWS[method]
    return {"target": row.target(bench(), row.objective), "p_star": own(bench(), row.objective)}


def from_prior(automaton: automata.Automaton, seed: int) -> tuple[TokenSampler, torch.Generator]:
    """A sampler whose policy is the prior, told the wish's state and the length, and the source of a run's draws."""
    prior = names_prior.load()
    policy = ContextNetwork(LETTERS, torch.Generator(), automaton=automaton, max_length=MAX_LENGTH)
    policy = policy.with_weights(dict(prior.state_dict()))
    sampler = TokenSampler(policy, prior, automaton.log_reward, end=LETTERS, max_length=MAX_LENGTH)
    return sampler, generator(seed, 2)


def start(task: dict) -> tuple[TokenSampler, objectives.Objective, torch.Generator]:
    """What a run begins with: the sampler at the prior, what it is trained towards, and the source of its draws."""
    sampler, draws = from_prior(wish(), task["seed"])
    return sampler, plain.from_plain(task["objective"]), draws


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, and measure it exactly."""
    sampler, objective, draws = start(task)
    laws, policy = predicted(task["method"]), sampler.policy

    @torch.no_grad()
    def evaluate():
        return {f"kl_to_{name}": bench().kl(policy, law) for name, law in laws.items()}

    history = fine_tune(task, sampler, draws, objective, **measured(task, evaluate, checkpoint))
    with torch.no_grad():
        measures = evaluate() | {"granted": bench().granted(policy)}
        measures |= {f"{name}_granted": bench().granted(law) for name, law in laws.items()}
        measures["target_to_p_star"] = bench().kl(laws["target"], laws["p_star"])
    keep = task["seed"] == 0 and task["method"] == "grpo-k3"
    return Outcome(measures, history, {k: v.numpy() for k, v in policy.state_dict().items()} if keep else {})


if __name__ == "__main__":
    main("atlas_names")
