"""Runs tasks on a dask cluster whose workers are processes of their own, started anywhere.

A worker knows nothing of this folder. So what is sent to it is pickled by value: a function that first puts the folder
on the worker's path and imports the study. Where it cannot, on workers that are there or that join later, the run ends
at once and says which worker it was. Workers keep the code that they have imported: start them anew when it changes.
"""

import importlib
import sys
from pathlib import Path

import cloudpickle
from distributed import Client, as_completed, get_worker

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def spread(given: list[tuple], workers: int, scheduler: str | None) -> None:
    """Run ``run_and_write`` on each of the tuples of arguments, on a cluster that is there, or on a local one.

    Raises ``RuntimeError`` for a worker that cannot import the study, and whatever a task raises.
    """
    from experiments.common import ROOT

    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with Client(scheduler) if scheduler else Client(**local) as client:
        if given:
            client.run(imported, str(ROOT), f"experiments.{given[0][0]}")
        # Not pure: a task that failed before is tried again.
        waiting = [client.submit(on_worker, str(ROOT), *each, pure=False) for each in given]
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            print(f"{done} of {len(waiting)} runs done")


def on_worker(root: str, study: str, *rest) -> None:
    """Run and write a task, on a worker."""
    imported(root, f"experiments.{study}")
    importlib.import_module("experiments.common").run_and_write(study, *rest)


def imported(root: str, module: str) -> None:
    """Import a module of the project in ``root``, on a worker. Raises ``RuntimeError`` that names the worker."""
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        file = Path(importlib.import_module(module).__file__)
        found = None if file.resolve().is_relative_to(root) else f"the one in {file.parent}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if found:
        raise RuntimeError(
            f"The worker {get_worker().address} cannot import {module} from {root}: it found {found}. Expected this "
            f"folder under the same path on every node, and companion in the worker's environment, {sys.prefix}. Share "
            "the folder, install the project there, and start the worker anew."
        )
