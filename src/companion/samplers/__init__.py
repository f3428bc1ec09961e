"""Samplers to be fine-tuned: each draws paths under a behaviour, and scores them under every law that a loss may need.

:mod:`~companion.samplers.batch` says what a batch of paths is and what training asks of a sampler. Gaussian steps are
in :mod:`~companion.samplers.diffusion`, with their networks; tables of logits in :mod:`~companion.samplers.tabular`.
"""

from companion.samplers.batch import Batch, Fading, Sampler, join
from companion.samplers.diffusion import DiffusionSampler, Exploration, Store, resampled_prior_paths
from companion.samplers.tabular import EveryPath, TabularSampler, UniformMixture

__all__ = [
    "Batch",
    "DiffusionSampler",
    "EveryPath",
    "Exploration",
    "Fading",
    "Sampler",
    "Store",
    "TabularSampler",
    "UniformMixture",
    "join",
    "resampled_prior_paths",
]
