"""Runs tasks on a dask cluster whose workers are processes of their own, started anywhere.

A worker knows nothing of this folder, so each task finds its own way: it puts the folder on the worker's path and
imports the study. Where that fails, on a worker that is there or one that joins later, the run ends at once and says
which worker it was. Workers keep the code that they have imported: start them anew when it changes.
"""

import importlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from distributed import Client, as_completed


def spread(study: str, given: list[tuple], workers: int, scheduler: str | None, root: Path) -> None:
    """Call ``run_and_write`` of a study with each tuple of arguments, on a cluster that is there, or on a local one.

    Raises ``RuntimeError`` for a worker that cannot import the study from ``root``, and whatever a task raises.
    """
    enter = entrance(str(root), study)
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with Client(scheduler) if scheduler else Client(**local) as client:
        client.run(enter)
        # Not pure: a task that failed before is tried again.
        waiting = [client.submit(enter, *each, pure=False) for each in given]
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            print(f"{done} of {len(waiting)} runs done")


def entrance(root: str, study: str) -> Callable[..., None]:
    """Return a function for workers that imports a study, and runs a task of it if given one.

    It is a closure: pickle cannot name it, so dask sends it by value, and the scheduler need not know it.
    """

    def enter(*given) -> None:
        if root not in sys.path:
            sys.path.insert(0, root)
        try:
            file = importlib.import_module(f"experiments.{study}").__file__
            found = None if Path(file).resolve().is_relative_to(root) else f"found {file}"
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            raise RuntimeError(
                f"The worker on {platform.node()}, process {os.getpid()}, cannot import experiments.{study} from "
                f"{root}: {found}. Expected this folder under the same path, and companion in the environment of the "
                f"worker, {sys.prefix}. Share the folder, install the project there, and start the worker anew."
            )
        if given:
            importlib.import_module("experiments.common").run_and_write(*given)

    return enter
