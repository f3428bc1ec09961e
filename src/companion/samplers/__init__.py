"""Samplers to be fine-tuned: each draws paths under a behaviour, and scores them under every law that a loss may need.

:mod:`~companion.samplers.batch` says what a batch of paths is and what training asks of a sampler. Gaussian steps are
in :mod:`~companion.samplers.diffusion`, with their networks; tables of logits in :mod:`~companion.samplers.tabular`;
texts in :mod:`~companion.samplers.tokens`, with the network of the book's names in :mod:`~companion.samplers.contexts`.
"""

from companion.samplers.batch import Batch, Fading, Sampler
from companion.samplers.contexts import ContextNetwork
from companion.samplers.diffusion import DiffusionSampler, Exploration, Store, resampled_prior_paths
from companion.samplers.tabular import EveryPath, TabularSampler, UniformMixture
from companion.samplers.tokens import TextStore, TokenSampler, Writing, resampled_prior_texts

__all__ = [
    "Batch", "ContextNetwork", "DiffusionSampler", "EveryPath", "Exploration", "Fading", "Sampler", "Store",
    "TabularSampler", "TextStore", "TokenSampler", "UniformMixture", "Writing", "resampled_prior_paths",
    "resampled_prior_texts",
]  # fmt: skip
