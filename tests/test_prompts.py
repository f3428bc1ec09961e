"""Prompts: the study's own pieces against other ways to the same numbers, its stored runs against their margins.

And one number for all prompts, groups and tables, on three prompts of five answers that can be listed.
"""

import itertools
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import generator, tensor
from scipy.optimize import brentq

from companion import automata, fixed_points, objectives, records, reinforce, rtb, training
from companion.samplers import Batch
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import Writing
from companion.training import Schedule
from experiments import prompts

ROOT = Path(__file__).parents[1]
LIMIT = {"max_length": prompts.MAX_LENGTH}


# The study's pieces.


def task(texts, arm):
    return {"texts": texts, "arm": arm, "seed": 100, "objective": None}


def drawn(arm, texts="prior", n=128):
    """A batch of an arm, and what the sampler under it draws from the same source: groups are rows of prompts."""
    settings = prompts.ARMS[texts][arm]
    sampler = prompts.start(task(texts, arm) | {"objective": arm_objective(settings)})[0]
    behaviour = Writing(reference=1.0) if texts == "prior" else None
    return sampler.draw(n, generator(5), behaviour), sampler.sampler.draw(n, generator(5), behaviour)


def arm_objective(settings):
    task = next(t for t in prompts.TASKS if prompts.ARMS[t["texts"]][t["arm"]] is settings)
    return task["objective"]


@pytest.mark.parametrize("texts", ["own", "prior"])
def test_texts_begin_with_the_letters_that_are_their_groups(texts):
    batch, rows = drawn("table", texts)
    torch.testing.assert_close(batch.group, batch.states[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(batch.group, prompts.ROWS[rows.group], rtol=0, atol=0)
    grade = -0.75 * (batch.states[:, 0] % 3)
    wished = batch.states.gather(1, batch.steps[:, None] - 1).squeeze(1) == automata.LETTERS.index("e")
    expected = grade + torch.where(wished, 0.0, prompts.FLOOR)
    torch.testing.assert_close(batch.log_reward.double(), expected.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("texts", ["own", "prior"])
@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_groups_that_are_drawn_are_of_one_letter_each(texts, size):
    batch, rows = drawn(f"group-of-{size}", texts)
    letters = batch.states[:, 0]
    torch.testing.assert_close(letters, prompts.ROWS[rows.group], rtol=0, atol=0)
    for group in batch.group.unique().tolist():
        of_it = letters[batch.group == group]
        assert len(of_it) == size and len(of_it.unique()) == 1
    assert len(letters.unique()) > 1


def test_the_whole_batch_is_no_group():
    assert drawn("whole-batch")[0].group is None


def test_frequent_letters_come_seven_times_as_often_and_those_held_out_never():
    counts = torch.bincount(prompts.ROWS, minlength=prompts.LETTERS).tolist()
    assert set(prompts.FREQUENT) | set(prompts.RARE) | set(prompts.HELD_OUT) == set(range(prompts.LETTERS))
    assert len(prompts.FREQUENT) + len(prompts.RARE) + len(prompts.HELD_OUT) == prompts.LETTERS
    for letters, count in ((prompts.FREQUENT, 7), (prompts.RARE, 1), (prompts.HELD_OUT, 0)):
        assert {counts[letter] for letter in letters} == {count}


class Begun:
    """A law of texts whose first letter is sure."""

    def __init__(self, law, letter):
        self.law, self.letter, self.order = law, letter, law.order

    def table(self, length):
        table = self.law.table(length).detach().double()
        if length:
            return table
        sure = torch.full_like(table, -math.inf)
        sure[..., self.letter] = 0.0
        return sure


@cache
def posterior():
    return automata.Posterior(prompts.names_prior.load(), prompts.wish(), beta=prompts.BETA, **LIMIT)


@cache
def random_policy():
    wish = prompts.wish()
    made = ContextNetwork(prompts.LETTERS, generator(3), automaton=wish, max_length=prompts.MAX_LENGTH)
    with torch.no_grad():  # told of them: these begin at zero
        for part in (made.wish, made.length):
            part += 0.5 * torch.randn(part.shape, generator=generator(4))
    return made.requires_grad_(False)


@pytest.mark.parametrize("letter", ["a", "e", "q"])
def test_the_relative_entropy_of_a_letter_is_that_of_laws_that_begin_with_it(letter):
    """Forwards, of two laws whose first letter is sure; 1.6 nats and more, so that what is compared is not zero."""
    index, policy = automata.LETTERS.index(letter), random_policy()
    ours = prompts.kl_by_letter(policy, prompts.exact()[0])[index]
    laws = (Begun(law, index) for law in (policy, posterior()))
    expected = automata.kl_divergence(*laws, prompts.wish(), **LIMIT)
    assert expected > 1
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("letter", ["a", "e", "q"])
def test_log_z_of_a_letter_is_that_of_the_wish_to_begin_with_it(letter):
    """The hard wish for the letter has its chance under the prior as well, which is taken away."""
    index, prior = automata.LETTERS.index(letter), prompts.names_prior.load()
    both = automata.product(automata.starts_with(letter), prompts.wish())
    joint = automata.Posterior(prior, both, beta=prompts.BETA, **LIMIT).log_z
    chance = prior.table(0).detach().double()[0, 0, index]
    assert float(prompts.exact()[1][index]) == pytest.approx(
        float(joint - chance) + 2.0 * (-0.75 * (index % 3)), abs=1e-5
    )


@pytest.mark.parametrize("arm", ["network-attached", "table", "group-of-8"])
def test_a_run_goes_on_as_if_it_had_not_stopped_with_what_it_learned_for_log_z(tmp_path, arm):
    """Stopped after two and after four steps of six: equal to the last bit, the network too."""

    def train(**options):
        settings = task("prior", arm) | {"objective": arm_objective(prompts.ARMS["prior"][arm])}
        sampler, objective, draws = prompts.start(settings)
        schedule = Schedule(iterations=6, batch=32, rate=1e-2, learned_rate=1e-1)
        given = {"schedule": schedule, "behaviour": Writing(reference=1.0), "generator": draws}
        history = training.fine_tune(sampler, objective, **given, **options)
        return [*sampler.parameters(), *history.learned], history.steps["loss"].tolist()

    whole, losses = train()
    for stop in (2, 4, None):
        again, found = train(checkpoint=tmp_path / "run.npz", stop_after=stop)
    assert found == losses and len(again) == len(whole)
    assert all(torch.equal(x, y) for x, y in zip(again, whole, strict=True))


# The stored runs.


@pytest.fixture(scope="module")
def stored():
    """The runs by texts and arm, and what was fixed before them."""
    runs = {}
    for run in records.load("prompts", where=ROOT / "results"):
        runs.setdefault((run.configuration["texts"], run.configuration["arm"]), []).append(run)
    return runs, json.loads((ROOT / "experiments" / "margins.json").read_text())["prompts"]


def ends(values):
    """Of the 95 % interval of the mean of five; Student's 97.5 % quantile, four degrees of freedom."""
    assert len(values) == 5
    half = 2.776445 * np.std(values, ddof=1) / math.sqrt(5)
    return np.mean(values) - half, np.mean(values) + half


def measure(runs, texts, arm, part="trained"):
    of = sorted(runs[texts, arm], key=lambda run: run.configuration["seed"])
    assert [run.configuration["seed"] for run in of] == list(range(5))
    return np.array(records.measure(of, part))


REACH = [
    *[("own", arm) for arm in ("table", "group-of-2", "group-of-8", "leave-one-out")],
    *[("prior", arm) for arm in ("table", "network", "network-attached", "group-of-2", "group-of-8")],
]


@pytest.mark.claim("X5")
@pytest.mark.parametrize(("texts", "arm"), REACH)
def test_an_arm_with_a_log_z_for_each_prompt_reaches_p_star_and_carries_over(stored, texts, arm):
    runs, fixed = stored
    assert ends(measure(runs, texts, arm))[1] < fixed["reached"]
    assert ends(measure(runs, texts, arm, "held_out"))[1] < fixed["held_out"]


@pytest.mark.claim("X5")
def test_one_number_on_own_texts_reaches_p_star_and_costs_something(stored):
    runs, fixed = stored
    scalar, table = (measure(runs, "own", arm) for arm in ("scalar", "table"))
    assert ends(scalar)[1] < fixed["reached_by_scalar"]
    assert ends(scalar - table)[0] > 0
    assert ends(measure(runs, "own", "scalar", "held_out"))[1] < fixed["held_out"]


@pytest.mark.claim("X5")
@pytest.mark.parametrize("arm", ["scalar", "whole-batch"])
def test_one_number_on_the_priors_texts_misses_its_bound_for_its_runs_differ_by_tens_of_nats(stored, arm):
    """Missed as fixed before: the interval reaches below ``apart``. Seen after the runs: each alone is above it."""
    runs, fixed = stored
    gap = measure(runs, "prior", arm) - measure(runs, "prior", "table")
    assert ends(gap)[0] < fixed["apart"] < min(gap)
    assert np.ptp(gap) > 20


def test_all_arms_are_stored_and_their_parts_are_means_over_letters(stored):
    runs, _ = stored
    assert set(runs) == {(texts, arm) for texts, arms in prompts.ARMS.items() for arm in arms}
    for run in itertools.chain.from_iterable(runs.values()):
        by_letter = run.measures["by_letter"]
        for part in prompts.PARTS:
            mean = math.fsum(by_letter[x] for x in prompts.PARTS[part]) / len(prompts.PARTS[part])
            assert run.measures[part] == pytest.approx(mean, rel=1e-6), run.configuration["name"]


# Three prompts of five answers, listed.

RHO = tensor([0.45, 0.35, 0.2])


class World:
    """Laws of the reference, of what draws, and p*; beta R differs by prompt in what moves log Z(x) alone."""

    def __init__(self, seed, spread):
        source = generator(seed)
        self.ref, self.drawn = (torch.randn(3, 5, generator=source).double().log_softmax(dim=1) for _ in range(2))
        self.star = torch.randn(3, 5, generator=source).double().log_softmax(dim=1)
        self.log_z = -2 + spread * tensor([0.5, 0.1, -0.5])[:, None]
        self.tilt = self.star - self.ref + self.log_z
        self.start = torch.randn(3, 5, generator=source).double()


SEEDS = pytest.mark.parametrize("seed", range(3))


def of_prompt(world, x, c):
    """F1 at one prompt, and its lambda, the mean of beta R - c - log u where texts are drawn."""
    law = fixed_points.stand_in(world.ref[x], world.tilt[x], c, beta=1.0, log_behaviour=world.drawn[x])
    return law, float(world.drawn[x].exp() @ (world.tilt[x] - c - law + world.ref[x]))


@pytest.mark.claim("X5")
@SEEDS
def test_one_number_on_fixed_texts_ends_where_the_lambdas_cancel(seed):
    """Closed form and one root, beside descent on the squares, with all logits and the number free."""
    world = World(seed, 0.4)
    low, high = float(world.log_z.min()), float(world.log_z.min()) + 0.4
    root = brentq(lambda c: sum(float(RHO[x]) * of_prompt(world, x, c)[1] for x in range(3)), low, high, xtol=1e-13)
    laws, pulls = zip(*(of_prompt(world, x, root) for x in range(3)), strict=True)
    logits, c = world.start.clone().requires_grad_(), tensor(-1.0).requires_grad_()
    weight = RHO[:, None] * world.drawn.exp()
    optimiser = torch.optim.LBFGS(
        [logits, c], max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def again():
        optimiser.zero_grad()
        loss = (weight * (c + logits.log_softmax(dim=1) - world.ref - world.tilt).square()).sum() / 2
        loss.backward()
        return loss

    optimiser.step(again)
    assert c.item() == pytest.approx(root, abs=1e-6)
    torch.testing.assert_close(logits.detach().softmax(dim=1), torch.stack(laws).exp(), rtol=0, atol=1e-6)
    assert [pull > 0 for pull in pulls] == (world.log_z.squeeze() > root).tolist()
    assert max((torch.stack(laws).exp() - world.star.exp()).abs().sum(dim=1)) > 0.01


def listed(world, log_pi):
    """Every answer of every prompt once, as a batch; its group is its prompt."""
    group = torch.arange(3).repeat_interleave(5)
    return Batch(log_pi.reshape(-1, 1), world.ref.reshape(-1, 1), world.tilt.flatten(), group=group)


@pytest.mark.claim("X5")
@SEEDS
def test_a_table_takes_each_texts_own_number(seed):
    """In another order than that of prompts too: zero loss at p* with log Z(x), and with one number its variance."""
    world, order = World(seed, 2.0), torch.randperm(15, generator=generator(seed))
    whole = listed(world, world.star)
    parts = (x[order] for x in (whole.log_pi, whole.log_ref, whole.log_reward))
    batch = Batch(*parts, group=whole.group[order])
    table, by_prompt = objectives.Table(3), world.log_z.squeeze(1)
    torch.testing.assert_close(table.of([by_prompt], batch), by_prompt[batch.group], rtol=0, atol=0)
    assert float(objectives.RTB(log_z=table).loss(batch, [by_prompt])) == pytest.approx(0, abs=1e-20)
    left = float(objectives.RTB().loss(batch, [by_prompt.mean()]))
    assert left == pytest.approx(float(by_prompt.var(correction=0)) / 2, rel=1e-12) and left > 0.1
    learned = table.parameters(batch.log_pi)
    (slope,) = torch.autograd.grad(objectives.RTB(log_z=table).loss(batch, learned), learned)
    torch.testing.assert_close(slope, -by_prompt / 3, rtol=0, atol=1e-12)  # from zero, each to its own


@pytest.mark.claim("X5")
@SEEDS
def test_the_mean_of_a_group_is_of_its_prompt(seed):
    """At p* zero within prompts, in any order; over the batch half the variance of log Z(x); nothing of one text."""
    world, order = World(seed, 2.0), torch.randperm(15, generator=generator(seed))
    whole = listed(world, world.star)
    inputs = [x[order] for x in (whole.log_pi, whole.log_ref, whole.log_reward)]
    for rows, group in ((inputs, whole.group[order]), ([whole.log_pi, whole.log_ref, whole.log_reward], whole.group)):
        assert float(rtb.vargrad_loss(*rows, group=group)) == pytest.approx(0, abs=1e-20)
        over_all = float(rtb.vargrad_loss(*rows))
        assert over_all == pytest.approx(float(world.log_z.var(correction=0)) / 2, rel=1e-12) and over_all > 0.1
    for loss in (rtb.vargrad_loss, lambda *x, group: reinforce.kl_loss(*x, baseline="leave_one_out", group=group)):
        with pytest.raises(ValueError, match="group"):
            loss(*inputs, group=torch.arange(15))


def of_groups(loss, world, log_pi, n):
    """Mean and second moment of a loss's gradient in the logits of the first prompt: every group, by its chance."""
    mean, second, row = torch.zeros(5).double(), 0.0, log_pi[0]
    for group in itertools.product(range(5), repeat=n):
        y, logits = list(group), row.clone().requires_grad_()
        of = logits.log_softmax(dim=0)[y][:, None], world.ref[0][y][:, None], world.tilt[0][y]
        (slope,) = torch.autograd.grad(loss(*of), logits)
        chance = float(row[y].sum().exp())
        mean, second = mean + chance * slope, second + chance * float(slope.square().sum())
    return mean, second - float(mean.square().sum())


def kl_slope(world, log_pi):
    logits = log_pi[0].clone().requires_grad_()
    law = logits.log_softmax(dim=0)
    return torch.autograd.grad((law.exp() * (law - world.star[0])).sum(), logits)[0]


def leaving_one_out(*inputs):
    return reinforce.kl_loss(*inputs, baseline="leave_one_out")


@pytest.mark.claim("X5")
@pytest.mark.parametrize("n", [2, 3])
def test_groups_of_own_texts_have_their_share_of_the_kls_gradient_and_the_noise_of_a_u_statistic(n):
    """Of pairs: kernel (d_i - d_j)(g_i - g_j) / 2, its variance given one text and both."""
    world = World(1, 2.0)
    log_pi = world.start.log_softmax(dim=1)
    p, d = log_pi[0].exp(), log_pi[0] - world.ref[0] - world.tilt[0]
    score = torch.eye(5).double() - p
    kernel = (d[:, None] - d)[..., None] * (score[:, None] - score) / 2
    one = (p[:, None] * kernel).sum(dim=1)
    zeta_1, zeta_2 = ((p @ one.square()).sum(), (p[:, None, None] * p[:, None] * kernel.square()).sum())
    zeta_1, zeta_2 = (float(zeta - (p @ one).square().sum()) for zeta in (zeta_1, zeta_2))
    noise = (4 * (n - 2) * zeta_1 + 2 * zeta_2) / (n * (n - 1))
    for loss, share in ((rtb.vargrad_loss, 1 - 1 / n), (leaving_one_out, 1.0)):
        mean, variance = of_groups(loss, world, log_pi, n)
        torch.testing.assert_close(mean, share * kl_slope(world, log_pi), rtol=0, atol=1e-12)
        assert variance == pytest.approx(share**2 * noise, rel=1e-10)
        _, at_star = of_groups(loss, world, world.star, n)
        assert abs(at_star) < 1e-20
