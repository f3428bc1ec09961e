"""The network of the illustrative example, whose passes on whole paths are those of :mod:`companion.samplers.tape`."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import skip_init

from companion.records import read_arrays
from companion.samplers.diffusion import Process
from companion.samplers.tape import Tape
from companion.validation import check_finite, check_generator, check_positive_integers


class DriftNetwork(torch.nn.Module):
    """A drift to be trained: features of time and state, summed, through two hidden layers.

    Time enters as sines and cosines at ``width`` frequencies from 0.1 to 100, with learned phases, through two layers.
    ``width`` is also the number of hidden units; ``generator`` is the source of the initial weights. Source: Zhang and
    Chen (2022), as Venkatraman et al. (2024) use it. Used in chapter ``twenty-five-modes-to-nine``.
    """

    #: Of the sines and cosines of time, ``[width]``.
    frequencies: Tensor

    def __init__(self, process: Process, generator: torch.Generator, *, width: int = 64) -> None:
        check_generator(generator)
        check_positive_integers(width=width)
        super().__init__()
        self.process = process
        layer = partial(skip_init, torch.nn.Linear)  # torch's own initial weights come from global state
        self.register_buffer("frequencies", torch.linspace(0.1, 100.0, width))
        self.phases = torch.nn.Parameter(torch.randn(width, generator=generator))
        self.time = torch.nn.Sequential(layer(2 * width, width), torch.nn.GELU(), layer(width, width))
        self.state = layer(process.dim, width)
        gelu = torch.nn.GELU
        self.joint = torch.nn.Sequential(gelu(), layer(width, width), gelu(), layer(width, width), gelu())
        self.last = layer(width, process.dim)
        self._pool: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, torch.nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                for parameter in (module.weight, module.bias):
                    torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @classmethod
    def load(cls, process: Process, path: Path | str) -> "DriftNetwork":
        """Return the network of an npz file's weights, in its dtype; ``ValueError`` for others, or not finite."""
        arrays = read_arrays(path)
        phases = arrays.get("phases", np.empty(0))
        network = cls(process, torch.Generator(), width=max(1, phases.size))
        network.to(torch.float64 if phases.dtype == np.float64 else torch.float32)
        expected = {name: (tuple(value.shape), str(value.dtype)) for name, value in network.state_dict().items()}
        given = {name: (array.shape, f"torch.{array.dtype}") for name, array in arrays.items()}
        names = [name for name in expected | given if given.get(name) != expected.get(name)]
        if names:
            other = "; ".join(f"{name} {given.get(name)}, not {expected.get(name)}" for name in names)
            mend = "Pass the file of one, and the process that it was trained for."
            raise ValueError(f"{path} holds other weights: {other}; expected those of a DriftNetwork. {mend}")
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name, value in weights.items():
            check_finite(f"{path}: {name}", value, "Train the network again, or restore the file.")
        network.load_state_dict(weights)
        return network

    def forward(self, states: Tensor, times: Tensor) -> Tensor:
        """Return the drift at ``states``, ``[..., dim]``, and ``times``, broadcast; whole paths go in blocks."""
        if states.ndim == 3 and len(states) > 0 and times.shape == states.shape[1:2] and not states.requires_grad:
            tape = self.record(times, len(states))
            tape.run(states.transpose(0, 1))
            return tape.moves().transpose(0, 1)
        drift: Tensor = self.last(self.joint(self.state(states) + self._time_features(times)))
        return drift

    def record(self, times: Tensor, n: int) -> Tape:
        """Return an empty record of ``n`` paths at ``times``, ``[steps]``, to be filled step by step or at once."""
        first = self._time_features(times) + self.state.bias
        layers = [layer for layer in (self.state, *self.joint, self.last) if isinstance(layer, torch.nn.Linear)]
        return Tape(first, [layer.weight for layer in layers], [layer.bias for layer in layers[1:]], n, self._pool)

    def _time_features(self, times: Tensor) -> Tensor:
        angles = times[..., None] * self.frequencies + self.phases
        features: Tensor = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return features
