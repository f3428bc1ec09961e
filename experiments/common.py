"""What every study shares: tasks run through joblib or on a cluster, results written as records, runs that resume.

A task whose result is there is skipped; one that was interrupted goes on from its checkpoint. ``--backend dask``
spreads the tasks over a cluster whose workers see this folder under the same path.
"""

import argparse
import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

import experiments
from companion import plain, records, training
from companion.samplers import Sampler
from companion.validation import check_positive_integers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
CHECKPOINTS = ROOT / "_build" / "checkpoints"


@dataclass
class Outcome:
    """What a run returns: its measures, its history, and arrays to be kept in a file of their own."""

    measures: dict[str, Any]
    history: training.History = field(default_factory=training.History)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def studies() -> list[str]:
    """Return the names of the studies of this package, each after those whose results it needs."""
    found = {}
    for module in pkgutil.iter_modules(experiments.__path__):
        if not module.ispkg and not module.name.startswith("_"):
            study = importlib.import_module(f"experiments.{module.name}")
            if hasattr(study, "TASKS") and hasattr(study, "run"):
                found[module.name] = getattr(study, "NEEDS", ())
    return list(TopologicalSorter(found).static_order())


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers, so that no two purposes share a stream."""
    if not numbers or numbers[-1] == 0 or not all(0 <= number < 2**32 for number in numbers):
        # To numpy (1,) and (1, 0) are one seed, and 2^32 is (0, 1).
        raise ValueError(f"numbers is {numbers}; expected numbers of 32 bits, the last one above 0. Count from 1.")
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def settings(objective, schedule, behaviour=None) -> dict[str, Any]:
    """How a task is trained, as plain data: the part of it that :func:`fine_tune` reads."""
    parts = {"objective": objective, "schedule": schedule, "behaviour": behaviour}
    return {name: plain.to_plain(part) for name, part in parts.items()}


def fine_tune(task: Mapping[str, Any], sampler: Sampler, draws: torch.Generator, objective=None, **options):
    """Train a sampler as a task says; ``options`` are those of :func:`companion.training.fine_tune`.

    An ``objective`` that holds a network has no plain form, and is given; the task names it.
    """
    objective = plain.from_plain(task["objective"]) if objective is None else objective
    given = {name: plain.from_plain(task[name]) for name in ("schedule", "behaviour")}
    return training.fine_tune(sampler, objective, generator=draws, **given, **options)


def measured(task: Mapping[str, Any], evaluate: Callable[[], dict], checkpoint: Path | None) -> dict[str, Any]:
    """Options of :func:`fine_tune` for a run that is measured as its task says, and may be interrupted."""
    every = task["evaluate_every"]
    return {"evaluate": evaluate, "evaluate_every": every, "checkpoint": checkpoint, "label": task["name"]}


def positive_integer(text: str) -> int:
    """What an option of the command line must be. Raises ``ValueError``, of which argparse makes its own message."""
    check_positive_integers(option=int(text))
    return int(text)


def main(*names: str) -> None:
    """Run the tasks of studies that have no result yet, from the command line."""
    parser = argparse.ArgumentParser(description=f"Run {', '.join(names)}. What is done already is skipped.")
    parser.add_argument(
        "--workers", type=positive_integer, default=joblib.cpu_count(), help="runs at a time, one thread each"
    )
    parser.add_argument("--backend", choices=("loky", "dask"), default="loky", help="this machine, or a dask cluster")
    parser.add_argument("--scheduler", help="address of the cluster's scheduler; without it, a local one is started")
    parser.add_argument("--only", default="", help="run only the tasks whose name contains this")
    options = parser.parse_args()
    if options.scheduler and options.backend != "dask":
        parser.error("--scheduler is for --backend dask; pass both, or neither")
    known = {name: importlib.import_module(f"experiments.{name}").TASKS for name in names}
    if options.only and not any(options.only in task["name"] for tasks in known.values() for task in tasks):
        parser.error(f"no task of {', '.join(names)} has {options.only!r} in its name; see TASKS for their names")
    for name, tasks in known.items():
        waiting = [task for task in tasks if options.only in task["name"] and not is_done(name, task)]
        print(f"{name}: {len(waiting)} of {len(tasks)} runs to do")
        if waiting:
            # The code as it is when the runs are started: what is committed later has not produced them.
            provenance = records.provenance(ROOT, ("src", "experiments"))
            execute(name, waiting, provenance, options.workers, options.backend, options.scheduler)


def execute(study, tasks, provenance, workers=1, backend="loky", scheduler=None, results=None) -> None:
    """Run tasks at once, on this machine or on a cluster, and write each result as soon as it is there."""
    given = [(study, task, provenance, results or RESULTS) for task in tasks]
    if backend == "dask":
        from experiments.cluster import spread  # an optional dependency

        spread(study, given, workers, scheduler, ROOT)
        return
    # With one worker and a verbosity joblib 1.6 hides the error of a task behind one of its own.
    verbose = 5 if workers > 1 else 0
    joblib.Parallel(n_jobs=workers, verbose=verbose)(joblib.delayed(run_and_write)(*each) for each in given)


def run_and_write(study: str, task: dict[str, Any], provenance: dict[str, Any], results: Path) -> None:
    """Run one task on one thread, and write its result."""
    run: Callable[[dict, Path], Outcome] = importlib.import_module(f"experiments.{study}").run
    torch.set_num_threads(1)
    begin, cpu = time.time(), time.process_time()
    # By commit: a run that went on under other code would be one that no commit has made.
    where = CHECKPOINTS / provenance["commit"]
    checkpoint = records.place(study, task["name"], where=where).with_suffix(".npz")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    outcome = run(task, checkpoint)
    duration = {"seconds": round(time.time() - begin, 1), "processor_seconds": round(time.process_time() - cpu, 1)}
    kept = {name: getattr(outcome.history, name) for name in ("steps", "evaluations", "diverged_at")}
    parts = kept | {"arrays": outcome.arrays, "where": results}
    records.write(study, task, provenance | duration, outcome.measures, **parts)
    checkpoint.unlink(missing_ok=True)


def is_done(study: str, task: dict) -> bool:
    """Whether a task has a result of the same configuration. Raises ``ValueError`` where it has one of another."""
    path = records.place(study, task["name"], where=RESULTS)
    if not path.exists():
        return False
    if records.read(path).configuration != json.loads(json.dumps(task)):
        raise ValueError(f"{path} has another configuration; expected {task}. Rename the task, or remove the result.")
    return True
