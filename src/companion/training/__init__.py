"""One fine-tuning loop for every sampler and every objective, and for the whole design space between them.

A step draws a batch of paths under a behaviour, asks an objective for a loss, and lets torch's Adam take it. Objective,
schedule and behaviour are values that can be stored beside the results. The loop keeps a history, stops where training
diverges and says so, and goes on from a checkpoint to the same numbers as if it had never stopped. Sources: the
settings of Venkatraman et al. (2024) and Deleu et al. (2025); each objective names its own.
"""

from companion.training.history import History
from companion.training.loop import fine_tune, optimise
from companion.training.schedule import Exponential, Linear, Schedule

__all__ = ["Exponential", "History", "Linear", "Schedule", "fine_tune", "optimise"]
