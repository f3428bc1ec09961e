r"""Wishes about texts as finite automata, and the exact posterior of a prior that looks back a fixed number of letters.

A text is a row of tokens: one that begins it, its letters, one that ends it. Letters are 0 to A - 1; the token A
begins, ends and pads. An automaton reads the letters one by one and scores the text where it ends: that is log r(x).
What a prior of fixed context and an automaton know of an unfinished text is a node: its last letters, the automaton's
state and its length. The posterior p_ref(x) r(x)^beta / Z comes from a soft value for each node, by dynamic programming
from the longest texts backwards; expectations come forwards, by the share of texts at each node. Used in chapter
``names-with-a-wish``. Source: the soft Bellman equation, as in :mod:`companion.mdp`; the subset construction.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from companion.validation import check_generator, check_kind, check_number, check_positive_integers, check_tokens

_State = TypeVar("_State")

#: The letters of the book's texts.
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def encode(texts: Sequence[str], *, max_length: int, letters: str = LETTERS) -> Tensor:
    """Return texts as token rows, ``[texts, max_length + 2]``; too long a text, or other letters: ``ValueError``."""
    check_positive_integers(max_length=max_length)
    rows = torch.full((len(texts), max_length + 2), len(letters))
    for row, text in zip(rows, texts, strict=True):
        if len(text) > max_length or not set(text) <= set(letters):
            raise ValueError(f"A text is {text!r}; expected at most {max_length} of {letters!r}. Leave it out.")
        row[1 : len(text) + 1] = torch.tensor([letters.index(letter) for letter in text], dtype=torch.int64)
    return rows


def decode(tokens: Tensor, *, letters: str = LETTERS) -> list[str]:
    """Return the texts of rows of tokens, ``[texts, columns]``, up to the end; ``ValueError`` for a token beyond A."""
    check_tokens("tokens", tokens, len(letters) + 1)
    texts = []
    for row in tokens[:, 1:].tolist():
        end = row.index(len(letters)) if len(letters) in row else len(row)
        texts.append("".join(letters[token] for token in row[:end]))
    return texts


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic finite automaton over letters, with a score for each state that a text may end in.

    ``moves``, ``[states, letters]``, int64, has the state after each letter; every text begins in state 0.
    ``log_score``, ``[states]``, float64, is log r(x) of a text that ends there, -inf where r(x) = 0. Raises
    ``ValueError`` for moves to no state, or scores that do not fit them, or are NaN or +inf.
    """

    moves: Tensor
    log_score: Tensor

    def __post_init__(self) -> None:
        check_kind("moves", self.moves, Tensor)
        check_kind("log_score", self.log_score, Tensor)
        shape, states = tuple(self.moves.shape), len(self.log_score) if self.log_score.ndim == 1 else 0
        good = self.moves.dtype == torch.int64 and len(shape) == 2 and shape[0] == states > 0 and shape[1] > 0
        if not good or not 0 <= int(self.moves.min()) <= int(self.moves.max()) < states:
            expected = "int64 [states, letters], each entry a state, and a score for each state. Count states from 0."
            raise ValueError(f"moves is {self.moves.dtype} {shape} with {states} scores; expected {expected}")
        if self.log_score.dtype != torch.float64 or bool((self.log_score.isnan() | self.log_score.isposinf()).any()):
            raise ValueError("log_score is no float64, or NaN or +inf; expected finite values, or -inf. Mend it.")

    @property
    def letters(self) -> int:
        """A, the number of letters; also the token that begins and ends a text."""
        return self.moves.shape[1]

    @property
    def granted(self) -> Tensor:
        """Whether a text that ends in a state has the highest score there is, and r(x) > 0: bool ``[states]``."""
        return (self.log_score == self.log_score.max()) & ~self.log_score.isneginf()

    def states(self, tokens: Tensor) -> Tensor:
        """Return the state after each token, ``[rows, columns]``; A moves nothing; ``ValueError`` for one beyond."""
        check_tokens("tokens", tokens, self.letters + 1)
        found = accumulate(tokens.unbind(dim=1), self.after, initial=torch.zeros_like(tokens[:, 0]))
        return torch.stack([*found][1:], dim=1)

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the states after one more token each, ``[rows]``; what is no letter moves nothing."""
        moved = self.moves[states, tokens.clamp(max=self.letters - 1)]
        return torch.where(tokens < self.letters, moved, states)

    def log_reward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return log r(x) of rows of tokens, ``[rows]``, float64: a reward for a token sampler.

        ``lengths``, ``[rows]``, is the number of tokens of each row, with those that begin and end it: what stands
        beyond is not read. Raises ``ValueError`` as :meth:`states`, and for a text with another end than A.
        """
        states, last = self.states(tokens), lengths[:, None].long() - 1
        if bool(((ends := tokens.gather(1, last)) < self.letters).any()):
            raise ValueError(f"A text ends with token {ends.min()}; expected {self.letters}. Give a sampler that end.")
        return self.log_score[states.gather(1, last).squeeze(1)]

    def scored(self, hit: float, miss: float) -> "Automaton":
        """Return the automaton with log r(x) = ``hit`` where it grants the wish, ``miss`` elsewhere, in nats."""
        for name, value in (("hit", hit), ("miss", miss)):
            if value != -math.inf:
                check_number(name, value)
        return replace(self, log_score=torch.full_like(self.log_score, miss).masked_fill(self.granted, hit))


def contains(pattern: str, *, letters: str = LETTERS) -> Automaton:
    """Return the wish that a text contains a pattern; a dot is any letter. log r(x) is 0 there and -inf elsewhere."""
    return _of_pattern(pattern, letters, before=True, after=True)


def starts_with(pattern: str, *, letters: str = LETTERS) -> Automaton:
    """Return the wish that a text starts with a pattern: see :func:`contains`."""
    return _of_pattern(pattern, letters, before=False, after=True)


def ends_with(pattern: str, *, letters: str = LETTERS) -> Automaton:
    """Return the wish that a text ends with a pattern: see :func:`contains`."""
    return _of_pattern(pattern, letters, before=True, after=False)


def matches(pattern: str, *, letters: str = LETTERS) -> Automaton:
    """Return the wish that a whole text is of a pattern; dots alone ask for its length. See :func:`contains`."""
    return _of_pattern(pattern, letters, before=False, after=False)


def product(*automata: Automaton) -> Automaton:
    """Return the automaton that reads with all of these: rewards multiply; none, or other letters: ``ValueError``."""
    if not automata or len({automaton.letters for automaton in automata}) != 1:
        expected = "one or more of one. Make them anew."
        raise ValueError(f"automata are {len(automata)}, of several alphabets or none; expected {expected}")
    moves = [automaton.moves.tolist() for automaton in automata]

    def after(states: tuple[int, ...], letter: int) -> tuple[int, ...]:
        return tuple(table[state][letter] for table, state in zip(moves, states, strict=True))

    def score(states: tuple[int, ...]) -> float:
        return sum(a.log_score[s].item() for a, s in zip(automata, states, strict=True))

    return _built((0,) * len(automata), automata[0].letters, after, score)


def _of_pattern(pattern: str, letters: str, *, before: bool, after: bool) -> Automaton:
    """Subset construction: the state is the set of lengths to which the pattern is matched so far."""
    if not isinstance(pattern, str) or not pattern or not set(pattern) <= {*letters, "."}:
        raise ValueError(f"pattern is {pattern!r}; expected one or more of {letters!r} and dots. Spell it in these.")
    size = len(pattern)

    def step(state: frozenset[int], letter: int) -> frozenset[int]:
        moved = {i + 1 for i in state if i < size and pattern[i] in (".", letters[letter])}
        granted = after and size in state | moved  # whatever else is matched
        return frozenset({size} if granted else moved | ({0} if before else set()))

    return _built(frozenset({0}), len(letters), step, lambda state: 0.0 if size in state else -math.inf)


def _built(
    start: _State, letters: int, after: Callable[[_State, int], _State], score: Callable[[_State], float]
) -> Automaton:
    """The automaton of the states that are reached, numbered as they are found."""
    number, waiting, moves = {start: 0}, [start], []
    for state in waiting:  # it grows
        reached = [after(state, letter) for letter in range(letters)]
        waiting += [new for new in dict.fromkeys(reached) if new not in number]
        moves.append([number.setdefault(new, len(number)) for new in reached])
    return Automaton(torch.tensor(moves), torch.tensor([score(state) for state in number], dtype=torch.float64))


class Law(Protocol):
    """A law of texts that looks back a fixed number of letters, and may know the length and an automaton's state."""

    #: How many letters it looks back.
    order: int

    def table(self, length: int) -> Tensor:
        """Return log-probabilities of the next token after texts of ``length`` letters: ``[contexts, states, A + 1]``.

        Contexts are the last ``order`` letters, all there are where the text is shorter, in alphabetical order. Where
        the law does not look at the automaton's state, there is one column of states.
        """


class Posterior:
    """The exact posterior p_ref(x) r(x)^beta / Z over texts of at most ``max_length`` letters, itself a :class:`Law`.

    No gradient flows into the prior; after ``max_length`` letters a text ends for sure. The wish is an automaton, whose
    score is log r(x); ``beta`` is > 0. ``log_z`` is log Z, 0-d, float64. Raises ``ValueError`` for a prior whose tables
    have another shape or are not normalised, and for a wish that no text of the prior grants: log Z = -inf. Source:
    Nachum et al. (2017b).
    """

    def __init__(self, prior: Law, automaton: Automaton, *, max_length: int, beta: float = 1.0) -> None:
        check_kind("automaton", automaton, Automaton)
        check_positive_integers(max_length=max_length)
        check_number("beta", beta, above=0)
        self.prior, self.automaton, self.max_length, self.beta = prior, automaton, max_length, beta
        self.order, self._score = prior.order, beta * automaton.log_score
        contexts = automaton.letters ** min(max_length, prior.order)
        values = [self._score.expand(contexts, -1)]  # of the longest texts: all of them end
        for length in range(max_length - 1, -1, -1):
            values.insert(0, self._joint(length, values[0]).logsumexp(dim=2))
        self._values: list[Tensor] = values
        self.log_z = values[0][0, 0]
        if not bool(self.log_z.isfinite()):
            expected = f"a finite number: no text of the prior of at most {max_length} letters has a reward above 0"
            mend = "Wish for less, or have a miss scored above -inf."
            raise ValueError(f"log Z is {self.log_z.item()}; expected {expected}. {mend}")

    def table(self, length: int) -> Tensor:
        """Return log p* of the next token at each node of a length: ``[contexts, states, A + 1]``, nats.

        Nodes that no rewarded text goes through hold the prior's law. Raises ``ValueError`` beyond ``max_length - 1``.
        """
        check_number("length", length, at_least=0, at_most=self.max_length - 1)
        value = self._values[length][:, :, None]
        joint = self._joint(length, self._values[length + 1])
        return torch.where(value.isneginf(), _table(self.prior, self.automaton, length).detach(), joint - value)

    def values(self, tokens: Tensor) -> Tensor:
        """Return the soft value in nats, log of the mean of r^beta over the prior's ways to go on, after each token.

        ``tokens`` is ``[rows, columns]``, at most ``max_length + 2`` of them, and so is what is returned, float64: log
        Z after the first token, 0 from the end of a text on. In units of reward it is V*(s)/alpha. Raises
        ``ValueError`` for rows that do not begin with the token that begins, or hold more letters.
        """
        check_tokens("tokens", tokens, self.automaton.letters + 1)
        end, columns = self.automaton.letters, tokens.shape[1]
        ended = (tokens == end).cumsum(dim=1) > 1  # the first of them begins the text
        if columns > self.max_length + 2 or bool((tokens[:, 0] != end).any() | ~ended[:, self.max_length + 1 :].all()):
            expected = f"[rows, at most {self.max_length + 2}], the token {end} first"
            expected += f", and again after at most {self.max_length} letters. Encode the texts."
            raise ValueError(f"tokens is {tuple(tokens.shape)}; expected {expected}")
        found, node = torch.zeros(tokens.shape, dtype=torch.float64), torch.zeros_like(tokens[:, 0])
        for column in range(min(columns, self.max_length + 1)):
            if column:
                node = _after(node, tokens[:, column], self.automaton, len(self._values[column - 1]), self.order)
            found[:, column] = torch.where(ended[:, column], 0.0, self._values[column].reshape(-1)[node])
        return found

    def _joint(self, length: int, after: Tensor) -> Tensor:
        """log p_ref of each token plus the value that it leads to: ``[contexts, states, A + 1]``."""
        table = _table(self.prior, self.automaton, length).detach()
        ahead = after.reshape(-1)[_successors(self.automaton, len(table), self.order)]
        end = self._score.expand(len(table), -1)[:, :, None]
        return table + torch.cat([ahead, end], dim=2)


def flow(law: Law, automaton: Automaton, *, max_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each length, the share of texts at each node and the log-law there, to the longest texts.

    The shares are ``[contexts, states]``, the log-laws ``[contexts, states, A + 1]``; float64, with gradients. Raises
    ``ValueError`` for a law whose tables have another shape or are not normalised.
    """
    check_positive_integers(max_length=max_length)
    share = torch.zeros(1, len(automaton.moves), dtype=torch.float64)
    share[0, 0] = 1.0
    for length in range(max_length):
        table = _table(law, automaton, length)
        yield share, table
        index = _successors(automaton, len(table), law.order)
        contexts = automaton.letters ** min(length + 1, law.order)
        moved = (share[:, :, None] * table[:, :, :-1].exp()).reshape(-1)
        share = moved.new_zeros(contexts * share.shape[1]).index_add(0, index.reshape(-1), moved)
        share = share.reshape(contexts, -1)
    table = torch.full((*share.shape, automaton.letters + 1), -math.inf, dtype=torch.float64)
    table[:, :, -1] = 0.0
    yield share, table


def marginals(law: Law, automaton: Automaton, *, max_length: int) -> Tensor:
    """Return the probability of each token at each place of a text, ``[max_length + 1, A + 1]``, float64.

    Row t holds what follows the first t letters; its last column is the probability that the text has t letters.
    """
    nodes = flow(law, automaton, max_length=max_length)
    return torch.stack([(share[:, :, None] * table.exp()).sum(dim=(0, 1)) for share, table in nodes])


def kl_divergence(first: Law, second: Law, automaton: Automaton, *, max_length: int) -> Tensor:
    """Return KL(first, second) over texts, exactly: 0-d, float64, nats, with gradients; +inf where it is infinite.

    Both look back as many letters, or a ``ValueError``, and as :func:`flow`. Source: the chain rule, summed over nodes.
    """
    if first.order != second.order:
        raise ValueError(f"The laws look back {first.order} and {second.order} letters; expected as many. Pad one.")
    flows = (flow(law, automaton, max_length=max_length) for law in (first, second))
    total = torch.zeros((), dtype=torch.float64)
    for (share, log_p), (_, log_q) in zip(*flows, strict=True):
        p = share[:, :, None] * log_p.exp()
        gap = torch.where(p > 0, log_p - log_q, 0.0)  # not of the product, whose gradient would be 0 times infinity
        total = total + (p * gap).sum()
    return total


def granted(law: Law, automaton: Automaton, *, max_length: int) -> Tensor:
    """Return the probability that a text has the automaton's highest score: 0-d, float64, with gradients."""
    nodes = flow(law, automaton, max_length=max_length)
    return torch.stack([(share * table[:, :, -1].exp())[:, automaton.granted].sum() for share, table in nodes]).sum()


def sample(law: Law, automaton: Automaton, n: int, generator: torch.Generator, *, max_length: int) -> Tensor:
    """Draw ``n`` texts of a law, exactly: rows of tokens, ``[n, max_length + 2]``, int64."""
    check_positive_integers(n=n, max_length=max_length)
    check_generator(generator)
    end = automaton.letters
    tokens = torch.full((n, max_length + 2), end)
    node, alive = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    for length in range(max_length):
        table = _table(law, automaton, length)
        law_here = table.reshape(-1, end + 1)[node].exp()
        drawn = torch.multinomial(law_here, 1, generator=generator).squeeze(1)
        alive = alive & (drawn != end)
        tokens[:, length + 1] = torch.where(alive, drawn, end)
        node = _after(node, drawn, automaton, len(table), law.order)
    return tokens


def _table(law: Law, automaton: Automaton, length: int) -> Tensor:
    """A law's table, ``[contexts, states, A + 1]``, float64, and checked: its shape, and that every row is a law."""
    table = law.table(length).double()
    shape = (automaton.letters ** min(length, law.order), len(automaton.moves), automaton.letters + 1)
    if tuple(table.shape) not in (shape, (shape[0], 1, shape[2])):
        expected = f"[contexts, states, A + 1], {shape}, or one column of states"
        mend = "Give it the same alphabet and automaton."
        raise ValueError(f"The law's table after {length} letters is {tuple(table.shape)}; expected {expected}. {mend}")
    excess = table.logsumexp(dim=2).abs().max().item()
    if not excess < 1e-5:  # float32 laws are normalised to seven digits
        given = f"a log-probability of {excess:.3g} at some context of {length} letters"
        raise ValueError(f"The law sums to {given}; expected 0, to five digits. Take its log_softmax.")
    return table.expand(-1, shape[1], -1)


def _successors(automaton: Automaton, contexts: int, order: int) -> Tensor:
    """The number of the node that each letter leads to, ``[contexts, states, letters]``."""
    letters, states = automaton.letters, len(automaton.moves)
    kept = torch.remainder(torch.arange(contexts), letters ** (order - 1))  # of a shorter context, all of it
    context = kept[:, None] * letters + torch.arange(letters)
    return context[:, None, :] * states + automaton.moves[None]


def _after(node: Tensor, tokens: Tensor, automaton: Automaton, contexts: int, order: int) -> Tensor:
    """The number of the node after one more token of each row, ``[rows]``; after the end it means nothing."""
    letters = automaton.letters
    return _successors(automaton, contexts, order).reshape(-1, letters)[node, tokens.clamp(max=letters - 1)]
