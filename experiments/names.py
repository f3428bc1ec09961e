"""Names with a wish: every method from the prior of names, on three wishes, against the exact posterior (claim X4).

A wish is soft: r(x) is 1 where it is granted, exp(-6) elsewhere, so that every method is defined; at alpha = 1/2 the
posterior has nearly all of its mass on the wish. Each policy begins as the prior. It is told the wish's state and the
length of the name, so that p* is nearly in its class; the arms called blind are not. Read by chapter
``names-with-a-wish``.

Source: the methods are those of chapter ``twenty-five-modes-to-nine``; the settings were chosen on seed 100, which no
stored run has.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion import automata, objectives, plain, training
from companion.samplers import Fading
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import TokenSampler, Writing, resampled_prior_texts
from companion.training import Linear, Schedule
from experiments import names_prior
from experiments.common import Outcome, generator, main, settings

NEEDS = ("names_prior",)
MAX_LENGTH, LETTERS = names_prior.MAX_LENGTH, len(automata.LETTERS)
#: alpha = 1/2, and log r(x) where a wish is not granted.
BETA, FLOOR = 2.0, -6.0
WISHES = {
    "frequent": lambda: automata.ends_with("e"),
    "rare": lambda: automata.contains("w"),
    "very rare": lambda: automata.product(automata.contains("q"), automata.ends_with("n")),
}
ITERATIONS = 2000
SCHEDULE = Schedule(iterations=ITERATIONS, batch=256, rate=3e-3, learned_rate=3e-2, decay=Linear(since=ITERATIONS // 2))
#: Half of the texts are the prior's at first, and one token in twenty is any: both fade.
EXPLORING = Writing(
    epsilon=Fading(0.05, 0, ITERATIONS * 3 // 4), reference=Fading(0.5, ITERATIONS // 4, ITERATIONS * 3 // 4)
)
RTB, VARGRAD, WHOLE = objectives.RTB(BETA), objectives.VarGrad(BETA), objectives.TrustPCL(1 / BETA)


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
        return self.network(batch.states).squeeze(2)
