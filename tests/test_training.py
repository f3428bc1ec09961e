"""The training loop: settings, schedules, objectives against exact answers, divergence, and runs that go on."""

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import generator, tensor

from companion import mdp, metrics, reinforce, rtb, samplers, targets, training
from companion.samplers import diffusion, networks
from companion.validation import NotFiniteError

ALPHA = 0.5
PROBLEM = mdp.randomise(mdp.small_graph(), generator(0), reward_scale=2.0)
SOLUTION = mdp.solve(PROBLEM, kl_weight=ALPHA)
PATHS = mdp.enumerate_paths(PROBLEM)
PUBLISHED = {"exploration": 0.5, "explore_until": 500, "explore_to": 4500}


def quick(objective="vargrad", **changes) -> training.Settings:
    """Settings of a run of ten steps, at alpha = 1/2 where the objective has one."""
    beta = {} if objective == "published" else {"beta": 1 / ALPHA}
    return training.Settings(objective, **({"iterations": 10, "batch": 16, "rate": 0.05} | beta | changes))


def tabular() -> samplers.TabularSampler:
    """A sampler that starts at the reference."""
    return samplers.TabularSampler(PROBLEM, PROBLEM.log_ref.clone().requires_grad_())


def continuous(replayed=False) -> samplers.DiffusionSampler:
    """A small diffusion sampler, with a store where paths are replayed."""
    process, tilt = diffusion.Process(steps=4), targets.twenty_five_to_nine()
    prior = diffusion.MixtureDrift(process, tilt.prior)
    store = samplers.resampled_prior_paths(process, prior, tilt.log_reward, 20, generator(1)) if replayed else None
    policy = networks.DriftNetwork(process, generator(2), width=4)
    return samplers.DiffusionSampler(process, policy, prior, lambda x: 0.1 * tilt.log_reward(x), store=store)


class Watched:
    """A sampler that keeps what it was asked for and what it drew, and can be made to fail at a draw."""

    def __init__(self, sampler, fails_at=None, failure=None):
        self.sampler, self.fails_at, self.failure = sampler, fails_at, failure
        self.asked, self.batches = [], []

    def parameters(self):
        return self.sampler.parameters()

    def draw(self, n, generator, *, exploration=0.0, replayed=0.0):
        self.asked.append((n, exploration, replayed))
        if len(self.asked) - 1 == self.fails_at and isinstance(self.failure, BaseException):
            raise self.failure
        batch = self.sampler.draw(n, generator, exploration=exploration, replayed=replayed)
        if len(self.asked) - 1 == self.fails_at:
            batch = self.failure(batch)
        self.batches.append(batch)
        return batch


def weights_of(sampler) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [parameter.detach().clone() for parameter in sampler.parameters()]


def assert_equal(ours, theirs) -> None:
    """Assert that two lists of tensors are equal to the last bit."""
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def batch_of(returns, seed=3) -> samplers.Batch:
    """A batch of three-step paths whose returns, log r - alpha (log pi - log pi_ref), are those given."""
    log_pi, log_ref = torch.randn(2, len(returns), 3, generator=generator(seed), dtype=torch.float64)
    log_reward = tensor(returns) + ALPHA * (log_pi - log_ref).sum(dim=1)
    return samplers.Batch(log_pi.requires_grad_(), log_ref, log_reward, log_pi.detach().clone())


def gradient(settings, batch, scalar=None, i=0) -> torch.Tensor:
    """The gradient of an objective's loss by log_pi, ``[batch]``: it is the same at all steps of a path."""
    objective = training.Objective(settings, batch.log_pi)
    if scalar is not None:
        objective.scalar.data.fill_(scalar)
    (grad,) = torch.autograd.grad(objective.loss(batch, i), batch.log_pi)
    assert bool((grad == grad[:, :1]).all())
    return grad[:, 0]


# Settings and schedules.


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "RTB"},
        {"objective": None},
        {"iterations": 0},
        {"iterations": 2.0},
        {"batch": 0},
        {"batch": True},
        {"rate": 0},
        {"rate": math.nan},
        {"scalar_rate": -0.1},
        {"scalar_rate": torch.tensor(0.1)},
        {"beta": 0.0},
        {"beta": math.inf},
        {"kl_weight": -1.0},
        {"exploration": -0.5, "explore_to": 10},
        {"exploration": math.nan, "explore_to": 10},
        {"explore_until": -1},
        {"explore_until": "500"},
        {"explore_to": -1},
        {"explore_until": 20, "explore_to": 10},
        {"exploration": 0.5},
        {"replayed": -0.1},
        {"replayed": 1.1},
        {"replay_until": -1},
        {"replay_until": 5001},
        {"decay_from": -1},
        {"decay_from": 5001},
        {"decay_from": math.nan},
        {"anneal_beta": -1},
        {"clip": 0.0},
        {"clip": math.inf},
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes):
    """The message names the setting that is at fault."""
    with pytest.raises(ValueError, match="expected") as refusal:
        training.Settings(**changes)
    assert list(changes)[0] in str(refusal.value)


@pytest.mark.parametrize("changes", [{"decay_from": "5"}, {"baseline": "mean"}, {"weights": "Importance"}], ids=str)
def test_settings_that_could_only_fail_later_are_refused(changes):
    """Before the first path is drawn."""
    with pytest.raises(ValueError, match="expected"):
        training.Settings("reinforce", **changes)


@pytest.mark.parametrize("changes", [{"baseline": "mean"}, {"weights": "Importance"}, {"baseline": math.nan}], ids=str)
def test_a_run_refuses_an_unknown_baseline_or_weighting(changes):
    with pytest.raises(ValueError, match="expected"):
        training.fine_tune(tabular(), quick("reinforce", **changes), generator(0))


def test_settings_at_the_edges_are_accepted():
    """Schedules that end with the run, fall at once, or begin at the first step."""
    training.Settings(iterations=10, decay_from=10, replay_until=0, replayed=1, exploration=1, explore_to=1, clip=1e-9)
    training.Settings(iterations=10, decay_from=0, replay_until=10, exploration=5.0, explore_until=4, explore_to=4)


def test_settings_are_plain_data():
    """They survive JSON."""
    settings = training.Settings("trust_pcl", decay_from=2, clip=3.0, **PUBLISHED)
    assert training.Settings(**json.loads(json.dumps(asdict(settings)))) == settings


@pytest.mark.claim("X3")
@pytest.mark.parametrize(
    ("name", "changes", "points"),
    [
        ("exploration_at", PUBLISHED, {0: 0.5, 1: 0.5, 500: 0.5, 501: 0.5 * 3999 / 4500, 2250: 0.25, 3600: 0.1}),
        ("exploration_at", PUBLISHED, {4499: 0.5 / 4500, 4500: 0.0, 4501: 0.0, 4999: 0.0}),
        ("exploration_at", {}, {0: 0.0, 4999: 0.0}),
        ("exploration_at", {"exploration": 2.0, "explore_to": 4}, {0: 2.0, 1: 1.5, 3: 0.5, 4: 0.0}),
        ("exploration_at", {"exploration": 2.0, "explore_until": 4, "explore_to": 4}, {0: 2.0, 3: 2.0, 4: 0.0}),
        ("beta_at", {"beta": 2.0}, {0: 2.0, 9: 2.0}),
        ("beta_at", {"beta": 2.0, "anneal_beta": 4}, {0: 0.4, 1: 0.8, 3: 1.6, 4: 2.0, 5: 2.0}),
        ("rate_at", {}, {0: 1.0, 4999: 1.0}),
        ("rate_at", {"iterations": 10, "decay_from": 6}, {0: 1.0, 5: 1.0, 6: 1.0, 7: 0.75, 9: 0.25}),
        ("rate_at", {"iterations": 10, "decay_from": 0}, {0: 1.0, 1: 0.9, 9: 0.1}),
        ("rate_at", {"iterations": 10, "decay_from": 10}, {0: 1.0, 9: 1.0}),
        ("replayed_at", {}, {0: 0.0}),
        ("replayed_at", {"replayed": 0.5}, {0: 0.5, 4999: 0.5}),
        ("replayed_at", {"replayed": 0.5, "replay_until": 3}, {0: 0.5, 2: 0.5, 3: 0.0}),
        ("replayed_at", {"replayed": 0.5, "replay_until": 0}, {0: 0.0}),
    ],
)
def test_schedules_at_points_worked_out_by_hand(name, changes, points):
    """The first row is the published schedule of exploration."""
    at = getattr(training.Settings(**changes), name)
    assert {i: at(i) for i in points} == pytest.approx(points, rel=1e-12, abs=0)


def test_the_loop_asks_for_what_the_schedules_say():
    """At every iteration: paths, exploration and the share replayed; and the inverse temperature, from the loss."""
    settings = quick(exploration=0.8, explore_until=2, explore_to=6, replayed=0.5, replay_until=7, anneal_beta=4)
    sampler = Watched(continuous(replayed=True))
    history = training.fine_tune(sampler, settings, generator(1))
    exploration = [0.8, 0.8, 0.8, 0.8 * 3 / 6, 0.8 * 2 / 6, 0.8 / 6, 0, 0, 0, 0]
    shares = [0.5] * 7 + [0] * 3
    assert [n for n, _, _ in sampler.asked] == [16] * 10
    assert [e for _, e, _ in sampler.asked] == pytest.approx(exploration)
    assert [share for _, _, share in sampler.asked] == shares
    for i, batch in enumerate(sampler.batches):
        beta = min(1, (i + 1) / 5) / ALPHA
        loss = rtb.vargrad_loss(batch.log_pi, batch.log_ref, batch.log_reward, beta=beta)
        assert history.steps["loss"][i] == pytest.approx(loss.item(), rel=1e-6)


def test_a_run_is_adam_with_a_rate_for_each_group():
    """The same to the last bit as ten steps written out by hand; the rates fall to a fifth."""
    settings = quick("rtb", scalar_rate=0.2, decay_from=5)
    sampler = tabular()
    history = training.fine_tune(sampler, settings, generator(1))
    other, log_z, draws = tabular(), torch.zeros((), dtype=torch.float64, requires_grad=True), generator(1)
    adam = torch.optim.Adam([{"params": [other.logits], "lr": 0.05}, {"params": [log_z], "lr": 0.2}])
    scalars = []
    for i in range(10):
        factor = 1 if i < 5 else (10 - i) / 5
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.05 * factor, 0.2 * factor
        batch = other.draw(16, draws)
        scalars.append(log_z.item())
        adam.zero_grad()
        rtb.loss(batch.log_pi, batch.log_ref, batch.log_reward, log_z, beta=1 / ALPHA).backward()
        adam.step()
    assert_equal(weights_of(sampler), weights_of(other))
    assert history.steps["scalar"].tolist() == scalars


# Objectives.


EVERYWHERE = {"exploration": 0.5, "explore_until": 300, "explore_to": 300}


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("rtb", {}),
        ("rtb", EVERYWHERE),
        ("rtb", {"anneal_beta": 100}),
        ("rtb", {"clip": 2.0}),
        ("vargrad", {}),
        ("vargrad", EVERYWHERE),
        ("trust_pcl", {}),
        ("trust_pcl", EVERYWHERE),
        ("reinforce", {}),
        ("reinforce", {"baseline": "leave_one_out"}),
        ("reinforce", {"baseline": "learned"}),
        ("reinforce", {"baseline": "learned", "weights": "importance"} | EVERYWHERE),
    ],
)
def test_a_trained_sampler_has_the_optimal_law(objective, changes):
    """KL(p*, p) over all paths falls from 0.48 to less than 1e-6; log Z or V(s_0) is learned on the way."""
    settings = quick(objective, iterations=300, batch=64, decay_from=150, **changes)
    best = PATHS.log_prob(SOLUTION.log_policy)
    assert metrics.kl_divergence(best, PATHS.log_prob(PROBLEM.log_ref)) > 0.4
    sampler = tabular()
    history = training.fine_tune(sampler, settings, generator(2))
    trained = PATHS.log_prob(mdp.log_softmax(PROBLEM, sampler.logits.detach()))
    assert metrics.kl_divergence(best, trained) < 1e-6
    learns = objective in ("rtb", "trust_pcl") or settings.baseline == "learned"
    assert ("scalar" in history.steps) == learns
    if learns:
        value = SOLUTION.values[0].item() / (ALPHA if objective == "rtb" else 1)
        assert history.steps["scalar"][-1] == pytest.approx(value, abs=1e-3)
    assert history.steps["elbo"][-1] == pytest.approx(SOLUTION.values[0].item() / ALPHA, abs=1e-3)


def test_the_published_baseline_has_another_optimum():
    """It runs as long, gains reward, and stays far from p*."""
    sampler = tabular()
    settings = quick("published", iterations=300, batch=64, decay_from=150)
    history = training.fine_tune(sampler, settings, generator(2))
    trained = PATHS.log_prob(mdp.log_softmax(PROBLEM, sampler.logits.detach()))
    assert metrics.kl_divergence(PATHS.log_prob(SOLUTION.log_policy), trained) > 1
    assert history.steps["log_reward"][-20:].mean() > history.steps["log_reward"][:20].mean() + 0.5


@pytest.mark.parametrize("objective", ["rtb", "vargrad", "trust_pcl", "reinforce", "published"])
def test_every_objective_trains_a_diffusion_sampler(objective):
    """Two steps with half of the paths replayed: finite, and no parameter left where it was."""
    sampler = continuous(replayed=True)
    before = weights_of(sampler)
    history = training.fine_tune(sampler, quick(objective, iterations=2, replayed=0.5), generator(1))
    assert history.diverged_at is None and all(np.isfinite(column).all() for column in history.steps.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, weights_of(sampler), strict=True))


@pytest.mark.claim("X2")
@pytest.mark.parametrize(("alpha", "tolerance"), [(1.0, 1e-11), (0.5, 1e-5), (2.0, 1e-5)])
def test_trust_pcl_repeats_rtbs_run(alpha, tolerance):
    """Twenty steps at the same rate for the policy and alpha times the rate for V(s_0) = alpha log Z.

    Adam's eps of 1e-8 is not rescaled here. It shortens a step by eps over the gradient, 1e-8 / 1e-3 at most: twenty
    steps of 0.05 end within 1e-5. At alpha = 1 only sums are taken in another order.
    """
    one, other = tabular(), tabular()
    shared = {"iterations": 20, "beta": 1 / alpha, "batch": 64}
    ours = training.fine_tune(one, quick("rtb", scalar_rate=0.1, **shared), generator(3)).steps
    theirs = training.fine_tune(other, quick("trust_pcl", scalar_rate=0.1 * alpha, **shared), generator(3)).steps
    assert (one.logits - PROBLEM.log_ref).abs().max() > 0.1
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=tolerance)
    np.testing.assert_allclose(theirs["scalar"], alpha * ours["scalar"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(theirs["loss"], alpha**2 * ours["loss"], rtol=10 * tolerance)
    np.testing.assert_allclose(theirs["log_reward"], ours["log_reward"], rtol=0)


def test_reinforce_on_policy_has_alpha_times_vargrads_gradient():
    """With the batch mean as its baseline."""
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    ours, theirs = gradient(quick("reinforce"), batch), gradient(quick("vargrad"), batch)
    torch.testing.assert_close(ours, ALPHA * theirs, rtol=1e-12, atol=1e-12)


def test_a_learned_baseline_is_fitted_to_the_return_and_taken_off_it():
    """Returns 1, -2, 0.5, 4 and a baseline of 0.25: the policy's gradient is minus what is left, over 4."""
    batch, settings = batch_of([1.0, -2.0, 0.5, 4.0]), quick("reinforce", baseline="learned")
    torch.testing.assert_close(gradient(settings, batch, scalar=0.25), tensor([-0.75, 2.25, -0.25, -3.75]) / 4)
    objective = training.Objective(settings, batch.log_pi)
    objective.scalar.data.fill_(0.25)
    (found,) = torch.autograd.grad(objective.loss(batch), objective.parameters())
    torch.testing.assert_close(found, tensor(0.25 - 3.5 / 4))


@pytest.mark.parametrize("weights", ["importance", "tempered"])
@pytest.mark.parametrize("baseline", ["learned", "leave_one_out", 0.5])
def test_weights_are_passed_on(weights, baseline):
    """With the behaviour of the batch, to the policy's loss and the baseline's."""
    batch = batch_of([1.0, -2.0, 0.5])
    batch = replace(batch, log_behaviour=batch.log_ref)
    objective = training.Objective(quick("reinforce", weights=weights, baseline=baseline), batch.log_pi)
    given = {"beta": 1 / ALPHA, "weights": weights, "log_behaviour": batch.log_ref}
    arguments = (batch.log_pi, batch.log_ref, batch.log_reward)
    expected = reinforce.kl_loss(*arguments, baseline=0.0 if baseline == "learned" else baseline, **given)
    if baseline == "learned":
        expected = expected + reinforce.critic_loss(*arguments, objective.scalar, **given)
    torch.testing.assert_close(objective.loss(batch), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", ["importance", "tempered"])
def test_weights_for_replayed_paths_are_refused(weights):
    """Their behaviour has no density."""
    settings = quick("reinforce", weights=weights, replayed=0.5)
    with pytest.raises(ValueError, match=f"weights='{weights}' with replayed paths.*Use 'none'"):
        training.fine_tune(continuous(replayed=True), settings, generator(0))


def test_annealing_takes_a_lower_beta_at_first():
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    for i, beta in ((0, 0.5), (1, 1.0), (3, 2.0), (9, 2.0)):
        ours = gradient(quick("rtb", anneal_beta=3), batch, scalar=0.3, i=i)
        torch.testing.assert_close(ours, gradient(quick("rtb", beta=beta), batch, scalar=0.3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", ["rtb", "vargrad", "trust_pcl", "reinforce"])
@pytest.mark.parametrize("clip", [3.0, 10.0, 100.0])
def test_a_residual_beyond_the_clip_counts_as_the_clip(objective, clip):
    """Residuals -+1 and -+20 nats about their mean; those within the clip are untouched.

    A path's gradient by its log-probability is its residual over the number of paths, in the units of the loss: alpha^2
    for Trust-PCL, alpha for REINFORCE.
    """
    batch, mean = batch_of([10.0, 0.0, 5.5, 4.5]), 5.0
    residuals = tensor([-10.0, 10.0, -1.0, 1.0]).clamp(-clip, clip)
    scalar = {"rtb": mean / ALPHA, "trust_pcl": mean}.get(objective)
    unit = {"trust_pcl": ALPHA**2, "reinforce": ALPHA}.get(objective, 1.0)
    settings = quick(objective, clip=clip)
    torch.testing.assert_close(gradient(settings, batch, scalar), unit * residuals / 4, rtol=1e-12, atol=1e-12)
    if objective != "reinforce":  # whose value means nothing
        made = training.Objective(settings, batch.log_pi)
        if scalar is not None:
            made.scalar.data.fill_(scalar)
        torch.testing.assert_close(made.loss(batch), unit * 0.5 * residuals.square().mean())


def test_a_clip_that_nothing_reaches_changes_nothing():
    """The run is the same, but for the rounding of a sum taken apart and put together again."""
    one, other = tabular(), tabular()
    training.fine_tune(one, quick("rtb"), generator(3))
    training.fine_tune(other, quick("rtb", clip=1e3), generator(3))
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)


def test_measures_are_those_of_the_batch():
    """Mean log-reward; the mean of beta log r less the log-ratio; and the scalar before the step."""
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    row = training.Objective(quick("rtb"), batch.log_pi).measures(batch)
    assert row == pytest.approx({"log_reward": batch.log_reward.mean().item(), "elbo": 3.5 / 4 / ALPHA, "scalar": 0.0})
    assert set(training.Objective(quick("vargrad"), batch.log_pi).measures(batch)) == {"log_reward", "elbo"}


# Divergence.


def spoiled(batch):
    """The batch with a log-reward that is no number."""
    return replace(batch, log_reward=batch.log_reward * math.nan)


@pytest.mark.parametrize("objective", ["rtb", "vargrad", "trust_pcl", "reinforce", "published"])
def test_a_loss_that_is_not_finite_stops_the_run(objective):
    """The parameters are those before that step, the history says where, and holds no row for it."""
    sampler = Watched(tabular(), fails_at=4, failure=spoiled)
    history = training.fine_tune(sampler, quick(objective), generator(1))
    assert history.diverged_at == 4 and len(sampler.asked) == 5
    assert {len(column) for column in history.steps.values()} == {4}
    other = tabular()
    training.fine_tune(other, quick(objective, iterations=4), generator(1))
    assert_equal(weights_of(sampler), weights_of(other))


def test_a_gradient_that_is_not_finite_stops_the_run():
    """The loss is 0, its gradient infinite: a root at zero."""
    weight = torch.tensor(1.0, requires_grad=True)

    def loss_of(i):
        return (weight.square() if i < 3 else (weight - weight.detach()).abs().sqrt()), {}

    history = training.optimise(loss_of, [([weight], 0.1)], 10, generator(0))
    assert history.diverged_at == 3 and len(history.steps["loss"]) == 3
    assert weight.item() == pytest.approx(0.7, abs=0.01)  # three steps of Adam, no more


def test_bad_input_at_the_first_step_is_refused_and_not_called_divergence():
    sampler = Watched(tabular(), fails_at=0, failure=spoiled)
    with pytest.raises(NotFiniteError, match="log_reward holds 16"):
        training.fine_tune(sampler, quick(), generator(1))


def test_other_errors_are_not_called_divergence():
    sampler = Watched(tabular(), fails_at=4, failure=ValueError("another"))
    with pytest.raises(ValueError, match="another"):
        training.fine_tune(sampler, quick(), generator(1))


def test_a_run_that_diverged_stays_so(tmp_path):
    """From its checkpoint the history comes back, and nothing is drawn."""
    sampler, again = Watched(tabular(), fails_at=4, failure=spoiled), Watched(tabular(), 0, RuntimeError())
    first = training.fine_tune(sampler, quick(), generator(1), checkpoint=tmp_path / "run.npz")
    second = training.fine_tune(again, quick(), generator(1), checkpoint=tmp_path / "run.npz")
    assert second.diverged_at == 4
    assert_equal(weights_of(again), weights_of(sampler))
    assert all(np.array_equal(first.steps[name], second.steps[name]) for name in first.steps)


def test_a_run_that_diverged_is_evaluated_after_the_steps_it_took():
    """Four steps were taken: the last row of the evaluations says so."""
    sampler = Watched(tabular(), fails_at=4, failure=spoiled)
    history = training.fine_tune(sampler, quick(), generator(1), evaluate=lambda: {"x": 0.0}, evaluate_every=3)
    assert history.evaluations["iteration"].tolist() == [0, 3, 4]


def test_an_evaluation_that_fails_after_divergence_does_not_lose_the_run(tmp_path):
    """A rate far too high: the drift overflows, in training and so in any evaluation that draws paths."""
    sampler = continuous()

    def evaluate():
        return {"log_reward": sampler.draw(8, generator(5)).log_reward.mean().item()}

    settings, path = quick(rate=1e12), tmp_path / "run.npz"
    history = training.fine_tune(sampler, settings, generator(1), evaluate=evaluate, checkpoint=path)
    assert history.diverged_at is not None and path.exists()


# Evaluations, progress, and what a run leaves alone.


@pytest.mark.parametrize(
    ("every", "expected"), [(4, [0, 4, 8, 10]), (5, [0, 5, 10]), (10, [0, 10]), (500, [0, 10]), (1, list(range(11)))]
)
def test_evaluations_come_first_every_so_often_and_last(every, expected):
    """Each sees the parameters as they are then."""
    sampler = Watched(tabular())

    def evaluate():
        return {"drawn": len(sampler.asked), "first": sampler.sampler.logits[0].item()}

    history = training.fine_tune(sampler, quick(), generator(1), evaluate=evaluate, evaluate_every=every)
    assert history.evaluations["iteration"].tolist() == history.evaluations["drawn"].tolist() == expected
    assert history.evaluations["first"][0] == PROBLEM.log_ref[0].item()
    assert history.evaluations["first"][-1] == sampler.sampler.logits[0].item()


def test_evaluations_do_not_change_the_run():
    one, other = tabular(), tabular()
    training.fine_tune(one, quick(), generator(1))
    training.fine_tune(other, quick(), generator(1), evaluate=lambda: {"x": 1.0}, evaluate_every=2)
    assert_equal(weights_of(one), weights_of(other))


@pytest.mark.parametrize("progress", [True, False])
def test_a_progress_bar_is_shown_on_request_and_never_on_standard_output(capfd, progress):
    training.fine_tune(tabular(), quick(), generator(1), progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and ("10/10" in err) == progress and (progress or err == "")


@pytest.mark.parametrize("make", [tabular, lambda: continuous(replayed=True)], ids=["tabular", "diffusion"])
def test_no_global_state_is_used_or_changed(make):
    """Runs from different global states are equal, and leave torch's, numpy's and Python's generators as they were."""
    settings = quick("rtb", replayed=0.0 if make is tabular else 0.5)
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            sampler = make()
            torch.manual_seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            training.fine_tune(sampler, settings, generator(1))
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        records.append(weights_of(sampler))
    assert_equal(*results)


def test_a_history_grows_by_rows():
    history = training.History()
    history.append("steps", {"loss": torch.tensor(2.0), "elbo": 1})
    history.append("steps", {"loss": 3.0, "elbo": -1})
    history.append("evaluations", {"iteration": 0})
    assert {name: column.tolist() for name, column in history.steps.items()} == {
        "loss": [2.0, 3.0],
        "elbo": [1.0, -1.0],
    }
    assert history.evaluations["iteration"].tolist() == [0.0]
    assert history.diverged_at is None and training.History().steps == {}


def test_seconds_of_processor_time_add_up():
    seconds = training.fine_tune(tabular(), quick(), generator(1)).steps["seconds"]
    assert len(seconds) == 10 and seconds[0] > 0 and bool((np.diff(seconds) >= 0).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 0},
        {"iterations": 2.5},
        {"evaluate_every": 0},
        {"checkpoint_every": -1},
        {"generator": None},
        {"generator": 7},
    ],
    ids=str,
)
def test_a_bad_loop_is_refused(changes):
    weight = torch.tensor(1.0, requires_grad=True)
    given = {"groups": [([weight], 0.1)], "iterations": 3, "generator": generator(0)} | changes
    with pytest.raises(ValueError, match=f"{list(changes)[0]} is .*expected"):
        training.optimise(lambda i: (weight.square(), {}), **given)
    assert weight.item() == 1.0


def test_any_loss_can_be_trained():
    """Two groups at two rates: Adam's first step is the rate. What the loss returns beside goes into the history."""
    one, two = (torch.tensor(1.0, requires_grad=True) for _ in range(2))

    def loss_of(i):
        return one.square() + two.square(), {"twice": 2 * i}

    history = training.optimise(loss_of, [([one], 0.1), ([two], 0.01)], 1, generator(0), rate_at=lambda i: 0.5)
    assert (one.item(), two.item()) == pytest.approx((0.95, 0.995))
    assert history.steps["loss"].tolist() == [2.0] and history.steps["twice"].tolist() == [0.0]


# Runs that go on.

#: What is trained, and its settings: a scalar or none, schedules, a network, replayed paths.
RUNS = {
    "tabular": (tabular, quick("vargrad", iterations=12, exploration=0.5, explore_until=2, explore_to=9)),
    "with a scalar": (tabular, quick("trust_pcl", iterations=12, decay_from=3, anneal_beta=5)),
    "with a learned baseline": (tabular, quick("reinforce", iterations=12, baseline="learned")),
    "diffusion": (
        lambda: continuous(replayed=True),
        quick("rtb", iterations=12, replayed=0.5, replay_until=8, decay_from=3),
    ),
}


def run_on(sampler, settings, draws, path, *, every=3, stops_at=None):
    """Run with a checkpoint every few steps and an evaluation every four, which may be interrupted."""

    def evaluate():
        if stops_at is not None and len(sampler.asked) == stops_at:
            raise RuntimeError("interrupted")
        return {"log_reward": sampler.sampler.draw(8, generator(5)).log_reward.mean().item()}

    options = {"evaluate": evaluate, "evaluate_every": 4, "checkpoint": path, "checkpoint_every": every}
    return training.fine_tune(sampler, settings, draws, **options)


def assert_same_history(one, other) -> None:
    """Assert that two histories are equal to the last bit, but for the seconds."""
    for table in ("steps", "evaluations"):
        ours, theirs = getattr(one, table), getattr(other, table)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours if name != "seconds")
        assert all(len(ours[name]) == len(theirs[name]) for name in ours)
    assert one.diverged_at == other.diverged_at


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("every", [3, 4])
@pytest.mark.parametrize("where", ["keyboard", "sampler", "evaluation"])
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(tmp_path, name, every, where):
    """Stopped after eight steps of twelve, and once more: parameters, history and draws are equal to the last bit."""
    make, settings = RUNS[name]
    whole, draws = Watched(make()), generator(1)
    expected = run_on(whole, settings, draws, tmp_path / "whole.npz", every=every)
    failure = KeyboardInterrupt() if where == "keyboard" else RuntimeError("interrupted")
    with pytest.raises(type(failure)):
        if where == "evaluation":
            run_on(Watched(make()), settings, generator(1), tmp_path / "run.npz", every=every, stops_at=8)
        else:
            run_on(Watched(make(), 8, failure), settings, generator(1), tmp_path / "run.npz", every=every)
    with pytest.raises(type(failure)):
        run_on(Watched(make(), 1, failure), settings, generator(98), tmp_path / "run.npz", every=every)
    last, others = Watched(make()), generator(99)
    history = run_on(last, settings, others, tmp_path / "run.npz", every=every)
    assert len(last.asked) < 12  # it did not begin anew
    assert_equal(weights_of(last), weights_of(whole))
    assert_same_history(history, expected)
    assert torch.equal(draws.get_state(), others.get_state())
    assert bool((np.diff(history.steps["seconds"]) >= 0).all())


def test_a_run_interrupted_before_its_first_checkpoint_begins_anew(tmp_path):
    make, settings = RUNS["with a scalar"]
    with pytest.raises(RuntimeError, match="interrupted"):
        run_on(Watched(make(), 2, RuntimeError("interrupted")), settings, generator(1), tmp_path / "run.npz")
    assert list(tmp_path.iterdir()) == []
    sampler, whole = Watched(make()), Watched(make())
    history = run_on(sampler, settings, generator(1), tmp_path / "run.npz")
    assert_same_history(history, run_on(whole, settings, generator(1), None))
    assert_equal(weights_of(sampler), weights_of(whole))


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_returns_its_history_at_once(tmp_path, name):
    """Nothing is drawn or evaluated; the parameters are the trained ones."""
    make, settings = RUNS[name]
    sampler, again = Watched(make()), Watched(make(), 0, RuntimeError("drawn"))
    first = run_on(sampler, settings, generator(1), tmp_path / "run.npz")
    second = run_on(again, settings, generator(2), str(tmp_path / "run.npz"), stops_at=0)
    assert again.asked == []
    assert_same_history(first, second)
    assert_equal(weights_of(sampler), weights_of(again))


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_holds_numbers_and_text_and_no_pickles(tmp_path, name):
    make, settings = RUNS[name]
    run_on(Watched(make()), settings, generator(1), tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("fuU")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("step", ["savez", "replace"])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, step):
    """A disk that is full half-way leaves the checkpoint before, and nothing else; the run goes on from it."""
    make, settings = RUNS["with a scalar"]
    path, written = tmp_path / "run.npz", []

    def fails(*given, **arrays):
        if step == "savez":
            given[0].write(b"half of a file")
        written.append(len(list(tmp_path.iterdir())))
        raise OSError("no space left")

    with pytest.raises(RuntimeError, match="interrupted"):
        run_on(Watched(make(), 4, RuntimeError("interrupted")), settings, generator(1), path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(np if step == "savez" else training.os, step, fails)
        with pytest.raises(OSError, match="no space left"):
            run_on(Watched(make()), settings, generator(1), path)
    assert written == [2]  # the old checkpoint, and the new one beside it
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
    sampler, whole = Watched(make()), Watched(make())
    run_on(sampler, settings, generator(1), path)
    run_on(whole, settings, generator(1), None)
    assert_equal(weights_of(sampler), weights_of(whole))


@pytest.mark.parametrize("change", [{"rate": 0.06}, {"iterations": 20}, {"objective": "rtb"}, {"clip": 5.0}], ids=str)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change):
    """Even ones that would fit; nothing is changed."""
    run_on(Watched(tabular()), quick(), generator(1), tmp_path / "run.npz")
    sampler = tabular()
    with pytest.raises(ValueError, match="checkpoint of another run.*expected.*Remove the file"):
        training.fine_tune(sampler, replace(quick(), **change), generator(1), checkpoint=tmp_path / "run.npz")
    assert torch.equal(sampler.logits, PROBLEM.log_ref)


def test_a_checkpoint_of_another_sampler_is_refused(tmp_path):
    """The settings are the same; the shapes of what is trained are not."""
    training.fine_tune(tabular(), quick(), generator(1), checkpoint=tmp_path / "run.npz")
    problem = mdp.tree(3, 2)
    others = samplers.TabularSampler(problem, problem.log_ref.clone().requires_grad_()), continuous()
    for sampler in others:
        with pytest.raises(ValueError, match="checkpoint of another run"):
            training.fine_tune(sampler, quick(), generator(1), checkpoint=tmp_path / "run.npz")


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path):
    """The run could not go on to the same numbers."""

    def train(dtype):
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        groups = [([weight], 0.1)]
        training.optimise(lambda i: (weight.square(), {}), groups, 3, generator(0), checkpoint=tmp_path / "run.npz")

    train(torch.float64)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(torch.float32)


@pytest.mark.parametrize(
    "objective, unused",
    [
        ("published", {"beta": 2.0}),
        ("published", {"clip": 1.0}),
        ("published", {"anneal_beta": 5}),
        ("rtb", {"baseline": "none"}),
        ("vargrad", {"weights": "importance"}),
    ],
)
def test_a_choice_that_the_objective_does_not_use_is_refused(objective, unused):
    """Nothing is dropped in silence."""
    with pytest.raises(ValueError, match="does not use it"):
        training.Settings(objective, **unused)
