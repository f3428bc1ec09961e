"""Objectives against exact answers, by hand and by training; what they learn beside the policy; what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import generator, in_one_line, tensor
from toys.forward_kl import WeightedLikelihood
from trainables import ALPHA, PATHS, PROBLEM, SOLUTION, Watched, continuous, tabular, train, weights_of

from companion import metrics, reinforce, rtb
from companion.objectives import (
    RTB,
    Annealed,
    Network,
    PublishedBaseline,
    Reinforce,
    Scalar,
    StateTable,
    Table,
    TrustPCL,
    VarGrad,
)
from companion.samplers import Batch, Exploration, UniformMixture
from companion.training import Linear

BETA = 1 / ALPHA
EVERY_STEP = TrustPCL(ALPHA, value=StateTable(PROBLEM.n_states), length=1)
KINDS = [RTB(BETA), VarGrad(BETA), TrustPCL(ALPHA), Reinforce(BETA), PublishedBaseline()]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def batch_of(returns, seed=3, **changes) -> Batch:
    """A batch of three-step paths whose returns, log r - alpha (log pi - log pi_ref), are those given."""
    log_pi, log_ref = torch.randn(2, len(returns), 3, generator=generator(seed), dtype=torch.float64)
    log_reward = tensor(returns) + ALPHA * (log_pi - log_ref).sum(dim=1)
    return replace(Batch(log_pi.requires_grad_(), log_ref, log_reward, log_pi.detach().clone()), **changes)


def learned_by(objective, batch, *values) -> list[torch.Tensor]:
    """What an objective learns, set to these values."""
    learned = objective.parameters(batch.log_pi)
    for entry, value in zip(learned, values, strict=True):
        entry.data.copy_(torch.as_tensor(value, dtype=torch.float64))
    return learned


def gradient(objective, batch, *values) -> torch.Tensor:
    """The gradient of an objective's loss by log_pi, ``[batch]``: it is the same at all steps of a path."""
    (grad,) = torch.autograd.grad(objective.loss(batch, learned_by(objective, batch, *values)), batch.log_pi)
    assert bool((grad == grad[:, :1]).all())
    return grad[:, 0]


# Trained.


EVERYWHERE = UniformMixture(0.5)


@pytest.mark.parametrize(
    ("objective", "behaviour"),
    [
        (RTB(BETA), None),
        (RTB(BETA), EVERYWHERE),
        (Annealed(RTB(BETA), over=100), None),
        (VarGrad(BETA), None),
        (VarGrad(BETA), EVERYWHERE),
        (TrustPCL(ALPHA), None),
        (TrustPCL(ALPHA), EVERYWHERE),
        (Annealed(Reinforce(BETA), over=100), EVERYWHERE),
        (EVERY_STEP, EVERYWHERE),
        (replace(EVERY_STEP, length=2), EVERYWHERE),
        (Reinforce(BETA), None),
        (Reinforce(BETA, "leave_one_out"), None),
        (Reinforce(BETA, clip=2.0), None),
        (Reinforce(BETA, Scalar()), None),
        (Reinforce(BETA, Scalar(), "importance"), EVERYWHERE),
    ],
    ids=in_one_line,
)
def test_a_trained_sampler_has_the_optimal_law(objective, behaviour):
    """KL(p*, p) over all paths falls from 0.48 to less than 1e-6; log Z or V(s_0) is learned on the way."""
    best = PATHS.log_prob(SOLUTION.log_policy)
    assert metrics.kl_divergence(best, PATHS.log_prob(PROBLEM.log_ref)) > 0.4
    sampler = tabular()
    length = 600 if getattr(objective, "length", None) else 300  # a table of values takes longer to learn
    run = {"iterations": length, "batch": 64, "decay": Linear(length // 2), "behaviour": behaviour}
    history = train(sampler, objective, generator(2), **run)
    assert metrics.kl_divergence(best, sampler.log_law()) < 1e-6
    learns = any(value.ndim == 0 for value in objective.parameters(PROBLEM.log_ref))
    assert ("scalar" in history.steps) == learns
    if learns:
        value = SOLUTION.values[0].item() / (ALPHA if "RTB" in str(objective) else 1)
        assert history.steps["scalar"][-1] == pytest.approx(value, abs=1e-3)
    assert history.steps["elbo"][-1] == pytest.approx(SOLUTION.values[0].item() / ALPHA, abs=1e-3)


def test_values_learned_on_sub_paths_are_the_soft_values():
    """Of every state that has an edge, after training on single steps, under paths that go everywhere."""
    seen = []

    class Watching(TrustPCL):
        def loss(self, batch, learned):
            seen[:] = learned
            return super().loss(batch, learned)

    objective = Watching(ALPHA, value=StateTable(PROBLEM.n_states), length=1)
    train(tabular(), objective, iterations=400, batch=64, decay=Linear(200), behaviour=EVERYWHERE)
    inner = ~PROBLEM.terminal
    torch.testing.assert_close(seen[0].detach()[inner], SOLUTION.values[inner], rtol=0, atol=1e-3)


def test_the_published_baseline_has_another_optimum():
    """It runs as long, gains reward, and stays far from p*."""
    sampler = tabular()
    history = train(sampler, PublishedBaseline(), generator(2), iterations=300, batch=64, decay=Linear(150))
    assert metrics.kl_divergence(PATHS.log_prob(SOLUTION.log_policy), sampler.log_law()) > 1
    assert history.steps["log_reward"][-20:].mean() > history.steps["log_reward"][:20].mean() + 0.5


@pytest.mark.parametrize("objective", KINDS, ids=in_one_line)
def test_every_objective_trains_a_diffusion_sampler(objective):
    """Two steps with half of the paths replayed: finite, and no parameter left where it was."""
    sampler = continuous(replayed=True)
    before = weights_of(sampler)
    history = train(sampler, objective, iterations=2, behaviour=Exploration(replayed=0.5))
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
    shared = {"iterations": 20, "batch": 64}
    ours = train(one, RTB(1 / alpha), generator(3), learned_rate=0.1, **shared).steps
    theirs = train(other, TrustPCL(alpha), generator(3), learned_rate=0.1 * alpha, **shared).steps
    assert (one.logits - PROBLEM.log_ref).abs().max() > 0.1
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=tolerance)
    np.testing.assert_allclose(theirs["scalar"], alpha * ours["scalar"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(theirs["loss"], alpha**2 * ours["loss"], rtol=10 * tolerance)
    np.testing.assert_allclose(theirs["log_reward"], ours["log_reward"], rtol=0)


# By hand.


def test_reinforce_on_policy_has_alpha_times_vargrads_gradient():
    """With the batch mean as its baseline."""
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    torch.testing.assert_close(gradient(Reinforce(BETA), batch), ALPHA * gradient(VarGrad(BETA), batch), **EXACT)


def test_a_learned_baseline_is_fitted_to_the_return_and_taken_off_it():
    """Returns 1, -2, 0.5, 4 and a baseline of 0.25: the policy's gradient is minus what is left, over 4."""
    batch, objective = batch_of([1.0, -2.0, 0.5, 4.0]), Reinforce(BETA, Scalar())
    torch.testing.assert_close(gradient(objective, batch, 0.25), tensor([-0.75, 2.25, -0.25, -3.75]) / 4)
    learned = learned_by(objective, batch, 0.25)
    (found,) = torch.autograd.grad(objective.loss(batch, learned), learned)
    torch.testing.assert_close(found, tensor(0.25 - 3.5 / 4))


@pytest.mark.parametrize("weights", ["importance", "tempered"])
@pytest.mark.parametrize("baseline", [Scalar(), "leave_one_out", 0.5], ids=in_one_line)
def test_weights_are_passed_on(weights, baseline):
    """With the behaviour of the batch, to the policy's loss and the baseline's."""
    batch = batch_of([1.0, -2.0, 0.5])
    batch = replace(batch, log_behaviour=batch.log_ref)
    objective, learns = Reinforce(BETA, baseline, weights), baseline == Scalar()
    learned = learned_by(objective, batch, *([0.3] if learns else []))
    given = {"beta": BETA, "weights": weights, "log_behaviour": batch.log_ref}
    arguments = (batch.log_pi, batch.log_ref, batch.log_reward)
    expected = reinforce.kl_loss(*arguments, baseline=0.3 if learns else baseline, **given)
    if learns:
        expected = expected + reinforce.critic_loss(*arguments, tensor(0.3), **given)
    torch.testing.assert_close(objective.loss(batch, learned), expected, rtol=1e-12, atol=0)


def test_annealing_takes_a_lower_beta_at_first():
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    for i, factor in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        ours = gradient(Annealed(RTB(BETA), over=3).at(i), batch, 0.3)
        torch.testing.assert_close(ours, gradient(RTB(BETA * factor), batch, 0.3), rtol=1e-12, atol=0)
        weights = Annealed(TrustPCL(0.3, 0.2), over=3).at(i)
        assert (weights.kl_weight, weights.entropy_weight) == pytest.approx((0.3 / factor, 0.2 / factor))
    assert Annealed(RTB(BETA), over=3).beta == BETA


def test_an_objective_of_the_users_is_annealed_by_its_field_beta():
    """Trained so, it has the loss of a lower beta at first."""
    sampler, objective = Watched(tabular()), Annealed(WeightedLikelihood(2.0), over=3)
    history = train(sampler, objective)
    batch = sampler.batches[0]
    like = batch.log_pi.new_zeros(())
    assert history.steps["loss"][0] == pytest.approx(WeightedLikelihood(0.5).loss(batch, [like]).item())
    assert objective.at(9) == WeightedLikelihood(2.0) and objective.beta == 2.0


def test_a_learned_log_z_for_other_paths_is_refused_in_their_words():
    class LogZ(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, batch):
            return self.answer(batch.log_reward)

    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    for answer, given in (
        (lambda rewards: rewards[:3], r"\(3,\)"),
        (lambda rewards: rewards[:, None, None], r"\(4, 1, 1\)"),
        (lambda rewards: rewards.tolist(), "list"),
    ):
        with pytest.raises(ValueError, match=f"returned {given}; expected one number for each of the 4 paths"):
            RTB(BETA, Network(LogZ(answer))).loss(batch, [])
    with pytest.raises(ValueError, match=r"log_z has shape \(3,\); expected \(4,\).*one entry per path"):
        rtb.loss(batch.log_pi, batch.log_ref, batch.log_reward, tensor([0.0, 0.0, 0.0]))


@pytest.mark.parametrize("clip", [0.5, 3.0, 10.0, 100.0])
def test_a_residual_beyond_the_clip_counts_as_the_clip(clip):
    """Residuals -+1 and -+20 nats about their mean; those within the clip are untouched."""
    batch = batch_of([10.0, 0.0, 5.5, 4.5])
    residuals = tensor([-10.0, 10.0, -1.0, 1.0]).clamp(-clip, clip)
    torch.testing.assert_close(gradient(Reinforce(BETA, clip=clip), batch), ALPHA * residuals / 4, **EXACT)


# What is learned for each condition, and from the batch's own numbers.


GROUPS = torch.tensor([1, 0, 1, 1])


@pytest.mark.parametrize(("objective", "unit"), [(RTB, 1.0), (TrustPCL, ALPHA)])
def test_a_table_gives_each_path_the_number_of_its_condition(objective, unit):
    """Returns 1, -2, 0.5, 4 less alpha log Z of conditions 1, 0, 1, 1; an entry's gradient is of its own paths."""
    batch = batch_of([1.0, -2.0, 0.5, 4.0], group=GROUPS)
    made = RTB(BETA, Table(3)) if objective is RTB else TrustPCL(ALPHA, value=Table(3))
    table = tensor([0.5, -1.0, 9.0]) * unit
    left = tensor([1 + ALPHA, -2 - ALPHA / 2, 0.5 + ALPHA, 4 + ALPHA])  # the return less alpha log Z
    scale = -1 / ALPHA if objective is RTB else -ALPHA
    torch.testing.assert_close(gradient(made, batch, table), scale * left / 4, **EXACT)
    learned = learned_by(made, batch, table)
    (found,) = torch.autograd.grad(made.loss(batch, learned), learned)
    sums = -tensor([left[1], left[0] + left[2] + left[3], 0.0]) / 4
    torch.testing.assert_close(found, sums / ALPHA if objective is RTB else sums, **EXACT)


def test_a_baseline_may_be_learned_for_each_condition():
    batch = batch_of([1.0, -2.0, 0.5, 4.0], group=GROUPS)
    found = gradient(Reinforce(BETA, Table(2)), batch, tensor([0.25, 2.0]))
    torch.testing.assert_close(found, -tensor([-1.0, -2.25, -1.5, 2.0]) / 4, **EXACT)


def test_a_module_of_the_users_sees_the_batch_and_is_trained():
    """It returns one log Z a path; shared with the policy, a weight is trained once."""
    module = torch.nn.Embedding(2, 1, dtype=torch.float64)

    class LogZ(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = module

        def forward(self, batch):
            return self.table(batch.group)[:, 0]

    batch = batch_of([1.0, -2.0, 0.5, 4.0], group=GROUPS)
    with torch.no_grad():
        module.weight.copy_(tensor([[0.5], [-1.0]]))
    objective = RTB(BETA, Network(LogZ()))
    assert [id(p) for p in objective.parameters(batch.log_pi)] == [id(module.weight)]
    by_table = gradient(RTB(BETA, Table(2)), batch, tensor([0.5, -1.0]))
    (found,) = torch.autograd.grad(objective.loss(batch, objective.parameters(batch.log_pi)), batch.log_pi)
    torch.testing.assert_close(found[:, 0], by_table, **EXACT)


def test_a_weight_that_policy_and_log_z_share_is_in_one_group_of_the_optimiser():
    sampler = tabular()

    class FirstLogit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(sampler.logits.detach())

        def forward(self, batch):
            return self.logits[:1].expand(len(batch.log_reward))

    module = FirstLogit()
    sampler.logits = module.logits
    history = train(sampler, RTB(BETA, Network(module)))
    assert history.diverged_at is None and len(history.steps["loss"]) == 10


def test_statistics_are_taken_within_groups_and_lengths_are_passed_on():
    """Each group's own mean: the gradient is that of the two parts, weighted by their sizes."""
    group, parts = torch.tensor([0, 0, 7, 7, 7]), ([0, 1], [2, 3, 4])
    whole = batch_of([1.0, -2.0, 0.5, 4.0, 3.0], group=group, steps=torch.full((5,), 3))
    for objective in (VarGrad(BETA), Reinforce(BETA), Reinforce(BETA, weights="tempered"), PublishedBaseline(0.3)):
        found = gradient(objective, whole)
        for index in parts:
            names = ("log_pi", "log_ref", "log_reward", "log_behaviour")
            part = Batch(*(getattr(whole, name).detach()[index] for name in names))
            part.log_pi.requires_grad_()
            torch.testing.assert_close(found[index], gradient(objective, part) * len(index) / 5, **EXACT)
    refs = whole.log_ref.clone()
    cut = whole.log_pi.detach().clone()
    cut[2, 2] = 0.0  # the path ends here, but its reference goes on
    padded = replace(whole, log_pi=cut.requires_grad_(), log_ref=refs, steps=torch.tensor([3, 3, 2, 3, 3]))
    for objective in KINDS:
        with pytest.raises(ValueError, match="from the path's end on, after 2 step"):
            objective.loss(padded, learned_by(objective, padded, *[0.0] * len(objective.parameters(padded.log_pi))))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_sub_paths_are_those_of_the_batchs_own_rewards(length):
    """Two paths of three and two steps; residuals in plain Python, one sub-path from each step on, cut at the end."""
    steps, alpha, gamma = [3, 2], 0.7, 0.9
    log_pi, log_ref, rewards = torch.randn(3, 2, 3, generator=generator(1), dtype=torch.float64)
    for part in (log_pi, log_ref, rewards):
        part[1, 2] = 0.0
    states = torch.tensor([[0, 1, 2, 4], [0, 3, 4, 4]])
    batch = Batch(log_pi, log_ref, rewards.sum(1), rewards=rewards, steps=torch.tensor(steps), states=states)
    objective = TrustPCL(alpha, gamma=gamma, value=StateTable(5), length=length)
    table = tensor([0.3, -1.0, 2.0, 0.5, 77.0])
    total = 0.0
    for path, last in enumerate(steps):
        value = [table[states[path, k]] if k < last else 0.0 for k in range(4)]
        for start in range(last):
            stop = min(start + length, last)
            residual = -value[start] + gamma ** (min(start + length, 3) - start) * value[min(start + length, 3)]
            for i, k in enumerate(range(start, stop)):
                residual += gamma**i * (rewards[path, k] - alpha * (log_pi[path, k] - log_ref[path, k]))
            total += 0.5 * residual**2 / 2
    torch.testing.assert_close(objective.loss(batch, learned_by(objective, batch, table)), torch.as_tensor(total))


@pytest.mark.claim("X2")
def test_a_reward_without_steps_is_paid_at_the_last_true_step():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    batch = Batch(zeros, zeros, tensor([1.5, -2.0]), steps=torch.tensor([3, 2]))
    assert batch.per_step_rewards().tolist() == [[0, 0, 1.5], [0, -2.0, 0]]
    assert replace(batch, steps=None).per_step_rewards().tolist() == [[0, 0, 1.5], [0, 0, -2.0]]


def test_what_is_learned_starts_where_it_is_told_to():
    like = torch.zeros(1, dtype=torch.float64)
    assert Scalar(0.3).parameters(like)[0].item() == 0.3
    assert Table(2, start=-1.5).parameters(like)[0].tolist() == [-1.5, -1.5]


def test_the_inverse_temperature_of_trust_pcl_counts_both_weights():
    assert TrustPCL(0.3, 0.2).beta == pytest.approx(2.0)


@pytest.mark.parametrize("baseline", [Scalar(), Table(1)])
def test_the_clip_holds_for_a_learned_baseline_too(baseline):
    """Returns -+1 and -+20 nats about their mean of 5; the baseline is 5 as well."""
    batch = batch_of([10.0, 0.0, 5.5, 4.5], group=torch.zeros(4, dtype=torch.int64))
    learned = [5.0] if baseline == Scalar() else [[5.0]]
    found = gradient(Reinforce(BETA, baseline, clip=3.0), batch, *learned)
    torch.testing.assert_close(found, ALPHA * tensor([-3.0, 3.0, -1.0, 1.0]) / 4, **EXACT)


# Refusals.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RTB(0.0), "beta is 0.0"),
        (lambda: RTB(log_z=8), "log_z is 8"),
        (lambda: RTB(log_z=StateTable(3)), "log_z is StateTable"),
        (lambda: VarGrad(torch.tensor(1.0)), "beta is tensor"),
        (lambda: TrustPCL(-1.0), "kl_weight is -1.0"),
        (lambda: TrustPCL(0.0), "kl_weight \\+ entropy_weight is 0.0"),
        (lambda: TrustPCL(gamma=1.1), "gamma is 1.1"),
        (lambda: TrustPCL(gamma=0.0), "gamma is 0.0"),
        (lambda: TrustPCL(length=0, value=StateTable(3)), "length is 0"),
        (lambda: TrustPCL(length=2), "value is Scalar"),
        (lambda: TrustPCL(value=StateTable(3)), "value is StateTable"),
        (lambda: Table(0), "conditions is 0"),
        (lambda: Reinforce(baseline="mean"), "baseline is 'mean'"),
        (lambda: Reinforce(baseline=float("nan")), "baseline is nan"),
        (lambda: Reinforce(baseline=StateTable(3)), "baseline is StateTable"),
        (lambda: Reinforce(weights="Importance"), "weights is 'Importance'"),
        (lambda: Reinforce(clip=0.0), "clip is 0.0"),
        (lambda: PublishedBaseline(-0.1), "kl_weight is -0.1"),
        (lambda: Annealed(PublishedBaseline(), over=5), "objective is PublishedBaseline"),
        (lambda: Annealed(RTB, over=1), "objective is <class"),
        (lambda: Annealed(None, over=1), "objective is None"),
        (lambda: Annealed(Annealed(RTB(), over=1), over=1), r"objective is Annealed\(objective=RTB"),
        (lambda: Annealed(RTB(), over=1).at(-1), "iteration is -1"),
        (lambda: Annealed(RTB(), over=1).at(0.5), "iteration is 0.5"),
        (lambda: Annealed(RTB(), over=-1), "over is -1"),
        (lambda: Annealed(RTB(), over=1.5), "over is 1.5"),
        (lambda: Scalar("x"), "start is 'x'"),
        (lambda: Table(2, start=float("nan")), "start is nan"),
        (lambda: Network(torch.nn.Identity), "module is <class"),
    ],
)
def test_values_out_of_range_and_of_the_wrong_kind_are_refused(make, words):
    """Before anything is drawn; what an objective does not use it has no field for."""
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        make()


@pytest.mark.parametrize(
    ("objective", "changes", "words"),
    [
        (RTB(BETA, Table(2)), {}, "The batch has no group"),
        (RTB(BETA, Table(2)), {"group": torch.tensor([0, 2])}, "group goes from 0 to 2"),
        (EVERY_STEP, {}, "no table of states"),
        (EVERY_STEP, {"states": torch.zeros(2, 4, 2)}, "no table of states"),
        (EVERY_STEP, {"states": torch.full((2, 4), -1)}, "a state goes from -1 to -1"),
        (EVERY_STEP, {"states": torch.full((2, 4), 10)}, "a state goes from 10 to 10"),
        (TrustPCL(value=Network(torch.nn.Identity()), length=1), {}, "value is"),
        (Reinforce(BETA, weights="tempered"), {"log_behaviour": None}, "weights='tempered' with a batch that has no"),
    ],
    ids=in_one_line,
)
def test_a_batch_that_lacks_what_an_objective_needs_is_refused(objective, changes, words):
    batch = batch_of([1.0, -2.0], **changes)
    if isinstance(objective, TrustPCL) and isinstance(objective.value, Network):
        objective = replace(objective, value=Network(_FirstStep()))
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        objective.loss(batch, objective.parameters(batch.log_pi))


class _FirstStep(torch.nn.Module):
    """A value for each path where one for each state is wanted."""

    def forward(self, batch):
        return batch.log_reward
