"""Times one training step of torchgfn on the same problem, with its own classes, as its example trains.

It runs in an environment of its own, which benchmarks/environment makes:

.venv-peers-bench/bin/python -m benchmarks.peer_torchgfn [--keep] [--threads N] [--device cuda]
"""

import argparse
import math
from collections.abc import Callable
from importlib.metadata import version

import torch
from gfn.estimators import PinnedBrownianMotionForward
from gfn.gflownet import RelativeTrajectoryBalanceGFlowNet
from gfn.gym.diffusion_sampling import DiffusionSampling
from gfn.utils.modules import DiffusionPISGradNetForward

from benchmarks.worker import (
    EXPLORATION,
    RATE,
    SCALAR_RATE,
    VARIANCE,
    Block,
    Size,
    parser,
    seconds_per_step,
    serve,
)


def estimator(size: Size, device: str) -> PinnedBrownianMotionForward:
    """Return torchgfn's sampler on torchgfn's network: the layers of ours, the same weights at each call."""
    torch.manual_seed(0)
    width = size.width
    network = DiffusionPISGradNetForward(
        s_dim=2, harmonics_dim=width, t_emb_dim=width, s_emb_dim=width, hidden_dim=width, joint_layers=2
    )
    return PinnedBrownianMotionForward(2, network, math.sqrt(VARIANCE), size.steps).to(device)


def training(size: Size, device: str, keep: bool) -> Callable[[], float]:
    """Return a function that takes one training step, and returns the loss.

    As in torchgfn's example the policy is evaluated as it samples, and again for the loss. With ``keep`` the log-
    probabilities are kept from sampling instead, which torchgfn allows without exploration only: kept ones are those of
    the sampler that explores.
    """
    policy, prior = (estimator(size, device) for _ in range(2))
    environment = DiffusionSampling("gmm25_posterior9", None, size.steps, device=torch.device(device), debug=False)
    gflownet = RelativeTrajectoryBalanceGFlowNet(policy, prior.requires_grad_(False)).to(device)
    groups = [(policy.parameters(), RATE), (gflownet.logz_parameters(), SCALAR_RATE)]
    optimiser = torch.optim.Adam([{"params": tensors, "lr": rate} for tensors, rate in groups])
    exploring = {} if keep else {"exploration_std": EXPLORATION}

    def step() -> float:
        paths = gflownet.sample_trajectories(environment, size.batch, save_logprobs=keep, **exploring)
        optimiser.zero_grad()
        loss = gflownet.loss(environment, paths, recalculate_all_logprobs=not keep)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _block(options: argparse.Namespace) -> Block:
    step = training(Size(*options.size), options.device, options.keep)
    return lambda: {"step": seconds_per_step(step, options.steps, options.device)}


if __name__ == "__main__":
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--keep", action="store_true", help="no exploration; keep the log-probabilities of sampling")
    chosen = options.parse_args()
    serve(chosen, lambda: _block(chosen), {"torchgfn": version("torchgfn")})
