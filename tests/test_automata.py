"""Wishes as automata and the exact posterior, against lists of every text; the network whose law can be listed.

The oracle writes texts out as strings and adds up their probabilities: it knows no node, and no context as a number.
"""

import itertools
import math
import random
import re
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import PROPERTY, agree, generator, tensor
from oracles import log_sum_exp
from torch import Tensor

from companion import automata
from companion.samplers.contexts import ContextNetwork

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SOME = settings(PROPERTY, max_examples=40)
NEVER = -math.inf


def words(letters: str, most: int) -> list[str]:
    """Every text of at most so many letters, the empty one first."""
    return ["".join(text) for n in range(most + 1) for text in itertools.product(letters, repeat=n)]


@dataclass(frozen=True)
class ListedLaw:
    """A random law: by a text's length, its last letters and, where it looks at it, the automaton's state.

    ``zeros`` is the probability that a token has probability zero.
    """

    letters: str
    order: int
    seed: int
    states: int | None = None
    zeros: float = 0.0

    def row(self, text: str, state: int) -> list[float]:
        """The log-probabilities of each letter, and of the end, after a text."""
        seen = (self.seed, len(text), text[-self.order :], None if self.states is None else state)
        draws = random.Random(repr(seen))
        weights = [draws.random() if draws.random() >= self.zeros else 0.0 for _ in (*self.letters, "end")]
        weights = weights if any(weights) else [1.0] * len(weights)
        return [math.log(weight / math.fsum(weights)) if weight else NEVER for weight in weights]

    def table(self, length: int) -> Tensor:
        """The same as the package asks for it; letters before the context do not matter."""
        known = itertools.product(self.letters, repeat=min(length, self.order))
        texts = ["".join(context).rjust(length, self.letters[0]) for context in known]
        return tensor([[self.row(text, state) for state in range(self.states or 1)] for text in texts])


@dataclass(frozen=True)
class Case:
    """A prior, an automaton and a temperature; and what they mean, added up text by text."""

    law: ListedLaw
    moves: list[list[int]]
    scores: list[float]
    max_length: int
    beta: float

    @property
    def automaton(self) -> automata.Automaton:
        return automata.Automaton(torch.tensor(self.moves), tensor(self.scores))

    @property
    def posterior(self) -> automata.Posterior:
        return automata.Posterior(self.law, self.automaton, max_length=self.max_length, beta=self.beta)

    @cached_property
    def texts(self) -> list[str]:
        return words(self.law.letters, self.max_length)

    @property
    def tokens(self) -> Tensor:
        return automata.encode(self.texts, max_length=self.max_length, letters=self.law.letters)

    def state(self, text: str) -> int:
        """The state after the letters of a text."""
        state = 0
        for letter in text:
            state = self.moves[state][self.law.letters.index(letter)]
        return state

    def log_prior(self, text: str, begun: str = "", law: ListedLaw | None = None) -> float:
        """log-probability that what was begun goes on to this text and ends; the longest end for sure."""
        law, places = law or self.law, range(len(begun), len(text))
        steps = [law.row(text[:i], self.state(text[:i]))[law.letters.index(text[i])] for i in places]
        return sum(steps) + (law.row(text, self.state(text))[-1] if len(text) < self.max_length else 0.0)

    def value(self, begun: str) -> float:
        """log of the mean of r^beta over all texts that what was begun may go on to."""
        going_on = [text for text in self.texts if text.startswith(begun)]
        return log_sum_exp([self.log_prior(text, begun) + self.beta * self.score(text) for text in going_on])

    def score(self, text: str) -> float:
        return self.scores[self.state(text)]

    @cached_property
    def log_z(self) -> float:
        return self.value("")

    @cached_property
    def log_posterior(self) -> dict[str, float]:
        return {text: self.log_prior(text) + self.beta * self.score(text) - self.log_z for text in self.texts}

    @cached_property
    def laws(self) -> list[tuple[automata.Law, dict[str, float]]]:
        """The prior and the posterior, each with the log-probabilities of the list."""
        return [(self.law, {text: self.log_prior(text) for text in self.texts}), (self.posterior, self.log_posterior)]

    def read(self, law: automata.Law, text: str) -> float:
        """log-probability of a text by a law's tables, the row found by its name in the alphabet."""
        letters, total = self.law.letters, 0.0
        for i, token in enumerate([*map(letters.index, text), len(letters)]):
            if i == self.max_length:
                break
            contexts = list(itertools.product(letters, repeat=min(i, law.order)))
            table = law.table(i)[contexts.index(tuple(text[:i][-law.order :]))]
            total += float(table[self.state(text[:i]) if len(table) > 1 else 0, token])
        return total


@st.composite
def cases(draw, rewarded: bool = True) -> Case:
    """One to three letters, contexts longer and shorter than the texts, automata of one state or more."""
    # Often two letters back in texts of four: contexts forget letters that the law would still read.
    letters, states = draw(st.sampled_from(["a", "ab", "ab", "abc"])), draw(st.integers(1, 4))
    order, max_length = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 2, 3, 4, 4, 4]))
    zeros, looks = draw(st.sampled_from([0.0, 0.0, 0.3])), draw(st.booleans())
    law = ListedLaw(letters, order, draw(st.integers(0, 2**31)), states if looks else None, zeros)
    row = st.lists(st.integers(0, states - 1), min_size=len(letters), max_size=len(letters))
    score = st.sampled_from([NEVER, 0.0, -0.5]) | st.floats(-3, 3)
    moves, scores = (draw(st.lists(each, min_size=states, max_size=states)) for each in (row, score))
    case = Case(law, moves, scores, max_length, draw(st.sampled_from([1.0, 0.3, 2.5])))
    assume(case.log_z > NEVER or not rewarded)
    return case


# The dynamic programme against the list.


@pytest.mark.claim("X4")
@SOME
@given(cases(rewarded=False))
def test_log_z_and_the_posterior_of_every_text_are_those_of_the_list(case):
    """Where no text has a reward there is no posterior."""
    if case.log_z == NEVER:
        with pytest.raises(ValueError, match="log Z is -inf; expected a finite number.* Wish for less"):
            automata.Posterior(case.law, case.automaton, max_length=case.max_length, beta=case.beta)
        return
    posterior = case.posterior
    assert agree(posterior.log_z, case.log_z)
    assert agree(tensor([case.read(posterior, text) for text in case.texts]), [*case.log_posterior.values()])
    assert abs(math.fsum(map(math.exp, case.log_posterior.values())) - 1) < 1e-12


@pytest.mark.claim("X4")
@SOME
@given(cases())
def test_the_posterior_is_a_law_at_every_node(case):
    """A node that no rewarded text goes through holds the prior's law."""
    posterior = case.posterior
    for text in words(case.law.letters, case.max_length - 1):
        state, order = case.state(text), case.law.order
        context = list(itertools.product(case.law.letters, repeat=min(len(text), order))).index(tuple(text[-order:]))
        table = posterior.table(len(text))
        assert agree(table.exp().sum(dim=2), torch.ones(table.shape[:2]))
        if case.value(text) == NEVER:
            assert torch.equal(table[context, state], tensor(case.law.row(text, state)))


@pytest.mark.claim("X4")
@SOME
@given(cases())
def test_the_soft_value_of_every_beginning_is_that_of_the_list(case):
    """log Z before the first letter; zero from the end on; the same where the rest is not there yet."""
    posterior, expected = case.posterior, torch.zeros(len(case.texts), case.max_length + 2, dtype=torch.float64)
    listed = {begun: case.value(begun) for begun in case.texts}
    for row, text in enumerate(case.texts):
        expected[row, : len(text) + 1] = tensor([listed[text[:i]] for i in range(len(text) + 1)])
    assert agree(posterior.values(case.tokens), expected)
    for columns in range(1, case.max_length + 2):
        assert agree(posterior.values(case.tokens[:, :columns]), expected[:, :columns])


@pytest.mark.claim("X4")
@SOME
@given(cases())
def test_expectations_are_those_of_the_list(case):
    """Each token at each place, the length, and the probability of the highest score."""
    letters, places = case.law.letters, range(case.max_length + 1)
    options = {"max_length": case.max_length}
    for law, listed in case.laws:
        chances = {text: math.exp(log_p) for text, log_p in listed.items()}
        expected = [
            [
                *(math.fsum(p for text, p in chances.items() if text[t : t + 1] == letter) for letter in letters),
                math.fsum(p for text, p in chances.items() if len(text) == t),
            ]
            for t in places
        ]
        assert agree(automata.marginals(law, case.automaton, **options), expected)
        best = math.fsum(p for text, p in chances.items() if case.score(text) == max(case.scores) > NEVER)
        assert agree(automata.granted(law, case.automaton, **options), best)


@pytest.mark.claim("X4")
@SOME
@given(cases())
def test_the_share_of_texts_at_each_node_is_that_of_the_list(case):
    """Those that reach it, whether they end there or go on."""
    for law, listed in case.laws:
        for length, (share, _) in enumerate(automata.flow(law, case.automaton, max_length=case.max_length)):
            contexts = list(itertools.product(case.law.letters, repeat=min(length, law.order)))
            expected = torch.zeros(len(contexts), len(case.moves), dtype=torch.float64)
            for text, log_p in listed.items():
                if len(text) >= length:
                    begun = text[:length]
                    expected[contexts.index(tuple(begun[-law.order :])), case.state(begun)] += math.exp(log_p)
            assert agree(share, expected)


@pytest.mark.claim("X4")
@SOME
@given(cases(), st.integers(0, 2**31))
def test_kl_divergences_are_those_of_the_list(case, seed):
    """Of prior, posterior and a law with zeros of its own, from each to each; infinite where the list's is."""
    other = ListedLaw(case.law.letters, case.law.order, seed, zeros=0.05)
    laws = [*case.laws, (other, {text: case.log_prior(text, law=other) for text in case.texts})]
    for (first, p), (second, q) in itertools.product(laws, laws):
        terms = [math.exp(p[text]) * (p[text] - q[text]) for text in case.texts if p[text] > NEVER]
        found = automata.kl_divergence(first, second, case.automaton, max_length=case.max_length)
        assert found.dtype == torch.float64
        assert found == math.inf if math.inf in terms else agree(found, math.fsum(terms), scale=10.0)


def test_a_kl_divergence_is_infinite_where_the_second_law_never_goes_and_only_there():
    """The posterior of a yes or no, and its prior."""
    law, wish = ListedLaw("ab", 2, 0), automata.contains("ab", letters="ab")
    posterior = automata.Posterior(law, wish, max_length=3)
    assert automata.kl_divergence(law, posterior, wish, max_length=3) == math.inf
    # KL(p*, p_ref) = E_p*[log r] - log Z, and log r is 0.
    assert agree(automata.kl_divergence(posterior, law, wish, max_length=3), -posterior.log_z)


@pytest.mark.claim("X4")
@pytest.mark.parametrize("looks", [False, True])
def test_samples_have_the_frequencies_of_the_list(looks):
    """Of prior and posterior; a text of probability zero is never drawn."""
    law, n = ListedLaw("ab", 2, 3, 3 if looks else None, zeros=0.1), 20_000
    case = Case(law, [[1, 0], [1, 2], [2, 0]], [NEVER, 0.5, -1.0], max_length=3, beta=1.5)
    for law, listed in case.laws:
        tokens = automata.sample(law, case.automaton, n, generator(5), max_length=3)
        drawn = automata.decode(tokens, letters="ab")
        assert torch.equal(automata.encode(drawn, max_length=3, letters="ab"), tokens)
        for text, log_p in listed.items():
            p = math.exp(log_p)
            assert abs(drawn.count(text) / n - p) <= 5 * math.sqrt(p * (1 - p) / n), text


# Patterns, against regular expressions.

KINDS = {
    "contains": (automata.contains, "(?s:.*){}(?s:.*)"),
    "starts_with": (automata.starts_with, "{}(?s:.*)"),
    "ends_with": (automata.ends_with, "(?s:.*){}"),
    "matches": (automata.matches, "{}"),
}
TEXTS = words("abc", 5)
TOKENS = automata.encode(TEXTS, max_length=5, letters="abc")
LENGTHS = torch.tensor([len(text) + 2 for text in TEXTS])
PATTERNS = st.text("abc.", min_size=1, max_size=5)


def grants(kind: str, pattern: str, text: str) -> bool:
    """Whether a text is of a pattern."""
    return re.fullmatch(KINDS[kind][1].format(pattern), text) is not None


@pytest.mark.claim("X4")
@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(PATTERNS)
def test_a_wish_is_granted_where_the_regular_expression_matches(kind, pattern):
    """After every letter; log r is 0 or -inf; from the end on the state is what it was."""
    wish = KINDS[kind][0](pattern, letters="abc")
    states = wish.states(TOKENS)
    assert states.dtype == torch.int64 and not bool(states[:, 0].any())
    for row, text in zip(wish.log_score[states].tolist(), TEXTS, strict=True):
        expected = [0.0 if grants(kind, pattern, text[:i]) else NEVER for i in range(len(text) + 1)]
        assert row == expected + expected[-1:] * (6 - len(text))
    assert bool((states[:, 1:] == states[:, :-1])[TOKENS[:, 1:] == 3].all())
    assert torch.equal(wish.log_reward(TOKENS, LENGTHS), wish.log_score[states[:, -1]])
    if kind == "contains" and "." not in pattern:
        assert len(wish.moves) == len(pattern) + 1  # no smaller automaton does


@pytest.mark.claim("X4")
def test_what_stands_beyond_the_length_of_a_text_is_not_read():
    """Letters in place of the padding."""
    wish = automata.contains("ab", letters="abc").scored(0.5, -2.0)
    beyond = torch.arange(7) >= LENGTHS[:, None]
    for letter in range(3):
        filled = torch.where(beyond, letter, TOKENS)
        assert torch.equal(wish.log_reward(filled, LENGTHS), wish.log_reward(TOKENS, LENGTHS))
    assert torch.equal(wish.log_reward(TOKENS, LENGTHS.int()), wish.log_reward(TOKENS, LENGTHS))


@pytest.mark.claim("X4")
@SOME
@given(
    st.lists(
        st.tuples(st.sampled_from(list(KINDS)), PATTERNS, st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=3
    )
)
def test_a_product_adds_the_scores(wishes):
    """Each wish with numbers of its own for yes and no, which are kept to the last digit."""
    parts = [KINDS[kind][0](pattern, letters="abc").scored(hit, miss) for kind, pattern, hit, miss in wishes]
    expected = [
        math.fsum(hit if grants(kind, pattern, text) else miss for kind, pattern, hit, miss in wishes) for text in TEXTS
    ]
    assert agree(automata.product(*parts).log_reward(TOKENS, LENGTHS), expected)


@SOME
@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), PATTERNS), min_size=1, max_size=3))
def test_of_yes_and_no_a_product_is_and(wishes):
    """And it is granted to nothing where the wishes exclude each other."""
    both = automata.product(*(KINDS[kind][0](pattern, letters="abc") for kind, pattern in wishes))
    expected = [all(grants(kind, pattern, text) for kind, pattern in wishes) for text in TEXTS]
    assert both.granted[both.states(TOKENS)[:, -1]].tolist() == expected
    assert both.log_reward(TOKENS, LENGTHS).tolist() == [0.0 if hit else NEVER for hit in expected]


@pytest.mark.claim("X4")
def test_scores_are_in_nats_and_kept_to_the_last_digit():
    """0.1 is no number of float32; a wish is turned round by its score."""
    wish = automata.ends_with("b", letters="ab")
    tokens, lengths = automata.encode(["ab", "ba", ""], max_length=2, letters="ab"), torch.tensor([4, 4, 2])
    assert wish.scored(0.1, -0.7).log_reward(tokens, lengths).tolist() == [0.1, -0.7, -0.7]
    assert wish.scored(1, NEVER).log_reward(tokens, lengths).tolist() == [1.0, NEVER, NEVER]
    assert wish.scored(NEVER, 0).log_reward(tokens, lengths).tolist() == [NEVER, 0.0, 0.0]
    assert wish.granted[wish.states(tokens)[:, -1]].tolist() == [True, False, False]
    assert wish.letters == 2


def test_texts_are_rows_of_tokens_and_back():
    """The end begins, ends and pads."""
    rows = automata.encode(["", "ba", "abb"], max_length=3, letters="ab")
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[2, 2, 2, 2, 2], [2, 1, 0, 2, 2], [2, 0, 1, 1, 2]]
    assert automata.decode(TOKENS, letters="abc") == TEXTS
    assert automata.decode(TOKENS[-1:, :3], letters="abc") == ["cc"]  # not ended yet
    assert automata.decode(automata.encode(["zoe"], max_length=8)) == ["zoe"]
    assert automata.encode([], max_length=3).shape == (0, 5)


# At scale.


def written(network: ContextNetwork, n: int, max_length: int, draws: torch.Generator) -> Tensor:
    """Texts that a network writes, letter by letter, from its logits alone."""
    tokens = torch.full((n, max_length + 2), network.letters)
    with torch.no_grad():
        for column in range(max_length):
            law = network(tokens[:, : column + 1])[:, -1].softmax(dim=1)
            drawn = torch.multinomial(law, 1, generator=draws).squeeze(1)
            ended = (tokens[:, 1 : column + 1] == network.letters).any(dim=1)
            tokens[:, column + 1] = torch.where(ended, network.letters, drawn)
    return tokens


@pytest.mark.claim("X4")
@torch.no_grad()
def test_at_scale_the_posterior_is_what_rejection_keeps():
    """26 letters, three looked back on, eight long: 212,318 nodes; and 40,000 texts of which those with z are kept."""
    prior, wish, n = ContextNetwork(26, generator(0)), automata.contains("z"), 40_000
    prior.rest[-1].weight.mul_(8.0)  # letters differ in how likely they are
    posterior = automata.Posterior(prior, wish, max_length=8)
    sizes = [share.numel() for share, _ in automata.flow(posterior, wish, max_length=8)]
    assert sizes == [2, 2 * 26, 2 * 26**2] + 6 * [2 * 26**3] and sum(sizes) == 212_318
    tokens = written(prior, n, 8, generator(1))
    kept = tokens[[("z" in text) for text in automata.decode(tokens)]]
    z = math.exp(posterior.log_z)
    assert abs(len(kept) / n - z) <= 5 * math.sqrt(z * (1 - z) / n)
    assert agree(automata.granted(prior, wish, max_length=8), z)
    assert agree(automata.granted(posterior, wish, max_length=8), 1.0)
    marginals, alive = automata.marginals(posterior, wish, max_length=8), torch.ones(len(kept), dtype=torch.bool)
    for place in range(9):
        p = marginals[place]
        shares = torch.bincount(kept[alive, place + 1], minlength=27) / len(kept)
        assert bool(((shares - p).abs() <= 5 * (p * (1 - p) / len(kept)).sqrt()).all())
        alive &= kept[:, place + 1] != 26
    drawn = automata.decode(automata.sample(posterior, wish, 1000, generator(2), max_length=8))
    assert all("z" in text for text in drawn) and len(set(drawn)) > 900


# The network.

WISH = automata.product(automata.contains("ab", letters="ab"), automata.ends_with("b", letters="ab"))


def network(order: int, *, told: bool = True, seed: int = 0, width: int = 5) -> ContextNetwork:
    """A network over a and b, float64, all of whose weights are random."""
    options = {"automaton": WISH, "max_length": 4} if told else {}
    made = ContextNetwork(2, generator(seed), order=order, width=width, **options).double()
    with torch.no_grad():
        for weight in (made.wish, made.length):
            if weight is not None:
                weight.normal_(generator=generator(seed + 1))
    return made


def plain(made: ContextNetwork, text: str) -> Tensor:
    """log-probabilities after a text, spelled out from the weights."""
    seen = [*[2] * made.order, *map("ab".index, text)][-made.order :]
    hidden = sum(made.tokens[place, token] for place, token in enumerate(seen))
    if made.wish is not None:
        tokens = automata.encode([text], max_length=len(text) + 1, letters="ab")
        hidden = hidden + made.wish[WISH.states(tokens)[0, -1]] + made.length[len(text)]
    for layer in (made.rest[1], made.rest[3]):
        hidden = layer.weight @ (0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))) + layer.bias
    return hidden.log_softmax(dim=0)


@pytest.mark.claim("X4")
@torch.no_grad()
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_forward_begin_advance_and_the_table_of_a_network_agree(order, told):
    """At every beginning of every text of at most four letters, with other letters beyond what is begun."""
    made, texts = network(order, told=told), words("ab", 4)
    tokens = automata.encode(texts, max_length=4, letters="ab")
    law = {text: plain(made, text) for text in texts}
    forward = made(tokens[:, :5]).log_softmax(dim=2)
    for row, text in enumerate(texts):
        torch.testing.assert_close(
            forward[row, : len(text) + 1], torch.stack([law[text[:i]] for i in range(len(text) + 1)])
        )
        state = WISH.states(tokens)[row, -1] if told else 0
        contexts = list(itertools.product("ab", repeat=min(len(text), order)))
        table = made.table(len(text))
        assert table.shape == (len(contexts), len(WISH.moves) if told else 1, 3)
        torch.testing.assert_close(table[contexts.index(tuple(text[-order:])), state], law[text], **EXACT)
    longest = [text for text in texts if len(text) == 4]
    rows = automata.encode(longest, max_length=4, letters="ab")
    for begun in range(5):
        logits, cache = made.begin(rows, torch.full((16,), begun + 1))
        for column in range(begun, 5):
            expected = torch.stack([law[text[:column]] for text in longest])
            torch.testing.assert_close(logits.log_softmax(dim=1), expected, **EXACT)
            logits, cache = made.advance(rows[:, column + 1], cache)


@torch.no_grad()
def test_rows_of_several_lengths_begin_together_and_may_begin_with_a_letter():
    """As where a prompt does not begin with the token that begins; the end of a row that is over is read on."""
    made = network(3)
    rows, lengths = torch.tensor([[0, 1, 0, 0], [2, 1, 1, 0], [1, 0, 0, 1]]), torch.tensor([1, 3, 2])
    logits, cache = made.begin(rows, lengths)
    torch.testing.assert_close(logits, made(rows)[torch.arange(3), lengths - 1], **EXACT)
    for column in range(1, 6):
        logits, cache = made.advance(torch.tensor([1, 2, 2]), cache)
        if column < 4:
            longer = torch.cat([rows[:1, :1], torch.ones(1, column, dtype=torch.int64)], dim=1)
            torch.testing.assert_close(logits[:1], made(longer)[:, -1], **EXACT)


@torch.no_grad()
def test_a_network_told_of_wish_and_length_begins_as_the_one_without():
    """From the same seed, or with its weights taken over; and then it may differ."""
    options = {"order": 2, "width": 5}
    without = ContextNetwork(2, generator(0), **options).double()
    told = ContextNetwork(2, generator(0), automaton=WISH, max_length=4, **options).double()
    other = ContextNetwork(2, generator(7), automaton=WISH, max_length=4, **options).double()
    assert not torch.allclose(other.table(2), told.table(2))
    assert other.with_weights(without.state_dict()) is other
    for length in range(5):
        expected = without.table(length).expand(-1, len(WISH.moves), -1)
        for made in (told, other):
            torch.testing.assert_close(made.table(length), expected, **EXACT)
    other.wish[1] += 1.0
    assert torch.equal(other.table(2)[:, 0], told.table(2)[:, 0])
    assert not torch.equal(other.table(2)[:, 1], told.table(2)[:, 1])
    other.with_weights(told.state_dict())
    assert torch.equal(other.table(2), told.table(2))
    assert without.tokens.data_ptr() != other.tokens.data_ptr()


def test_the_first_weights_are_of_the_size_that_keeps_the_sums_near_one():
    """The tables of all places together of variance one; the layers within one over the root of the width."""
    made = ContextNetwork(26, generator(0), order=4, width=100)
    assert abs(float(made.tokens.detach().var()) * 4 - 1) < 0.1
    for layer in (made.rest[1], made.rest[3]):
        for weight in layer.parameters():
            assert 0.08 < float(weight.detach().abs().max()) <= 0.1


def test_a_network_may_return_numbers_of_another_kind():
    """One for each column, such as a value."""
    made = ContextNetwork(2, generator(0), outputs=1)
    assert made(torch.full((4, 3), 2)).shape == (4, 3, 1)


MEASURES = {
    "KL to the posterior": lambda made, floored, sharp: automata.kl_divergence(made, floored, WISH, max_length=4),
    "KL from it": lambda made, floored, sharp: automata.kl_divergence(floored, made, WISH, max_length=4),
    "KL from that of yes or no": lambda made, floored, sharp: automata.kl_divergence(sharp, made, WISH, max_length=4),
    "granted": lambda made, floored, sharp: automata.granted(made, WISH, max_length=4),
    "marginals": lambda made, floored, sharp: automata.marginals(made, WISH, max_length=4)[2:, 1].sum(),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("order", [2, 5])
def test_gradients_are_those_of_finite_differences(name, order):
    """Through every weight of a network that is told of the wish and the length."""
    prior, made = network(order, told=False, seed=5), network(order, width=4)
    with torch.no_grad():
        floored = automata.Posterior(prior, WISH.scored(0.0, -2.0), max_length=4)
        sharp = automata.Posterior(prior, WISH, max_length=4)
    weights = list(made.parameters())
    slopes = torch.autograd.grad(MEASURES[name](made, floored, sharp), weights)
    assert all(bool(slope.isfinite().all()) and bool(slope.any()) for slope in slopes)
    direction, step = [torch.randn(w.shape, generator=generator(8), dtype=w.dtype) for w in weights], 1e-5
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, way in zip(weights, direction, strict=True):
                weight.add_(way, alpha=sign * step)
            ends.append(MEASURES[name](made, floored, sharp))
    expected = sum((slope * way).sum() for slope, way in zip(slopes, direction, strict=True))
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wish", [WISH, WISH.scored(0.0, -2.0)], ids=["yes or no", "soft"])
def test_no_gradient_flows_into_the_prior_of_a_posterior(wish):
    """Where no text is rewarded it would be no number; that of the other law is what it is beside a frozen prior."""
    slopes = []
    for frozen in (True, False):
        prior, made = network(2, told=False, seed=5), network(2, width=4)
        exact = automata.Posterior(prior.requires_grad_(not frozen), wish, max_length=4)
        assert not exact.log_z.requires_grad and not exact.table(2).requires_grad
        kl = automata.kl_divergence(exact, made, wish, max_length=4)
        slopes.append(torch.autograd.grad(kl, list(made.parameters())))
        assert all(bool(slope.isfinite().all()) and bool(slope.any()) for slope in slopes[-1])
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.equal(ours, theirs)


# Refusals.

LAW = ListedLaw("ab", 2, 0)
AB = automata.contains("b", letters="ab")
MOVES, SCORES = torch.tensor([[0, 1], [1, 0]]), tensor([0.0, NEVER])


class Shifted:
    """A law that is 1e-3 off in one place after two letters, or not a number there."""

    order = 2

    def __init__(self, shift: float = 1e-3):
        self.shift = shift

    def table(self, length):
        table = LAW.table(length)
        table[-1, 0, 0] += self.shift if length == 2 else 0.0
        return table


def values(*rows) -> Tensor:
    return posterior().values(torch.tensor(rows))


def kl_to(law: automata.Law) -> Tensor:
    return automata.kl_divergence(LAW, law, AB, max_length=3)


def posterior(law=LAW, wish=AB, **options) -> automata.Posterior:
    return automata.Posterior(law, wish, **({"max_length": 3} | options))


def drawn(law=LAW, n=1, random=None, max_length=3) -> Tensor:
    return automata.sample(law, AB, n, generator(0) if random is None else random, max_length=max_length)


def made(**options) -> ContextNetwork:
    return ContextNetwork(**({"letters": 2, "generator": generator(0)} | options))


THREE = ListedLaw("abc", 2, 0)
BAD = {
    "a text that is too long": (lambda: automata.encode(["abba"], max_length=3), "'abba'; expected at most 3"),
    "a text of another letter": (lambda: automata.encode(["a", "aé"], max_length=3), "'aé'; expected .* 'abcdefgh"),
    "no length": (lambda: automata.encode(["a"], max_length=0), "max_length is 0; expected a positive integer"),
    "a token below the vocabulary": (lambda: automata.decode(torch.tensor([[2, -1]]), letters="ab"), "from -1 to 2"),
    "a token above it": (lambda: automata.decode(torch.tensor([[2, 3]]), letters="ab"), "from 2 to 3; expected 0 to 2"),
    "a token above the automaton's": (lambda: AB.states(torch.tensor([[2, 3]])), "from 2 to 3; expected 0 to 2"),
    "a token below the automaton's": (lambda: AB.states(torch.tensor([[2, -1]])), "from -1 to 2; expected 0 to 2"),
    "tokens of one row": (
        lambda: AB.states(torch.tensor([2, 1])),
        r"\(2,\) torch.int64; expected int64 \[rows, columns\]",
    ),
    "tokens of int32": (lambda: AB.states(torch.tensor([[2]], dtype=torch.int32)), "int32; expected int64"),
    "no tokens": (lambda: AB.states(torch.zeros(0, 2, dtype=torch.int64)), "expected int64 .* not empty"),
    "a list of tokens": (lambda: AB.states([[2, 1]]), "tokens is list; expected int64"),
    "a token to score": (lambda: AB.log_reward(torch.tensor([[2, 3]]), torch.tensor([2])), "from 2 to 3; expected"),
    "a text with another end": (
        lambda: AB.log_reward(torch.tensor([[0, 1, 2, 0], [0, 2, 0, 0]]), torch.tensor([4, 3])),
        "A text ends with token 0; expected 2",
    ),
    "moves beyond the states": (lambda: automata.Automaton(MOVES + 1, SCORES), "each entry a state"),
    "moves below them": (lambda: automata.Automaton(MOVES - 1, SCORES), "each entry a state"),
    "moves that are floats": (lambda: automata.Automaton(MOVES.double(), SCORES), r"moves is torch.float64 \(2, 2\)"),
    "moves of one row": (lambda: automata.Automaton(MOVES[0], SCORES), r"expected int64 \[states, letters\]"),
    "moves without letters": (lambda: automata.Automaton(MOVES[:, :0], SCORES), r"expected int64 \[states, letters\]"),
    "a list of moves": (lambda: automata.Automaton([[0]], SCORES), "moves is a list; expected a Tensor"),
    "a score too few": (lambda: automata.Automaton(MOVES, SCORES[:1]), "with 1 scores; expected"),
    "a column of scores": (lambda: automata.Automaton(MOVES, SCORES[:, None]), "with 0 scores; expected"),
    "no state": (lambda: automata.Automaton(MOVES[:0], SCORES[:0]), "with 0 scores; expected"),
    "a list of scores": (lambda: automata.Automaton(MOVES, [0.0, 0.0]), "log_score is a list; expected a Tensor"),
    "a score that is NaN": (lambda: automata.Automaton(MOVES, tensor([0.0, math.nan])), "NaN or .inf; expected finite"),
    "a score of +inf": (lambda: automata.Automaton(MOVES, tensor([0.0, math.inf])), "NaN or .inf; expected finite"),
    "scores of float32": (lambda: automata.Automaton(MOVES, SCORES.float()), "log_score is no float64"),
    "an empty pattern": (lambda: automata.contains("", letters="ab"), "pattern is ''; expected one or more of 'ab'"),
    "a pattern of another letter": (lambda: automata.matches("a.c", letters="ab"), "pattern is 'a.c'; expected"),
    "a pattern that is no text": (lambda: automata.ends_with(["a"], letters="ab"), r"pattern is \['a'\]; expected"),
    "a hit that is NaN": (lambda: AB.scored(math.nan, 0.0), "hit is nan; expected a finite"),
    "a hit of +inf": (lambda: AB.scored(math.inf, 0.0), "hit is inf; expected a finite"),
    "a miss of +inf": (lambda: AB.scored(0.0, math.inf), "miss is inf; expected a finite"),
    "a product of nothing": (lambda: automata.product(), "automata are 0, .* expected one or more of one"),
    "a product over two alphabets": (
        lambda: automata.product(AB, automata.contains("a", letters="abc")),
        "automata are 2, of several alphabets",
    ),
    "a wish never granted": (lambda: posterior(wish=AB.scored(NEVER, NEVER)), "log Z is -inf; expected a finite"),
    "a wish longer than the texts": (lambda: posterior(wish=automata.contains("abab", letters="ab")), "log Z is -inf"),
    "a law as a wish": (lambda: posterior(wish=LAW), "automaton is a ListedLaw; expected a Automaton"),
    "a posterior of no length": (lambda: posterior(max_length=0), "max_length is 0; expected a positive"),
    "a posterior of longer texts than it knows": (
        lambda: automata.marginals(posterior(), AB, max_length=4),
        "length is 3; expected a finite Python number >= 0 and <= 2",
    ),
    "no temperature": (lambda: posterior(beta=0.0), "beta is 0.0; expected a finite Python number > 0"),
    "a prior that does not sum to one": (
        lambda: posterior(Shifted()),
        "log-probability of .* context of 2 letters; expected 0",
    ),
    "a prior that is no number": (lambda: posterior(Shifted(math.nan)), "log-probability of nan .* expected 0"),
    "a law that does not sum to one": (
        lambda: kl_to(Shifted()),
        "log-probability of .* context of 2 letters; expected 0",
    ),
    "a prior of other letters": (lambda: posterior(THREE), r"\(9, 1, 4\); expected \[contexts, states, A \+ 1\]"),
    "a prior of other states": (
        lambda: posterior(ListedLaw("ab", 2, 0, states=3)),
        r"\(4, 3, 3\); expected .*\(4, 2, 3\)",
    ),
    "a law of other states": (lambda: kl_to(ListedLaw("ab", 2, 0, states=4)), r"\(1, 4, 3\); expected .*\(1, 2, 3\)"),
    "a law of another order": (lambda: kl_to(ListedLaw("ab", 3, 0)), "look back 2 and 3 letters; expected as many"),
    "a law of other letters drawn from": (lambda: drawn(THREE), r"\(1, 1, 4\); expected"),
    "a row that does not begin": (lambda: values([0, 1, 2, 2, 2]), "expected .* the token 2 first"),
    "a row that is too wide": (lambda: values([2, 0, 2, 2, 2, 2]), r"\(1, 6\); expected .* at most 5"),
    "a row that does not end": (lambda: values([2, 0, 2, 2, 2], [2, 0, 0, 0, 1]), "expected .* at most 3 letters"),
    "a value of another token": (lambda: values([2, 3]), "from 2 to 3; expected 0 to 2"),
    "a marginal of no length": (
        lambda: automata.marginals(LAW, AB, max_length=0),
        "max_length is 0; expected a positive",
    ),
    "no texts to draw": (lambda: drawn(n=0), "n is 0; expected a positive"),
    "texts of no length": (lambda: drawn(max_length=0), "max_length is 0; expected a positive"),
    "no generator to draw with": (lambda: drawn(random=7), "generator is 7; expected a torch.Generator"),
    "a network without a generator": (lambda: made(generator=None), "generator is None; expected a torch.Generator"),
    "a network of no letters": (lambda: made(letters=0), "letters is 0; expected a positive"),
    "a network that looks at nothing": (lambda: made(order=0), "order is 0; expected a positive"),
    "a network of no width": (lambda: made(width=0), "width is 0; expected a positive"),
    "a network of no output": (lambda: made(outputs=0), "outputs is 0; expected a positive"),
    "a network told of no length": (lambda: made(max_length=0), "max_length is 0; expected a positive"),
    "a network of other letters than its wish": (
        lambda: made(automaton=automata.contains("a", letters="abc")),
        "automaton reads 3 letters; expected 2",
    ),
    "a text longer than the network knows": (
        lambda: made(max_length=3)(torch.full((1, 5), 2)),
        "A text has 4 letters; expected at most 3",
    ),
    "weights of another size": (lambda: made().with_weights(made(width=3).state_dict()), "weights hold tokens.*rest"),
    "weights that a network does not have": (
        lambda: made().with_weights(made(max_length=3).state_dict()),
        "weights hold length; expected those of this network",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    """In words that say what was given, what was expected, and what to do."""
    call, message = BAD[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as refusal:
        call()
    assert re.search(r"; expected .*\. [A-Z][^.]*\.$", str(refusal.value), re.DOTALL), str(refusal.value)
