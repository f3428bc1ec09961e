"""The record of the benchmark, results/benchmark.json: what is in it, where it comes from, and how it is summed up.

The record has one run for each number of threads. A run holds every block that every program measured, so that anything
said about it can be computed again; :func:`summary` and :func:`ratio` are all that the page computes.
"""

import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "benchmark.json"
SCHEMA = 1


@dataclass(frozen=True)
class Summary:
    """The median of some numbers, between their quartiles."""

    low: float
    median: float
    high: float


def summary(values: list[float]) -> Summary:
    """Return the quartiles of at least two numbers."""
    return Summary(*quantiles(values, n=4, method="inclusive"))


def ratio(run: dict, ours: str, other: str) -> Summary:
    """Return the quartiles of the ratio of two programs' steps, each block beside the other's of the same round."""
    pairs = zip(blocks(run, ours), blocks(run, other), strict=True)
    return summary([a / b for a, b in pairs])


def blocks(run: dict, program: str, name: str = "step") -> list[float]:
    """Return what a program measured under a name, block by block."""
    return run["programs"][program]["blocks"][name]


def load(path: Path = RECORD) -> dict:
    """Return the record. Raises ``ValueError`` for one of another schema."""
    record = json.loads(path.read_text())
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path.name} has schema {record.get('schema')!r}; expected {SCHEMA}. Remove it, and run make bench."
        )
    return record


def add(run: dict, path: Path = RECORD) -> None:
    """Put a run in the place of the last one on as many threads, and write the record whole, or not at all."""
    runs = load(path)["runs"] if path.exists() else {}
    runs[str(run["threads"])] = run
    ordered = dict(sorted(runs.items(), key=lambda item: int(item[0])))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(_text({"schema": SCHEMA, "runs": ordered}))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def provenance() -> dict:
    """Return when, where and from which commit a run is made; ``load`` tells how busy the machine was."""
    changed = _git("status", "--porcelain", "--", "src", "benchmarks")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": sorted(line[3:] for line in (changed or "").splitlines()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }


def _text(record: dict) -> str:
    """JSON, indented, but each list on one line."""
    lists = re.compile(r"\[\s+([^][{}]*?)\s+\]")
    return lists.sub(lambda match: f"[{' '.join(match[1].split())}]", json.dumps(record, indent=1)) + "\n"


def _git(*arguments: str) -> str | None:
    """What git says, or None outside a checkout."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    return done.stdout.rstrip() if done.returncode == 0 else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
