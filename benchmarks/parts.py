"""Times the parts of a training step of this package one by one: sampling, reference, loss, backward, Adam.

The parts are the public functions that a step of companion.training.fine_tune is made of, called in its order.

python -m benchmarks.parts [--threads N] [--device cuda] [--size T BATCH WIDTH]
"""

import time
from statistics import mean

import torch

from benchmarks.step import sampler
from benchmarks.worker import EXPLORATION, RATE, SCALAR_RATE, Block, Size, parser, serve, wait
from companion.objectives import RTB
from companion.samplers import Batch
from companion.samplers.diffusion import log_prob, step_log_prob, traced_rollout

PARTS = ("sampling", "reference", "loss", "backward", "Adam")


class Parts:
    """A training step, cut up: each method is one part, and leaves what the next one needs."""

    def __init__(self, size: Size, device: str) -> None:
        self.sampler, self.batch, self.device = sampler(size, device), size.batch, device
        self.objective, trained = RTB(), self.sampler.parameters()
        self.learned = self.objective.parameters(trained[0])
        groups = [(trained, RATE), (self.learned, SCALAR_RATE)]
        self.optimiser = torch.optim.Adam([{"params": tensors, "lr": rate} for tensors, rate in groups])
        self.draws = torch.Generator(device).manual_seed(1)

    def step(self) -> dict[str, float]:
        """Take one step, and return the seconds that each part took."""
        seconds = {}
        for name in PARTS:
            wait(self.device)
            begin = time.perf_counter()
            getattr(self, name.lower())()
            wait(self.device)
            seconds[name] = time.perf_counter() - begin
        return seconds

    def sampling(self) -> None:
        """Draw the paths, and score them under the policy and under the behaviour."""
        process, exploration = self.sampler.process, {"extra_std": EXPLORATION}
        self.states, moves = traced_rollout(process, self.sampler.policy, self.batch, self.draws, **exploration)
        self.log_pi = step_log_prob(process, self.states, moves)
        self.log_behaviour = step_log_prob(process, self.states, moves.detach(), **exploration)

    @torch.no_grad()
    def reference(self) -> None:
        """Score the paths under the prior."""
        self.log_ref = log_prob(self.sampler.process, self.sampler.reference, self.states)

    def loss(self) -> None:
        """Score the ends, and compute the loss and what the history keeps."""
        with torch.no_grad():
            log_reward = self.sampler.log_reward(self.states[:, -1])
        batch = Batch(self.log_pi, self.log_ref, log_reward, self.log_behaviour)
        self.value = self.objective.loss(batch, self.learned)
        with torch.no_grad():
            self.kept = [log_reward.mean().item(), batch.log_weights().mean().item(), self.learned[0].item()]

    def backward(self) -> None:
        """Take the gradient."""
        self.optimiser.zero_grad()
        self.value.backward()

    def adam(self) -> None:
        """Move the weights and log Z."""
        self.optimiser.step()


def block(size: Size, device: str, count: int) -> Block:
    """Return a block of so many steps: the mean seconds of each part."""
    parts = Parts(size, device)

    def run() -> dict[str, float]:
        steps = [parts.step() for _ in range(count)]
        return {name: mean(step[name] for step in steps) for name in PARTS}

    return run


if __name__ == "__main__":
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    serve(chosen, lambda: block(Size(*chosen.size), chosen.device, chosen.steps), {})
