"""Stored results, of studies and of benchmarks: one schema, one writer, one reader.

A record is one JSON file: its configuration, its provenance, its measures and its history. Arrays such as the weights
of a trained model are in an npz file of the same name. A file is written whole or not at all. Chapters and tests read
records, so that no number is typed by hand; reading them needs no torch.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: The version of the format. 1 had one flat list of settings; experiments/migrations says how 2 was made of it.
SCHEMA = 2
#: Iterations at the start of a run that are stored one by one, so that they can be run again and compared.
PREFIX = 10
#: After the prefix every so many iterations are stored.
STRIDE = 25
_KEYS = ("schema", "study", "configuration", "provenance", "measures", "history")


@dataclass(frozen=True)
class Run:
    """One stored run.

    Attributes:
        study: the study it belongs to.
        configuration: what was run; ``"name"`` among it, and ``"seed"`` in a study.
        provenance: commit, versions, date, and in a study the duration.
        measures: what was measured at the end.
        steps: columns over the iterations that were kept; ``"iteration"`` says which. NaN where nothing was stored.
        evaluations: columns over the evaluations.
        diverged_at: the iteration where training diverged, or None.
        path: the JSON file.
    """

    study: str
    configuration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    measures: Mapping[str, Any]
    steps: Mapping[str, np.ndarray]
    evaluations: Mapping[str, np.ndarray]
    diverged_at: int | None
    path: Path

    @property
    def arrays(self) -> Path:
        """The npz file beside it, which need not exist."""
        return self.path.with_suffix(".npz")


def folder() -> Path:
    """Return the folder of results: that of the project the working directory lies in. Raises ``ValueError``."""
    for parent in (Path.cwd(), *Path.cwd().parents):
        if (parent / "results").is_dir() and (parent / "experiments").is_dir():
            return parent / "results"
    raise ValueError(
        f"No folder of results above {Path.cwd()}; expected the project's own. Work inside a clone of the project."
    )


def studies() -> list[str]:
    """Return the names of the studies that have results, in alphabetical order. Raises ``ValueError`` as ``folder``."""
    scripts = folder().parent / "experiments"
    return sorted(path.name for path in folder().iterdir() if (scripts / f"{path.name}.py").is_file())


def load(study: str, *, where: Path | None = None) -> list[Run]:
    """Return all stored runs of a study, in the order of their names.

    ``where`` is the folder of results, that of :func:`folder` by default. Raises ``ValueError`` where there are none,
    or for a file of another format.
    """
    paths = sorted(((where or folder()) / study).glob("*.json"))
    if not paths:
        raise ValueError(f"No results of {study!r}; expected some. Run `make experiments`, or check the name.")
    return [read(path) for path in paths]


def read(path: Path) -> Run:
    """Return the run in a file. Raises ``ValueError`` for a file of another format."""
    record = json.loads(path.read_text())
    if tuple(record) != _KEYS or record["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has the keys {tuple(record)} and schema {record.get('schema')}; expected {_KEYS} and schema "
            f"{SCHEMA}. Migrate it (experiments/migrations), or make it again."
        )
    history = record["history"]
    steps, evaluations = (
        {name: np.array(column, dtype=float) for name, column in history[table].items()}
        for table in ("steps", "evaluations")
    )
    parts = (record["study"], record["configuration"], record["provenance"], record["measures"])
    return Run(*parts, steps, evaluations, history["diverged_at"], path)


def by(runs: Sequence[Run], key: str) -> dict[Any, list[Run]]:
    """Group runs by an entry of their configuration, in the order of its values, each group by seed."""
    values = sorted({run.configuration[key] for run in runs if key in run.configuration})
    chosen = {value: [run for run in runs if run.configuration.get(key) == value] for value in values}
    return {value: sorted(group, key=lambda run: run.configuration["seed"]) for value, group in chosen.items()}


def measure(runs: Sequence[Run], name: str) -> list[float]:
    """Return one measure of each run. Raises ``ValueError`` for a run without it."""
    missing = [run.path.name for run in runs if run.measures.get(name) is None]
    if missing:
        raise ValueError(f"{missing} have no {name!r}; expected it of every run. Measures: {sorted(runs[0].measures)}.")
    return [run.measures[name] for run in runs]


def write(
    study: str,
    configuration: Mapping[str, Any],
    provenance: Mapping[str, Any],
    measures: Mapping[str, Any],
    *,
    steps: Mapping[str, np.ndarray] | None = None,
    evaluations: Mapping[str, np.ndarray] | None = None,
    diverged_at: int | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    where: Path | None = None,
) -> Path:
    """Write a record under its configuration's ``"name"``, whole or not at all, and return its path.

    The parts are those of a :class:`Run`; ``steps`` has every iteration, of which the first ten are kept, then every
    twenty-fifth. Numbers are kept to seven digits, which is all that float32 gives; what is not finite becomes null.
    ``arrays`` go into an npz file, no pickles. ``where`` is the folder of results, that of :func:`folder` by default.
    """
    path = (where or folder()) / study / f"{configuration['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        write_whole(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    history = {"diverged_at": diverged_at, "steps": _thinned(steps or {}), "evaluations": _numbers(evaluations or {})}
    parts = (SCHEMA, study, configuration, provenance, _numbers(measures), history)
    # Each part on a line of its own: a diff shows what changes between two runs.
    lines = (f'"{key}":{json.dumps(part, separators=(",", ":"))}' for key, part in zip(_KEYS, parts, strict=True))
    text = "{\n" + ",\n".join(lines) + "}\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def write_whole(path: Path, write_to: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place and move it there, so that it is whole whenever it is there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write_to(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def provenance(root: Path, sources: Iterable[str], *, clean: bool = True) -> dict[str, Any]:
    """Return when, where and with what a run is made, and from which commit.

    ``sources`` are the folders of the project in ``root`` whose code makes it. Raises ``RuntimeError`` if they have
    uncommitted changes or there is no git, so that a result names its code. With ``clean=False`` the changed files are
    listed instead, and the commit is None where git does not know it.
    """
    changed, commit = _git(root, "status", "--porcelain", "--", *sources), _git(root, "rev-parse", "HEAD")
    if clean and (changed or commit is None):
        what = f"uncommitted changes: {changed}" if commit else f"no git checkout in {root}"
        raise RuntimeError(f"{what}; expected none, so that a result names its code. Commit.")
    found = {
        "commit": commit,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": version("torch").split("+")[0],
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    return found if clean else found | {"uncommitted": sorted(line[3:] for line in (changed or "").splitlines())}


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, or None where it cannot answer."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def _thinned(steps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The iterations that are kept: all of the prefix, then every STRIDE-th."""
    length = max((len(column) for column in steps.values()), default=0)
    kept = [i for i in range(length) if i < PREFIX or i % STRIDE == 0]
    return {"iteration": kept} | {name: _numbers(column[kept]) for name, column in steps.items()}


def _numbers(value: Any) -> Any:
    """Numbers as JSON has them, to seven digits; no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {name: _numbers(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):  # arrays, tensors, and the scalars of both
        return _numbers(value.tolist())
    if isinstance(value, list | tuple):
        return [_numbers(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(f"{value:.7g}") if np.isfinite(value) else None
