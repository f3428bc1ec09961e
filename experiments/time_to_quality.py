"""How soon the quality of the published runs is reached, with a behaviour and a schedule that the theory allows.

The centred residual vanishes at the optimum on any path, so any behaviour may be used. Here half of each batch are
paths of the prior, drawn once and replayed in proportion to r: they lie near the posterior from the first iteration.
Batches are small, the rate falls early, and the last quarter is on-policy. Chapter 10 reads the results.
"""

from dataclasses import asdict

from common import main
from twenty_five_modes import run, start

from companion.training import Settings

__all__ = ["TASKS", "run", "start"]
SETTINGS = Settings(
    "rtb",
    iterations=4400,
    batch=100,
    rate=2e-3,
    scalar_rate=1e-2,
    decay_from=1000,
    replayed=0.5,
    replay_until=3300,
)
TASKS = [
    {"name": f"fast-{seed}", "method": "fast", "seed": seed, "settings": asdict(SETTINGS), "evaluate_every": 200}
    for seed in range(5)
]

if __name__ == "__main__":
    main("time_to_quality", TASKS, run)
