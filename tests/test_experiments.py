"""What the studies share: tasks that are skipped or refused, streams, backends, a cluster; results that migrate."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from inputs import generator

from companion import records, targets
from companion.samplers import diffusion, drifts
from experiments import common as shared
from experiments import prior as study_of_the_prior
from experiments.migrations import objectives_as_values as migration

ROOT = Path(__file__).parents[1]
CODE = {"commit": "abc", "torch": "2"}


@pytest.fixture
def common(monkeypatch, tmp_path):
    """The module, with its results and checkpoints in a folder of the test's own, and a git that knows of no change."""
    monkeypatch.setattr(shared, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(shared, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(records, "_git", lambda root, *words: "abc" if words[0] == "rev-parse" else "")
    return shared


# Tasks.


def test_the_studies_are_found_each_after_those_that_it_needs():
    """They are the modules of the package that have tasks, and nothing lists them."""
    found = shared.studies()
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    others = {"__init__", "__main__", "common", "cluster", "live", "atlas_losses", "leaf_losses"}
    assert len(set(found)) == len(found) and set(found) == scripts - others
    before = [name for name in found if name in ("twenty_five_modes", "published_baseline", "time_to_quality")]
    assert len(before) == 3 and all(found.index("prior") < found.index(name) for name in before)


def test_a_task_is_done_once_its_result_is_written(common):
    """Lists and tuples are alike to it, as they are to JSON; another configuration under the same name is refused."""
    task = {"name": "one", "seed": 3, "rates": (0.1, 0.2), "clip": None}
    assert not common.is_done("study", task)
    records.write("study", task, CODE, {}, where=common.RESULTS)
    assert common.is_done("study", task) and common.is_done("study", task | {"rates": [0.1, 0.2]})
    assert not common.is_done("other study", task)
    assert not common.is_done("study", task | {"name": "two"})
    for changes in ({"seed": 4}, {"new": 1}, {"clip": 0.0}):
        with pytest.raises(ValueError, match="another configuration; expected .*Rename the task, or remove the result"):
            common.is_done("study", task | changes)


# Streams.


def test_purposes_do_not_share_a_stream():
    """Pairs of numbers in either order, and single ones: the first draws of 72 generators all differ."""
    seeds = [(i,) for i in range(1, 9)] + [(i, j) for i in range(8) for j in range(1, 9)]
    draws = {tuple(torch.rand(3, generator=shared.generator(*numbers)).tolist()) for numbers in seeds}
    assert len(draws) == len(seeds)


def test_the_same_numbers_give_the_same_stream():
    one, other = (torch.rand(3, generator=shared.generator(2, 1)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("one", "other"), [((1,), (1, 0)), ((0,), (0, 0)), ((2, 3), (2, 3, 0)), ((2**32,), (0, 1))])
def test_seeds_that_numpy_takes_for_one_are_told_apart_or_refused(one, other):
    """It pads short ones with zeros, and cuts numbers of more than 32 bits in two."""
    try:
        seeds = {shared.generator(*numbers).initial_seed() for numbers in (one, other)}
    except ValueError:
        return
    assert len(seeds) == 2


# Running tasks.

TASKS = [{"name": f"task-{n}", "n": n} for n in range(3)]


def draw(task, checkpoint):
    """A trivial run, which says what it was given."""
    assert checkpoint.name == f"{task['name']}.npz" and checkpoint.parent.is_dir()
    draws = torch.rand(2, generator=shared.generator(task["n"], 1))
    return shared.Outcome({"draws": draws, "threads": torch.get_num_threads()}, arrays={"draws": draws.numpy()})


@pytest.fixture
def trivial(monkeypatch):
    """A study that is trivial."""
    study = ModuleType("experiments.trivial")
    study.__file__, study.TASKS, study.run = str(ROOT / "experiments" / "trivial.py"), TASKS, draw
    monkeypatch.setitem(sys.modules, "experiments.trivial", study)
    return study


def results_of(folder, tasks=TASKS) -> list[dict]:
    """The results in a folder, checked to be those of the trivial study; without how long they took."""
    found = [json.loads((folder / "trivial" / f"{task['name']}.json").read_text()) for task in tasks]
    assert {path.stem for path in (folder / "trivial").iterdir()} == {task["name"] for task in tasks}
    for task, record in zip(tasks, found, strict=True):
        assert record["configuration"] == task and record["measures"]["threads"] == 1
        assert record["provenance"].pop("seconds") >= 0 and record["provenance"].pop("processor_seconds") >= 0
    return found


def test_tasks_run_and_are_written(common, trivial):
    common.execute("trivial", TASKS, CODE)
    found = results_of(common.RESULTS)
    assert [record["provenance"] for record in found] == [CODE] * 3
    draws = [torch.rand(2, generator=common.generator(n, 1)).tolist() for n in range(3)]
    assert [record["measures"]["draws"] for record in found] == [pytest.approx(pair, rel=1e-6) for pair in draws]
    assert list((common.CHECKPOINTS / "abc" / "trivial").iterdir()) == []


def test_a_task_runs_on_one_thread(common, trivial):
    """However many there were before: the results say so, and are checked."""
    torch.set_num_threads(2)
    try:
        common.execute("trivial", TASKS, CODE)
    finally:
        torch.set_num_threads(1)
    results_of(common.RESULTS)


def interrupted(study, at) -> list[bool]:
    """Let a task of the study be interrupted half-way, where there is no checkpoint yet; return where there was one."""
    found = []

    def run(task, checkpoint):
        found.append(checkpoint.exists())
        if task["n"] == at and not checkpoint.exists():
            checkpoint.write_text("half-way")
            raise RuntimeError("interrupted")
        return shared.Outcome({"threads": 1})

    study.run = run
    return found


def test_a_task_that_fails_keeps_its_checkpoint_and_has_no_result(common, trivial):
    """The next try finds the checkpoint, and then it is gone."""
    found = interrupted(trivial, 0)
    with pytest.raises(RuntimeError, match="interrupted"):
        common.execute("trivial", TASKS, CODE)
    assert not common.RESULTS.exists()
    assert [path.name for path in (common.CHECKPOINTS / "abc" / "trivial").iterdir()] == ["task-0.npz"]
    common.execute("trivial", TASKS, CODE)
    assert len(results_of(common.RESULTS)) == 3
    assert found == [False, True, False, False]
    assert list((common.CHECKPOINTS / "abc" / "trivial").iterdir()) == []


def test_a_run_does_not_go_on_under_other_code(common, trivial):
    """Its result would name a commit that made but half of it: it begins anew."""
    found = interrupted(trivial, 0)
    with pytest.raises(RuntimeError, match="interrupted"):
        common.execute("trivial", TASKS, CODE)
    with pytest.raises(RuntimeError, match="interrupted"):
        common.execute("trivial", TASKS, CODE | {"commit": "def"})
    assert found == [False, False]


@pytest.mark.parametrize("at", [1, 2])
def test_the_error_of_a_later_task_is_the_one_that_is_seen(common, trivial, at):
    """And the results before it are there."""
    interrupted(trivial, at)
    with pytest.raises(RuntimeError, match="interrupted"):
        common.execute("trivial", TASKS, CODE)
    assert len(results_of(common.RESULTS, TASKS[:at])) == at


def test_the_command_line_runs_what_is_not_done(common, trivial, monkeypatch, capsys):
    """Some by name, then the rest, then none, of one study after the other."""
    monkeypatch.setitem(sys.modules, "experiments.empty", ModuleType("experiments.empty"))
    sys.modules["experiments.empty"].TASKS = []
    for words, said in (("--only task-1", "1 of 3"), ("", "2 of 3"), ("", "0 of 3")):
        monkeypatch.setattr("sys.argv", ["experiments", "--workers", "1", *words.split()])
        common.main("empty", "trivial")
        assert capsys.readouterr().out == f"empty: 0 of 0 runs to do\ntrivial: {said} runs to do\n"
    assert [record["provenance"]["commit"] for record in results_of(common.RESULTS)] == ["abc"] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"--workers {bad}", f"argument --workers: invalid positive_integer value: '{bad}'")
        for bad in ("0", "-1", "all", "1.5")
    ]
    + [
        ("--only nothing", "no task of trivial has 'nothing' in its name"),
        ("--scheduler tcp://localhost:1", "--scheduler is for --backend dask"),
        ("--backend cloud", "argument --backend: invalid choice: 'cloud'"),
        ("nonsense", "unrecognized arguments: nonsense"),
    ],
)
def test_the_command_line_refuses_what_it_does_not_know(common, trivial, monkeypatch, capsys, words, said):
    """Before anything is run."""
    monkeypatch.setattr("sys.argv", ["experiments", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        common.main("trivial")
    assert said in capsys.readouterr().err and not common.RESULTS.exists()


@pytest.mark.parametrize("name", ["../esc", "a/b", ""])
def test_a_task_whose_name_leaves_the_folder_is_not_run(common, trivial, name):
    for call in (
        lambda: common.is_done("trivial", {"name": name}),
        lambda: common.execute("trivial", [TASKS[0] | {"name": name}], CODE),
    ):
        with pytest.raises(ValueError, match="name is .*; expected letters"):
            call()
    assert not common.RESULTS.exists() and not common.CHECKPOINTS.exists()


def test_the_command_line_refuses_uncommitted_code(common, trivial, monkeypatch):
    """Of the package and the studies; before anything is run."""
    asked = []
    monkeypatch.setattr(records, "_git", lambda root, *words: asked.append(words) or "?? src/new.py")
    monkeypatch.setattr("sys.argv", ["experiments", "--workers", "1"])
    with pytest.raises(RuntimeError, match="uncommitted"):
        common.main("trivial")
    assert asked[0] == ("status", "--porcelain", "--", "src", "experiments") and not common.RESULTS.exists()


# A cluster.


def test_without_a_scheduler_a_cluster_is_started_here(common, trivial, monkeypatch, tmp_path):
    """In this process, so that it starts at once; it writes what one worker writes alone."""
    cluster = pytest.importorskip("experiments.cluster")
    started = []

    def client(**keywords):
        started.append(keywords)
        return real(processes=False, **keywords)

    real = cluster.Client
    monkeypatch.setattr(cluster, "Client", client)
    common.execute("trivial", TASKS, CODE, 2, "dask")
    assert started == [{"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}]
    common.execute("trivial", TASKS, CODE, results=tmp_path / "alone")
    assert results_of(common.RESULTS) == results_of(tmp_path / "alone")


GAP_TASKS = [{"name": f"steps-2-{n}", "steps": 2, "seed": n, "paths": 5} for n in range(3)]
#: A client as a user has it, with a time limit from outside: its arguments are the address, the folder, the results.
CLIENT = f"""
import sys
from pathlib import Path
from experiments import common
address, common.ROOT, results = sys.argv[1], *map(Path, sys.argv[2:])
common.execute("step_gap", {GAP_TASKS}, {CODE}, backend="dask", scheduler=address, results=results)
"""


class Cluster:
    """A scheduler, and workers in processes of their own, started in another folder, which know nothing of this one."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.processes, self.file = folder, [], folder / "scheduler.json"

    def scheduler(self):
        """Start the scheduler, and wait until it is there."""
        self._start("scheduler", "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        self.wait_for("scheduler", "Scheduler at")

    def worker(self, path=ROOT / "src"):
        """Start a worker that finds modules in ``path``."""
        options = ("--no-nanny", "--nthreads", "1", "--local-directory", self.folder)
        self._start("worker", "-m", "distributed.cli.dask_worker", *options, path=path)

    def client(self, *, root=ROOT):
        """Start a client in the project's folder, as a user does."""
        address = json.loads(self.file.read_text())["address"]
        return self._start("client", "-c", CLIENT, address, root, self.folder / "results", cwd=ROOT)

    def log(self, kind):
        """What the processes of a kind have said."""
        return (self.folder / f"{kind}.log").read_text()

    def wait_for(self, kind, words, seconds=60):
        """Wait until one of them has said something."""
        end = time.monotonic() + seconds
        while words not in self.log(kind):
            assert time.monotonic() < end, f"no {words!r} in {seconds} s: {self.log(kind)}"
            time.sleep(0.05)

    def end(self):
        """End every process that was started."""
        for process in self.processes:
            process.kill()
            process.wait()

    def _start(self, kind, *words, path=ROOT / "src", cwd=None):
        words += () if kind == "client" else ("--scheduler-file", self.file, "--no-dashboard")
        with open(self.folder / f"{kind}.log", "a") as log:
            options = {"cwd": cwd or self.folder, "env": os.environ | {"PYTHONPATH": str(path)}}
            command = [sys.executable, *map(str, words)]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options))
        return self.processes[-1]


@pytest.fixture
def cluster(tmp_path):
    """A cluster without workers yet."""
    pytest.importorskip("distributed")
    started = Cluster(tmp_path / "elsewhere")
    try:
        started.scheduler()
        yield started
    finally:
        started.end()


def test_a_cluster_of_separate_processes_writes_what_one_worker_writes(common, cluster):
    cluster.worker()
    cluster.worker()
    assert cluster.client().wait(timeout=60) == 0, cluster.log("client")
    common.execute("step_gap", GAP_TASKS, CODE)
    found, alone = (
        [(run.configuration, run.measures) for run in records.load("step_gap", where=where)]
        for where in (cluster.folder / "results", common.RESULTS)
    )
    assert found == alone and [configuration for configuration, _ in found] == GAP_TASKS


def test_a_worker_that_cannot_import_ends_the_run_at_once(cluster, tmp_path):
    """It is there before the client, and does not see the project's folder."""
    cluster.worker()
    cluster.wait_for("worker", "Registered to")
    assert cluster.client(root=tmp_path / "not there").wait(timeout=60) == 1
    assert f"process {cluster.processes[1].pid}, cannot import experiments.step_gap" in cluster.log("client")
    assert "ModuleNotFoundError: No module named 'experiments'. Expected this folder under" in cluster.log("client")


def test_a_worker_that_joins_later_and_cannot_import_ends_the_run_at_once(cluster, tmp_path):
    """Its environment has a package that is broken."""
    (tmp_path / "companion.py").write_text("raise ImportError('no torch here')")
    client = cluster.client()
    cluster.wait_for("scheduler", "Receive client connection")
    cluster.worker(path=tmp_path)
    assert client.wait(timeout=60) == 1
    assert f"process {cluster.processes[-1].pid}, cannot import experiments.step_gap" in cluster.log("client")
    assert "ImportError: no torch here. Expected this folder under" in cluster.log("client")


# Migrations.

#: What schema 1 had where nothing else was said.
FLAT = {
    "objective": "rtb",
    "iterations": 5000,
    "batch": 500,
    "rate": 0.001,
    "scalar_rate": 0.1,
    "decay_from": None,
    "beta": 1.0,
    "baseline": "batch_mean",
    "weights": "none",
    "kl_weight": 0.01,
    "exploration": 0.0,
    "explore_until": 0,
    "explore_to": 0,
    "replayed": 0.0,
    "replay_until": None,
    "anneal_beta": 0,
    "clip": None,
}
EXPLORING = {"exploration": 0.5, "explore_until": 500, "explore_to": 4500}
SHORT = {"objective": "reinforce", "iterations": 800}
PUBLISHED = {"objective": "published", "iterations": 700}
MAP = {"objective": "vargrad", "iterations": 600, "batch": 250, "rate": 0.003, "decay_from": 300}
MAP |= {"explore_until": 60, "explore_to": 540}
FAST = {"iterations": 4400, "batch": 100, "rate": 0.002, "scalar_rate": 0.01, "decay_from": 1000}
OLD = {
    "twenty_five_modes/rtb-0": EXPLORING,
    "twenty_five_modes/vargrad-1": {"objective": "vargrad"} | EXPLORING,
    "twenty_five_modes/trust-pcl-0": {"objective": "trust_pcl"} | EXPLORING,
    "twenty_five_modes/reinforce-off-policy-0": {"objective": "reinforce", "weights": "tempered"} | EXPLORING,
    "twenty_five_modes/remedy-annealed-beta-0": SHORT | {"anneal_beta": 500},
    "twenty_five_modes/remedy-clipped-residual-2": SHORT | {"clip": 5.0},
    "twenty_five_modes/remedy-replayed-start-0": SHORT | {"replayed": 0.5, "replay_until": 300},
    "twenty_five_modes/guidance-0": None,
    "published_baseline/falling-1-0": PUBLISHED | {"kl_weight": 1.0, "decay_from": 200},
    "rarity_map/rarity-0.1-noise-0-0": MAP,
    "rarity_map/rarity-0.1-noise-0.4-0": MAP | {"exploration": 0.4},
    "time_to_quality/fast-0": FAST | {"replayed": 0.5, "replay_until": 3300},
}


@pytest.mark.parametrize(("name", "changes"), OLD.items(), ids=list(OLD))
def test_a_run_of_the_first_schema_becomes_the_one_that_is_stored(tmp_path, name, changes):
    """To the byte: nothing but the configuration changes, its entries keep their order. Once more changes nothing."""
    stored = (ROOT / "results" / f"{name}.json").read_text()
    lines = stored.splitlines(keepends=True)
    configuration = json.loads(lines[3].removeprefix('"configuration":').rstrip(",\n"))
    old = {}
    for key, value in configuration.items():
        if key == "objective":
            old["settings"] = FLAT | changes
        elif key not in ("schedule", "behaviour", "noise"):
            old[key] = value
    assert ("settings" in old) == (changes is not None)
    lines[1], lines[3] = '"schema":1,\n', f'"configuration":{json.dumps(old, separators=(",", ":"))},\n'
    path = tmp_path / "run.json"
    path.write_text("".join(lines))
    assert migration.migrate(path) and path.read_text() == stored
    assert not migration.migrate(path) and path.read_text() == stored


def test_a_migration_that_is_stopped_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    old = (ROOT / "results" / "step_gap" / "steps-12-0.json").read_text().replace('"schema":2', '"schema":1')
    path.write_text(old)
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migration.migrate(path)
    assert path.read_text() == old and list(tmp_path.iterdir()) == [path]


def test_the_benchmarks_one_file_becomes_a_record_for_each_number_of_threads(tmp_path):
    """Their measures are the programs, and what was said of the machine is their provenance."""
    about = {"threads": 1, "rounds": 2, "steps_per_block": 5, "size": {"steps": 100}}
    made = {"date": "2026-11-22T22:43:34+00:00", "commit": "abc", "uncommitted": [], "processor": "p", "cores": 4}
    made |= {"system": "Linux x86_64", "load": 0.5}
    programs = {"companion": {"peak_bytes": 10**9, "blocks": {"step": [0.18269, 0.1232]}}}
    runs = {str(n): about | {"threads": n, "provenance": made, "programs": programs} for n in (1, 2)}
    (tmp_path / "benchmark.json").write_text(json.dumps({"schema": 1, "runs": runs}, indent=1))
    assert migration.split(tmp_path / "benchmark.json") == 2 and migration.split(tmp_path / "benchmark.json") == 0
    found = records.load("benchmark", where=tmp_path)
    assert [run.configuration for run in found] == [{"name": f"threads-{n}"} | about | {"threads": n} for n in (1, 2)]
    assert all(run.measures == programs for run in found)
    kept = {name: made[name] for name in ("commit", "uncommitted", "processor", "cores", "load")}
    assert found[0].provenance == kept | {"started": made["date"], "system": "Linux", "machine": "x86_64"}


# The prior.


@pytest.fixture
def prior(monkeypatch):
    """The study that trains the prior, with few samples for its measures."""
    monkeypatch.setattr(study_of_the_prior, "SAMPLES", 400)
    return study_of_the_prior


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
    best = drifts.MixtureDrift(process, mixture)

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


def test_a_result_is_written_into_folders_that_are_not_there_yet(tmp_path):
    records.write("study", {"name": "one"}, {}, {}, where=tmp_path / "not" / "there")
    assert (tmp_path / "not" / "there" / "study" / "one.json").exists()
