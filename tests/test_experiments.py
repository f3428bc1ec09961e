"""What every study shares: results written whole, tasks that are skipped or refused, streams, provenance, backends."""

import importlib
import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import generator

from companion import targets, training
from companion.samplers import diffusion

ROOT = Path(__file__).parents[1]
TASK = {"name": "one", "seed": 3, "rates": (0.1, 0.2), "clip": None}
CODE = {"commit": "abc", "torch": "2"}


@pytest.fixture
def common(monkeypatch, tmp_path):
    """The module, with its results and checkpoints in a folder of the test's own, and a git that knows of no change."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    module = importlib.import_module("common")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(module, "_git", lambda *words: "abc" if words[0] == "rev-parse" else "")
    return module


def history_of(length: int) -> training.History:
    """A history whose loss at iteration i is i + 1/3."""
    history = training.History({"loss": np.arange(length) + 1 / 3}, {"iteration": np.array([0.0, length])}, 7)
    history.append("evaluations", {"iteration": math.nan})
    return history


def written(common, outcome, task=TASK) -> dict:
    """Write a result, and return what is in its file; it is strict JSON."""
    common.write("study", task, outcome, CODE, common.RESULTS)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((common.RESULTS / "study" / f"{task['name']}.json").read_text(), parse_constant=refuse)


# Results.


def test_a_result_holds_all_that_a_run_returned(common):
    """Its configuration, its provenance, its measures to seven digits, its history and its arrays, without pickles."""
    arrays = {"weights": np.arange(6.0).reshape(2, 3), "counts": np.array([1, 2])}
    measures = {"law": torch.tensor([0.25, 0.75]), "deep": {"kl": 1 / 3, "n": 10**9, "kept": True, "why": "so"}}
    record = written(common, common.Outcome(measures, history_of(3), arrays))
    assert record["schema"] == 1 and record["study"] == "study"
    assert record["configuration"] == TASK | {"rates": [0.1, 0.2]}
    assert record["provenance"] == CODE
    deep = {"kl": 0.3333333, "n": 10**9, "kept": True, "why": "so"}
    assert record["measures"] == {"law": [0.25, 0.75], "deep": deep}
    assert record["history"] == {
        "diverged_at": 7,
        "steps": {"iteration": [0, 1, 2], "loss": [0.3333333, 1.333333, 2.333333]},
        "evaluations": {"iteration": [0.0, 3.0, None]},
    }
    with np.load(common.RESULTS / "study" / "one.npz", allow_pickle=False) as file:
        assert {name: file[name].tolist() for name in file.files} == {k: v.tolist() for k, v in arrays.items()}


def test_each_part_of_a_result_begins_a_line(common):
    """Even where a task uses one of their names: what changes between two runs is seen in a diff."""
    task = TASK | {"name": "odd", "history": "measures", "study": 1}
    record = written(common, common.Outcome({"schema": 1}), task)
    assert record["configuration"] == task | {"rates": [0.1, 0.2]} and record["measures"] == {"schema": 1}
    lines = (common.RESULTS / "study" / "one.json").with_stem("odd").read_text().splitlines()
    assert lines[0] == "{" and lines[1] == '"schema":1,' and lines[2] == '"study":"study",'


def test_without_arrays_there_is_one_file(common):
    written(common, common.Outcome({}))
    assert [path.name for path in (common.RESULTS / "study").iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, np.float32("nan"), [1.0, math.nan], torch.tensor([math.inf]), np.array([math.nan])],
    ids=str,
)
def test_what_is_not_finite_is_stored_as_null(common, value):
    stored = written(common, common.Outcome({"x": value}))["measures"]["x"]
    assert stored in (None, [None], [1.0, None])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float32(0.1), 0.1), (np.float64(1 / 3), 0.3333333), (torch.tensor(2.5), 2.5), (np.array(2.5), 2.5)],
    ids=["float32", "float64", "tensor", "array"],
)
def test_a_single_number_of_any_kind_is_stored_as_a_number(common, value, expected):
    """As the functions of companion.metrics return them, too."""
    assert written(common, common.Outcome({"x": value}))["measures"]["x"] == expected


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (0, []),
        (4, [0, 1, 2, 3]),
        (10, [*range(10)]),
        (25, [*range(10)]),
        (26, [*range(10), 25]),
        (80, [*range(10), 25, 50, 75]),
    ],
)
def test_a_history_is_thinned_after_its_first_iterations(common, length, kept):
    """All of the first ten, then every twenty-fifth."""
    history = history_of(length) if length else training.History()
    steps = written(common, common.Outcome({}, history))["history"]["steps"]
    assert steps["iteration"] == kept
    assert steps.get("loss", []) == pytest.approx([i + 1 / 3 for i in kept])


def test_a_task_is_done_once_its_result_is_written(common):
    """Lists and tuples are alike to it, as they are to JSON."""
    assert not common.is_done("study", TASK)
    written(common, common.Outcome({}))
    assert common.is_done("study", TASK) and common.is_done("study", TASK | {"rates": [0.1, 0.2]})
    assert not common.is_done("other study", TASK)
    assert not common.is_done("study", TASK | {"name": "two"})


@pytest.mark.parametrize("changes", [{"seed": 4}, {"new": 1}, {"clip": 0.0}], ids=str)
def test_a_result_of_another_configuration_is_refused(common, changes):
    written(common, common.Outcome({}))
    with pytest.raises(ValueError, match="another configuration; expected .*Rename the task, or remove the result"):
        common.is_done("study", TASK | changes)


@pytest.mark.parametrize("what", ["arrays", "record", "move"])
def test_a_result_is_whole_or_not_there(common, monkeypatch, what):
    """A disk that is full half-way leaves the result before, and nothing beside it."""
    outcome = common.Outcome({"x": 1}, arrays={"a": np.zeros(3)})
    written(common, outcome)
    folder = common.RESULTS / "study"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"one.json", "one.npz"}

    def fails(file, *given, **arrays):
        if what == "arrays":
            file.write(b"half of a file")
        raise OSError("no space left")

    where, name = {
        "arrays": (np, "savez_compressed"),
        "record": (common.json, "dumps"),
        "move": (common.os, "replace"),
    }[what]
    with monkeypatch.context() as patched:
        patched.setattr(where, name, fails)
        with pytest.raises(OSError, match="no space left"):
            written(common, common.Outcome({"x": 2}, arrays={} if what == "record" else {"a": np.ones(3)}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Streams and provenance.


def test_purposes_do_not_share_a_stream(common):
    """Pairs of numbers in either order, and single ones: the first draws of 72 generators all differ."""
    seeds = [(i,) for i in range(1, 9)] + [(i, j) for i in range(8) for j in range(1, 9)]
    draws = {tuple(torch.rand(3, generator=common.generator(*numbers)).tolist()) for numbers in seeds}
    assert len(draws) == len(seeds)


def test_the_same_numbers_give_the_same_stream(common):
    one, other = (torch.rand(3, generator=common.generator(2, 1)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("one", "other"), [((1,), (1, 0)), ((0,), (0, 0)), ((2, 3), (2, 3, 0)), ((2**32,), (0, 1))])
def test_seeds_that_numpy_takes_for_one_are_told_apart_or_refused(common, one, other):
    """It pads short ones with zeros, and cuts numbers of more than 32 bits in two."""
    try:
        seeds = {common.generator(*numbers).initial_seed() for numbers in (one, other)}
    except ValueError:
        return
    assert len(seeds) == 2


def test_provenance_names_the_code_and_the_machine(common):
    provenance = common.provenance_of_code()
    assert provenance["commit"] == "abc"
    assert provenance["torch"] == torch.__version__.split("+")[0] and provenance["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["started"])
    assert json.loads(json.dumps(provenance)) == provenance and provenance["cores"] >= 1


def test_provenance_is_refused_where_the_code_is_not_committed(common, monkeypatch):
    """Git is asked about the package and the studies alone."""
    asked = []

    def git(*words):
        asked.append(words)
        return " M src/companion/rtb.py"

    monkeypatch.setattr(common, "_git", git)
    with pytest.raises(RuntimeError, match="uncommitted changes:  M src/companion/rtb.py; expected none"):
        common.provenance_of_code()
    assert asked == [("status", "--porcelain", "--", "src", "experiments")]


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="no git, or no repository")
def test_git_answers_for_this_repository(monkeypatch):
    """Whatever the working directory."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.chdir("/")
    assert re.fullmatch(r"[0-9a-f]{40}", importlib.import_module("common")._git("rev-parse", "HEAD"))


# Running tasks.

TASKS = [{"name": f"task-{n}", "n": n} for n in range(3)]


def study_of(common):
    """A trivial study, which says what it was given; not a function of this module, which no worker could import."""

    def study(task, checkpoint):
        assert checkpoint.name == f"{task['name']}.npz" and checkpoint.parent.is_dir()
        draws = torch.rand(2, generator=common.generator(task["n"], 1))
        return common.Outcome({"draws": draws, "threads": torch.get_num_threads()}, arrays={"draws": draws.numpy()})

    return study


def results_of(common, folder, tasks=TASKS) -> list[dict]:
    """The results in a folder, checked to be those of the trivial study; without how long they took."""
    records = [json.loads((folder / "trivial" / f"{task['name']}.json").read_text()) for task in tasks]
    assert {path.stem for path in (folder / "trivial").iterdir()} == {task["name"] for task in tasks}
    for task, record in zip(tasks, records, strict=True):
        assert record["configuration"] == task and record["measures"]["threads"] == 1
        assert record["provenance"].pop("seconds") >= 0 and record["provenance"].pop("processor_seconds") >= 0
    return records


def run_alone(common, folder):
    """The results of the trivial study, run in this process by one worker."""
    common.execute("trivial", TASKS, study_of(common), CODE, 1, "loky", results=folder)
    return results_of(common, folder)


def test_tasks_run_and_are_written(common, tmp_path):
    records = run_alone(common, tmp_path)
    assert [record["provenance"] for record in records] == [CODE] * 3
    draws = [torch.rand(2, generator=common.generator(n, 1)).tolist() for n in range(3)]
    assert [record["measures"]["draws"] for record in records] == [pytest.approx(pair, rel=1e-6) for pair in draws]
    assert list((common.CHECKPOINTS / "trivial").iterdir()) == []


def test_a_task_runs_on_one_thread(common, tmp_path):
    """However many there were before: the results say so, and are checked."""
    torch.set_num_threads(2)
    try:
        run_alone(common, tmp_path)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("given", ["a cluster", "none"])
def test_a_cluster_of_two_workers_writes_the_same_results(common, monkeypatch, tmp_path, given):
    """One that is there already, and one that is started here; both in this process, so that they start at once."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    execute = partial(common.execute, "trivial", TASKS, study_of(common), CODE, 2, "dask", results=tmp_path / "dask")
    if given == "none":
        started = []

        def client(*addresses, **keywords):
            started.append((addresses, keywords))
            return real(*addresses, processes=False, **keywords)

        real = distributed.Client
        monkeypatch.setattr(distributed, "Client", client)
        execute(None)
        assert started == [((), {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None})]
    else:
        with distributed.LocalCluster(**options) as cluster:
            execute(cluster.scheduler_address)
    assert results_of(common, tmp_path / "dask") == run_alone(common, tmp_path / "alone")


def failing(common, at, found):
    """A study one of whose tasks is interrupted half-way, where there is no checkpoint yet."""

    def study(task, checkpoint):
        found.append(checkpoint.exists())
        if task["n"] == at and not checkpoint.exists():
            checkpoint.write_text("half-way")
            raise RuntimeError("interrupted")
        return common.Outcome({"threads": 1})

    return partial(common.execute, "trivial", run=study, provenance=CODE, results=common.RESULTS)


def test_a_task_that_fails_keeps_its_checkpoint_and_has_no_result(common):
    """The next try finds the checkpoint, and then it is gone."""
    found = []
    execute = failing(common, 0, found)
    with pytest.raises(RuntimeError, match="interrupted"):
        execute(TASKS)
    assert not common.RESULTS.exists()
    assert [path.name for path in (common.CHECKPOINTS / "trivial").iterdir()] == ["task-0.npz"]
    execute(TASKS)
    assert len(results_of(common, common.RESULTS)) == 3
    assert found == [False, True, False, False]
    assert list((common.CHECKPOINTS / "trivial").iterdir()) == []


@pytest.mark.parametrize("at", [1, 2])
def test_the_error_of_a_later_task_is_the_one_that_is_seen(common, at):
    """And the results before it are there."""
    with pytest.raises(RuntimeError, match="interrupted"):
        failing(common, at, [])(TASKS)
    assert len(results_of(common, common.RESULTS, TASKS[:at])) == at


def test_the_command_line_runs_what_is_not_done(common, monkeypatch, capsys):
    """Some by name, then the rest, then none."""
    monkeypatch.setattr(common, "execute", partial(common.execute, results=common.RESULTS))
    for words, said in (("--only task-1", "1 of 3"), ("", "2 of 3"), ("", "0 of 3")):
        monkeypatch.setattr("sys.argv", ["trivial.py", "--workers", "1", *words.split()])
        common.main("trivial", TASKS, study_of(common))
        assert f"trivial: {said} runs to do" in capsys.readouterr().out
    assert [record["provenance"]["commit"] for record in results_of(common, common.RESULTS)] == ["abc"] * 3


def test_the_command_line_refuses_uncommitted_code(common, monkeypatch):
    """Before anything is run."""
    monkeypatch.setattr(common, "_git", lambda *words: "?? src/new.py")
    monkeypatch.setattr("sys.argv", ["trivial.py", "--workers", "1"])
    with pytest.raises(RuntimeError, match="uncommitted"):
        common.main("trivial", TASKS, study_of(common))
    assert not common.RESULTS.exists()


# The prior.


@pytest.fixture
def prior(common, monkeypatch):
    """The study that trains the prior, with few samples for its measures."""
    module = importlib.import_module("prior")
    monkeypatch.setattr(module, "SAMPLES", 400)
    return module


def test_the_prior_is_trained_measured_and_kept(prior, tmp_path):
    """A run cut to four iterations: finite measures, the weights as arrays, and the same again from a checkpoint."""
    task = prior.TASKS[0] | {"iterations": 4, "decay_from": 2, "batch": 8, "steps": 5}
    first, second = (prior.run(task, tmp_path / "prior.npz") for _ in range(2))
    assert set(first.measures) == {"trained", "closed_form"}
    assert all(math.isfinite(value) for quality in first.measures.values() for value in quality.values())
    assert len(first.history.steps["loss"]) == 4 and first.history.diverged_at is None
    assert first.measures == second.measures
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    assert {"phases", "state.weight", "last.bias"} <= set(first.arrays)


def test_the_loss_of_the_prior_is_least_at_the_drift_in_closed_form(prior):
    """On the same 2,000 draws, against drifts that are longer, shorter or shifted."""
    process, mixture = diffusion.Process(steps=10), targets.twenty_five_to_nine().prior
    best = diffusion.MixtureDrift(process, mixture)

    def loss_of(drift):
        return prior.bridge_loss(process, drift, mixture, 2000, generator(4))[0].item()

    others = [lambda s, t: 1.1 * best(s, t), lambda s, t: 0.9 * best(s, t), lambda s, t: best(s, t) + 0.5]
    assert all(loss_of(best) < loss_of(other) for other in others)


def test_the_loss_of_the_prior_is_the_likelihood_of_a_bridge_averaged_over_its_increments(prior):
    """Its gradient by the drift is that of -log N(increment; dt u, variance dt), the increment drawn 4,000 times.

    The drift is one number, at which both are evaluated on the same ends and states.
    """
    process, mixture = diffusion.Process(steps=3, variance=2.0), targets.twenty_five_to_nine().prior
    seen = []

    def drift(states, times):
        seen.append(states)
        return torch.full_like(states, 0.3).requires_grad_()

    loss = prior.bridge_loss(process, drift, mixture, 2, generator(4))[0]
    end, states = mixture.sample(2, generator(4))[:, None], seen[0]
    times, dt = process.times(states)[:, None], process.dt
    noise = torch.randn(4000, *states.shape, generator=generator(5))
    spread = (process.variance * dt * (1 - times - dt).clamp(min=0) / (1 - times)).sqrt()
    increment = dt * (end - states) / (1 - times) + spread * noise
    gap = (increment - dt * 0.3).square().mean(dim=0) / (2 * process.variance * dt)
    constant = (spread.square() / (2 * process.variance * dt)).expand_as(states)
    assert loss.item() == pytest.approx((gap - constant).sum(dim=(1, 2)).mean().item(), rel=0.02)
