"""Drifts in closed form: the one that ends in a mixture of Gaussians, and classifier guidance."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from companion.samplers.diffusion import Drift, Process, ask
from companion.targets import GaussianMixture
from companion.validation import check_number


@dataclass(frozen=True, eq=False)
class MixtureDrift:
    """The drift that takes Brownian motion of ``process``'s variance from 0 at time 0 to a mixture at time 1.

    It is E[(s_1 - s_t) / (1 - t) | s_t], in closed form for Gaussians (the Doob transform, or Foellmer drift), with
    ``mixture`` the law of s_1. With finitely many steps the samples follow it only nearly; the discretised process is
    then the reference. Source: Foellmer, as in Zhang and Chen (2022). Used in chapter ``twenty-five-modes-to-nine``.
    """

    process: Process
    mixture: GaussianMixture

    def __post_init__(self) -> None:
        dim = self.mixture.means.shape[1]
        if dim != self.process.dim:
            raise ValueError(f"mixture has dimension {dim}; expected {self.process.dim}. Match the process.")

    def __call__(self, states: Tensor, times: Tensor) -> Tensor:
        """Return the drift at ``states``, ``[..., dim]``, at 0 of the state 0; ``times``, below 1, broadcast."""
        time = times[..., None, None]
        bridge = self.process.variance * time * (1 - time)
        spread = time.square() * self.mixture.variance + bridge  # of s_t, given the component
        centred = states[..., None, :] - time * self.mixture.means
        # At time 0 every component puts s_t at 0: the density ratio of the components is then 1.
        scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        log_share = self.mixture.weights.log() - 0.5 * (centred.square() / scale).sum(dim=-1)
        end = self.mixture.means + time * self.mixture.variance / scale * centred
        mean_end = (log_share.softmax(dim=-1)[..., None] * end).sum(dim=-2)
        return (mean_end - states) / (1 - times[..., None])


@dataclass(frozen=True, eq=False)
class GuidedDrift:
    """Classifier guidance: the prior's drift, pushed along the gradient of log r at the state of the moment.

    It adds ``strength sigma^2 k/(k + 1) grad log r(s_k)`` at step k of ``process``. Nothing is trained, and the samples
    do not follow p*: log r(s_k) stands where the logarithm of the expected reward of the *end* would have to. ``drift``
    is the prior's; ``log_reward`` is log r, ``[n, dim]`` to ``[n]``, differentiable, where a gradient that is not
    finite counts as zero; ``strength`` is >= 0. Source: Dhariwal and Nichol (2021), as Venkatraman et al. (2024)
    compare with. Used in chapter ``twenty-five-modes-to-nine``.
    """

    process: Process
    drift: Drift
    log_reward: Callable[[Tensor], Tensor]
    _: KW_ONLY
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_number("strength", self.strength, at_least=0)

    def __call__(self, states: Tensor, times: Tensor) -> Tensor:
        """Return the drift at ``states``, ``[..., dim]``, and ``times``, which broadcast to ``[...]``."""
        points = states.detach().reshape(-1, self.process.dim).requires_grad_()
        with torch.enable_grad():
            log_reward = ask("log_reward", self.log_reward, points, like=points[:, 0])
            if not log_reward.requires_grad:
                raise ValueError("log_reward has no gradient; expected one to guide by. Do not detach it.")
            (gradient,) = torch.autograd.grad(log_reward.sum(), points)
        k = (times * self.process.steps).round()[..., None]
        push = self.strength * self.process.variance * k / (k + 1) * gradient.nan_to_num(0.0, 0.0, 0.0).view_as(states)
        return self.drift(states, times) + push
