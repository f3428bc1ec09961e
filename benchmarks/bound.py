"""What a training step cannot be faster than: its arithmetic, counted, at the speed at which torch does it.

Three passes of the network over every state of every path are needed, for the residual and its gradient: the policy
forward, the prior forward, and a backward pass, which costs nearly two forward ones. Their matrix products and GELUs
are counted from the sizes of the layers. How fast torch multiplies and applies GELU is measured on arrays of the shapes
that the passes work on: one step of all paths for the policy, which must sample, and larger blocks for the rest.
Everything else (bias, noise, densities, loss, memory, Python, Adam) is taken to be free.

python -m benchmarks.bound [--threads N] [--device cuda] [--size T BATCH WIDTH]
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.worker import Block, Size, parser, seconds_per_step, serve
from companion.samplers.tape import BLOCK_ROWS

#: Times that each operation is measured in a block, of which the fastest counts, and rows that each measurement covers.
REPEATS, ROWS = 8, 40_000

_gelu, _gelu_backward = torch.ops.aten.gelu, torch.ops.aten.gelu_backward


@dataclass(frozen=True)
class Layer:
    """A linear layer, as it is applied in one pass.

    Attributes:
        rows: how many inputs it is applied to.
        inputs: numbers in an input.
        outputs: numbers in an output.
        input_gradient: whether the backward pass goes on to what is before the layer.
    """

    rows: int
    inputs: int
    outputs: int
    input_gradient: bool = True

    @property
    def flops(self) -> int:
        """Floating-point operations of the product: a multiplication and an addition for each weight and row."""
        return 2 * self.rows * self.inputs * self.outputs


def layers(size: Size, dim: int = 2, *, time_per_state: bool = False) -> list[Layer]:
    """Return the linear layers of the network: two over the times, the rest over the states of all paths.

    With ``time_per_state`` the layers over times are applied at every state, as by a network whose input is both.
    """
    states, width = size.steps * size.batch, size.width
    times = states if time_per_state else size.steps
    # The phases are learned, so the gradient goes on before the first layer over times; states are constants.
    over_times = [Layer(times, 2 * width, width), Layer(times, width, width)]
    first = Layer(states, dim, width, input_gradient=False)
    return [*over_times, first, Layer(states, width, width), Layer(states, width, width), Layer(states, width, dim)]


def flops(size: Size, dim: int = 2) -> dict[str, int]:
    """Return the floating-point operations of the matrix products of each pass."""
    forward = sum(layer.flops for layer in layers(size, dim))
    inputs = sum(layer.flops for layer in layers(size, dim) if layer.input_gradient)
    return {"policy": forward, "prior": forward, "backward": forward + inputs}


def torchgfn_flops(size: Size, dim: int = 2) -> dict[str, int]:
    """Return the same for torchgfn's example, which scores the policy's paths afresh and has time at every state."""
    each = layers(size, dim, time_per_state=True)
    forward = sum(layer.flops for layer in each)
    inputs = sum(layer.flops for layer in each if layer.input_gradient)
    return {"sampling": forward, "policy": forward, "prior": forward, "backward": forward + inputs}


def activations(size: Size) -> int:
    """Return the numbers that pass through a GELU in one pass: one layer over times, three over states."""
    return size.width * (size.steps + 3 * size.steps * size.batch)


def least_seconds(size: Size, measured: dict[str, float]) -> dict[str, float]:
    """Return the least time of each pass, given what :func:`speeds` measured."""
    work, numbers = flops(size), activations(size)
    by_step = work["policy"] / measured["flops/s, one step"] + numbers * measured["gelu s, one step"]
    in_blocks = work["prior"] / measured["flops/s, blocks"] + numbers * measured["gelu s, blocks"]
    backward = work["backward"] / measured["flops/s, blocks"] + numbers * measured["gelu backward s, blocks"]
    return {"policy": by_step, "prior": in_blocks, "backward": backward}


@torch.no_grad()
def speeds(size: Size, device: str) -> dict[str, float]:
    """Measure operations per second of a matrix product, and seconds per number of GELU and of its backward pass."""
    # On a GPU the package makes one block of everything.
    in_block = BLOCK_ROWS * torch.get_num_threads() if device == "cpu" else size.steps * size.batch
    found = {"rows, blocks": in_block}
    for shape, rows in (("one step", size.batch), ("blocks", in_block)):
        before, after, gradient = (torch.randn(rows, size.width, device=device) for _ in range(3))
        weight = torch.randn(size.width, size.width, device=device)
        numbers, product = rows * size.width, Layer(rows, size.width, size.width).flops
        multiply = _fastest(partial(torch.mm, before, weight, out=after), rows, device)
        gelu = _fastest(partial(_gelu.out, before, out=after), rows, device)
        found |= {f"flops/s, {shape}": product / multiply, f"gelu s, {shape}": gelu / numbers}
        if shape == "blocks":
            back = _fastest(partial(_gelu_backward.grad_input, gradient, before, grad_input=after), rows, device)
            found[f"gelu backward s, {shape}"] = back / numbers
    return found


def block(size: Size, device: str) -> Block:
    """Return a block that measures the speeds, and the least time of a step at these speeds."""

    def run() -> dict[str, float]:
        measured = speeds(size, device)
        least = least_seconds(size, measured)
        return measured | least | {"step": sum(least.values())}

    return run


def _fastest(call: Callable[[], object], rows: int, device: str) -> float:
    count = max(1, ROWS // rows)
    return min(seconds_per_step(call, count, device) for _ in range(REPEATS))


if __name__ == "__main__":
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    serve(chosen, lambda: block(Size(*chosen.size), chosen.device), {})
