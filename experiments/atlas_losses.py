"""The losses of :mod:`companion.family` that the rows of ``atlas_names.py`` train with, as objectives.

A module of their own, since what is stored by a class's name must be of one module, however a study is started.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import family
from companion.plain import storable

#: Added to a group's standard deviation, as in TRL.
EPSILON = 1e-4


@dataclass(frozen=True)
class Grouped:
    """A loss of the family in groups of ``size``; ``kl_weight`` is alpha."""

    kl_weight: float = 0.25
    size: int = 256

    @property
    def beta(self) -> float:
        """Inverse temperature."""
        return 1 / self.kl_weight

    def parameters(self, like: Tensor) -> list[Tensor]:
        """Return nothing: nothing is learned beside the policy."""
        return []

    def _options(self, batch) -> dict[str, Any]:
        group = torch.arange(len(batch.log_reward)) // self.size
        return {"kl_weight": self.kl_weight, "group": group, "steps": batch.steps}


@storable
@dataclass(frozen=True)
class Agro(Grouped):
    """AGRO, which is VarGrad: :func:`companion.family.agro_loss`."""

    def loss(self, batch, learned):
        """Return half the variance in each group."""
        return family.agro_loss(batch.log_pi, batch.log_ref, batch.log_reward, **self._options(batch))


@storable
@dataclass(frozen=True)
class Kimi(Grouped):
    """The mean reward for log Z, the prior for the old policy: :func:`companion.family.kimi_loss`."""

    def loss(self, batch, learned):
        """Return the mean square."""
        return family.kimi_loss(batch.log_pi, batch.log_ref, batch.log_reward, **self._options(batch))


@storable
@dataclass(frozen=True)
class Rloo(Grouped):
    """RLOO as TRL ships it, at the first step of a batch: :func:`companion.family.rloo_loss`."""

    def loss(self, batch, learned):
        """Return the surrogate."""
        return family.rloo_loss(
            batch.log_pi, batch.log_pi.detach(), batch.log_ref, batch.log_reward, **self._options(batch)
        )


@storable
@dataclass(frozen=True)
class FlowRL(Grouped):
    """FlowRL whose scale undoes the division by the batch's deviation: :func:`companion.family.flowrl_loss`."""

    def parameters(self, like):
        """Return log Z, 0-d, zero at first."""
        return [like.new_zeros(()).requires_grad_()]

    def loss(self, batch, learned):
        """Return the mean square, by length."""
        options = self._options(batch)
        scale = float(batch.log_reward.std() + 1e-6) / options.pop("kl_weight")
        old = batch.log_pi.detach()
        return family.flowrl_loss(
            batch.log_pi, batch.log_ref, old, batch.log_reward, learned[0], scale=scale, **options
        )


@storable
@dataclass(frozen=True)
class DroPerToken(Grouped):
    """The DRO of verl with the prior for the old policy, a leave-one-out mean: :func:`family.dro_per_token_loss`."""

    def loss(self, batch, learned):
        """Return the mean over all tokens."""
        n = len(batch.log_reward)
        advantage = (batch.log_reward - batch.log_reward.mean()) * n / (n - 1)
        return family.dro_per_token_loss(
            batch.log_pi, batch.log_ref, advantage, kl_weight=self.kl_weight, steps=batch.steps
        )


@storable
@dataclass(frozen=True)
class Grpo(Grouped):
    """GRPO as TRL ships it, at the first step of a batch: :func:`companion.family.grpo_loss`.

    ``kl`` and ``scale`` are its options, all others its defaults.
    """

    size: int = 8
    kl: str = "k3_ratio"
    scale: str = "none"

    def loss(self, batch, learned):
        """Return the surrogate, a mean over all tokens."""
        return family.grpo_loss(
            batch.log_pi, batch.log_pi.detach(), batch.log_reward, log_ref=batch.log_ref, kl=self.kl, scale=self.scale,
            epsilon=EPSILON, **self._options(batch),
        )  # fmt: skip
