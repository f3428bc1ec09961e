"""How the network of the illustrative example is made fast: one pass in blocks that stay in the cache.

Whole batches of paths make arrays that no cache holds; single steps make calls too short to be worth their overhead. So
what runs on every state is written here once, forward and backward, over blocks of steps: a rollout fills them step by
step and the backward pass reads them, so that no state is evaluated twice. The page on speed measures it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Rows of one block on one thread, 1.3 MB for an array of 64 columns in float32: the size found fastest.
BLOCK_ROWS = 5000

_gelu = torch.ops.aten.gelu
_gelu_backward = torch.ops.aten.gelu_backward


class Tape:
    """One pass of the network over the steps of ``n`` paths: what went in, what came out, and what is between.

    Args:
        first: ``[steps, width]``; what time, and the bias, add to the first layer at each step.
        weights, biases: of the four layers, ``[out, in]`` each; of all layers but the first.
        pool: where the memory of passes that are over is kept, to be used again: fresh memory costs more than a pass.

    For gradients it holds six arrays of ``[steps, n, width]``, which the backward pass gives back: it runs once.
    """

    def __init__(self, first: Tensor, weights: list[Tensor], biases: list[Tensor], n: int, pool: list[Tensor]) -> None:
        self.inputs = (first, *weights, *biases)
        self.keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.inputs)
        first, *rest = (tensor.detach() for tensor in self.inputs)
        self.first, self.weights, self.biases = first, rest[:4], rest[4:]
        self.transposed = [weight.t() for weight in self.weights]
        (steps, width), dim = first.shape, self.weights[0].shape[1]
        threads = torch.get_num_threads()
        self.per_block = max(1, BLOCK_ROWS * threads // n) if first.device.type == "cpu" else steps
        self._take(pool, (6, steps if self.keep else min(steps, self.per_block), n, width))
        self.visited: list[Tensor] = []
        self.out = first.new_empty(steps, n, dim)
        self.out_rows, self.first_rows = self.out.unbind(), self.first.unbind()

    def step(self, k: int, state: Tensor) -> Tensor:
        """Fill step ``k`` at ``state``, ``[n, dim]``; return the drift there; ``ValueError`` unless it is the next."""
        if k != len(self.visited):
            raise ValueError(f"k is {k}; expected {len(self.visited)}, the next step. Take the steps in their order.")
        before, after = self.pairs[k if self.keep else 0]
        self.visited.append(state)
        out = self.out_rows[k]
        torch.addmm(self.first_rows[k], state, self.transposed[0], out=before[0])
        self._layers(before, after, out)
        return out

    @torch.no_grad()
    def run(self, states: Tensor) -> None:
        """Fill all steps at ``states``, ``[steps, n, dim]``."""
        self.states = states.detach()
        for begin in range(0, len(states), self.per_block):
            block = self.states[begin : begin + self.per_block]
            span = slice(begin, begin + len(block)) if self.keep else slice(len(block))
            before, after = ([_rows(array[span]) for array in arrays] for arrays in (self.before, self.after))
            inner = before[0].view(*block.shape[:2], -1)
            torch.matmul(block, self.transposed[0], out=inner).add_(self.first[begin : begin + len(block), None])
            self._layers(before, after, _rows(self.out[begin : begin + len(block)]))

    def moves(self) -> Tensor:
        """Return the drift at every step, ``[steps, n, dim]``, with its gradients."""
        if self.visited:
            self.states = torch.stack(self.visited)
        if self.keep:
            moves: Tensor = _FromTape.apply(self, *self.inputs)  # type: ignore[no-untyped-call]
            return moves
        self._give_back()
        return self.out

    def _take(self, pool: list[Tensor], shape: tuple[int, ...]) -> None:
        kept = pool.pop() if pool else None
        like = (shape, self.first.dtype, self.first.device)
        if kept is None or (kept.shape, kept.dtype, kept.device) != like:
            kept = self.first.new_empty(shape)
        self.pool, self.arrays, self.spent = pool, kept, False
        self.before, self.after = self.arrays[:3], self.arrays[3:]
        steps = [array.unbind() for array in self.arrays]
        # For each step what goes into the three activations, and what comes out of them.
        self.pairs = list(zip(zip(*steps[:3], strict=True), zip(*steps[3:], strict=True), strict=True))

    def _give_back(self) -> None:
        # Torch lets nothing write to memory of its inference mode outside that mode.
        self.pool[:] = [] if self.arrays.is_inference() else [self.arrays]
        self.arrays = self.before = self.after = self.first.new_empty(0)
        self.pairs, self.spent = [], True

    def _layers(self, before: Sequence[Tensor], after: Sequence[Tensor], out: Tensor) -> None:
        """Run what follows the first layer, rows of states at a time, into the memory given."""
        for layer, into in enumerate((before[1], before[2], out)):
            _gelu.out(before[layer], out=after[layer])
            torch.addmm(self.biases[layer], after[layer], self.transposed[layer + 1], out=into)

    @torch.no_grad()
    def gradients(self, grad: Tensor) -> list[Tensor]:
        """Return the inputs' gradients, given the drifts', ``[steps, n, dim]``: once, or it raises ``RuntimeError``."""
        if self.spent:
            raise RuntimeError("The gradient of these drifts was taken already; expected once. Draw the paths anew.")
        first, *rest = (torch.zeros_like(tensor) for tensor in self.inputs)
        weights, biases = rest[:4], rest[4:]
        # Summed the other way round: a thin product with two columns is slow, one with two rows is not.
        turned = torch.zeros_like(self.transposed[0], memory_format=torch.contiguous_format)
        for begin in range(0, len(grad), self.per_block):
            span = slice(begin, begin + self.per_block)
            flow = grad[span].reshape(-1, grad.shape[2])
            for layer in (2, 1, 0):
                before, after = _rows(self.before[layer][span]), _rows(self.after[layer][span])
                weights[layer + 1].addmm_(flow.t(), after)
                biases[layer].add_(flow.sum(dim=0))
                # What a block has been read for may be written over: new memory would cost more than the arithmetic.
                through = torch.mm(flow, self.weights[layer + 1], out=after)
                flow = _gelu_backward.grad_input(through, before, grad_input=before)
            states = self.states[span]
            turned.addmm_(states.reshape(-1, states.shape[2]).t(), flow)
            first[span] = flow.view(*states.shape[:2], -1).sum(dim=1)
        self._give_back()
        weights[0] = turned.t()
        return [first, *weights, *biases]


class _FromTape(torch.autograd.Function):
    """Ties the drifts that a tape holds to the network's weights."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *inputs: Tensor) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(tape.states, *inputs)
        return tape.out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # torch refuses it where states or weights were written over in between
        return None, *ctx.tape.gradients(grad)


def _rows(array: Tensor) -> Tensor:
    return array.view(-1, array.shape[-1])
