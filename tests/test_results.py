"""The stored results: their format, that no run is missing, and that today's code still makes their first numbers."""

import importlib
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import metrics, records, statistics, targets, training

ROOT = Path(__file__).parents[1]
STORE = ROOT / "results"
STUDIES = ("prior", "twenty_five_modes", "published_baseline", "rarity_map", "step_gap", "time_to_quality")
#: Iterations that are run again.
AGAIN = 5


@pytest.fixture
def study(request, monkeypatch):
    """The module of a study."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    yield importlib.import_module(request.param)
    for name in (*STUDIES, "common"):
        sys.modules.pop(name, None)


def each_study(*names):
    """Parametrise a test by study."""
    return pytest.mark.parametrize("study", names or STUDIES, indirect=True)


@each_study()
def test_every_task_has_its_result_and_every_result_its_task(study):
    """A task that was changed, or added, must be run; a result that no task asks for is left over."""
    stored = {run.configuration["name"]: run.configuration for run in records.load(study.__name__, where=STORE)}
    assert stored == {task["name"]: json.loads(json.dumps(task)) for task in study.TASKS}


@pytest.mark.parametrize("name", STUDIES)
def test_results_say_where_they_come_from(name):
    """The commit, the versions, the duration; and every number is a number."""
    for run in records.load(name, where=STORE):
        assert run.study == name and run.path.stem == run.configuration["name"]
        assert re.fullmatch("[0-9a-f]{40}", run.provenance["commit"])
        assert {"started", "python", "torch", "numpy", "seconds", "processor_seconds"} <= set(run.provenance)
        assert run.measures and "NaN" not in run.path.read_text()
        lengths = {len(column) for column in run.steps.values()}
        assert len(lengths) <= 1, f"{run.path} has columns of several lengths"


def test_arrays_are_stored_without_pickles():
    for path in STORE.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "fiu" for name in file.files)


@each_study("twenty_five_modes", "published_baseline", "rarity_map", "time_to_quality")
def test_todays_code_makes_the_first_iterations_of_a_stored_run(study, record_property):
    """Of a run drawn at random, so that sooner or later all are. Float32 and other processors move the last digits."""
    seed = random.SystemRandom().randrange(10**6)
    record_property("draw", seed)
    stored = [
        run
        for run in records.load(study.__name__, where=STORE)
        if len(run.steps) and run.configuration.get("start") != "optimum"
    ]
    run = random.Random(seed).choice(stored)
    sampler, settings, draws = study.start(dict(run.configuration))
    history = training.fine_tune(sampler, settings, draws, stop_after=AGAIN)
    assert list(run.steps["iteration"][:AGAIN]) == list(range(AGAIN))
    for name in ("loss", "elbo", "log_reward"):
        scale = np.abs(run.steps[name][:AGAIN]).max()
        gap = np.abs(history.steps[name] - run.steps[name][:AGAIN]) / scale
        assert gap.max() < 5e-3, f"{run.path.name} is not reproduced: {name} is off by {gap}"


@each_study("prior")
def test_the_prior_begins_as_it_was_stored(study):
    """Its first losses, again."""
    (run,) = records.load("prior", where=STORE)
    history = study.train(dict(run.configuration), None, stop_after=AGAIN)[1]
    np.testing.assert_allclose(history.steps["loss"], run.steps["loss"][:AGAIN], rtol=5e-3)


@each_study("step_gap")
def test_a_measure_of_the_gap_is_made_again(study):
    """The shortest task, whole."""
    run = min(records.load("step_gap", where=STORE), key=lambda run: run.configuration["steps"])
    again = study.run(dict(run.configuration), None).measures
    for name, value in again.items():
        assert value == pytest.approx(run.measures[name], rel=1e-3, abs=1e-3)


@pytest.mark.claim("X2")
def test_stored_measures_are_those_of_the_stored_mode_weights():
    """Total variation and leak, made anew from the 25 weights and the 61 parts of the posterior, typed here."""
    kept = {(-10, -5): 4, (-5, -10): 10, (-5, 0): 4, (10, -5): 5, (0, 0): 10, (0, 5): 5, (5, -5): 4, (5, 0): 15}
    kept[5, 10] = 4
    tilt = targets.twenty_five_to_nine()
    wanted = torch.tensor([kept.get(tuple(map(int, mean)), 0) / 61 for mean in tilt.prior.means.tolist()])
    assert torch.allclose(targets.weights_on(tilt.prior, tilt.posterior), wanted)
    for run in records.load("twenty_five_modes", where=STORE):
        found = torch.tensor(run.measures["mode_weights"])
        assert float(metrics.total_variation(found, wanted)) == pytest.approx(run.measures["total_variation"], abs=1e-5)
        assert float((found - wanted).abs().sum() / 2) == pytest.approx(run.measures["total_variation"], abs=1e-5)
        assert float(found[wanted == 0].sum()) == pytest.approx(run.measures["leak"], abs=1e-5)


@pytest.mark.claim("X2")
def test_the_methods_are_comparable_or_not_as_the_chapter_says():
    """Two one-sided tests on total variation, at the margin that was committed before the runs."""
    fixed = json.loads((ROOT / "experiments" / "margins.json").read_text())
    runs = records.by(records.load("twenty_five_modes", where=STORE), "method")
    margin = fixed["margins"]["total_variation"]
    reference = records.measure(runs["rtb"], "total_variation")
    assert len(reference) == 5
    for method in ("vargrad", "trust-pcl", "reinforce-off-policy"):
        found = statistics.equivalence(records.measure(runs[method], "total_variation"), reference, margin=margin)
        assert found.equivalent, method
    for method in ("reinforce-on-policy", "guidance", "published-baseline"):
        found = statistics.equivalence(records.measure(runs[method], "total_variation"), reference, margin=10 * margin)
        assert found.different, method


@pytest.mark.claim("X3")
def test_exploration_pays_where_the_chapter_says():
    """The three statements of the map, at the margins that were committed before its runs."""
    fixed = json.loads((ROOT / "experiments" / "margins.json").read_text())["rarity_map"]
    runs = records.load("rarity_map", where=STORE)

    def cell(rarity, noise):
        at = lambda run: (run.configuration["rarity"], run.configuration["settings"]["exploration"])  # noqa: E731
        found = [torch.tensor(run.measures["mode_weights"]) for run in runs if at(run) == (rarity, noise)]
        wanted = torch.tensor([(1 - 1e-4) / 3 if k in (1, 3, 8) else 1e-4 / 6 for k in range(9)])
        return [float((weights - wanted).abs().sum() / 2) for weights in found]

    for rarity in (0.03, 0.01, 0.003):
        assert statistics.mean_interval(cell(rarity, 0.0)).low > fixed["fails_above"]
    gains = {
        q: statistics.mean_interval([a - b for a, b in zip(cell(q, 0.0), cell(q, 0.8), strict=True)], level=0.9)
        for q in (0.6, 0.1, 0.03)
    }
    assert gains[0.1].low > fixed["pays_by"] and gains[0.03].low > fixed["pays_by"]
    assert abs(gains[0.6].low) < fixed["no_difference"] and abs(gains[0.6].high) < fixed["no_difference"]


def record(**changes):
    """A stored run, as text."""
    run = {"schema": 1, "study": "s", "configuration": {"name": "a-1", "seed": 1, "method": "a"}}
    run |= {"provenance": {}, "measures": {"m": 2.0, "none": None}}
    run |= {"history": {"diverged_at": None, "steps": {"loss": [1.0, None]}, "evaluations": {}}}
    return json.dumps(run | changes)


def test_reading_grouping_and_measuring(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a-1.json").write_text(record())
    (tmp_path / "s" / "a-0.json").write_text(record(configuration={"name": "a-0", "seed": 0, "method": "a"}))
    runs = records.load("s", where=tmp_path)
    assert [run.configuration["seed"] for run in records.by(runs, "method")["a"]] == [0, 1]
    assert records.measure(runs, "m") == [2.0, 2.0]
    assert runs[0].steps["loss"][0] == 1 and np.isnan(runs[0].steps["loss"][1])
    assert runs[0].arrays.name == "a-0.npz"
    with pytest.raises(ValueError, match="Measures"):
        records.measure(runs, "none")


def test_results_that_are_not_there_or_of_another_format_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="make experiments"):
        records.load("s", where=tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a-1.json").write_text(record(schema=2))
    with pytest.raises(ValueError, match="schema 1"):
        records.load("s", where=tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="clone"):
        records.folder()


def test_the_folder_is_found_from_the_notebooks(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert records.folder() == STORE
