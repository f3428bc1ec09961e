"""The rows of the atlas on the prior of names: each loss with a closed form, on own texts or on the prior's.

One prompt, the wish of ``atlas_names.py`` with a reward of 2 between a text that is granted and one that is not, the
temperature and the groups of the page, 1/2 and four texts. Where the page's law is the prior times a function of length
and reward, it is the page's own closed form, over classes of texts; a square per token asks for backward recursion with
the prior's plain Q. Rows about one token or about rounds are left out, and so are those that ``atlas_names.py`` has.
Read by the page ``atlas``.

Source: :mod:`book.atlas`; the settings are those of ``atlas_names.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch
from scipy import special
from torch import Tensor

from book import atlas
from companion import automata
from companion.samplers.tokens import TokenSampler, Writing
from experiments import leaf_losses, names_prior
from experiments.atlas_names import MAX_LENGTH, SCHEDULE, Backup, Bench, Tables, from_prior
from experiments.common import ROOT, Outcome, fine_tune, main, measured, settings

NEEDS = ("names_prior",)
#: log r(x) where the wish is not granted.
FLOOR = -2.0
#: What is at scale already, in ``atlas_names.py``; and the flipped sign on fixed texts, without a solution on W_0 for
#: these rewards, all of them negative.
THERE = {
    "own": {"rtb", "kimi", "length-normalised", "dro-per-token", "grpo-kl", "grpo-k3", "rloo"},
    "fixed": {"rtb", "vargrad", "kimi", "flipped-sign"},
}
#: By leaf and texts, the page's name of the law.
ROWS = {
    f"{leaf['id']}-{row['texts']}": (leaf["id"], row["texts"], row["law"])
    for leaf in atlas.read(ROOT)
    for row in leaf["row"]
    if "law" in row and "on" not in row and leaf["id"] not in THERE.get(row["texts"], {leaf["id"]})
}
TASKS = [
    {"name": f"{name}-{seed}", "row": name, "seed": seed, "evaluate_every": 250}
    | settings(None, SCHEDULE, Writing(reference=1.0) if texts == "fixed" else None)
    for name, (_, texts, _) in ROWS.items()
    for seed in range(5)
]
#: Halvings of the bracket of a node's normaliser.
HALVINGS = 24


@dataclass(frozen=True)
class LeafLoss:
    """The loss of a leaf, on own or fixed texts, in groups of four; ``quantile`` of a miss and A*-PO's value ``warm``.

    It has no plain form; a task names its row.
    """

    leaf: str
    own: bool
    quantile: float
    warm: float

    @property
    def beta(self) -> float:
        """Inverse temperature."""
        return atlas.BETA

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return log Z, 0-d, zero at first, where the loss learns it."""
        return [like.new_zeros(()).requires_grad_()] if self.leaf in leaf_losses.LEARNS else []

    def loss(self, batch, learned) -> Tensor:
        """Return the loss."""
        rows = torch.arange(len(batch.log_reward))
        old = batch.log_pi.detach() if self.own else batch.log_ref
        granted = batch.log_reward > FLOOR
        seen = SimpleNamespace(
            x=batch.log_pi,
            old=old,
            begun=batch.log_ref,
            ref=batch.log_ref,
            reward=batch.log_reward,
            steps=batch.steps,
            group=rows // atlas.GROUP,
            pairs=rows.reshape(-1, 2),
            learned=learned[0].expand(len(rows)) if learned else None,
            rewards=batch.per_step_rewards(),
            quantile=torch.where(granted, 1.0, self.quantile).to(batch.log_reward),
            warm=batch.log_reward.new_tensor(self.warm),
            longest=MAX_LENGTH + 1,
            mean_per_token=(old - batch.log_ref).sum() / batch.steps.sum(),
        )
        return leaf_losses.LOSSES[self.leaf][1](seen)


# Predicted targets.


@cache
def bench() -> Bench:
    """The prior of names and the wish."""
    return Bench(names_prior.load(), wish(), max_length=MAX_LENGTH)


def wish() -> automata.Automaton:
    """The wish, soft."""
    return automata.ends_with("e").scored(0.0, FLOOR)


def by_class(bench: Bench, name: str) -> automata.Law:
    """The page's law of classes of texts."""
    classes = list(range(len(bench.log_ref)))
    page = atlas.Bench(classes, None, None, bench.log_ref, bench.log_reward, bench.steps)
    return bench.of_classes(atlas.LAWS[name](page))


def plain_q(here: Callable[[Tensor, Tensor], Tensor]) -> Backup:
    """The law ``here(log_ref, Q)`` at each node, Q the prior's plain return."""

    def backup(log_ref: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        return here(log_ref, gains), (log_ref.exp() * gains).sum(dim=2)

    return backup


def tilted(log_ref: Tensor, tilt: Tensor) -> Tensor:
    """``pi_ref exp(beta tilt)``."""
    return (log_ref + atlas.BETA * tilt).log_softmax(dim=2)


def squared(log_ref: Tensor, tilt: Tensor) -> Tensor:
    """``log u = -W_0((kappa - tilt) / (2 alpha))``, where the squared log-ratio of a token stands beside its ratio."""
    highest = tilt.amax(dim=2, keepdim=True)
    return _normalised(
        lambda kappa: log_ref - _product_log((kappa - tilt) * atlas.BETA / 2),
        highest - 2 * atlas.ALPHA / math.e * (1 - 1e-12),
        highest + 1.0,
    )


def pulled(log_ref: Tensor, tilt: Tensor) -> Tensor:
    """``log u + lambda u = beta tilt``, where it stands beside the log-probability."""
    s = atlas.BETA * tilt
    # At a lambda of least, W_0 of the largest entry begins; at one of most, every u is below 1.
    highest = s.amax(dim=2, keepdim=True)
    return _normalised(
        lambda k: log_ref + s - _product_log(k * s.exp()), -(-1 - highest).exp() * (1 - 1e-12), highest.clamp(min=0.0)
    )


def _product_log(x: Tensor) -> Tensor:
    return torch.from_numpy(special.lambertw(x.numpy()).real)


def _normalised(law: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """A law whose total falls in a number, at the number where it is one, node by node."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = law(middle).logsumexp(dim=2, keepdim=True) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return law((low + high) / 2).log_softmax(dim=2)


def mean_reward(bench: Bench) -> float:
    """The prior's."""
    return float(bench.log_ref.exp() @ bench.log_reward)


#: The laws that are not of classes, of texts of the prior.
BY_NODE: dict[str, Callable[[Bench], automata.Law]] = {
    "tilt_by_state": lambda b: b.per_token(plain_q(lambda ref, q: tilted(ref, atlas.FACTOR * q))),
    "product_log": lambda b: b.per_token(plain_q(lambda ref, q: squared(ref, atlas.FACTOR * q))),
    "per_token_fixed": lambda b: b.per_token(plain_q(lambda ref, q: pulled(ref, atlas.FACTOR * (q - mean_reward(b))))),
}


def target(bench: Bench, name: str) -> automata.Law:
    """A law of the page, of names; what only granted names have is the prior given the wish."""
    if name == "filtered":
        granted = bench.automaton.scored(0.0, -math.inf)
        return automata.Posterior(Tables(bench.tables, bench.order), granted, max_length=bench.max_length)
    return BY_NODE[name](bench) if name in BY_NODE else by_class(bench, name)


@lru_cache(maxsize=1)
def predicted(row: str) -> dict[str, automata.Law]:
    """What a row is measured against: its own target, and p*."""
    return {"target": target(bench(), ROWS[row][2]), "p_star": by_class(bench(), "target")}


# Runs.


def objective(row: str) -> LeafLoss:
    """The loss of a row."""
    leaf, texts, _ = ROWS[row]
    granted = bench().granted(names_prior.load())
    warm = math.log(granted + (1 - granted) * math.exp(FLOOR))
    return LeafLoss(leaf, own=texts == "own", quantile=1 - granted, warm=warm)


def distance(policy: automata.Law, law: automata.Law) -> float:
    """The relative entropy of a policy to a law; of the law to the policy, where that has no name without the wish."""
    pair = (law, policy) if isinstance(law, automata.Posterior) else (policy, law)
    return bench().kl(*pair)


def start(task: dict) -> tuple[TokenSampler, LeafLoss, torch.Generator]:
    """What a run begins with: the sampler at the prior, its loss, and the source of its draws."""
    sampler, draws = from_prior(wish(), task["seed"])
    return sampler, objective(task["row"]), draws


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Fine-tune one model, and measure it exactly."""
    sampler, loss, draws = start(task)
    laws, policy = predicted(task["row"]), sampler.policy

    @torch.no_grad()
    def evaluate():
        return {f"kl_to_{name}": distance(policy, law) for name, law in laws.items()}

    history = fine_tune(task, sampler, draws, loss, **measured(task, evaluate, checkpoint))
    with torch.no_grad():
        measures = evaluate() | {"granted": bench().granted(policy)}
        measures |= {f"{name}_granted": bench().granted(law) for name, law in laws.items()}
        measures["target_to_p_star"] = bench().kl(laws["target"], laws["p_star"])
    return Outcome(measures, history)


if __name__ == "__main__":
    main("atlas_rows")
