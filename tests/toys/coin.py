"""A toy sampler: one bent coin, tossed until the first head or three times, with a behaviour of its own."""

from dataclasses import dataclass

import torch

from companion.plain import storable
from companion.samplers import Batch


@storable
@dataclass(frozen=True)
class Fairer:
    """A behaviour: the coin with its logit halved."""

    share: float = 0.5


class Coin:
    """A coin whose logit is trained; its reference is fair, and each tail is worth ``worth`` nats of log r."""

    def __init__(self, worth=1.0):
        self.logit, self.worth = torch.zeros((), dtype=torch.float64, requires_grad=True), worth

    def parameters(self):
        """The logit."""
        return [self.logit]

    def draw(self, n, generator, behaviour=None, iteration=0):
        """Toss; paths that end early are padded with zeros."""
        used = self.logit.detach() * (1 if behaviour is None else behaviour.share)
        heads = torch.rand(n, 3, generator=generator, dtype=torch.float64) < used.sigmoid()
        alive = torch.cat([torch.ones(n, 1, dtype=torch.bool), ~heads[:, :2]], dim=1).cumprod(dim=1).bool()

        def scored(logit):
            log_p = torch.where(heads, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
            return torch.where(alive, log_p, 0.0)

        tails = (alive & ~heads).sum(dim=1).double()
        fair = scored(torch.zeros_like(used))
        return Batch(scored(self.logit), fair, self.worth * tails, scored(used), steps=alive.sum(dim=1))
