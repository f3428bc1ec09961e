"""Inputs of the tests: generators, small tensors, batches of padded paths, random problems; how results agree."""

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from companion import mdp

#: Rounding allowed, in eps of the size of the terms: up to ten terms a path, each rounded a few times.
ROUNDINGS = 16
EPS = torch.finfo(torch.float64).eps


def tensor(values, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers as a tensor, float64 unless said otherwise."""
    return torch.tensor(values, dtype=dtype)


def parameter(values) -> Tensor:
    """Return numbers as a float64 tensor that requires a gradient."""
    return tensor(values).requires_grad_()


def in_one_line(value) -> str:
    """Return a value as the name of a case. What pytest would escape, it escapes twice when it collects twice."""
    return " ".join(str(value).replace("\\", "/").split())


def generator(seed: int) -> torch.Generator:
    """Return a generator of its own for this seed."""
    return torch.Generator().manual_seed(seed)


def assert_agree(ours, expected, size, dtype: torch.dtype = torch.float64, *, roundings: int = ROUNDINGS) -> None:
    """Assert that two results differ nowhere by more than ``roundings`` eps of the size of their terms."""
    ours, expected, size = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, expected, size))
    assert ours.shape == expected.shape
    assert bool(ours.isfinite().all())
    tolerance = roundings * torch.finfo(dtype).eps * size
    gap = (ours - expected).abs()
    assert bool((gap <= tolerance).all()), f"they differ by {gap.max():.3g}, beyond {tolerance.max():.3g}"


def agree(left: torch.Tensor, right, *, scale: float = 1.0) -> bool:
    """Whether a tensor and numbers agree to rounding, given the size of the terms; equal infinities agree."""
    left, right = left.detach(), torch.as_tensor(right, dtype=torch.float64).detach()
    assert left.shape == right.shape
    gap = torch.where(left == right, 0.0, (left - right).abs())
    finite = right[right.isfinite()]
    size = scale + (float(finite.abs().max()) if len(finite.reshape(-1)) else 0.0)
    return bool((gap <= 64 * EPS * size).all())


@dataclass(frozen=True)
class Batch:
    """A batch of padded paths: log-probabilities and rewards at real steps, zero past each path's end."""

    log_pi: Tensor
    log_ref: Tensor
    rewards: Tensor
    values: Tensor
    log_z: Tensor
    lengths: Tensor
    alpha: float

    @property
    def dtype(self) -> torch.dtype:
        return self.log_pi.dtype

    @property
    def log_reward(self) -> Tensor:
        return self.rewards.sum(dim=1)

    def size(self) -> Tensor:
        """alpha (|log Z| + sum |log_pi| + sum |log_ref|) + sum |R|, per path, float64."""
        logs = self.log_pi.double().abs().sum(1) + self.log_ref.double().abs().sum(1)
        return self.alpha * (self.log_z.double().abs() + logs) + self.rewards.double().abs().sum(1)


@st.composite
def batches(draw, min_batch: int = 1) -> Batch:
    """Draw a batch: any small shape, both dtypes, alpha from 1e-3 to 1e3, log-probabilities down to -1e4."""
    seed = draw(st.integers(0, 2**31))
    batch, steps = draw(st.integers(min_batch, 6)), draw(st.integers(1, 8))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    alpha = 10 ** draw(st.floats(-3, 3))
    depth = 10 ** draw(st.floats(-2, 4))
    spread = 10 ** draw(st.floats(-1, 3))
    random = generator(seed)
    lengths = torch.randint(1, steps + 1, (batch,), generator=random)
    lengths[0] = steps
    taken = torch.arange(steps) < lengths[:, None]
    uniform = torch.rand(2, batch, steps, generator=random, dtype=torch.float64)
    log_pi, log_ref = (-depth * uniform.where(taken, 0.0)).to(dtype)
    rewards = (spread * torch.randn(batch, steps, generator=random, dtype=torch.float64)).where(taken, 0.0).to(dtype)
    inner = torch.arange(steps + 1) < lengths[:, None]
    values = torch.randn(batch, steps + 1, generator=random, dtype=torch.float64)
    values = (spread * values).where(inner, 0.0).to(dtype)
    log_z = (depth * torch.randn((), generator=random, dtype=torch.float64)).to(dtype)
    return Batch(log_pi, log_ref, rewards, values, log_z, lengths, alpha)


#: Settings of the property tests: the same examples on every run, few enough to be quick.
PROPERTY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)


def random_graph(seed: int, *, states: int = 7) -> mdp.Problem:
    """Return a random graph in which some states have several parents and paths differ in length.

    The reference and the per-step rewards are random.
    """
    random = generator(seed)
    edges = {(int(torch.randint(state, (), generator=random)), state) for state in range(1, states)}
    extra = torch.rand(states, states, generator=random) < 0.4
    edges |= {(s, t) for s in range(states) for t in range(s + 1, states) if extra[s, t]}
    return mdp.randomise(mdp.from_edges(list(edges)), random)


def random_dag(states: int, draws: torch.Generator, *, density: float = 0.3) -> mdp.Problem:
    """Return a random graph on that many states: each has a parent, edges are added, lengths vary."""
    coin = torch.rand(states, states, generator=draws)
    edges = {(int(coin[s, 0] * s), s) for s in range(1, states)}
    edges |= {(s, t) for s in range(states // 2) for t in range(s + 1, states) if coin[s, t] < density}
    return mdp.from_edges(sorted(edges | {(0, 1), (1, states - 1), (0, states - 1)}))


def problems(seed: int) -> dict[str, mdp.Problem]:
    """Return one randomised problem of each shape."""
    draws = generator(seed)
    shapes = {"tree": mdp.tree(3, 3), "lattice": mdp.lattice(4), "dag": random_dag(10, draws)}
    return {name: mdp.randomise(problem, draws) for name, problem in shapes.items()}


def along(problem: mdp.Problem, policy: Tensor) -> tuple[mdp.Paths, Tensor, Tensor, Tensor]:
    """Return all paths, and the log-probabilities, references and rewards of their steps."""
    paths = mdp.enumerate_paths(problem)
    return paths, *(paths.per_step(x) for x in (policy, problem.log_ref, problem.rewards))
