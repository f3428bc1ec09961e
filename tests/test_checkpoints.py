"""Runs that go on: from a checkpoint to the same numbers, whole or not at all, and refused for any other run."""

import numpy as np
import pytest
import torch
from inputs import generator
from trainables import ALPHA, PROBLEM, Watched, assert_equal, continuous, tabular, train, weights_of

from companion import mdp, records, samplers, training
from companion.objectives import RTB, Annealed, Reinforce, Scalar, TrustPCL, VarGrad
from companion.samplers import Exploration, Fading, UniformMixture
from companion.training import Linear

BETA = 1 / ALPHA

#: What is trained, towards what, under which behaviour and decay: a number learned or none, a network, replayed paths.
RUNS = {
    "tabular": (tabular, VarGrad(BETA), UniformMixture(Fading(0.5, until=2, end=9)), None),
    "with a scalar": (tabular, Annealed(TrustPCL(ALPHA), over=5), None, Linear(3)),
    "with a learned baseline": (tabular, Reinforce(BETA, Scalar()), None, None),
    "diffusion": (
        lambda: continuous(replayed=True),
        RTB(BETA),
        Exploration(replayed=0.5, replay_until=8),
        Linear(3),
    ),
}


def run_on(sampler, kind, draws, path, *, every=3, stops_at=None):
    """Run with a checkpoint every few steps and an evaluation every four, which may be interrupted."""

    def evaluate():
        if stops_at is not None and len(sampler.asked) == stops_at:
            raise RuntimeError("interrupted")
        return {"log_reward": sampler.sampler.draw(8, generator(5)).log_reward.mean().item()}

    options = {"evaluate": evaluate, "evaluate_every": 4, "checkpoint": path, "checkpoint_every": every}
    objective, behaviour, decay = kind
    return train(sampler, objective, draws, behaviour=behaviour, options=options, iterations=12, decay=decay)


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
    make, *settings = RUNS[name]
    whole, draws = Watched(make()), generator(1)
    expected = run_on(whole, settings, draws, tmp_path / "whole.npz", every=every)
    failure = KeyboardInterrupt() if where == "keyboard" else RuntimeError("interrupted")
    with pytest.raises(type(failure)):
        if where == "evaluation":
            run_on(Watched(make()), settings, generator(1), tmp_path / "run.npz", every=every, stops_at=8)
        else:
            run_on(Watched(make(), 8, failure), settings, generator(1), tmp_path / "run.npz", every=every)
    with pytest.raises(type(failure)):
        run_on(Watched(make(), 1, failure), settings, generator(1), tmp_path / "run.npz", every=every)
    last, others = Watched(make()), generator(1)
    history = run_on(last, settings, others, tmp_path / "run.npz", every=every)
    assert len(last.asked) < 12  # it did not begin anew
    assert_equal(weights_of(last), weights_of(whole))
    assert_same_history(history, expected)
    assert torch.equal(draws.get_state(), others.get_state())
    assert bool((np.diff(history.steps["seconds"]) >= 0).all())


def test_a_run_interrupted_before_its_first_checkpoint_begins_anew(tmp_path):
    make, *settings = RUNS["with a scalar"]
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
    make, *settings = RUNS[name]
    sampler, again = Watched(make()), Watched(make(), 0, RuntimeError("drawn"))
    first = run_on(sampler, settings, generator(1), tmp_path / "run.npz")
    second = run_on(again, settings, generator(1), str(tmp_path / "run.npz"), stops_at=0)
    assert again.asked == []
    assert_same_history(first, second)
    assert_equal(weights_of(sampler), weights_of(again))


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_holds_numbers_and_text_and_no_pickles(tmp_path, name):
    make, *settings = RUNS[name]
    run_on(Watched(make()), settings, generator(1), tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("fuU")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("step", ["savez", "replace"])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, step):
    """A disk that is full half-way leaves the checkpoint before, and nothing else; the run goes on from it."""
    make, *settings = RUNS["with a scalar"]
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
        patched.setattr(np if step == "savez" else records.os, step, fails)
        with pytest.raises(OSError, match="no space left"):
            run_on(Watched(make()), settings, generator(1), path)
    assert written == [2]  # the old checkpoint, and the new one beside it
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
    sampler, whole = Watched(make()), Watched(make())
    run_on(sampler, settings, generator(1), path)
    run_on(whole, settings, generator(1), None)
    assert_equal(weights_of(sampler), weights_of(whole))


@pytest.mark.parametrize(
    "change",
    [
        {"objective": RTB(BETA)},
        {"objective": VarGrad(BETA + 1)},
        {"rate": 0.06},
        {"iterations": 20},
        {"behaviour": UniformMixture(0.1)},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change):
    """Even ones that would fit; nothing is changed."""
    options = {"checkpoint": tmp_path / "run.npz"}
    train(tabular(), options=options)
    sampler = tabular()
    with pytest.raises(ValueError, match="checkpoint of another run.*expected.*Remove the file"):
        train(sampler, **change, options=options)
    assert torch.equal(sampler.logits, PROBLEM.log_ref)


def test_a_checkpoint_of_another_sampler_is_refused(tmp_path):
    """The settings are the same; the shapes of what is trained are not."""
    options = {"checkpoint": tmp_path / "run.npz"}
    train(tabular(), options=options)
    for sampler in (samplers.TabularSampler(mdp.tree(3, 2)), continuous()):
        with pytest.raises(ValueError, match="checkpoint of another run"):
            train(sampler, options=options)


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path):
    """The run could not go on to the same numbers."""

    def train(dtype):
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        groups = [([weight], 0.1)]
        training.optimise(lambda i: (weight.square(), {}), groups, 3, generator(0), checkpoint=tmp_path / "run.npz")

    train(torch.float64)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(torch.float32)
