"""Stale texts: the exact delayed update of each loss against the roots of its equation, and the stored runs (X6)."""

import json
import math
from dataclasses import replace
from pathlib import Path

import delayed
import numpy as np
import pytest
import torch
from inputs import generator, tensor

from companion import automata, family, fixed_points, objectives, plain, records, reinforce, rtb, statistics, training
from companion.samplers.contexts import ContextNetwork
from companion.samplers.tokens import TokenSampler, Writing
from experiments import atlas_names, stale
from experiments.atlas_losses import Lagging

ROOT = Path(__file__).parents[1]
ALPHA = 0.3


class Case:
    """One decision with five answers, and the policy that is p*."""

    def __init__(self, seed=0, answers=5):
        draws = generator(seed)
        self.log_ref = torch.randn(answers, generator=draws, dtype=torch.float64).log_softmax(dim=0)
        self.reward = 0.5 * torch.randn(answers, generator=draws, dtype=torch.float64)
        self.star = fixed_points.target(self.log_ref, self.reward, beta=1 / ALPHA)
        self.log_z = float((self.log_ref + self.reward / ALPHA).logsumexp(dim=0))
        ones = torch.ones(answers, dtype=torch.int64)
        self.bench = delayed.Bench(
            lambda logits: logits.log_softmax(dim=0)[:, None], self.log_ref[:, None], self.reward, ones
        )
        values, vectors = torch.linalg.eigh(self.bench.fisher(self.star))
        self.largest, self.along = float(values[-1]), vectors[:, -1]

    def errors(self, objective, size, scale, *, lag, step=0.2, updates=120, learned=()):
        """A ten-millionth off p* at first, along the direction of the largest eigenvalue."""
        start = torch.cat([self.star + 1e-7 * self.along, tensor(learned)])
        path = delayed.trajectory(
            lambda now, old: scale * self.bench.gradient(objective, now, old, size),
            start, lag=lag, rate=step / self.largest, updates=updates,
        )  # fmt: skip
        return (path[:, : len(self.star)] - self.star) @ self.along

    def growth(self, *given, **options):
        """By what factor the error grows at each update in the end."""
        return delayed.growth(self.errors(*given, **options)[-40:])


def lagging(kl, ratio, clip=0.2):
    return Lagging(kl_weight=ALPHA, size=2, kl=kl, ratio=ratio, clip=clip)


#: Objective, size of its groups, and what makes its gradient that of half the squared residual: no share of the past.
UNFEELING = {
    "vargrad": (objectives.VarGrad(1 / ALPHA), 2, 2.0),
    "reinforce": (objectives.Reinforce(1 / ALPHA, baseline="leave_one_out"), 2, 1 / ALPHA),
    "current kl, token": (lagging("current", "token"), 2, 2 / ALPHA),
    "current kl, mean of tokens": (lagging("current", "mean"), 2, 2 / ALPHA),
    "current kl, product": (lagging("current", "product"), 2, 1 / ALPHA),
}
OLD_KL = {
    "none": (lagging("old", "none"), 2, 2 / ALPHA),
    "token": (lagging("old", "token"), 2, 2 / ALPHA),
    "mean of tokens": (lagging("old", "mean"), 2, 2 / ALPHA),
    "product": (lagging("old", "product"), 2, 1 / ALPHA),
}


@pytest.mark.claim("X6")
@pytest.mark.parametrize("name", UNFEELING)
def test_a_lag_drops_out_where_the_residual_is_current_and_zero(name):
    assert Case().growth(*UNFEELING[name], lag=12, updates=60) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.claim("X6")
def test_a_learned_log_z_drops_the_lag_too():
    """RTB and Trust-PCL, which is alpha squared of it with V = alpha log Z; the number begins where it belongs."""
    case = Case()
    pairs = ((objectives.RTB(1 / ALPHA), 1.0, 1.0), (objectives.TrustPCL(ALPHA), ALPHA**-2, ALPHA))
    for objective, scale, unit in pairs:
        learned = [unit * case.log_z]  # whose own rate is the policy's over alpha squared, in Trust-PCL
        found = case.growth(objective, 1, scale, lag=12, step=0.02, updates=60, learned=learned)
        assert found == pytest.approx(0.98, abs=1e-3)


@pytest.mark.parametrize("name", OLD_KL)
@pytest.mark.claim("X6")
@pytest.mark.parametrize("lag", [5, 10])
def test_no_ratio_cures_the_kl_of_the_old_policy(name, lag):
    """Below the critical lag, 7.4, and beyond it."""
    found = Case().growth(*OLD_KL[name], lag=lag)
    assert found == pytest.approx(delayed.multiplier(0.2, 1.0, lag), abs=1e-3)
    assert (found > 1) == (lag > 7)


class Shipped:
    """GRPO and RLOO with the KL in the reward as TRL has it, without the deviation."""

    def __init__(self, loss, **options):
        self.of, self.options = loss, options

    def parameters(self, like):
        return []

    def loss(self, batch, learned):
        options = {"kl_weight": ALPHA, "group": batch.group, "steps": batch.steps} | self.options
        given = (batch.log_pi, batch.log_behaviour)
        if self.of is family.rloo_loss:
            return self.of(*given, batch.log_ref, batch.log_reward, **options)
        return self.of(*given, batch.log_reward, log_ref=batch.log_ref, kl="reward", scale="none", **options)


@pytest.mark.claim("X6")
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_the_kl_in_the_reward_is_the_old_policys_where_trl_takes_it(name):
    loss, scale = (family.rloo_loss, 1 / ALPHA) if name == "rloo" else (family.grpo_loss, 2 / ALPHA)
    found = Case().growth(Shipped(loss), 2, scale, lag=10)
    assert found == pytest.approx(delayed.multiplier(0.2, 1.0, 10), abs=1e-3)


def fork():
    """A text ends at once, or goes on to one of three ends: a bench, and p* of it."""
    log_ref = torch.randn(2, 3, generator=generator(5), dtype=torch.float64)

    def model(logits):
        first, second = logits[:2].log_softmax(dim=0), logits[2:].log_softmax(dim=0)
        ended = torch.stack([first[0], torch.zeros_like(first[0])])[None]
        return torch.cat([ended, torch.stack([first[1].expand(3), second], dim=1)])

    reference = model(torch.cat([log_ref[0, :2], log_ref[1]]))
    reward, steps = tensor([0.3, -0.2, 0.1, 0.5]), torch.tensor([1, 2, 2, 2])
    star = (reference.sum(dim=1) + reward / ALPHA).log_softmax(dim=0)
    go_on = star[1:].logsumexp(dim=0)
    return delayed.Bench(model, reference, reward, steps), torch.cat([star[:1], go_on[None], star[1:] - go_on])


@pytest.mark.claim("X6")
@pytest.mark.parametrize("ratio", ["token", "mean", "product"])
@pytest.mark.parametrize("kl", ["current", "old"])
def test_a_ratio_of_texts_of_two_lengths_leaves_the_share_as_it_is(kl, ratio):
    """Both policies a little off p*, each its own way. A sum over tokens undoes the length of a mean of tokens."""
    bench, star = fork()
    ways = torch.randn(2, 5, generator=generator(6), dtype=torch.float64)
    ends = [bench.gradient(lagging(kl, ratio), *(star + by * ways), 2) for by in (1e-5, -1e-5)]
    scale = (1 if ratio == "product" else 2 * bench.log_ref.shape[1]) / ALPHA
    expected = bench.fisher(star) @ ways[0 if kl == "current" else 1]
    torch.testing.assert_close(scale * (ends[0] - ends[1]) / 2e-5, expected, rtol=0, atol=1e-7)


class Fixed:
    """RTB with a number of log Z that stays, with or without a ratio."""

    def __init__(self, c, weighted=False):
        self.c, self.weighted = c, weighted

    def parameters(self, like):
        return []

    def loss(self, batch, learned):
        log_ratio = (batch.log_pi - batch.log_behaviour).sum(dim=1).detach()
        weight = log_ratio.exp() if self.weighted else torch.ones_like(log_ratio)
        c = torch.tensor(self.c, dtype=torch.float64)
        residual = rtb.residual(batch.log_pi, batch.log_ref, batch.log_reward, c, beta=1 / ALPHA)
        return 0.5 * (weight * residual.square()).mean()


@pytest.mark.claim("X6")
@pytest.mark.parametrize("kappa", [-1.0, 0.3, 0.8, 1.4])
def test_a_number_for_log_z_has_its_excess_for_a_share(kappa):
    """Error by error, as the equation has them; and none with a ratio, which is not differentiated."""
    case = Case()
    for lag in (3, 12):
        expected = [1e-7]
        for _ in range(50):
            old = expected[max(0, len(expected) - 1 - lag)]
            expected.append(expected[-1] - 0.2 * ((1 - kappa) * expected[-1] + kappa * old))
        found = case.errors(Fixed(case.log_z + kappa), 1, 1.0, lag=lag, updates=50)
        torch.testing.assert_close(found, tensor(expected), rtol=1e-4, atol=1e-12)
    weighted = case.growth(Fixed(case.log_z + kappa, weighted=True), 1, 1.0, lag=12, updates=60)
    assert weighted == pytest.approx(0.8, abs=1e-3)


@pytest.mark.claim("X6")
def test_the_closed_forms_are_the_edge_of_the_roots():
    for lag in (0, 1, 4, 30):
        assert delayed.multiplier(delayed.critical_step(lag), 1.0, lag) == pytest.approx(1, abs=1e-6)
    for share in (0.6, 0.8, 1.0, 1.5):
        lag = delayed.critical_lag(0.02, share)
        assert delayed.multiplier(0.02, share, math.floor(lag) - 2) < 1
        assert delayed.multiplier(0.02, share, math.ceil(lag)) > 1
    assert delayed.critical_lag(0.02, 1.0) == pytest.approx(math.pi / 0.04)
    for share in (-2.0, 0.0, 0.5):
        assert delayed.critical_lag(0.02, share) == math.inf and delayed.multiplier(0.02, share, 200) < 1


@pytest.mark.claim("X6")
@pytest.mark.parametrize("seed", range(3))
def test_reinforce_with_the_current_kl_is_vargrad_under_any_behaviour(seed):
    case, draws = Case(seed), generator(seed + 10)
    now, old = torch.randn(2, 5, generator=draws, dtype=torch.float64)
    (vargrad, _, twice), (policy_gradient, _, beta) = UNFEELING["vargrad"], UNFEELING["reinforce"]
    ours = twice * case.bench.gradient(vargrad, now, old, 2)
    theirs = beta * case.bench.gradient(policy_gradient, now, old, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.claim("X6")
@pytest.mark.parametrize("seed", range(3))
def test_a_ratio_for_each_text_is_the_gradient_on_fresh_texts(seed):
    """At every distance, if the KL is the current one's."""
    case, draws = Case(seed), generator(seed + 20)
    now, old = torch.randn(2, 5, generator=draws, dtype=torch.float64)
    product, vargrad = lagging("current", "product", clip=1e6), objectives.VarGrad(1 / ALPHA)
    ours = case.bench.gradient(product, now, old, 2) / ALPHA
    fresh = 2 * case.bench.gradient(vargrad, now, now, 2)
    torch.testing.assert_close(ours, fresh, rtol=0, atol=1e-11)
    assert (2 * case.bench.gradient(vargrad, now, old, 2) - fresh).abs().max() > 1e-3


@pytest.mark.claim("X6")
def test_normalised_weights_over_a_whole_batch_take_the_kl_of_the_current_policy():
    """A batch that holds each answer as often as the old policy draws it has no error of sampling."""
    case, counts = Case(), torch.tensor([1, 4, 2, 3, 6])
    rows = torch.repeat_interleave(torch.arange(5), counts)
    log_b = (counts / counts.sum()).double().log()[:, None]
    now = torch.randn(5, generator=generator(3), dtype=torch.float64).requires_grad_()
    loss = reinforce.kl_loss(
        now.log_softmax(dim=0)[rows, None], case.log_ref[rows, None], case.reward[rows], beta=1 / ALPHA,
        baseline="none", log_behaviour=log_b[rows], weights="importance",
    )  # fmt: skip
    (found,) = torch.autograd.grad(loss / ALPHA, now)
    law, at = now.detach().log_softmax(dim=0), now.detach()
    residual = law - case.log_ref - case.reward / ALPHA
    expected = law.exp() * (residual - law.exp() @ residual)  # the gradient of the KL to p*
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert at.shape == found.shape


@pytest.mark.claim("X6")
def test_texts_of_a_copy_are_drawn_and_scored_by_the_policy_of_the_last_refreshing():
    """Policies that are sure of one text each, in turn; the copy is refreshed at every third draw."""
    automaton = automata.contains("a", letters="ab").scored(0.0, -1.0)
    prior = ContextNetwork(2, generator(1), order=1, width=4).double().requires_grad_(False)
    policy = ContextNetwork(2, generator(1), order=1, width=4).double()
    sampler = TokenSampler(policy, prior, automaton.log_reward, end=2, max_length=3, lagged=True)
    written, scored = [], []
    for iteration in range(6):
        bias = list(policy.parameters())[-1]
        with torch.no_grad():
            bias.copy_(60.0 * torch.eye(3, dtype=torch.float64)[iteration % 3] + iteration)
        batch = sampler.draw(4, generator(iteration), Writing(refresh=3), iteration)
        written.append(batch.states[:, 1:])
        scored.append(batch.log_behaviour)
        assert torch.equal(scored[-1], batch.log_pi.detach()) == (iteration % 3 == 0)
        assert scored[-1].abs().max() < 1e-6  # the copy is as sure of its text as ever
    assert all((text == 0).any(dim=1).all() for text in written)


# The stored runs.


@pytest.fixture(scope="module")
def stored():
    """The mean of the last two relative entropies by method and lag, and what was fixed before the runs."""
    found = {}
    for run in records.load("stale", where=ROOT / "results"):
        key = run.configuration["method"], run.configuration["lag"]
        found.setdefault(key, {})[run.configuration["seed"]] = run.measures["late_kl"]
    values = {key: np.array([by_seed[seed] for seed in sorted(by_seed)]) for key, by_seed in found.items()}
    margins = json.loads((ROOT / "experiments" / "margins.json").read_text())
    again = {name: margins[f"stale_{name}"] for name in ("again", "token", "gspo")}
    return values, margins["stale"] | again


def ends(values):
    interval = statistics.mean_interval(values.tolist())
    return interval.low, interval.high


@pytest.mark.claim("X6")
def test_all_runs_are_there(stored):
    assert set(stored[0]) == {(task["method"], task["lag"]) for task in stale.TASKS} and len(stale.TASKS) == 140
    assert {len(values) for values in stored[0].values()} == {5}


@pytest.mark.claim("X6")
@pytest.mark.parametrize(
    ("key", "fresh"),
    [(("vargrad", 8), "vargrad"), (("vargrad", 32), "vargrad"), (("rtb", 32), "rtb"), (("rtb-low", 8), "rtb")],
)
def test_what_does_not_feel_a_lag(stored, key, fresh):
    values, fixed = stored
    low, high = ends(values[key] - values[fresh, 1])
    assert -fixed["unfelt"] < low and high < fixed["unfelt"]


@pytest.mark.claim("X6")
@pytest.mark.parametrize("key", [("mean", 8), ("mean", 32), ("old-kl-product", 32)])
def test_what_feels_it(stored, key):
    values, fixed = stored
    assert ends(values[key] - values["vargrad", key[1]])[0] > fixed["felt"]


@pytest.mark.claim("X6")
@pytest.mark.parametrize("key", [("old-kl", 8), ("old-kl", 32), ("old-kl-product", 8)])
def test_what_feels_it_in_every_seed_but_missed_its_bound(stored, key):
    """The interval of the mean, over seeds that differ by a factor of many, is too wide for what was fixed."""
    values, fixed = stored
    above = values[key] - values["vargrad", key[1]]
    assert ends(above)[0] < fixed["felt"] < above.min()


@pytest.mark.claim("X6")
@pytest.mark.parametrize("lag", [8, 32])
def test_a_clip_bounds_it_and_the_current_kl_ends_it(stored, lag):
    values, fixed = stored
    assert ends(values["old-kl-clipped", lag] - values["vargrad", lag])[1] < fixed["bounded"]
    low, high = ends(values["current-kl-clipped", lag] - values["vargrad", lag])
    assert -fixed["unfelt"] < low and high < fixed["unfelt"]


@pytest.mark.claim("X6")
@pytest.mark.parametrize("key", [("old-kl-again", 8), ("old-kl-again", 32), ("old-kl-product-again", 8)])
def test_on_new_seeds_the_logarithm_is_above_what_was_fixed(stored, key):
    values, fixed = stored
    ratio = np.log(values[key] / values["vargrad-again", key[1]])
    assert ends(ratio)[0] > fixed["again"]["log_felt"]


@pytest.mark.claim("X6")
@pytest.mark.parametrize("lag", [8, 32])
def test_a_ratio_for_each_token_does_not_cure_it_and_the_clip_of_gspo_bounds_it(stored, lag):
    values, fixed = stored
    assert ends(np.log(values["old-kl-token", lag] / values["vargrad", lag]))[0] > fixed["token"]["log_felt"]
    assert ends(values["old-kl-gspo", lag] - values["vargrad", lag])[1] < fixed["gspo"]["bounded"]


@pytest.mark.claim("X6")
def test_a_start_made_again_is_the_stored_one():
    """The first two updates of a run with a lag, from its own configuration: the same losses."""
    (run,) = [r for r in records.load("stale", where=ROOT / "results") if r.configuration["name"] == "vargrad-8-0"]
    sampler, objective, draws = stale.start(run.configuration)
    schedule = replace(plain.from_plain(run.configuration["schedule"]), iterations=2)
    behaviour = plain.from_plain(run.configuration["behaviour"])
    history = training.fine_tune(sampler, objective, schedule=schedule, behaviour=behaviour, generator=draws)
    np.testing.assert_allclose(history.steps["loss"], run.steps["loss"][:2], rtol=1e-4)


@pytest.mark.claim("X6")
def test_reinforce_with_an_old_kl_ends_on_one_name(stored):
    """The relative entropy of a law of one text to p* is -log p* of it; of the text e, in four seeds of five."""
    sampler = stale.start(stale.TASKS[0])[0]
    text = automata.encode(["e"], max_length=atlas_names.MAX_LENGTH)
    log_z = float((atlas_names.bench().log_ref + 4 * atlas_names.bench().log_reward).logsumexp(dim=0))
    one = log_z - float(sampler.log_prob(sampler.reference, text).sum())  # its log r is 0
    assert np.isclose(stored[0]["old-kl", 32], one, rtol=1e-4).sum() == 4


@pytest.mark.claim("X6")
def test_the_wish_has_the_shares_that_the_chapter_names():
    """KL(p*, prior), and how far a log Z of zero is above its value."""
    bench = atlas_names.bench()
    log_z = float((bench.log_ref + 4 * bench.log_reward).logsumexp(dim=0))
    star = bench.log_ref + 4 * bench.log_reward - log_z
    assert float(star.exp() @ (star - bench.log_ref)) == pytest.approx(1.23, abs=0.01)
    assert -log_z == pytest.approx(1.49, abs=0.01)
    assert float(4 * bench.log_ref.exp() @ bench.log_reward) == pytest.approx(-3.15, abs=0.01)
