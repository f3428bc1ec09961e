"""The training loop: what it asks for, what it does with the answers, divergence, evaluations, what it leaves alone."""

import math
import pydoc
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import generator, in_one_line
from test_objectives import KINDS, batch_of, learned_by
from trainables import ALPHA, PROBLEM, Watched, assert_equal, continuous, tabular, train, weights_of

from companion import rtb, training
from companion.objectives import RTB, Annealed, PublishedBaseline, Reinforce, Scalar, VarGrad
from companion.samplers import Exploration, Fading, UniformMixture
from companion.training import Linear
from companion.training.loop import _measures
from companion.validation import NotFiniteError


def test_the_loop_asks_for_what_the_schedule_says():
    """Paths, behaviour and iteration at every step; and the inverse temperature of the iteration, from the loss."""
    behaviour = Exploration(Fading(0.8, until=2, end=6), replayed=0.5, replay_until=7)
    sampler = Watched(continuous(replayed=True))
    history = train(sampler, Annealed(VarGrad(1 / ALPHA), over=4), behaviour=behaviour)
    assert sampler.asked == [(16, behaviour, i) for i in range(10)]
    for i, batch in enumerate(sampler.batches):
        beta = min(1, (i + 1) / 5) / ALPHA
        loss = rtb.vargrad_loss(batch.log_pi, batch.log_ref, batch.log_reward, beta=beta)
        assert history.steps["loss"][i] == pytest.approx(loss.item(), rel=1e-6)


def test_a_run_is_adam_with_a_rate_for_each_group():
    """The same to the last bit as ten steps written out by hand; the rates fall to a fifth."""
    sampler = tabular()
    history = train(sampler, RTB(1 / ALPHA), learned_rate=0.2, decay=Linear(5))
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


def test_measures_are_those_of_the_batch():
    """Mean log-reward; the mean of beta log r less the log-ratio; and the number learned, before the step."""
    batch = batch_of([1.0, -2.0, 0.5, 4.0])
    row = _measures(batch, 1 / ALPHA, learned_by(RTB(), batch, 0.7))
    assert row == pytest.approx({"log_reward": batch.log_reward.mean().item(), "elbo": 3.5 / 4 / ALPHA, "scalar": 0.7})
    assert set(_measures(batch, 1.0, [])) == {"log_reward", "elbo"}


@pytest.mark.parametrize("weights", ["importance", "tempered"])
def test_weights_for_replayed_paths_are_refused(weights):
    """Their behaviour has no density."""
    with pytest.raises(ValueError, match=f"weights='{weights}' with a batch that has no log_behaviour.*Use 'none'"):
        train(continuous(replayed=True), Reinforce(weights=weights), behaviour=Exploration(replayed=0.5))


@pytest.mark.parametrize(("sampler", "behaviour"), [(tabular, Exploration(0.5)), (continuous, UniformMixture(0.5))])
def test_a_behaviour_of_another_sampler_is_refused(sampler, behaviour):
    """A standard deviation is no probability."""
    with pytest.raises(ValueError, match="Pass one of this sampler's own"):
        train(sampler(), behaviour=behaviour)


def test_the_elbo_in_the_history_is_at_the_final_inverse_temperature():
    """While beta is annealed the loss is that of the iteration, the measure is not."""
    sampler = Watched(tabular())
    history = train(sampler, Annealed(VarGrad(2.0), over=20))
    for batch, elbo in zip(sampler.batches, history.steps["elbo"], strict=True):
        assert elbo == pytest.approx((2 * batch.log_reward - (batch.log_pi - batch.log_ref).sum(1)).mean().item())


def test_what_was_learned_is_in_the_history():
    """As it is after the last step, and no longer part of any graph; also of a run that goes on from a checkpoint."""
    history = train(tabular(), RTB(1 / ALPHA, Scalar(0.5)))
    assert [value.shape for value in history.learned] == [()] and not history.learned[0].requires_grad
    assert history.learned[0].item() not in (0.5, history.steps["scalar"][-1])
    assert train(tabular(), VarGrad(1 / ALPHA)).learned == []


class Odd:
    """A sampler with these tensors to train, which draws this."""

    def __init__(self, tensors, drawn=None):
        self.tensors, self.drawn = tensors, drawn

    def parameters(self):
        return (tensor for tensor in self.tensors)  # as a module's parameters are

    def draw(self, n, generator, behaviour=None, iteration=0):
        return self.drawn(n, generator)


def unhooked(n, draws):
    """A batch of a policy, though not of the tensors that are to be trained."""
    return tabular().draw(n, draws)


def detached(n, draws):
    """A batch whose policy cannot be trained."""
    batch = tabular().draw(n, draws)
    return replace(batch, log_pi=batch.log_pi.detach())


WEIGHT = torch.ones(1, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (Odd([]), "The sampler has 0 tensors to train"),
        (Odd([WEIGHT, torch.ones(1)]), "has 2 tensors to train, 1 of them frozen"),
        (Odd([WEIGHT], detached), "drew a log_pi without a gradient"),
        (Odd([WEIGHT], lambda n, draws: (n, draws)), "drew a tuple"),
        (Odd([WEIGHT, 1.0]), "has 2 tensors to train, 0 of them frozen, 1 of them no tensors"),
        (Odd([WEIGHT], lambda n, draws: tabular().draw(n - 1, draws)), "drew 15 paths"),
        (Odd([WEIGHT], unhooked), "loss of iteration 0 does not depend on any of the 1 tensors of group 0"),
    ],
)
def test_a_policy_that_cannot_be_trained_is_refused(sampler, words):
    """Or log Z would be learned alone."""
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        train(sampler, RTB())


def test_the_tensors_to_train_may_come_one_by_one():
    sampler = tabular()
    history = train(Odd([sampler.logits], sampler.draw))
    assert len(history.steps["loss"]) == 10 and not torch.equal(sampler.logits, PROBLEM.log_ref)


class Slotted:
    """A sampler without a ``__dict__``."""

    __slots__ = ("parameters", "draw")

    def __init__(self, sampler):
        self.parameters, self.draw = sampler.parameters, sampler.draw


def test_a_sampler_may_be_one_of_its_own_parts_and_may_have_slots():
    """Modules are looked for among its attributes: the search ends, and needs none."""
    sampler = tabular()
    sampler.parts = [sampler]
    for given in (sampler, Slotted(sampler)):
        assert len(train(given).steps["loss"]) == 10


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_a_factor_on_the_rates_that_would_climb_is_refused(factor):
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="the factor on the rates at iteration 1.*expected"):
        rates = {0: 1.0, 1: factor}
        training.optimise(lambda i: (weight.square(), {}), [([weight], 0.1)], 3, generator(0), rate_at=rates.get)


class Told(VarGrad):
    """An objective that learns or returns what it is told to."""

    def __init__(self, loss=None, learned=()):
        super().__init__()
        object.__setattr__(self, "told", (loss, list(learned)))

    def parameters(self, like):
        return self.told[1]

    def loss(self, batch, learned):
        return super().loss(batch, learned) if self.told[0] is None else self.told[0](batch)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": None}, "sampler is None, which has no parameters and no draw"),
        ({"sampler": VarGrad()}, r"sampler is VarGrad\(beta=1.0\), which has no draw"),
        ({"sampler": Odd}, "sampler is <class .*which has no fields, being a class"),
        ({"objective": VarGrad}, "objective is <class .*which has no fields, being a class"),
        ({"objective": "RTB"}, "objective is 'RTB', which has no parameters and no loss"),
        ({"objective": Told(learned=[0.0])}, "The objective has 1 tensors to train, 0 of them frozen, 1 of them no"),
        ({"objective": Told(learned=[torch.zeros(1)])}, "The objective has 1 tensors to train, 1 of them frozen"),
        ({"objective": Told(learned=[WEIGHT])}, "does not depend on any of the 1 tensors of group 1"),
        ({"objective": Told(lambda batch: 1.0)}, "The loss of iteration 0 is a float, no tensor"),
        ({"objective": Told(lambda batch: batch.log_pi.sum(1))}, r"is a Tensor, of shape \(16,\)"),
        ({"objective": Told(lambda batch: batch.log_reward.sum())}, r"of shape \(\), requires_grad=False"),
        ({"label": 5}, "label is 5"),
        ({"evaluate": {"x": 1.0}}, "evaluate is {'x': 1.0}"),
        ({"evaluate": lambda: 1.0}, "what evaluate returned after 0 steps is a float"),
        ({"evaluate": lambda: {"iteration": 1.0}}, r"what evaluate returned after 0 steps is dict \['iteration'\]"),
        ({"evaluate": lambda: {"x": "much"}}, "what evaluate returned after 0 steps is {'x': 'much'}"),
        ({"evaluate": lambda: {"x": torch.zeros(2)}}, "what evaluate returned after 0 steps is {'x': tensor"),
        ({"stop_after": 2.5}, "stop_after is 2.5"),
        ({"behaviour": UniformMixture}, "behaviour is <class"),
    ],
)
def test_what_does_not_train_is_refused_by_name(changes, words):
    """Before a weight is moved."""
    sampler = tabular()
    given = {
        "sampler": sampler,
        "objective": VarGrad(),
        "schedule": training.Schedule(2, 16),
        "generator": generator(1),
    }
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        training.fine_tune(**(given | changes))
    assert torch.equal(sampler.logits, PROBLEM.log_ref)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda loss: loss, r"loss_of\(0\) is a Tensor"),
        (lambda loss: (loss, None), "the row of iteration 0 is a NoneType"),
        (lambda loss: (loss, {"loss": 1.0}), r"the row of iteration 0 is dict \['loss'\]"),
        (lambda loss: (loss, {"seconds": 1.0, "a": 1}), r"the row of iteration 0 is dict \['a', 'seconds'\]"),
        (lambda loss: (loss, {"a": None}), "the row of iteration 0 is {'a': None}"),
        (lambda loss: (loss.reshape(1), {}), r"The loss of iteration 0 is a Tensor, of shape \(1,\)"),
    ],
)
def test_what_is_no_loss_with_a_row_is_refused(answer, words):
    weight = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        training.optimise(lambda i: answer(weight.square()), [([weight], 0.1)], 3, generator(0))
    assert weight.item() == 1.0


@pytest.mark.parametrize("changes", [{"sampler": None}, {"objective": None}, {"schedule": None}], ids=in_one_line)
def test_what_is_advised_in_place_of_nothing_is_there(changes):
    given = {"sampler": tabular(), "objective": VarGrad(), "schedule": training.Schedule(), "generator": generator(0)}
    with pytest.raises(ValueError, match="is None") as refusal:
        training.fine_tune(**(given | changes))
    assert isinstance(pydoc.locate(re.search(r"(companion[\w.]+)\(", str(refusal.value))[1]), type)


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="schedule is 500; expected a Schedule"):
        training.fine_tune(tabular(), VarGrad(), schedule=500, generator=generator(0))


def test_rows_of_other_names_than_before_are_refused():
    history = training.History()
    history.append("evaluations", {"iteration": 0, "a": 1.0})
    with pytest.raises(ValueError, match=r"The row has \['b', 'iteration'\]; expected \['a', 'iteration'\]"):
        history.append("evaluations", {"iteration": 5, "b": 1.0})


# Divergence.


def spoiled(batch):
    """The batch with a log-reward that is no number."""
    rewards = None if batch.rewards is None else batch.rewards * math.nan
    return replace(batch, log_reward=batch.log_reward * math.nan, rewards=rewards)


@pytest.mark.parametrize("objective", KINDS, ids=in_one_line)
def test_a_loss_that_is_not_finite_stops_the_run(objective):
    """The parameters are those before that step, the history says where, and holds no row for it."""
    sampler = Watched(tabular(), fails_at=4, failure=spoiled)
    history = train(sampler, objective)
    assert history.diverged_at == 4 and len(sampler.asked) == 5
    assert {len(column) for column in history.steps.values()} == {4}
    other = tabular()
    train(other, objective, iterations=4)
    assert_equal(weights_of(sampler), weights_of(other))


def unseen(batch):
    """A loss of the user's that looks at nothing before it computes."""
    return (batch.log_pi.sum(1) - batch.log_ref.sum(1) - batch.log_reward).square().mean()


def test_a_reward_of_zero_does_not_stop_what_has_a_loss_for_it():
    """Its logarithm in the history is -inf: no loss, and no reason to stop."""

    def unpaid(batch):
        return replace(batch, log_reward=batch.log_reward - math.inf)

    history = train(Watched(tabular(), fails_at=4, failure=unpaid), PublishedBaseline())
    assert history.diverged_at is None and history.steps["log_reward"][4] == -math.inf
    assert np.isfinite(history.steps["loss"]).all()


#: What a reason ends with: after what was expected, what to do.
ADVICE = r"expected finite values\. [A-Z].*\.$"


@pytest.mark.parametrize("objective", [VarGrad(), Told(unseen)], ids=["that checks", "that does not"])
@pytest.mark.parametrize(
    ("at_fault", "spoil"),
    [
        ("log_reward", spoiled),
        ("log_ref", lambda batch: replace(batch, log_ref=batch.log_ref / 0)),
        ("log_pi", lambda batch: replace(batch, log_pi=batch.log_pi * math.inf)),
    ],
)
def test_the_history_says_what_was_not_finite_and_when(tmp_path, objective, at_fault, spoil):
    """Reward, reference or policy, not only that it diverged; a checkpoint keeps it. At the first step it is raised."""
    options = {"checkpoint": tmp_path / "run.npz"}
    history = train(Watched(tabular(), fails_at=4, failure=spoil), objective, options=options)
    assert history.reason.startswith(f"At iteration 4: {at_fault} holds ") and history.diverged_at == 4
    assert re.search(ADVICE, history.reason)
    assert train(Watched(tabular()), objective, options=options).reason == history.reason
    assert train(tabular(), objective).reason is None
    with pytest.raises(NotFiniteError, match=f"{at_fault} holds"):
        train(Watched(tabular(), fails_at=0, failure=spoil), objective)


def test_a_loss_and_a_gradient_that_are_not_finite_are_told_apart():
    weight = torch.tensor(1.0, requires_grad=True)
    for late, words in (
        (lambda: weight / 0, "the loss"),
        (lambda: (weight - weight.detach()).sqrt(), "the gradient of"),
    ):
        losses = [weight.square, late]
        history = training.optimise(lambda i, losses=losses: (losses[i](), {}), [([weight], 0.1)], 2, generator(0))
        assert history.reason.startswith(f"At iteration 1: {words}") and re.search(ADVICE, history.reason)


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
        train(sampler)


def test_other_errors_are_not_called_divergence():
    sampler = Watched(tabular(), fails_at=4, failure=ValueError("another"))
    with pytest.raises(ValueError, match="another"):
        train(sampler)


def test_a_run_that_diverged_stays_so(tmp_path):
    """From its checkpoint the history comes back, and nothing is drawn."""
    sampler, again = Watched(tabular(), fails_at=4, failure=spoiled), Watched(tabular(), 0, RuntimeError())
    first = train(sampler, options={"checkpoint": tmp_path / "run.npz"})
    second = train(again, options={"checkpoint": tmp_path / "run.npz"})
    assert second.diverged_at == 4
    assert_equal(weights_of(again), weights_of(sampler))
    assert all(np.array_equal(first.steps[name], second.steps[name]) for name in first.steps)


@pytest.mark.parametrize(("every", "expected"), [(3, [0, 3, 4]), (4, [0, 4])])
def test_a_run_that_diverged_is_evaluated_after_the_steps_it_took(every, expected):
    """Four steps were taken: the last row of the evaluations says so, and is the only one that does."""
    sampler = Watched(tabular(), fails_at=4, failure=spoiled)
    history = train(sampler, options={"evaluate": lambda: {"x": 0.0}, "evaluate_every": every})
    assert history.evaluations["iteration"].tolist() == expected


def test_an_evaluation_that_fails_after_divergence_does_not_lose_the_run(tmp_path):
    """A rate far too high: the drift overflows, in training and so in any evaluation that draws paths."""
    sampler = continuous()

    def evaluate():
        return {"log_reward": sampler.draw(8, generator(5)).log_reward.mean().item()}

    path = tmp_path / "run.npz"
    history = train(sampler, rate=1e12, options={"evaluate": evaluate, "checkpoint": path})
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

    history = train(sampler, options={"evaluate": evaluate, "evaluate_every": every})
    assert history.evaluations["iteration"].tolist() == history.evaluations["drawn"].tolist() == expected
    assert history.evaluations["first"][0] == PROBLEM.log_ref[0].item()
    assert history.evaluations["first"][-1] == sampler.sampler.logits[0].item()


def test_evaluations_do_not_change_the_run():
    one, other = tabular(), tabular()
    train(one)
    train(other, options={"evaluate": lambda: {"x": 1.0}, "evaluate_every": 2})
    assert_equal(weights_of(one), weights_of(other))


@pytest.mark.parametrize(
    ("options", "shown"), [({"progress": True}, "10/10"), ({"progress": True, "stop_after": 4}, "4/10"), ({}, "")]
)
def test_a_progress_bar_is_shown_on_request_and_never_on_standard_output(capfd, options, shown):
    """It goes to the end of the schedule, or towards it; nobody has to ask for silence."""
    train(tabular(), options=options)
    out, err = capfd.readouterr()
    assert out == "" and shown in err and bool(err) == bool(shown)


@pytest.mark.parametrize("make", [tabular, lambda: continuous(replayed=True)], ids=["tabular", "diffusion"])
def test_no_global_state_is_used_or_changed(make):
    """Runs from different global states are equal, and leave torch's, numpy's and Python's generators as they were."""
    behaviour = None if make is tabular else Exploration(replayed=0.5)
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            sampler = make()
            torch.manual_seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            train(sampler, RTB(1 / ALPHA), behaviour=behaviour)
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        results.append(weights_of(sampler))
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
    before = time.process_time()
    seconds = train(tabular()).steps["seconds"]
    assert len(seconds) == 10 and seconds[0] > 0 and bool((np.diff(seconds) >= 0).all())
    assert seconds[-1] <= time.process_time() - before


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
    ids=in_one_line,
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
