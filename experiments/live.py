"""The longer check of a chapter, outside of the tests: the start of a stored run, made again, beside what is stored.

``python -m experiments.live names-with-a-wish``, or ``make live NAME=names-with-a-wish``.
"""

import argparse
import sys
from collections.abc import Callable

import torch

from companion import automata, plain, records, training
from experiments import names
from experiments.common import RESULTS

#: How far a measure may be from the stored one: processors add in another order, and hundreds of steps let it grow.
TOLERANCE = 0.1


def names_with_a_wish() -> dict[str, tuple[float, float]]:
    """RTB on the rare wish, seed 0, a quarter of the run: its exact relative entropy to the posterior."""
    kept = records.read(records.place("names", "rtb-rare-0", where=RESULTS))
    task, upto = kept.configuration, int(kept.evaluations["iteration"][1])
    sampler, objective, draws = names.start(task)
    parts = {name: plain.from_plain(task[name]) for name in ("schedule", "behaviour")}
    training.fine_tune(sampler, objective, generator=draws, stop_after=upto, progress=True, **parts)
    automaton, limit = names.wish(task["wish"]), {"max_length": names.MAX_LENGTH}
    with torch.no_grad():
        posterior = automata.Posterior(sampler.reference, automaton, beta=names.BETA, **limit)
        kl = automata.kl_divergence(sampler.policy, posterior, automaton, **limit).item()
    return {f"KL to the posterior after {upto} iterations": (kl, float(kept.evaluations["kl"][1]))}


#: By the chapter's name: what gives measures, each now and as it is stored.
CHAPTERS: dict[str, Callable[[], dict[str, tuple[float, float]]]] = {"names-with-a-wish": names_with_a_wish}


def main() -> int:
    """Run one chapter's check, print both numbers of every measure, and return 1 where they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", choices=CHAPTERS)
    apart = False
    for measure, (now, stored) in CHAPTERS[parser.parse_args().chapter]().items():
        print(f"{measure}: now {now:.4f}, stored {stored:.4f}")
        apart |= not abs(now - stored) < TOLERANCE * abs(stored)
    return int(apart)


if __name__ == "__main__":
    sys.exit(main())
