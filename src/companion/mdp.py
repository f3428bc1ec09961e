"""Finite-horizon problems with deterministic transitions, solved exactly: the ground truth of every other module.

A problem is a rooted, acyclic graph: a state is a node, an action the choice of an outgoing edge, and a path runs from
the root, state 0, to a state without outgoing edges. Each edge has a reward and a probability under the reference
policy. Values come from dynamic programming, expectations from a list of all paths; only :func:`draw` samples. Chapters
``a-sampler-is-a-policy`` and ``kl-regularised-rl``. Sources: Nachum et al. (2017a, 2017b) and Levine (2018).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from companion.validation import (
    check_generator,
    check_kind,
    check_law,
    check_number,
    check_positive_integers,
    check_tensor,
    check_weights,
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A rooted, acyclic graph with a reference policy and a reward on each edge; :func:`from_edges` builds one.

    Attributes:
        source: ``[edges]``, int64, ascending; the state each edge leaves. All lead to higher numbers; 0 is the root.
        target: ``[edges]``, int64; the state each edge enters.
        log_ref: ``[edges]``, nats; log pi_ref of each edge, normalised over the edges that leave a state.
        rewards: ``[edges]``; R of each edge, -inf where r(x) = 0.

    Raises ``ValueError`` for a graph that is cyclic, disconnected or has a double edge, a reference that is not
    normalised, or a reward that is NaN or +inf. Source: Deleu et al. (2025); chapter ``a-sampler-is-a-policy``.
    """

    source: Tensor
    target: Tensor
    log_ref: Tensor
    rewards: Tensor

    def __post_init__(self) -> None:
        _check_graph(self.source, self.target)
        self._check_edges("log_ref", self.log_ref)
        self._check_edges("rewards", self.rewards)
        if not bool(self.log_ref.isfinite().all()):
            raise ValueError("log_ref holds infinite or NaN values; expected finite ones. Leave impossible edges out.")
        if bool((self.rewards.isnan() | self.rewards.isposinf()).any()):
            raise ValueError("rewards hold NaN or +inf; expected finite values, or -inf where r(x) = 0. Mend them.")
        self._check_policy("log_ref", self.log_ref)

    @property
    def n_states(self) -> int:
        """Number of states."""
        return int(self.target.max()) + 1

    @cached_property
    def out_degree(self) -> Tensor:
        """Number of edges that leave each state, ``[states]``."""
        return torch.bincount(self.source, minlength=self.n_states)

    @cached_property
    def terminal(self) -> Tensor:
        """Whether each state ends a path, bool ``[states]``."""
        return self.out_degree == 0

    @property
    def terminals(self) -> Tensor:
        """The states x that end a path, ascending, ``[terminals]``."""
        return self.terminal.nonzero().squeeze(1)

    @cached_property
    def first_edge(self) -> Tensor:
        """Index of the first edge that leaves each state, ``[states]``; edges of one state are contiguous."""
        return self.out_degree.cumsum(0) - self.out_degree

    @cached_property
    def height(self) -> Tensor:
        """Longest distance of each state to an end, in steps, ``[states]``."""
        height = torch.zeros(self.n_states, dtype=torch.int64)
        while True:
            above = height.scatter_reduce(0, self.source, height[self.target] + 1, "amax")
            if torch.equal(above, height):
                return height
            height = above

    @cached_property
    def levels(self) -> list[Tensor]:
        """Edges grouped by the height of their source, lowest first: the order of backups."""
        by_height = self.height[self.source]
        return [(by_height == h).nonzero().squeeze(1) for h in range(1, int(self.height[0]) + 1)]

    @cached_property
    def arrivals(self) -> list[Tensor]:
        """Edges grouped by the height of their target, highest first: the order in which states are visited."""
        by_height = self.height[self.target]
        return [(by_height == h).nonzero().squeeze(1) for h in range(int(self.height[0]) - 1, -1, -1)]

    def with_reference(self, log_ref: Tensor) -> "Problem":
        """Return the problem with another reference policy, ``[edges]``, normalised. Raises ``ValueError``."""
        return replace(self, log_ref=log_ref)

    def with_rewards(self, rewards: Tensor) -> "Problem":
        """Return the problem with other rewards, ``[edges]``. Raises ``ValueError``."""
        return replace(self, rewards=rewards)

    def with_log_reward(self, log_reward: Tensor) -> "Problem":
        """Return the problem with log r(x), ``[terminals]``, on edges into x and 0 elsewhere. Raises ``ValueError``."""
        rule = f"floats, ({len(self.terminals)},), one entry per terminal state. Order it as problem.terminals."
        check_tensor("log_reward", log_reward, (len(self.terminals),), rule)
        by_state = torch.zeros(self.n_states, dtype=log_reward.dtype)
        by_state[self.terminals] = log_reward
        return replace(self, rewards=by_state[self.target])

    def _check_edges(self, name: str, value: Tensor) -> None:
        rule = f"floats, ({len(self.source)},), one entry per edge. Order it as problem.source and problem.target."
        check_tensor(name, value, (len(self.source),), rule)
        if value.dtype != self.log_ref.dtype:
            raise ValueError(f"{name} is {value.dtype}; expected {self.log_ref.dtype} as log_ref. Convert one of them.")

    def _check_policy(self, name: str, value: Tensor) -> None:
        self._check_edges(name, value)
        total = _logsumexp_by_source(self, value.detach())[~self.terminal]
        slack = 16 * torch.finfo(value.dtype).eps * (8 + self.out_degree[~self.terminal].sqrt())
        if not bool((total.abs() <= slack).all()):
            given = f"a log-probability of {total[total.abs().argmax()].item():.3g} at some state"
            mend = "Normalise it with companion.mdp.log_softmax."
            raise ValueError(f"{name} sums to {given}; expected 0 at each, to rounding. {mend}")


@dataclass(frozen=True, eq=False)
class Solution:
    """The exact solution: ``values``, V*(s), ``[states]``, in units of reward; ``log_policy``, ``[edges]``, in nats."""

    values: Tensor
    log_policy: Tensor


@dataclass(frozen=True, eq=False)
class Paths:
    """A list of complete paths, the shorter ones padded at their end.

    ``edges``, ``[paths, steps]``, int64, has the edge taken at each step, -1 past the end of a path; ``states``,
    ``[paths, steps + 1]``, int64, the states visited, the last one repeated past the end. Raises ``ValueError`` for
    another shape or dtype, and where something is looked up that has no entry for each edge, state or path.
    """

    edges: Tensor
    states: Tensor

    def __post_init__(self) -> None:
        check_tensor("edges", self.edges, (None, None), "int64, a row per path. Use enumerate_paths.", torch.int64, 0)
        shape = (len(self.edges), self.edges.shape[1] + 1)
        rule = f"int64, {shape}, a state more than edges in each row. Use enumerate_paths."
        check_tensor("states", self.states, shape, rule, torch.int64)

    @property
    def ends(self) -> Tensor:
        """The terminal state x of each path, ``[paths]``."""
        return self.states[:, -1]

    def per_step(self, by_edge: Tensor) -> Tensor:
        """Look up ``[edges]`` along the paths: ``[paths, steps]``, zero past the end. Keeps gradients."""
        _check_entries("by_edge", by_edge, self.edges)
        taken = self.edges >= 0
        return torch.where(taken, by_edge[self.edges.clamp(min=0)], by_edge.new_zeros(()))

    def per_state(self, by_state: Tensor) -> Tensor:
        """Look up ``[states]`` along the paths: ``[paths, steps + 1]``. Keeps gradients."""
        _check_entries("by_state", by_state, self.states)
        return by_state[self.states]

    def log_prob(self, log_policy: Tensor) -> Tensor:
        """Return log p(tau) of each path under a policy given as ``[edges]``: ``[paths]``, nats."""
        return self.per_step(log_policy).sum(dim=1)

    def select(self, index: Tensor) -> "Paths":
        """Return the paths at ``index``, ``[n]``, int64."""
        whole = isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1
        if not whole or not bool(((index >= 0) & (index < len(self))).all()):
            raise ValueError(f"index is {index!r}; expected [n], int64, of 0 to {len(self) - 1}. Draw from these.")
        return Paths(self.edges[index], self.states[index])

    def __len__(self) -> int:
        return len(self.edges)


def from_edges(edges: Sequence[tuple[int, int]], *, dtype: torch.dtype = torch.float64) -> Problem:
    """Return a problem with these edges, a uniform reference policy and no reward.

    ``edges`` are pairs (state, next state), each leading to a higher number, 0 being the root; they are sorted. Raises
    ``ValueError`` for a graph that is cyclic, disconnected or has a double edge.
    """
    pairs = isinstance(edges, list | tuple) and all(isinstance(edge, list | tuple) and len(edge) == 2 for edge in edges)
    if not pairs or not all(type(state) is int for edge in edges for state in edge):
        raise ValueError("An edge is no pair of integers; expected (state, next state) for each. Pass plain integers.")
    source, target = torch.tensor(sorted(edges), dtype=torch.int64).reshape(-1, 2).unbind(1)
    _check_graph(source, target)
    log_ref = -torch.bincount(source)[source].to(dtype).log()
    return Problem(source, target, log_ref, torch.zeros(len(source), dtype=dtype))


def tree(branching: int, steps: int) -> Problem:
    """Return a tree of ``branching`` actions in each state and ``steps`` steps: one path to each x.

    States are numbered level by level, so the edges of state s lead to ``branching * s + 1`` and the states after it.
    Uniform reference, no reward, float64. Raises ``ValueError`` unless both are positive integers.
    """
    check_positive_integers(branching=branching, steps=steps)
    inner = sum(branching**t for t in range(steps))
    return from_edges([(s, branching * s + action) for s in range(inner) for action in range(1, branching + 1)])


def lattice(steps: int) -> Problem:
    """Return the graph of ``steps`` binary moves, states being (time, ups); else as :func:`tree`."""
    check_positive_integers(steps=steps)

    def number(time: int, ups: int) -> int:
        return time * (time + 1) // 2 + ups

    return from_edges(
        [(number(t, u), number(t + 1, u + up)) for t in range(steps) for u in range(t + 1) for up in (0, 1)]
    )


def small_graph() -> Problem:
    """Return the running example: ten states, nine paths of two or three steps; uniform reference, no reward."""
    first = [(0, 1), (0, 2), (0, 3)]
    middle = [(1, 4), (1, 5), (2, 5), (2, 6), (3, 6), (3, 9)]
    return from_edges(first + middle + [(4, 7), (4, 8), (5, 8), (6, 8), (6, 9)])


def random_policy(problem: Problem, generator: torch.Generator) -> Tensor:
    """Return a random policy, ``[edges]``, nats: softmax of standard normal logits; ``ValueError`` for no generator."""
    check_generator(generator)
    check_kind("problem", problem, Problem)
    logits = torch.randn(len(problem.source), generator=generator, dtype=problem.log_ref.dtype)
    return log_softmax(problem, logits)


def randomise(problem: Problem, generator: torch.Generator, *, reward_scale: float = 1.0) -> Problem:
    """Return the problem with a random reference policy and normal rewards of that scale on every edge."""
    check_number("reward_scale", reward_scale, at_least=0)
    log_ref = random_policy(problem, generator)
    rewards = torch.randn(len(problem.source), generator=generator, dtype=log_ref.dtype)
    return replace(problem, log_ref=log_ref, rewards=reward_scale * rewards)


def log_softmax(problem: Problem, logits: Tensor) -> Tensor:
    """Return the policy ``[edges]`` with these logits ``[edges]``, normalised in each state. Keeps gradients.

    Raises ``ValueError`` for logits of another shape, NaN or +inf, or a state all of whose logits are -inf.
    """
    check_kind("problem", problem, Problem)
    problem._check_edges("logits", logits)
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ValueError("logits hold NaN or +inf; expected finite values, or -inf for an edge never taken. Mend them.")
    if bool((_logsumexp_by_source(problem, logits.detach())[~problem.terminal] == -math.inf).any()):
        raise ValueError("All logits of some state are -inf; expected one finite logit in each. Leave an edge open.")
    shifted = (
        logits - _max(logits, problem.source, problem.n_states)[problem.source]
    )  # first, so that large logits lose no digits
    return shifted - _logsumexp_by_source(problem, shifted)[problem.source]


def solve(problem: Problem, *, kl_weight: float, entropy_weight: float = 0.0, gamma: float = 1.0) -> Solution:
    """Return soft values and the optimal policy by backward induction.

    Args:
        problem: rewards may be -inf; of a state without a finite return the value is -inf, the policy the reference.
        kl_weight: lambda, the weight of the KL to the reference, >= 0.
        entropy_weight: eta, the weight of the entropy, >= 0; the two sum to alpha > 0.
        gamma: discount, ``0 < gamma <= 1``.

    Raises ``ValueError`` for a number out of range, or weights so small that rewards over them overflow. Source: Nachum
    et al. (2017b), the relative-entropy-regularised problem. Derived in chapter ``kl-regularised-rl``.
    """
    check_kind("problem", problem, Problem)
    check_weights(kl_weight, entropy_weight, gamma)
    alpha = kl_weight + entropy_weight
    values = torch.zeros(problem.n_states, dtype=problem.rewards.dtype)
    gains = torch.full_like(problem.rewards, -math.inf)
    for edges in problem.levels:
        source, target = problem.source[edges], problem.target[edges]
        gain = problem.rewards[edges] + gamma * values[target] + kl_weight * problem.log_ref[edges]
        backed_up = alpha * _logsumexp(gain / alpha, source, problem.n_states)
        states = source.unique()
        gains = gains.index_put((edges,), gain)
        values = values.index_put((states,), backed_up[states])
    if bool(((gains / alpha).isinf() & gains.isfinite()).any() | values.isnan().any()):
        raise ValueError(f"The weights sum to {alpha:g}; expected more, for rewards over it overflow. Raise kl_weight.")
    dead = values[problem.source].isneginf()
    log_policy = log_softmax(problem, torch.where(dead, problem.log_ref, gains / alpha))
    return Solution(values, log_policy)


def evaluate(
    problem: Problem, log_policy: Tensor, *, kl_weight: float, entropy_weight: float = 0.0, gamma: float = 1.0
) -> Tensor:
    """Return the regularised value of each state under a policy, ``[states]``, in units of reward: J is the root's.

    ``log_policy`` is ``[edges]``, normalised. Weights and discount as in :func:`solve`, but all weights may be zero,
    for the plain return. Source: Nachum et al. (2017b). Derived in chapter ``kl-regularised-rl``.
    """
    check_weights(kl_weight, entropy_weight, gamma, may_vanish=True)
    check_kind("problem", problem, Problem)
    problem._check_policy("log_policy", log_policy)
    used = log_policy.exp() > 0  # 0 log 0 = 0: an action never taken costs and earns nothing, whatever its reward
    log_pi = torch.where(used, log_policy, torch.zeros_like(log_policy))
    gains = problem.rewards - entropy_weight * log_pi - kl_weight * (log_pi - problem.log_ref)
    values = torch.zeros(problem.n_states, dtype=gains.dtype)
    for edges in problem.levels:
        source, taken = problem.source[edges], used[edges]
        backed_up = log_pi[edges].exp() * (gains[edges] + gamma * values[problem.target[edges]])
        values = values.index_add(0, source, torch.where(taken, backed_up, torch.zeros_like(backed_up)))
    return values


def enumerate_paths(problem: Problem, *, limit: int = 10_000_000) -> Paths:
    """Return every path from the root to a terminal state. Raises ``ValueError`` for more than ``limit`` of them."""
    check_positive_integers(limit=limit)
    total = count_paths(problem)
    if total > limit:
        expected = f"at most {limit}. Raise limit, or take a smaller one."
        raise ValueError(f"The problem has {total} paths; expected {expected}")
    edges = torch.empty(1, 0, dtype=torch.int64)
    states = torch.zeros(1, 1, dtype=torch.int64)
    for _ in problem.levels:
        last = states[:, -1]
        width = problem.out_degree[last].clamp(min=1)
        parent = torch.arange(len(last)).repeat_interleave(width)
        rank = torch.arange(len(parent)) - (width.cumsum(0) - width)[parent]
        ended = problem.terminal[last[parent]]
        edge = torch.where(ended, -1, problem.first_edge[last[parent]] + rank)
        state = torch.where(ended, last[parent], problem.target[edge.clamp(min=0)])
        edges = torch.cat([edges[parent], edge[:, None]], dim=1)
        states = torch.cat([states[parent], state[:, None]], dim=1)
    return Paths(edges, states)


def count_paths(problem: Problem) -> int:
    """Return the number of paths from the root to a terminal state. Raises ``ValueError`` beyond 2^53."""
    return int(path_counts(problem)[problem.terminals].sum())


def path_counts(problem: Problem) -> Tensor:
    """Return n(s), the number of paths from the root to each state, ``[states]``, int64; ``ValueError`` beyond 2^53."""
    check_kind("problem", problem, Problem)
    counts = torch.zeros(problem.n_states, dtype=torch.float64)
    counts[0] = 1
    for edges in reversed(problem.levels):
        counts = counts.index_add(0, problem.target[edges], counts[problem.source[edges]])
    if bool(counts[problem.terminals].sum() > 2**53):
        raise ValueError(f"There are about {float(counts.max()):.1g} paths; expected at most 2^53. Shrink the problem.")
    return counts.long()


def visit_log_prob(problem: Problem, log_policy: Tensor) -> Tensor:
    """Return log p(s), that a path of this policy visits each state: ``[states]``, nats; log p(x) at the ends."""
    check_kind("problem", problem, Problem)
    problem._check_policy("log_policy", log_policy)
    visits = torch.zeros(problem.n_states, dtype=log_policy.dtype)
    for edges in problem.arrivals:
        target = problem.target[edges]
        arriving = visits[problem.source[edges]] + log_policy[edges]
        states = target.unique()
        visits = visits.index_put((states,), _logsumexp(arriving, target, problem.n_states)[states])
    return visits


def marginal(problem: Problem, paths: Paths, log_prob: Tensor) -> Tensor:
    """Return the probability of each terminal state, summed over the paths that lead there, ``[terminals]``.

    ``log_prob`` is ``[paths]``, nats, for all paths of the problem, and sums to probability 1. The result is in the
    order of :attr:`Problem.terminals`. Raises ``ValueError`` for another shape, no law, or paths of another problem.
    """
    check_kind("problem", problem, Problem)
    _check_law("log_prob", log_prob, paths)
    if bool((paths.ends >= problem.n_states).any()) or not bool(problem.terminal[paths.ends].all()):
        raise ValueError("A path ends where the problem goes on; expected its own paths. List them again.")
    by_state = torch.zeros(problem.n_states, dtype=log_prob.dtype).index_add(0, paths.ends, log_prob.exp())
    return by_state[problem.terminals]


def expectation(values: Tensor, log_behaviour: Tensor) -> Tensor:
    """Return the exact mean of a quantity over all paths, ``sum(exp(log_behaviour) * values)``. Keeps gradients.

    ``values`` is ``[paths]`` or ``[paths, ...]``; ``log_behaviour``, ``[paths]``, nats, is the law of the paths, and
    sums to probability 1. Raises ``ValueError`` for shapes that do not fit, what is no law, or values without a mean.
    """
    check_kind("values", values, Tensor)
    _check_law("log_behaviour", log_behaviour)
    if values.shape[:1] != log_behaviour.shape or values.dtype != log_behaviour.dtype:
        expected = f"[paths, ...] of {log_behaviour.dtype}, paths being {len(log_behaviour)}. List all paths in both."
        raise ValueError(f"values is {tuple(values.shape)} {values.dtype}; expected {expected}")
    law = log_behaviour.exp()
    possible = (law > 0).reshape(-1, *[1] * (values.ndim - 1))  # 0 times infinity is 0: the path never happens
    mean: Tensor = torch.tensordot(law, torch.where(possible, values, torch.zeros_like(values)), dims=1)
    if bool(mean.isnan().any()):
        raise ValueError("values hold NaN, or infinities of both signs; expected a mean. Mend what they come from.")
    return mean


def draw(paths: Paths, log_behaviour: Tensor, n: int, generator: torch.Generator) -> Paths:
    """Draw ``n`` paths with replacement from a law over all, ``[paths]``, nats; ``ValueError`` as :func:`marginal`."""
    check_positive_integers(n=n)
    check_generator(generator)
    _check_law("log_behaviour", log_behaviour, paths)
    return paths.select(torch.multinomial(log_behaviour.exp(), n, replacement=True, generator=generator))


def enumerate_batches(log_behaviour: Tensor, size: int, *, limit: int = 1_000_000) -> tuple[Tensor, Tensor]:
    """Return every ordered batch of ``size`` paths drawn with replacement, and its log-probability.

    ``log_behaviour``, ``[paths]``, nats, is the law of one path; ``limit`` is the most entries, batches times size, to
    list. Returns ``[batches, size]``, int64, for :meth:`Paths.select`; and ``[batches]``, nats, of which
    :func:`expectation` makes the exact mean of what is computed from a batch. Keeps gradients. Raises ``ValueError``
    for what is no law, no positive size, or too many batches. Used in chapter ``on-policy-rtb-is-reinforce``.
    """
    check_positive_integers(size=size, limit=limit)
    _check_law("log_behaviour", log_behaviour)
    if math.log(size) + size * math.log(len(log_behaviour)) > math.log(limit) + 1e-9:
        expected = f"at most {limit} entries. Raise limit, or take smaller batches."
        raise ValueError(f"There are {len(log_behaviour)}^{size} batches of {size}; expected {expected}")
    everyone = torch.arange(len(log_behaviour))
    index = torch.cartesian_prod(*[everyone] * size).reshape(-1, size)
    return index, log_behaviour[index].sum(dim=1)


def _logsumexp(values: Tensor, group: Tensor, size: int) -> Tensor:
    """Log-sum-exp of ``values`` within each group, ``[size]``, -inf where a group is empty. Keeps gradients."""
    shift = _max(values, group, size)
    total = torch.zeros_like(shift).index_add(0, group, (values - shift[group]).exp())
    return total.log() + shift


def _max(values: Tensor, group: Tensor, size: int) -> Tensor:
    """Largest of ``values`` within each group, ``[size]``, 0 where there is no finite one. Detached."""
    most = values.detach().new_full((size,), -math.inf).scatter_reduce(0, group, values.detach(), "amax")
    return torch.where(most.isfinite(), most, torch.zeros_like(most))


def _logsumexp_by_source(problem: Problem, by_edge: Tensor) -> Tensor:
    return _logsumexp(by_edge, problem.source, problem.n_states)


def _check_entries(name: str, value: Tensor, index: Tensor) -> None:
    needed = int(index.max()) + 1 if index.numel() else 0
    if not isinstance(value, Tensor) or value.ndim != 1 or len(value) < needed:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        expected = f"a tensor of at least {needed} entries, one for each of the problem"
        mend = "Order it as the problem has them."
        raise ValueError(f"{name} is {given}; expected {expected}. {mend}")


def _check_law(name: str, log_prob: Tensor, paths: Paths | None = None) -> None:
    if paths is not None:
        check_kind("paths", paths, Paths)
    size = None if paths is None else len(paths)
    check_tensor(name, log_prob, (size,), f"floats, [{size or 'paths'}], one entry per path. Pass the law of all.")
    law = log_prob.detach().exp()
    largest = log_prob.detach()[law > 0].abs().max() if bool((law > 0).any()) else torch.ones(())
    check_law(name, law, (64 + len(law)) * torch.finfo(law.dtype).eps * max(1.0, float(largest)))


def _check_graph(source: Tensor, target: Tensor) -> None:
    check_tensor("source", source, (None,), "int64 [edges], not empty. Use from_edges.", torch.int64)
    rule = f"int64 ({len(source)},), as source. Give each edge once in both."
    check_tensor("target", target, (len(source),), rule, torch.int64)
    if bool((source < 0).any()) or bool((target <= source).any()):
        raise ValueError("An edge does not lead to a higher number; expected source < target. Renumber the states.")
    if bool((source.diff() < 0).any()):
        raise ValueError("source is not in ascending order; expected the edges of a state together. Use from_edges.")
    if len(torch.unique(source * (int(target.max()) + 1) + target)) < len(source):
        raise ValueError("Two edges join the same states; expected one: an action is the choice of the next state.")
    orphans = sorted(set(range(1, int(target.max()) + 1)) - set(target.tolist()))
    if orphans:
        raise ValueError(f"No edge leads to state {orphans[0]}; expected every state but the root reached. Renumber.")
