"""Runs that go on: from a checkpoint to the same numbers, whole or not at all, and refused for any other run."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import generator, in_one_line
from trainables import ALPHA, PROBLEM, Watched, assert_equal, continuous, tabular, train, weights_of

from companion import mdp, records, samplers, training
from companion.objectives import RTB, Annealed, Reinforce, Scalar, TrustPCL, VarGrad
from companion.samplers import Exploration, Fading, UniformMixture, diffusion
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
    ids=in_one_line,
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
    """The run could not go on to the same numbers: 1 is 1 in each of them."""

    def train(dtype):
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        groups = [([weight], 0.1)]
        training.optimise(lambda i: (weight.square(), {}), groups, 3, generator(0), checkpoint=tmp_path / "run.npz")

    train(torch.float32)
    for other in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match="checkpoint of another run.*its weights of group 0"):
            train(other)


def other_reward(x):
    """Of another name than that of the sampler."""
    return x[:, 0]


def changed(**attributes):
    """A diffusion sampler with another of its parts."""
    sampler = continuous(replayed=True)
    for name, value in attributes.items():
        setattr(sampler, name, value)
    return sampler


def with_another_policy():
    """A diffusion sampler that starts elsewhere."""
    sampler = continuous(replayed=True)
    with torch.no_grad():
        sampler.policy.last.bias.add_(1e-6)
    return sampler


class Kindred(samplers.DiffusionSampler):
    """A sampler of another class, alike in all its parts."""


STORE, MIXTURE = continuous(replayed=True).store, continuous().reference.mixture
PROCESS = diffusion.Process(steps=4, variance=4.0)
OTHER_RUNS = {
    "seed": ({"draws": generator(2)}, "generator at the start"),
    "initial weights": ({"sampler": with_another_policy}, "weights of group 0 at the start"),
    "what the objective learns": ({"objective": RTB(BETA, Scalar(0.1))}, "weights of group 1 at the start"),
    "reward": ({"sampler": lambda: changed(log_reward=other_reward)}, "sampler's log_reward"),
    "label": ({"label": "another reward"}, "label"),
    "class": ({"sampler": lambda: changed(__class__=Kindred)}, "sampler"),
    "process": ({"sampler": lambda: changed(process=PROCESS)}, "sampler's process"),
    "reference": ({"sampler": lambda: changed(reference=lambda s, t: s)}, "sampler's reference"),
    "store": (
        {"sampler": lambda: changed(store=replace(STORE, log_reward=STORE.log_reward + 1))},
        "sampler's store",
    ),
    "schedule": ({"iterations": 11}, "schedule"),
    "evaluations": ({"evaluate_every": 3}, "evaluations"),
    "no evaluations": ({"evaluate": None}, "evaluations"),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(tmp_path, name):
    """In one thing that the shapes do not show; nothing is changed, and the run itself goes on."""

    def run(sampler=lambda: continuous(replayed=True), objective=None, draws=None, iterations=10, **options):
        made = sampler()
        before = weights_of(made)
        options = {"evaluate": lambda: {"x": 1.0}, "evaluate_every": 4, "checkpoint": tmp_path / "run.npz"} | options
        try:
            behaviour = Exploration(replayed=0.5)
            return train(
                made, objective or RTB(BETA), draws, behaviour=behaviour, options=options, iterations=iterations
            )
        except ValueError:
            assert_equal(weights_of(made), before)
            raise

    first = run()
    changes, words = OTHER_RUNS[name]
    with pytest.raises(ValueError, match=f"run.npz is the checkpoint of another run .*its {words}: .*expected.*Remove"):
        run(**changes)
    assert_same_history(run(), first)


def test_a_checkpoint_of_another_frozen_network_or_problem_is_refused(tmp_path):
    """A reference with weights, told by these; and a tabular problem with other rewards."""

    def of_networks(seed):
        sampler = continuous()
        draws = generator(seed)
        sampler.reference = samplers.networks.DriftNetwork(sampler.process, draws, width=3).requires_grad_(False)
        return sampler

    for one, other, words in (
        (of_networks(1), of_networks(2), "weights that are not trained"),
        (tabular(), samplers.TabularSampler(PROBLEM.with_rewards(PROBLEM.rewards + 1)), "sampler's problem"),
    ):
        path = tmp_path / f"{type(one).__name__}.npz"
        train(one, options={"checkpoint": path})
        with pytest.raises(ValueError, match=f"checkpoint of another run .its {words}"):
            train(other, options={"checkpoint": path})


LABELS = [{"label": label} for label in ({"reward": "b"}, {}, {"reward": "a", "more": "b"})]


@pytest.mark.parametrize("change", [{"iterations": 4}, {"groups": 0.2}, *LABELS], ids=in_one_line)
def test_a_checkpoint_of_another_loop_is_refused(tmp_path, change):
    """Of another length, other rates, or another text under a name of the user's, none, or one more."""

    def run(iterations=3, groups=0.1, label=None):
        weight, options = torch.ones((), requires_grad=True), {"checkpoint": tmp_path / "run.npz"}
        groups = [([weight], groups)]
        label = {"reward": "a"} if label is None else label
        training.optimise(lambda i: (weight.square(), {}), groups, iterations, generator(0), label=label, **options)

    run()
    with pytest.raises(ValueError, match="checkpoint of another run .its (iterations|rates|reward|more): "):
        run(**change)


def test_a_checkpoint_without_a_label_is_that_of_an_empty_one(tmp_path):
    options = {"checkpoint": tmp_path / "run.npz"}
    first = train(tabular(), options=options)
    assert_same_history(train(tabular(), options=options | {"label": ""}), first)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize("same", [True, False], ids=["the same objects", "made anew"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, name, stop, same):
    """With the sampler and the generator that it left, or with new ones; no evaluation is added."""
    make, objective, behaviour, decay = RUNS[name]

    def run(sampler, draws, **more):
        def evaluate():
            return {"log_reward": sampler.draw(8, generator(5)).log_reward.mean().item()}

        options = {"evaluate": evaluate, "evaluate_every": 4} | more
        return train(sampler, objective, draws, behaviour=behaviour, options=options, iterations=12, decay=decay)

    whole, parts, draws = make(), make(), generator(1)
    expected = run(whole, generator(1))
    first = run(parts, draws, checkpoint=tmp_path / "run.npz", stop_after=stop)
    assert len(first.steps["loss"]) == stop
    parts, draws = (parts, draws) if same else (make(), generator(1))
    history = run(parts, draws, checkpoint=tmp_path / "run.npz")
    assert_same_history(history, expected)
    assert_equal(weights_of(parts), weights_of(whole))
    assert_equal(history.learned, expected.learned)


# Modules that draw from torch's global generator, and that change without being trained.


class Moody(torch.nn.Module):
    """A drift with dropout, and a buffer that follows its inputs."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = torch.nn.Linear(2, 2)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, states, times):
        self.seen.mul_(0.9).add_(0.1 * states.detach().abs().mean())
        return self.dropout(self.inner(states)) - self.seen


def test_dropout_and_buffers_go_on_too(tmp_path):
    """The stopped run meets other global states on its way; a run without dropout leaves these alone."""

    def run(seed, stops=(), policy=None):
        sampler = continuous()
        sampler.policy = policy or Moody()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            history = train(sampler, RTB(), iterations=9, options=dict(stops))
            return sampler.policy, history, torch.rand(())

    options = {"checkpoint": tmp_path / "run.npz"}
    whole, expected, draw = run(1)
    run(1, options | {"stop_after": 3})
    run(2, options | {"stop_after": 6})
    parts, history, same = run(3, options)
    assert history.steps["loss"].tolist() == expected.steps["loss"].tolist()
    assert_equal(parts.state_dict().values(), whole.state_dict().values())
    assert draw == same
    options = {"checkpoint": tmp_path / "plain.npz"}
    run(1, options | {"stop_after": 3}, continuous().policy)
    resumed = run(2, options, continuous().policy)
    torch.manual_seed(2)
    assert resumed[2] == torch.rand(())


def test_the_global_generator_of_a_gpu_goes_on_too(tmp_path, monkeypatch):
    """Stood in for by a number that every draw moves on; it is that of the device of the run."""
    states = {}

    class OnGPU(torch.Generator):
        device = torch.device("cuda", 1)

    def run(seed, **options):
        weight, states[OnGPU.device] = torch.ones((), requires_grad=True), torch.tensor(seed)

        def loss_of(i):
            states[OnGPU.device] = states[OnGPU.device] + 1
            return (weight - states[OnGPU.device]).square(), {}

        return training.optimise(loss_of, [([weight], 0.1)], 6, OnGPU(), **options).steps["loss"].tolist()

    monkeypatch.setattr(torch.cuda, "get_rng_state", states.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    whole = run(1)
    run(1, checkpoint=tmp_path / "run.npz", stop_after=3)
    assert run(9, checkpoint=tmp_path / "run.npz") == whole


def test_weights_that_numpy_has_no_numbers_for_are_kept(tmp_path):
    """In bfloat16: stopped and gone on with, equal to the last bit."""

    def run(**options):
        weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        groups, draws = [([weight], 0.1)], generator(0)

        def loss_of(i):
            return (weight - torch.randn(3, generator=draws).bfloat16()).square().sum(), {}

        training.optimise(loss_of, groups, 6, draws, **options)
        return weight

    run(checkpoint=tmp_path / "run.npz", stop_after=4)
    assert torch.equal(run(checkpoint=tmp_path / "run.npz"), run())


@pytest.mark.parametrize("where", ["missing/run.npz", "."])
def test_a_place_where_no_checkpoint_can_be_is_refused_before_the_first_step(tmp_path, where):
    sampler = Watched(tabular())
    with pytest.raises(ValueError, match="checkpoint is .*expected a file in a folder that is there.*Make the folder"):
        train(sampler, options={"checkpoint": tmp_path / where})
    assert sampler.asked == []


# Files that are not as they were written.


def rewritten(**changes):
    """The arrays of a checkpoint, some changed, or left out where None."""

    def damage(path):
        with np.load(path) as file:
            arrays = dict(file)
        for name, change in changes.items():
            name = name.replace("__", "/")
            arrays[name] = change(arrays[name]) if change else None
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return damage


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "text": lambda path: path.write_text("no checkpoint"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "other arrays": lambda path: np.savez(path, a=np.zeros(3)),
    "objects": lambda path: np.savez(path, about=np.array([{}]), digest=np.array("")),
    "NaN in a weight": rewritten(tensor__0=lambda array: array * np.nan),
    "NaN in the optimiser": rewritten(optimiser__0__exp_avg=lambda array: array * np.nan),
    "a shorter weight": rewritten(tensor__0=lambda array: array[:-1]),
    "a shorter history": rewritten(steps__loss=lambda array: array[:-1]),
    "no optimiser": rewritten(optimiser__0__exp_avg_sq=None),
    "no history": rewritten(steps__loss=None),
    "no generator": rewritten(generator__0=None),
    "no digest": rewritten(digest=None),
    "another dtype": rewritten(tensor__0=lambda array: array.astype(np.float32)),
}


def assert_refused(path) -> None:
    """Assert that a damaged file is refused by name, without numpy's words, and that nothing is changed."""
    sampler = tabular()
    with pytest.raises(
        ValueError, match="is damaged, or no checkpoint; expected.*Remove it.*or pass another path"
    ) as hit:
        train(sampler, RTB(BETA), options={"checkpoint": path})
    assert str(path) in str(hit.value) and "pickle" not in str(hit.value)
    assert hit.value.__cause__ is None and hit.value.__context__ is None
    assert torch.equal(sampler.logits, PROBLEM.log_ref)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_no_whole_checkpoint_is_refused(tmp_path, name):
    path = tmp_path / "run.npz"
    train(tabular(), RTB(BETA), options={"checkpoint": path, "stop_after": 5})
    DAMAGE[name](path)
    assert_refused(path)


def test_a_file_with_code_in_it_is_refused_before_that_runs(tmp_path):
    """A pickle among its arrays, which numpy would load if it were let."""
    path, made = tmp_path / "run.npz", tmp_path / "made by the code"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(made),)

    np.savez(path, about=np.array([Code()]), digest=np.array(""))
    assert_refused(path)
    assert not made.exists()


def test_a_bit_that_flips_is_seen_or_does_no_harm(tmp_path):
    """One bit of each of a hundred bytes, all over the file; harmless where zip keeps dates and the like."""
    path, refused = tmp_path / "run.npz", 0
    train(tabular(), RTB(BETA), options={"checkpoint": path, "stop_after": 5})
    whole = path.read_bytes()
    expected = tabular()
    train(expected, RTB(BETA))
    for j, place in enumerate(range(0, len(whole), len(whole) // 100)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << j % 8]) + whole[place + 1 :])
        sampler = tabular()
        try:
            train(sampler, RTB(BETA), options={"checkpoint": path, "stop_after": 10})
        except ValueError as error:
            refused += 1
            assert "is damaged" in str(error) and torch.equal(sampler.logits, PROBLEM.log_ref)
        else:
            assert_equal(weights_of(sampler), weights_of(expected))
    assert refused > 60
