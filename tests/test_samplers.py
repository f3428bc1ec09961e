"""What samplers draw, against the same paths scored by other means, and frequencies against exact laws."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from inputs import generator, in_one_line, random_graph, tensor
from oracles import listed_paths, padded, random_policy, summed

from companion import mdp, metrics, objectives, samplers, targets, training
from companion.samplers import EveryPath, Exploration, Fading, UniformMixture, diffusion, drifts, networks
from companion.samplers.batch import at

PROCESS = diffusion.Process(steps=4, variance=2.0)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def reference(states, times):
    """A drift with a known value."""
    return times[..., None] - states


def log_reward(x):
    """A reward that tells all ends apart."""
    return x[:, 0] - 0.5 * x[:, 1].square()


def made(store=None, reward=log_reward, dtype=torch.float64) -> samplers.DiffusionSampler:
    """A small diffusion sampler with a network of its own."""
    policy = networks.DriftNetwork(PROCESS, generator(3), width=5).to(dtype)
    return samplers.DiffusionSampler(PROCESS, policy, reference, reward, store=store)


def stored(weights=(1.0, 2.0, 7.0)) -> samplers.Store:
    """A store of as many paths as weights, whose log-rewards, 0, 1, 2, ..., tell them apart."""
    states = diffusion.rollout(PROCESS, reference, len(weights), generator(4), dtype=torch.float64)
    rewards = torch.arange(len(weights), dtype=torch.float64)
    return samplers.Store(states, diffusion.log_prob(PROCESS, reference, states), rewards, tensor(weights))


def assert_scored(sampler, states, batch, rows=slice(None), rewards=None) -> None:
    """Assert that rows of a batch are the scores of these states, computed apart from it."""
    for found, drift in ((batch.log_pi, sampler.policy), (batch.log_ref, sampler.reference)):
        torch.testing.assert_close(found[rows], diffusion.log_prob(PROCESS, drift, states), **EXACT)
    rewards = log_reward(states[:, -1]) if rewards is None else rewards
    torch.testing.assert_close(batch.log_reward[rows], rewards, **EXACT)


# Diffusion samplers.


@pytest.mark.parametrize("exploration", [0.0, 0.5])
def test_a_batch_holds_the_scores_of_its_paths(exploration):
    """Exploration draws other paths, and widens the behaviour's density alone."""
    sampler = made()
    batch = sampler.draw(6, generator(1), Exploration(exploration))
    options = {"extra_std": exploration, "dtype": torch.float64}
    states = diffusion.rollout(PROCESS, sampler.policy, 6, generator(1), **options)
    assert_scored(sampler, states, batch)
    behaviour = diffusion.log_prob(PROCESS, sampler.policy, states, extra_std=exploration)
    torch.testing.assert_close(batch.log_behaviour, behaviour, **EXACT)
    assert torch.equal(batch.log_behaviour, batch.log_pi) == (exploration == 0)


def test_only_the_policy_has_a_gradient():
    """It is that of the log-probability at given paths; the reference is a module here, and gets none."""
    sampler = made()
    sampler.reference = networks.DriftNetwork(PROCESS, generator(9), width=5).double()
    batch = sampler.draw(6, generator(1), Exploration(0.5))
    assert batch.log_pi.requires_grad
    assert not any(x.requires_grad for x in (batch.log_ref, batch.log_reward, batch.log_behaviour))
    assert [id(parameter) for parameter in sampler.parameters()] == [id(p) for p in sampler.policy.parameters()]
    found = torch.autograd.grad(batch.log_pi.sum(), sampler.parameters())
    states = diffusion.rollout(PROCESS, sampler.policy, 6, generator(1), extra_std=0.5, dtype=torch.float64)
    wanted = torch.autograd.grad(diffusion.log_prob(PROCESS, sampler.policy, states).sum(), sampler.parameters())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_paths_are_drawn_and_scored_in_torchs_inference_mode_too():
    """It counts no versions of tensors, by which a state that is written over would be seen."""
    sampler, expected = made(), made().draw(6, generator(1))
    with torch.inference_mode():
        states = diffusion.rollout(PROCESS, sampler.policy, 6, generator(1), dtype=torch.float64)
        torch.testing.assert_close(sampler.log_weights(states), expected.log_weights(), **EXACT)


def test_a_batch_has_the_dtype_of_the_policy():
    batch = made(dtype=torch.float32).draw(2, generator(1))
    assert {x.dtype for x in vars(batch).values() if x is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("n", "share", "old"), [(8, 0.5, 4), (8, 0.25, 2), (10, 0.26, 3), (10, 0.24, 2), (5, 1.0, 5), (1, 0.6, 1)]
)
def test_a_share_of_the_paths_is_replayed(n, share, old):
    """The nearest whole number; fresh ones come first; each is scored under the policy as it is now."""
    sampler = made(stored())
    batch = sampler.draw(n, generator(1), Exploration(replayed=share))
    assert len(batch.log_pi) == len(batch.log_ref) == len(batch.log_reward) == n
    assert batch.log_behaviour is None
    if old < n:
        fresh = diffusion.rollout(PROCESS, sampler.policy, n - old, generator(1), dtype=torch.float64)
        assert_scored(sampler, fresh, batch, slice(n - old))
    rewards = batch.log_reward[n - old :]
    assert_scored(sampler, sampler.store.states[rewards.long()], batch, slice(n - old, None), rewards)
    assert torch.autograd.grad(batch.log_pi[n - old :].sum(), sampler.policy.last.bias)[0].abs().min() > 0


def test_a_share_that_rounds_to_nothing_keeps_the_behaviour():
    batch, alone = made(stored()).draw(8, generator(1), Exploration(replayed=0.06)), made().draw(8, generator(1))
    assert torch.equal(batch.log_behaviour, alone.log_behaviour)


def test_paths_are_replayed_as_often_as_their_weights_say():
    """In proportion to 1, 2, 7: 5,000 draws, within 5 standard errors."""
    rewards = made(stored()).draw(5000, generator(2), Exploration(replayed=1.0)).log_reward
    counts = torch.bincount(rewards.long(), minlength=3) / 5000
    for share, chance in zip(counts.tolist(), (0.1, 0.2, 0.7), strict=True):
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / 5000)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_resampled_prior_paths_end_in_the_modes_of_the_tilted_prior(beta):
    """Mode weights near those of posterior^beta prior^(1 - beta), the prior's being equal: 10,000 paths, 50 steps."""
    process, tilt = diffusion.Process(steps=50), targets.twenty_five_to_nine()
    prior = drifts.MixtureDrift(process, tilt.prior)
    store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, 10_000, generator(5), beta=beta)
    drawn = torch.multinomial(store.weights, 50_000, replacement=True, generator=generator(6))
    weights = metrics.mode_weights(store.states[drawn, -1], tilt.prior)
    wanted = targets.weights_on(tilt.prior, tilt.posterior) ** beta
    assert metrics.total_variation(weights, wanted / wanted.sum()) < 0.08  # .03 of it is chance
    assert metrics.total_variation(weights, tilt.prior.weights) > 0.5  # as far as the untilted prior would be


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_resampled_prior_paths_are_the_reference_scored_and_weighed(beta):
    """Each weight is r^beta over the sum; what has a thousandth of a path's even share or less is left out."""

    def steep(x):
        return 6 * log_reward(x)

    options = {"beta": beta, "dtype": torch.float64}
    store = samplers.resampled_prior_paths(PROCESS, reference, steep, 50, generator(1), **options)
    states = diffusion.rollout(PROCESS, reference, 50, generator(1), dtype=torch.float64)
    powers = [math.exp(beta * r) for r in steep(states[:, -1]).tolist()]
    shares = tensor([power / math.fsum(powers) for power in powers])
    kept = shares > 1e-3 / 50
    assert 5 < kept.sum() < 45
    torch.testing.assert_close(store.states, states[kept], **EXACT)
    torch.testing.assert_close(store.weights, shares[kept], **EXACT)
    torch.testing.assert_close(store.log_reward, steep(states[kept, -1]), **EXACT)
    torch.testing.assert_close(store.log_ref, diffusion.log_prob(PROCESS, reference, states[kept]), **EXACT)


def test_stored_paths_carry_no_gradient_of_the_reference():
    network = networks.DriftNetwork(PROCESS, generator(1), width=5)
    store = samplers.resampled_prior_paths(PROCESS, network, log_reward, 10, generator(2))
    assert not any(x.requires_grad for x in vars(store).values())


def test_a_path_without_reward_is_never_stored():
    """log r = -inf has weight zero."""

    def right_half(x):
        return torch.where(x[:, 0] > 0, 0.0, -math.inf)

    store = samplers.resampled_prior_paths(PROCESS, reference, right_half, 50, generator(1))
    assert 10 < len(store.states) < 40 and store.states[:, -1, 0].min() > 0


# Tabular samplers.


def tabular(seed=0, exploration=0.0):
    """A sampler on a random graph, the problem, its paths listed apart, and each step's behaviour, ``[edges]``."""
    problem = random_graph(seed)
    policy = random_policy(problem, seed + 1)
    sampler = samplers.TabularSampler(problem, (policy + 0.3).requires_grad_())  # a shift that the softmax takes out
    degrees = torch.bincount(problem.source)[problem.source].double()
    return sampler, policy, listed_paths(problem), ((1 - exploration) * policy.exp() + exploration / degrees).log()


@pytest.mark.parametrize("exploration", [0, 0.3, 1.0])
def test_tabular_draws_have_the_exact_law_and_scores(exploration):
    """Of every path that plain recursion lists: 20,000 draws, within 5 standard errors; scores to rounding."""
    sampler, policy, paths, mixed = tabular(exploration=exploration)
    batch = sampler.draw(20_000, generator(7), UniformMixture(exploration))
    by_reference = padded(sampler.problem.log_ref, paths)
    same = (batch.log_ref[:, None] == by_reference).all(dim=2)
    assert bool((same.sum(dim=1) == 1).all())  # the reference is random: it tells paths apart
    drawn = same.int().argmax(dim=1)
    for chance, share in zip(summed(mixed, paths), (torch.bincount(drawn) / 20_000).tolist(), strict=True):
        chance = math.exp(chance)
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / 20_000)
    torch.testing.assert_close(batch.log_pi, padded(policy, paths)[drawn], **EXACT)
    torch.testing.assert_close(batch.log_behaviour, padded(mixed, paths)[drawn], **EXACT)
    torch.testing.assert_close(batch.log_reward, tensor(summed(sampler.problem.rewards, paths))[drawn], **EXACT)


def test_only_the_logits_have_a_gradient():
    """Over the paths drawn: at each state the times an edge was taken, less its probability for each visit."""
    sampler, policy, _, _ = tabular()
    batch = sampler.draw(50, generator(1), UniformMixture(0.5))
    assert not any(x.requires_grad for x in (batch.log_ref, batch.log_reward, batch.log_behaviour))
    assert sampler.parameters() == [sampler.logits]
    (found,) = torch.autograd.grad(batch.log_pi.sum(), sampler.logits)
    taken = (batch.log_ref[..., None] == sampler.problem.log_ref).sum(dim=(0, 1)).double()
    source = sampler.problem.source
    visits = torch.zeros(sampler.problem.n_states, dtype=torch.float64).index_add(0, source, taken)
    torch.testing.assert_close(found, taken - visits[source] * policy.exp(), rtol=0, atol=1e-12)


def test_an_edge_never_taken_is_never_drawn():
    """A logit of -inf; exploration takes it all the same."""
    problem = mdp.tree(2, 1).with_rewards(tensor([5.0, 7.0]))
    sampler = samplers.TabularSampler(problem, tensor([0.0, -math.inf]).requires_grad_())
    assert sampler.draw(50, generator(0)).log_reward.tolist() == [5.0] * 50
    assert 7.0 in sampler.draw(50, generator(0), UniformMixture(0.5)).log_reward.tolist()


@pytest.mark.claim("X1")
def test_every_path_comes_once_with_a_uniform_law_spread_over_its_own_steps():
    """On a graph with paths of several lengths: as plain recursion lists them."""
    sampler, policy, paths, _ = tabular()
    batch = sampler.draw(len(paths), generator(0), EveryPath())
    order = [paths.index(tuple(edge for edge in row if edge >= 0)) for row in sampler.paths.edges.tolist()]
    assert sorted(order) == list(range(len(paths))) and len({len(path) for path in paths}) > 1
    listed = [paths[k] for k in order]
    assert batch.steps.tolist() == [len(path) for path in listed]
    torch.testing.assert_close(batch.log_pi, padded(policy, listed), **EXACT)
    torch.testing.assert_close(batch.rewards, padded(sampler.problem.rewards, listed), **EXACT)
    for row, path in zip(batch.log_behaviour.tolist(), listed, strict=True):
        even = -math.log(len(paths)) / len(path)
        assert row == pytest.approx([even] * len(path) + [0.0] * (len(row) - len(path)), rel=1e-12)
    torch.testing.assert_close(sampler.log_law(), tensor(summed(policy, listed)), **EXACT)


def mixture_sampler(steps=4):
    """Two drifts in closed form, from the prior to the posterior, in double precision."""
    process, tilt = diffusion.Process(steps=steps), targets.twenty_five_to_nine(dtype=torch.float64)
    policy, prior = (drifts.MixtureDrift(process, mixture) for mixture in (tilt.posterior, tilt.prior))
    return samplers.DiffusionSampler(process, policy, prior, tilt.log_reward)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_log_weights_of_paths_are_a_methods_of_each_sampler(beta):
    """beta log r less the log-ratio, path by path; in float64 even of float32 paths, with the policy's gradients."""
    sampler, policy, paths, _ = tabular()
    rewards, refs, logs = (summed(edge, paths) for edge in (sampler.problem.rewards, sampler.problem.log_ref, policy))
    wanted = [beta * r - p + q for r, p, q in zip(rewards, logs, refs, strict=True)]
    found = sampler.log_weights(sampler.paths, beta=beta)
    assert sorted(found.tolist()) == pytest.approx(sorted(wanted)) and found.requires_grad
    continuous = made(dtype=torch.float32)
    states = diffusion.rollout(PROCESS, continuous.policy, 5, generator(1))
    e = continuous.log_weights(states, beta=beta)
    assert e.dtype == torch.float64 and e.requires_grad
    scores = [diffusion.log_prob(PROCESS, u, states).double().sum(dim=1) for u in (continuous.policy, reference)]
    torch.testing.assert_close(e, beta * log_reward(states[:, -1]).double() - (scores[0] - scores[1]), **EXACT)
    known = mixture_sampler()  # of drifts in closed form, which no training needs
    states = diffusion.rollout(known.process, reference, 3, generator(1), dtype=torch.float64)
    assert known.log_weights(states).shape == (3,)


@pytest.mark.claim("X3")
@pytest.mark.parametrize(
    ("number", "points"),
    [
        (Fading(0.5, 500, 4500), {0: 0.5, 1: 0.5, 500: 0.5, 501: 0.5 * 3999 / 4500, 2250: 0.25, 3600: 0.1}),
        (Fading(0.5, 500, 4500), {4499: 0.5 / 4500, 4500: 0.0, 4501: 0.0, 4999: 0.0}),
        (Fading(2.0, 0, 4), {0: 2.0, 1: 1.5, 3: 0.5, 4: 0.0}),
        (Fading(2.0, 4, 4), {0: 2.0, 3: 2.0, 4: 0.0}),
        (0.7, {0: 0.7, 4999: 0.7}),
    ],
    ids=in_one_line,
)
def test_what_fades_at_points_worked_out_by_hand(number, points):
    """The first row is the published schedule of exploration; a plain number does not fade."""
    assert {i: at(number, i) for i in points} == pytest.approx(points, rel=1e-12, abs=0)


def test_replay_lasts_as_long_as_it_should():
    for behaviour, points in (
        (Exploration(), {0: 0.0}),
        (Exploration(replayed=0.5), {0: 0.5, 4999: 0.5}),
        (Exploration(replayed=0.5, replay_until=3), {0: 0.5, 2: 0.5, 3: 0.0}),
        (Exploration(replayed=0.5, replay_until=0), {0: 0.0}),
    ):
        assert {i: behaviour.replayed_at(i) for i in points} == points


def test_the_iteration_decides_what_is_drawn():
    """Half of the noise is left at iteration 2 of 4, and the replay is over."""
    behaviour = Exploration(Fading(0.8, 0, 4), replayed=0.5, replay_until=2)
    later, plain = made(stored()).draw(8, generator(1), behaviour, 2), made().draw(8, generator(1), Exploration(0.4))
    assert torch.equal(later.log_behaviour, plain.log_behaviour)
    assert made(stored()).draw(8, generator(1), behaviour, 1).log_behaviour is None


def padded_batch(**changes) -> samplers.Batch:
    """Two paths of three and two steps."""
    steps = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    given = {"log_pi": -steps, "log_ref": -2 * steps, "log_reward": tensor([0.5, -1.0])}
    return samplers.Batch(**(given | {"steps": torch.tensor([3, 2])} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_pi": [1.0]}, "log_pi is list"),
        ({"log_pi": torch.zeros(2)}, r"log_pi is \(2,\) torch.float32"),
        ({"log_ref": torch.zeros(2, 2)}, r"log_ref has shape \(2, 2\)"),
        ({"log_ref": None}, "log_ref is a NoneType"),
        ({"log_reward": tensor([[0.5], [-1.0]])}, r"log_reward has shape \(2, 1\)"),
        ({"log_reward": tensor([0.5])}, r"log_reward has shape \(1,\)"),
        ({"log_reward": tensor([0.5, -1.0]).float()}, "log_reward is torch.float32"),
        ({"rewards": torch.zeros(2, 4, dtype=torch.float64)}, r"rewards has shape \(2, 4\)"),
        ({"log_behaviour": torch.zeros(2, dtype=torch.float64)}, r"log_behaviour has shape \(2,\)"),
        ({"steps": torch.tensor([0, 2])}, "steps holds 0 to 2"),
        ({"steps": torch.tensor([3, 1])}, r"log_pi is -5 at \[1, 1\]"),
        ({"group": torch.tensor([0.0, 1.0])}, "group is torch.float32"),
        ({"group": torch.tensor([0])}, r"group has shape \(1,\)"),
        ({"states": torch.zeros(2, 3)}, r"states is \(2, 3\)"),
        ({"states": [0, 1]}, "states is list"),
    ],
)
def test_a_batch_whose_entries_do_not_fit_is_refused(changes, words):
    """Nothing is broadcast, cut or counted beyond its end."""
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        padded_batch(**changes)


def test_the_mixture_fades_with_the_iterations():
    """Late in a run the behaviour is the policy."""
    behaviour = UniformMixture(Fading(1.0, until=1, end=5))
    early, late = (tabular()[0].draw(200, generator(1), behaviour, i) for i in (0, 5))
    torch.testing.assert_close(late.log_behaviour, late.log_pi.detach(), **EXACT)
    assert (early.log_behaviour - early.log_pi).abs().max() > 0.1


# Refusals.

PROBLEM = mdp.small_graph()
LOGITS = PROBLEM.log_ref


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: made().draw(0, generator(0)), "n is 0"),
        (lambda: made().draw(4, None), "generator is None"),
        (lambda: made(stored()).draw(4, None, Exploration(replayed=1.0)), "generator is None"),
        (lambda: made().draw(4, generator(0), Exploration(replayed=0.5)), "there is no store"),
        (lambda: Exploration(replayed=-0.1), "replayed is -0.1"),
        (lambda: Exploration(replayed=1.1), "replayed is 1.1"),
        (lambda: Exploration(-0.1), "noise is -0.1"),
        (lambda: Exploration(replay_until=5), "replay_until is 5"),
        (lambda: Exploration(replayed=0.5, replay_until=-1), "replay_until is -1"),
        (lambda: Fading(-0.5, 0, 10), "start is -0.5"),
        (lambda: Fading(math.nan, 0, 10), "start is nan"),
        (lambda: Fading(0.5, -1, 10), "until is -1"),
        (lambda: Fading(0.5, "500", 10), "until is '500'"),
        (lambda: Fading(0.5, 20, 10), "end is 10 with until 20"),
        (lambda: Fading(0.5, 0, 0), "end is 0"),
        (lambda: made().draw(4, generator(0), UniformMixture(0.5)), "behaviour is UniformMixture"),
        (lambda: tabular()[0].draw(4, generator(0), Exploration(0.5)), "behaviour is Exploration"),
        (lambda: tabular()[0].draw(4, generator(0), EveryPath()), "n is 4 with every path asked for"),
        (lambda: mixture_sampler().parameters(), "policy is a MixtureDrift"),
        (lambda: made(reward=lambda x: x[:, 0] / 0).draw(4, generator(0)), "log_reward holds 4"),
        (lambda: samplers.resampled_prior_paths(PROCESS, reference, log_reward, 4, generator(0), beta=0), "beta is 0"),
        (lambda: samplers.resampled_prior_paths(PROCESS, reference, log_reward, 0, generator(0)), "n is 0"),
        (lambda: samplers.resampled_prior_paths(PROCESS, reference, log_reward, 4, None), "generator is None"),
        (
            lambda: samplers.resampled_prior_paths(PROCESS, reference, lambda x: x[:, 0] * math.nan, 4, generator(0)),
            "NaN",
        ),
        (
            lambda: samplers.resampled_prior_paths(PROCESS, reference, lambda x: x[:, 0] - math.inf, 4, generator(0)),
            "NaN",
        ),
        (lambda: samplers.TabularSampler(PROBLEM, LOGITS.clone()), "requires a gradient"),
        (lambda: samplers.TabularSampler(PROBLEM, torch.zeros(3, requires_grad=True)), "logits is (3,)"),
        (lambda: UniformMixture(1.5), "epsilon is 1.5"),
        (lambda: UniformMixture(-0.5), "epsilon is -0.5"),
        (lambda: tabular()[0].draw(0, generator(0)), "n is 0"),
        (lambda: tabular()[0].draw(4, None), "generator is None"),
        (
            lambda: samplers.TabularSampler(PROBLEM, (LOGITS * math.nan).requires_grad_()).draw(4, generator(0)),
            "logits hold NaN",
        ),
        (
            lambda: samplers.TabularSampler(PROBLEM, (LOGITS - math.inf).requires_grad_()).draw(4, generator(0)),
            "All logits of some state are -inf",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    """Samples out of range, no generator, no store, rewards that are not finite, bad logits."""
    with pytest.raises(ValueError, match="expected") as refusal:
        call()
    assert words in str(refusal.value)


# What a user's functions may return, and whether they leave their inputs alone.

REWARDS = {
    "numpy": (lambda x: x[:, 0].numpy(), "log_reward is ndarray"),
    "a list": (lambda x: x[:, 0].tolist(), "log_reward is list"),
    "None": (lambda x: None, "log_reward is NoneType"),
    "a column": (lambda x: x[:, :1], r"log_reward is \(6, 1\)"),
    "one number": (lambda x: x.sum(), r"log_reward is \(\) torch.float64"),
    "another dtype": (lambda x: x[:, 0].float(), r"log_reward is \(6,\) torch.float32"),
    "integers": (lambda x: x[:, 0].long(), r"log_reward is \(6,\) torch.int64"),
    "another device": (lambda x: x[:, 0].to("meta"), r"log_reward is \(6,\) torch.float64 on meta"),
    "what it wrote over": (lambda x: x.detach().clamp_(-1, 1)[:, 0], "log_reward wrote over the states"),
}
POINTS = torch.zeros(6, 5, 2, dtype=torch.float64)
ASKED = {
    "drawn": lambda reward: made(reward=reward).draw(6, generator(0)),
    "weighed": lambda reward: made(reward=reward).log_weights(POINTS.clone()),
    "stored": lambda reward: samplers.resampled_prior_paths(
        PROCESS, reference, reward, 6, generator(0), dtype=torch.float64
    ),
    "guided by": lambda reward: drifts.GuidedDrift(PROCESS, reference, reward)(POINTS[:, 0], torch.zeros(())),
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("where", ASKED)
def test_a_reward_that_is_no_number_for_each_path_is_refused(where, name):
    """Wherever it is asked for."""
    reward, words = REWARDS[name]
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        ASKED[where](reward if where != "guided by" or name != "numpy" else lambda x: x[:, 0].detach().numpy())


def test_a_reward_without_a_gradient_does_not_guide():
    guided = drifts.GuidedDrift(PROCESS, reference, lambda x: x[:, 0].detach())
    with pytest.raises(ValueError, match="log_reward has no gradient; expected one"):
        guided(POINTS[:, 0], torch.zeros(()))


class Of(torch.nn.Module):
    """A drift with a weight, which returns what is made of that weight times the states."""

    def __init__(self, made):
        super().__init__()
        self.weight, self.made = torch.nn.Parameter(torch.ones((), dtype=torch.float64)), made

    def forward(self, states, times):
        return self.made(self.weight * states if self.weight is not None else states, states)


DRIFTS = {
    "detached": (lambda move, s: move.detach(), "drew a log_pi without a gradient"),
    "another shape": (lambda move, s: move[:1], r"The drift is \(1, "),
    "another dimension": (lambda move, s: move[..., :1], r"The drift is \(8, 1\)"),
    "another dtype": (lambda move, s: move.float(), r"The drift is \(8, 2\) torch.float32"),
    "another device": (lambda move, s: move.to("meta"), r"The drift is \(8, 2\) torch.float64 on meta"),
    "nothing": (lambda move, s: None, "The drift is NoneType"),
    "numpy": (lambda move, s: move.detach().numpy(), "The drift is ndarray"),
    "what it wrote over": (lambda move, s: move + s.mul_(0.5), "The drift wrote over the states"),
    "a copy's": (lambda move, s: Of(lambda move, s: move)(s, None), "loss of iteration 0 does not depend on any"),
}


def trained(policy, *, start=reference, **options):
    """Train a drift for two steps."""
    sampler = samplers.DiffusionSampler(PROCESS, policy, start, log_reward, **options)
    schedule = training.Schedule(iterations=2, batch=8)
    training.fine_tune(sampler, objectives.RTB(), schedule=schedule, generator=generator(1))


@pytest.mark.parametrize("name", DRIFTS)
def test_a_policy_that_is_no_drift_is_refused(name):
    """And one from which nothing can be learned, where log Z alone would be."""
    made, words = DRIFTS[name]
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        trained(Of(made))


@pytest.mark.parametrize("name", [name for name in DRIFTS if name not in ("detached", "a copy's")])
def test_a_reference_that_is_no_drift_is_refused(name):
    """It is called on whole paths."""
    made, words = DRIFTS[name]
    with pytest.raises(ValueError, match=f"{words.split('8')[0]}.*expected"):
        trained(Of(lambda move, s: move), start=Of(made))


def test_a_policy_is_trained_apart_from_its_reference():
    """It is a module with weights, and shares none with the reference, but its dtype; a frozen copy is right."""
    policy = Of(lambda move, s: move)
    sharing = Of(lambda move, s: move)
    sharing.weight = policy.weight
    for given, start, words in (
        (reference, reference, "policy is a function without parameters"),
        (torch.nn.Identity(), reference, "policy is a Identity without parameters"),
        (policy, policy, r"policy and reference share 1 tensor\(s\)"),
        (policy, sharing, r"policy and reference share 1 tensor\(s\)"),
        (policy, copy.deepcopy(policy).float(), "dtypes and devices are .*float64.*float32"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*expected"):
            trained(given, start=start)
    trained(policy, start=copy.deepcopy(policy).requires_grad_(False))
    assert policy.weight.item() != 1


OTHER = diffusion.Process(steps=4, variance=3.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: trained(networks.DriftNetwork(OTHER, generator(0))), r"policy is for Process\(steps=4, variance=3.0"),
        (lambda: trained(Of(None), start=mixture_sampler(5).reference), r"reference is for Process\(steps=5"),
        (lambda: trained(Of), "policy is <class"),
        (lambda: trained(None), "policy is None"),
        (lambda: samplers.DiffusionSampler(4, Of(None), reference, log_reward), "process is a int"),
        (lambda: samplers.DiffusionSampler(PROCESS, Of(None), reference, 5.0), "log_reward is 5.0"),
        (lambda: trained(Of(None), store=[1]), "store is a list"),
        (lambda: trained(Of(None), store=of_process(diffusion.Process(5, 2.0))), r"states is \(50, 6, 2\)"),
        (lambda: trained(Of(None), store=of_process(OTHER)), "log_ref of the store is .* nats from that"),
        (lambda: trained(Of(None), start=lambda s, t: -s, store=stored()), "log_ref of the store is .* nats from that"),
        (
            lambda: trained(Of(None), store=replace(stored(), log_ref=stored().log_ref + 0.5)),
            "log_ref of the store is 0.5 nats from that",
        ),
        (lambda: trained(Of(None).float(), store=stored()), "dtypes and devices are .*float32.*float64"),
    ],
)
def test_a_drift_or_a_store_of_another_process_is_refused(call, words):
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        call()


def of_process(process) -> samplers.Store:
    """Paths of the reference under this process."""
    return samplers.resampled_prior_paths(
        process, reference, lambda x: 0 * x[:, 0], 50, generator(1), dtype=torch.float64
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": None}, "states of the store is NoneType"),
        ({"states": torch.zeros(3, 5)}, r"states of the store is \(3, 5\)"),
        ({"states": torch.zeros(0, 5, 2)}, r"states of the store is \(0, 5, 2\)"),
        ({"log_ref": tensor([[0.0] * 5] * 3)}, r"log_ref of the store is \(3, 5\)"),
        ({"log_reward": tensor([0.0, 0.0])}, r"log_reward of the store is \(2,\)"),
        ({"log_reward": [0.0, 0.0, 0.0]}, "log_reward of the store is list"),
        ({"weights": tensor([[1.0], [1.0], [1.0]])}, r"weights of the store is \(3, 1\)"),
        ({"weights": torch.ones(3)}, r"weights of the store is \(3,\) torch.float32"),
        ({"weights": torch.ones(3, dtype=torch.int64)}, r"weights of the store is \(3,\) torch.int64"),
        ({"weights": tensor([1.0, -1.0, 1.0])}, "negative or all 0"),
        ({"weights": tensor([0.0, 0.0, 0.0])}, "negative or all 0"),
        ({"weights": tensor([1.0, math.nan, 1.0])}, "weights of the store holds 1"),
        ({"log_reward": tensor([0.0, -math.inf, 0.0])}, "log_reward of the store holds 1"),
    ],
)
def test_a_store_whose_parts_do_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        replace(stored(), **changes)


def test_a_generator_on_another_device_is_refused():
    sampler = made()
    sampler.policy = sampler.policy.to("meta")
    with pytest.raises(ValueError, match="generator is on cpu; expected meta"):
        sampler.draw(4, generator(0))
