"""What every study shares: tasks run through joblib, results written whole with their provenance, runs that resume.

A study is a list of tasks, each plain data with a name, and one function that runs a task. A task whose result is there
is skipped; one that was interrupted goes on from its checkpoint. ``--backend dask`` spreads the tasks over a cluster.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import joblib
import numpy as np
import torch

from companion.training import History

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
CHECKPOINTS = ROOT / "_build" / "checkpoints"
#: Iterations at the start of a run that are stored one by one, so that they can be run again and compared.
PREFIX = 10
#: After the prefix every so many iterations are stored.
STRIDE = 25


@dataclass
class Outcome:
    """What a run returns: its measures, its history, and arrays to be kept in a file of their own."""

    measures: dict
    history: History = field(default_factory=History)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers, so that no two purposes share a stream."""
    if not numbers or numbers[-1] == 0 or not all(0 <= number < 2**32 for number in numbers):
        # To numpy (1,) and (1, 0) are one seed, and 2^32 is (0, 1).
        raise ValueError(f"numbers is {numbers}; expected numbers of 32 bits, the last one above 0. Count from 1.")
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def main(study: str, tasks: list[dict], run: Callable[[dict, Path | None], Outcome]) -> None:
    """Run the tasks of a study that have no result yet, from the command line."""
    parser = argparse.ArgumentParser(description=f"Run the study {study!r}. What is done already is skipped.")
    parser.add_argument("--workers", type=int, default=joblib.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--backend", choices=("loky", "dask"), default="loky", help="this machine, or a dask cluster")
    parser.add_argument("--scheduler", help="address of the cluster's scheduler; without it, a local one is started")
    parser.add_argument("--only", default="", help="run only the tasks whose name contains this")
    options = parser.parse_args()
    waiting = [task for task in tasks if options.only in task["name"] and not is_done(study, task)]
    print(f"{study}: {len(waiting)} of {len(tasks)} runs to do")
    # The code as it is when the runs are started: what is committed later has not produced them.
    provenance = provenance_of_code()
    execute(study, waiting, run, provenance, options.workers, options.backend, options.scheduler)


def execute(study, tasks, run, provenance, workers=1, backend="loky", scheduler=None, results=RESULTS) -> None:
    """Run tasks at once, on this machine or on a cluster, and write each result as soon as it is there."""
    jobs = [joblib.delayed(run_and_write)(study, task, run, provenance, results) for task in tasks]
    if backend == "loky":
        # With one worker and a verbosity joblib 1.6 hides the error of a task behind one of its own.
        joblib.Parallel(n_jobs=workers, verbose=5 if workers > 1 else 0)(jobs)
        return
    from distributed import Client  # an optional dependency

    with Client(scheduler) if scheduler else Client(n_workers=workers, threads_per_worker=1, dashboard_address=None):
        with joblib.parallel_config(backend="dask"):
            joblib.Parallel(verbose=5)(jobs)


def run_and_write(study: str, task: dict, run: Callable, provenance: dict, results: Path = RESULTS) -> None:
    """Run one task on one thread, and write its result."""
    torch.set_num_threads(1)
    begin, cpu = time.time(), time.process_time()
    checkpoint = CHECKPOINTS / study / f"{task['name']}.npz"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    outcome = run(task, checkpoint)
    duration = {"seconds": round(time.time() - begin, 1), "processor_seconds": round(time.process_time() - cpu, 1)}
    write(study, task, outcome, provenance | duration, results)
    checkpoint.unlink(missing_ok=True)


def is_done(study: str, task: dict) -> bool:
    """Whether a task has a result of the same configuration. Raises ``ValueError`` where it has one of another."""
    path = RESULTS / study / f"{task['name']}.json"
    if not path.exists():
        return False
    if json.loads(path.read_text())["configuration"] != json.loads(json.dumps(task)):
        raise ValueError(f"{path} has another configuration; expected {task}. Rename the task, or remove the result.")
    return True


def write(study: str, task: dict, outcome: Outcome, provenance: dict, results: Path = RESULTS) -> None:
    """Write one result as JSON, and its arrays, if any, as npz without pickles: whole, or not at all."""
    folder = results / study
    folder.mkdir(parents=True, exist_ok=True)
    if outcome.arrays:
        _replace(folder / f"{task['name']}.npz", lambda file: np.savez_compressed(file, **outcome.arrays))
    record = {
        "schema": 1,
        "study": study,
        "configuration": task,
        "provenance": provenance,
        "measures": _plain(outcome.measures),
        "history": {
            "diverged_at": outcome.history.diverged_at,
            "steps": _thinned(outcome.history.steps),
            "evaluations": {name: _plain(column) for name, column in outcome.history.evaluations.items()},
        },
    }
    text = json.dumps(record, indent=None, separators=(",", ":"))
    for key in ('"schema"', '"study"', '"configuration"', '"provenance"', '"measures"', '"history"'):
        text = text.replace(key, "\n" + key, 1)
    _replace(folder / f"{task['name']}.json", lambda file: file.write((text + "\n").encode()))


def provenance_of_code() -> dict:
    """Return when, where and with what a run is made, and from which commit. Raises ``RuntimeError`` if it is dirty."""
    changed = _git("status", "--porcelain", "--", "src", "experiments")
    if changed:
        raise RuntimeError(f"uncommitted changes: {changed}; expected none, so that a result names its code. Commit.")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _thinned(steps: dict[str, np.ndarray]) -> dict[str, list]:
    """The iterations that are kept: all of the prefix, then every STRIDE-th."""
    length = max((len(column) for column in steps.values()), default=0)
    kept = [i for i in range(length) if i < PREFIX or i % STRIDE == 0]
    return {"iteration": kept} | {name: _plain(column[kept]) for name, column in steps.items()}


def _plain(value):
    """Numbers as JSON has them, to seven digits, which is all that float32 gives; no NaN, no infinity."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):  # arrays, tensors, and the scalars of both
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _replace(path: Path, write_to: Callable) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write_to(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
