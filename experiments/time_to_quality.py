"""How soon the quality of the published runs is reached, with a behaviour and a schedule that the theory allows.

The centred residual vanishes at the optimum on any path, so any behaviour may be used. Here half of each batch are
paths of the prior, drawn once and replayed in proportion to r: they lie near the posterior from the first iteration.
Batches are small, the rate falls early, and the last quarter is on-policy. Read by chapter
``twenty-five-modes-to-nine``.
"""

from companion import objectives, samplers, training
from experiments.common import main, settings
from experiments.twenty_five_modes import run, start

__all__ = ["NEEDS", "TASKS", "run", "start"]
NEEDS = ("prior",)
SCHEDULE = training.Schedule(
    iterations=4400, batch=100, rate=2e-3, learned_rate=1e-2, decay=training.Linear(since=1000)
)
FAST = settings(objectives.RTB(), SCHEDULE, samplers.Exploration(replayed=0.5, replay_until=3300))
TASKS = [{"name": f"fast-{seed}", "method": "fast", "seed": seed} | FAST | {"evaluate_every": 200} for seed in range(5)]

if __name__ == "__main__":
    main("time_to_quality")
