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


@storable
@dataclass(frozen=True)
class Lagging(Grouped):
    """A policy gradient on texts of an earlier policy, the KL in the reward, by what trainers ship.

    ``kl`` says whose log-probabilities the KL is made of, the ``"old"`` policy's or the ``"current"`` one's; ``ratio``
    what a text is weighed by: ``"none"``, one ratio for each ``"token"`` or for the ``"mean"`` of its tokens, both
    :func:`companion.family.grpo_loss` with nothing divided, or the ratio of the whole text (``"product"``),
    :func:`companion.family.rloo_loss`. ``clip`` is how far from 1 a ratio counts.
    """

    kl: str = "old"
    ratio: str = "none"
    clip: float = 1e6

    def loss(self, batch, learned):
        """Return the surrogate. The batch has a log_behaviour."""
        now, old = batch.log_pi.detach(), batch.log_behaviour
        options = {name: value for name, value in self._options(batch).items() if name != "kl_weight"}
        scored = {"old": old, "current": now}[self.kl]
        gain = batch.log_reward - self.kl_weight * (scored - batch.log_ref).sum(dim=1)
        if self.ratio == "product":
            return family.rloo_loss(batch.log_pi, old, old, gain, kl_weight=1.0, clip=self.clip, **options)
        before, per_sequence = {"none": (now, False), "token": (old, False), "mean": (old, True)}[self.ratio]
        return family.grpo_loss(
            batch.log_pi, before, gain, scale="none", per_sequence=per_sequence, clip=(self.clip, self.clip),
            normalisation="dr_grpo", longest=batch.log_pi.shape[1], **options,
        )  # fmt: skip
