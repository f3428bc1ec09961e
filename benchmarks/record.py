"""The records of the benchmark, one for each number of threads: what is added to their provenance, how they are read.

A record holds every block that every program measured, so that anything said about it can be computed again;
:func:`summary` and :func:`ratio` are all that the page computes.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from companion import records
from companion.records import Run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Summary:
    """The median of some numbers, between their quartiles."""

    low: float
    median: float
    high: float


def summary(values: list[float]) -> Summary:
    """Return the quartiles of at least two numbers."""
    return Summary(*quantiles(values, n=4, method="inclusive"))


def ratio(run: Run, ours: str, other: str) -> Summary:
    """Return the quartiles of the ratio of two programs' steps, each block beside the other's of the same round."""
    pairs = zip(blocks(run, ours), blocks(run, other), strict=True)
    return summary([a / b for a, b in pairs])


def blocks(run: Run, program: str, name: str = "step") -> list[float]:
    """Return what a program measured under a name, block by block. Raises ``ValueError`` for a record without it."""
    about = run.measures.get(program)
    kept = about.get("blocks") if isinstance(about, dict) else None
    found = kept.get(name) if isinstance(kept, dict) else None
    whole = isinstance(found, list) and all(isinstance(value, int | float) and value > 0 for value in found)
    if not whole or len(found) < 2:
        raise ValueError(
            f"{run.path} has {found} as {name!r} of {program!r}; expected two blocks or more, all above 0. Run make "
            "bench."
        )
    return found


def load() -> dict[int, Run]:
    """Return the stored runs by their number of threads, in its order. Raises ``ValueError`` for two of one number."""
    runs = records.load("benchmark", where=RESULTS)
    found = {run.configuration.get("threads"): run for run in runs}
    if len(found) < len(runs) or not all(isinstance(threads, int) for threads in found):
        files = [str(run.path) for run in runs]
        raise ValueError(f"{files} are on {list(found)} threads; expected one for each number. Remove the others.")
    return dict(sorted(found.items()))


def provenance() -> dict[str, Any]:
    """Return when, where and from which code a run is made; ``load`` tells how busy the machine was."""
    machine = {"system": platform.system(), "processor": _processor(), "load": round(os.getloadavg()[0], 2)}
    return records.provenance(ROOT, ("src", "benchmarks"), clean=False) | machine


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
