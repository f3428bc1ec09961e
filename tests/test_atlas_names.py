"""The predicted targets of the names, by recursion over nodes, against fixed_points on the list of every text.

And the stored runs against these targets, at the margins that were committed before them.
"""

import itertools
import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import generator, tensor

from companion import automata, fixed_points, mdp, records
from companion.samplers.contexts import ContextNetwork
from experiments import atlas_losses, atlas_names, names_prior

ROOT = Path(__file__).parents[1]

MOST, ALPHA, EXACT = 4, 0.3, {"rtol": 0, "atol": 1e-10}


class World:
    """Texts over a and b as a tree of prefixes and ends; the prior looks back two letters; rewards have three levels.

    Prefixes come first, shortest first, then their ends.
    """

    def __init__(self, seed: int) -> None:
        wish = automata.product(automata.contains("ab", letters="ab"), automata.ends_with("b", letters="ab"))
        score = torch.randn(len(wish.moves), generator=generator(seed), dtype=torch.float64)
        self.automaton = automata.Automaton(wish.moves, score)
        self.prior = ContextNetwork(2, generator(seed + 1), order=2, width=8).double().requires_grad_(False)
        self.bench = atlas_names.Bench(self.prior, self.automaton, max_length=MOST)

    @cached_property
    def texts(self):
        return ["".join(text) for n in range(MOST + 1) for text in itertools.product("ab", repeat=n)]

    def state(self, text):
        state = 0
        for letter in text:
            state = int(self.automaton.moves[state, "ab".index(letter)])
        return state

    def row(self, law, text):
        """What a law says after a text: log-probabilities of a, b and the end."""
        if len(text) == MOST:
            return tensor([-torch.inf, -torch.inf, 0.0])
        context = int("0" + "".join(str("ab".index(letter)) for letter in text[-2:]), 2)
        table = law.table(len(text)).detach()
        return table[context, self.state(text) if table.shape[1] > 1 else 0]

    @cached_property
    def problem(self):
        number, edges = {text: i for i, text in enumerate(self.texts)}, {}
        for text in self.texts:
            row, end = self.row(self.prior, text), len(number) + number[text]
            steps = [(number[text + x], row[i], 0.0) for i, x in enumerate("ab") if len(text) < MOST]
            for target, log_ref, reward in [*steps, (end, row[2], self.automaton.log_score[self.state(text)])]:
                edges[number[text], target] = (float(log_ref), float(reward))
        log_ref, rewards = tensor([edges[edge] for edge in sorted(edges)]).unbind(dim=1)
        return mdp.from_edges(list(edges)).with_reference(log_ref).with_rewards(rewards)

    @cached_property
    def paths(self):
        return mdp.enumerate_paths(self.problem)

    @property
    def listed(self):
        """log p_ref, log r and the length of each path."""
        of = self.paths
        return of.log_prob(self.problem.log_ref), of.log_prob(self.problem.rewards), (of.edges >= 0).sum(dim=1)

    def log_prob(self, law):
        """The log-probability of each path's text under a law of tables."""
        found = []
        for end in self.paths.ends.tolist():
            text = self.texts[end - len(self.texts)]
            rows = [self.row(law, text[:i])["ab".index(letter)] for i, letter in enumerate(text)]
            found.append(sum(rows) + self.row(law, text)[2])
        return torch.stack(found)


SEEDS = pytest.mark.parametrize("seed", range(3))


def objective(kind, **options):
    return kind(kl_weight=ALPHA, **options)


@SEEDS
def test_classes_of_texts_have_the_targets_of_their_texts(seed):
    """p*; F6; F1 with the mean reward; F2: of the classes of length and state, and text by text."""
    world = World(seed)
    log_ref, reward, steps = world.listed
    beta, half = 1 / ALPHA, 0.5 / ALPHA
    pairs = objective(atlas_losses.Kimi, size=2)
    mean = half * float(log_ref.exp() @ reward)
    expected = {
        atlas_names.own: fixed_points.target(log_ref, reward, beta=beta),
        atlas_names.lower_beta: fixed_points.target(log_ref, reward, beta=half),
        atlas_names.mean_for_log_z: fixed_points.stand_in(log_ref, reward, mean, beta=half, log_behaviour=log_ref),
        atlas_names.over_length: fixed_points.length_normalised(log_ref, reward, steps, beta=half),
    }
    for target, law in expected.items():
        torch.testing.assert_close(world.log_prob(target(world.bench, pairs)), law, **EXACT)
    laws = [atlas_names.own(world.bench, pairs), atlas_names.lower_beta(world.bench, pairs)]
    first, second = expected[atlas_names.own], expected[atlas_names.lower_beta]
    assert world.bench.kl(*laws) == pytest.approx(float(first.exp() @ (first - second)), abs=1e-12)


@SEEDS
def test_a_kl_per_token_has_the_target_of_the_tree(seed):
    """F3 and F4, by recursion over nodes and over the tree."""
    world = World(seed)
    halved = world.problem.with_rewards(0.5 * world.problem.rewards)
    k2 = fixed_points.per_step_kl(world.problem, kl_weight=ALPHA, estimator="k2")
    loss = objective(atlas_losses.DroPerToken)
    torch.testing.assert_close(world.log_prob(atlas_names.per_token(world.bench, loss)), k2, **EXACT)
    for kl, estimator in (("k3_ratio", "k2"), ("k3", "k3")):
        law = fixed_points.per_step_kl(halved, kl_weight=ALPHA, estimator=estimator)
        ours = atlas_names.per_token_in_groups(world.bench, objective(atlas_losses.Grpo, size=2, kl=kl))
        torch.testing.assert_close(world.log_prob(ours), law, **EXACT)


@pytest.mark.parametrize("p", [0.03, 0.4, 0.95])
@pytest.mark.parametrize("size", [2, 5])
def test_the_gap_of_standardised_advantages_is_that_of_all_groups(size, p):
    """Each group of rewards of 0 and 2, by its chance; its first text is granted, or is not."""
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for group in itertools.product([0.0, 1.0], repeat=size):
        rewards = 2 * tensor(group)
        chance = p ** sum(group) * (1 - p) ** (size - sum(group))
        advantage = (rewards[0] - rewards.mean()) / (rewards.std() + atlas_losses.EPSILON)
        sums[bool(group[0])][0] += chance * float(advantage)
        sums[bool(group[0])][1] += chance
    expected = sums[True][0] / sums[True][1] - sums[False][0] / sums[False][1]
    assert atlas_names.gap(p, size, 2.0) == pytest.approx(expected, rel=1e-12)


@SEEDS
def test_a_standardised_target_is_that_of_its_own_gap(seed):
    """F5: the tree's F3 with rewards of the gap is the law, and its mass on the wish is where the gap was taken."""
    world = World(seed)
    world.automaton = world.automaton.scored(0.0, -2.0)
    world.bench = atlas_names.Bench(world.prior, world.automaton, max_length=MOST)
    ours = world.log_prob(atlas_names.standardised(world.bench, objective(atlas_losses.Grpo, size=4, scale="group")))
    reward = world.listed[1]
    success = float(ours.exp()[reward == 0].sum())
    scaled = world.problem.with_rewards(world.problem.rewards * atlas_names.gap(success, 4, 2.0) / 2)
    law = fixed_points.per_step_kl(scaled, kl_weight=ALPHA, estimator="k2")
    torch.testing.assert_close(ours, law, rtol=0, atol=1e-7)


def test_every_row_has_a_law_and_only_those_that_are_said_to_end_away_from_p_star_do():
    """Texts of a and b again, at the rows' own temperatures."""
    world = World(7)
    world.automaton = world.automaton.scored(0.0, atlas_names.FLOOR)
    bench = atlas_names.Bench(world.prior, world.automaton, max_length=MOST)
    apart = set()
    for name, row in atlas_names.ROWS.items():
        law = row.target(bench, row.objective)
        assert float(world.log_prob(law).exp().sum()) == pytest.approx(1, abs=1e-9)
        if bench.kl(law, atlas_names.own(bench, row.objective)) > 1e-3:
            apart.add(name)
    differ = {"kimi-prior-texts", "kimi-pairs", "flowrl", "dro-per-token", "grpo-k3-ratio", "grpo-k3"}
    assert apart == differ | {"grpo-std-above", "grpo-std-below"}


# The stored runs.


@pytest.fixture(scope="module")
def stored():
    """The runs by row, and what was fixed before them."""
    runs = records.by(records.load("atlas_names", where=ROOT / "results"), "method")
    return runs, json.loads((ROOT / "experiments" / "margins.json").read_text())["atlas_names"]


def ends(values):
    """Of the 95 % interval of the mean of five; Student's 97.5 % quantile, four degrees of freedom."""
    assert len(values) == 5
    half = 2.776445 * np.std(values, ddof=1) / math.sqrt(5)
    return np.mean(values) - half, np.mean(values) + half


def marked(row, *claims):
    return pytest.param(row, marks=pytest.mark.claim(*claims), id=row)


APART = [
    marked("kimi-prior-texts", "F1"),
    marked("kimi-pairs"),
    marked("flowrl", "F2"),
    marked("dro-per-token", "F3"),
    marked("grpo-k3-ratio", "F3"),
    marked("grpo-k3", "F4"),
    marked("grpo-std-above", "F5"),
    marked("grpo-std-below", "F5"),
]
AT_P_STAR = [
    marked("rtb"),
    marked("rtb-prior-texts"),
    marked("vargrad-prior-texts"),
    marked("rloo", "F3"),
    marked("kimi-larger-batches", "F1"),
]


def columns(runs):
    names = ("kl_to_target", "kl_to_p_star", "granted", "target_granted", "target_to_p_star")
    return [np.array(records.measure(runs, name)) for name in names]


@pytest.mark.parametrize("row", APART)
def test_a_row_whose_target_is_not_p_star_ends_at_its_own(stored, row):
    runs, fixed = stored
    target, star, granted, due, between = columns(runs[row])
    assert min(between) > fixed["apart"]
    assert ends(target - fixed["share"] * star)[1] < 0
    assert ends(target)[1] < fixed["ends_within"]
    assert max(map(abs, ends(granted - due))) < fixed["granted"]


@pytest.mark.parametrize("row", AT_P_STAR)
def test_a_row_whose_target_is_p_star_ends_there(stored, row):
    runs, fixed = stored
    target, _, granted, due, between = columns(runs[row])
    assert max(between) < 1e-4
    assert ends(target)[1] < fixed["p_star_within"]
    assert max(map(abs, ends(granted - due))) < fixed["granted"]


@pytest.mark.claim("F1")
def test_the_mean_reward_on_its_own_texts_misses_its_bound_by_the_noise_of_batches(stored):
    """Missed as fixed before, if by little; with batches four times as large it is within a smaller one."""
    runs, fixed = stored
    today = json.loads((ROOT / "experiments" / "margins.json").read_text())["atlas_names_batch"]
    (small, _, granted, due, _), (large, *_) = (columns(runs[row]) for row in ("kimi", "kimi-larger-batches"))
    assert fixed["p_star_within"] < ends(small)[1] < fixed["p_star_within"] + 0.01
    assert max(map(abs, ends(granted - due))) < fixed["granted"]
    assert ends(large)[1] < today["p_star_within"] and ends(large - small)[1] < 0


def test_stored_measures_are_those_of_the_stored_network(stored):
    """From its weights, anew; and all rows are judged above."""
    runs, _ = stored
    assert set(runs) == {param.values[0] for param in (*APART, *AT_P_STAR)} | {"kimi"}
    (run,) = [run for runs in runs.values() for run in runs if run.arrays.exists()]
    policy = atlas_names.start(run.configuration)[0].policy
    arrays = records.read_arrays(run.arrays)
    policy.with_weights({name: torch.from_numpy(array) for name, array in arrays.items()}).requires_grad_(False)
    laws = atlas_names.predicted(run.configuration["method"])
    found = {f"kl_to_{name}": atlas_names.bench().kl(policy, law) for name, law in laws.items()}
    for name, value in (found | {"granted": atlas_names.bench().granted(policy)}).items():
        assert value == pytest.approx(run.measures[name], rel=1e-4), name


def test_the_two_weights_over_a_deviation_lie_on_both_sides_of_the_critical_one():
    """Of the population, by its curve: 1 / (B sigma) at a tilt B, least where the saddle-node is; and q, by the way."""
    bench = atlas_names.bench()
    success = {b: bench.granted(bench.per_token(atlas_names.exponential(1.0), scale=b)) for b in (4.0, 4.25, 4.5)}
    weights = {b: 1 / (b * math.sqrt(p * (1 - p))) for b, p in success.items()}
    assert weights[4.25] < min(weights[4.0], weights[4.5])
    above, below = (atlas_names.ROWS[f"grpo-std-{side}"].objective.kl_weight for side in ("above", "below"))
    assert below < 0.77 < weights[4.25] < 0.78 < above
    assert bench.granted(names_prior.load()) == pytest.approx(0.2119, abs=1e-4)
