"""Trains the prior of the names: a small network that looks back three letters, by maximum likelihood (claim X4).

Each first name of the 1990 census of the United States counts once, however frequent it is: of names by frequency a
model would learn Mary and James. One name in ten is held out, and the likelihood of these stands beside that of counts
with a pseudo-count, after as many letters. The number of iterations is the best of a few by that likelihood, and so is
the pseudo-count. Read by chapter ``names-with-a-wish``.

Source: the names are those that the package ``names`` ships.
"""

from pathlib import Path

import names
import numpy as np
import torch

from companion import automata, training
from companion.records import read_arrays
from companion.samplers.contexts import ContextNetwork
from experiments.common import RESULTS, Outcome, generator, main

#: Most letters of a name; a few longer ones are left out.
MAX_LENGTH = 12
TASKS = [
    {
        "name": "prior",
        "seed": 0,
        "order": 3,
        "width": 64,
        "iterations": 800,
        "batch": 256,
        "rate": 5e-3,
        "decay_from": 200,
    }
]
#: Pseudo-counts of the smoothed model, the best of which is reported.
SMOOTHINGS = (0.003, 0.01, 0.03, 0.1, 0.3)


def first_names() -> list[str]:
    """All first names of at most so many letters, each once, in alphabetical order."""
    lines = [line for key in ("first:male", "first:female") for line in Path(names.FILES[key]).read_text().splitlines()]
    found = {line.split()[0].lower() for line in lines}
    return sorted(name for name in found if len(name) <= MAX_LENGTH and set(name) <= set(automata.LETTERS))


def split(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The names to learn from, and those held out: rows of tokens."""
    rows = automata.encode(first_names(), max_length=MAX_LENGTH)
    rows = rows[torch.randperm(len(rows), generator=generator(seed, 1))]
    held_out = len(rows) // 10
    return rows[held_out:], rows[:held_out]


def network(task: dict, draws: torch.Generator | None = None) -> ContextNetwork:
    """The network before it is trained."""
    return ContextNetwork(len(automata.LETTERS), draws or torch.Generator(), order=task["order"], width=task["width"])


def load() -> ContextNetwork:
    """The trained prior, to be left as it is."""
    arrays = read_arrays(RESULTS / "names_prior" / "prior.npz")
    return (
        network(TASKS[0]).with_weights({name: torch.from_numpy(a) for name, a in arrays.items()}).requires_grad_(False)
    )


def log_likelihood(rows: torch.Tensor, law) -> torch.Tensor:
    """Of each name, ``[rows]``, nats; ``law`` gives log-probabilities of each next token."""
    of_tokens = law(rows[:, :-1])[:, :-1].gather(2, rows[:, 1:-1, None]).squeeze(2)  # the last token is sure to end it
    ended = (rows[:, 1:-1] == len(automata.LETTERS)).cumsum(dim=1) > 1
    return torch.where(ended, 0.0, of_tokens).sum(dim=1)


def smoothed(rows: torch.Tensor, order: int, pseudo: float):
    """The model that counts what follows each context, plus a pseudo-count."""
    end = len(automata.LETTERS)

    def contexts(tokens):
        ahead = tokens.new_full((len(tokens), order - 1), end)
        digits = torch.cat([ahead, tokens], dim=1).unfold(1, order, 1)
        return (digits * (end + 1) ** torch.arange(order)).sum(dim=2)

    alive = (rows[:, 1:] == end).cumsum(dim=1) <= 1
    index = (contexts(rows[:, :-1]) * (end + 1) + rows[:, 1:])[alive]
    counts = torch.bincount(index, minlength=(end + 1) ** (order + 1)).reshape(-1, end + 1) + pseudo
    table = (counts / counts.sum(dim=1, keepdim=True)).log()
    return lambda tokens: table[contexts(tokens)]


def run(task: dict, checkpoint: Path | None) -> Outcome:
    """Train the network, and measure it on the names held out."""
    learnt, held_out = split(task["seed"])
    model, draws = network(task, generator(task["seed"], 2)), generator(task["seed"], 3)
    whole, first = task["iterations"], task["decay_from"]

    def loss_of(i):
        rows = learnt[torch.randint(len(learnt), (task["batch"],), generator=draws)]
        return -log_likelihood(rows, lambda tokens: model(tokens).log_softmax(dim=2)).mean(), {}

    history = training.optimise(
        loss_of,
        [(list(model.parameters()), task["rate"])],
        whole,
        draws,
        rate_at=lambda i: 1.0 if i < first else (whole - i) / (whole - first),
        checkpoint=checkpoint,
        label=str(task),
    )
    with torch.no_grad():
        laws = {"network": lambda tokens: model(tokens).log_softmax(dim=2)}
        laws |= {f"smoothed by {p:g}": smoothed(learnt, task["order"], p) for p in SMOOTHINGS}
        parts = {"learnt": learnt, "held_out": held_out}
        likelihoods = {
            name: {part: log_likelihood(rows, law).mean().item() for part, rows in parts.items()}
            for name, law in laws.items()
        }
    measures = {"names": len(learnt) + len(held_out), "held_out": len(held_out), "log_likelihood": likelihoods}
    return Outcome(measures, history, {name: np.asarray(value) for name, value in model.state_dict().items()})


if __name__ == "__main__":
    main("names_prior")
