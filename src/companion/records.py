"""Stored results: what the scripts in ``experiments/`` left behind, as chapters and tests read it.

Each run is one JSON file: its configuration, its provenance, its measures and its history. Arrays such as the weights
of a trained model are in an npz file of the same name. Chapters 10 to 12 read them, so that no number is typed by hand.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: The version of the format that this module reads.
SCHEMA = 1
_KEYS = ("schema", "study", "configuration", "provenance", "measures", "history")


@dataclass(frozen=True)
class Run:
    """One stored run.

    Attributes:
        study: the study it belongs to.
        configuration: what was run; ``"name"`` and ``"seed"`` among it.
        provenance: commit, versions, date and duration.
        measures: what was measured at the end.
        steps: columns over the iterations that were kept; ``"iteration"`` says which. NaN where nothing was stored.
        evaluations: columns over the evaluations.
        diverged_at: the iteration where training diverged, or None.
        path: the JSON file.
    """

    study: str
    configuration: Mapping
    provenance: Mapping
    measures: Mapping
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


def load(study: str, *, where: Path | None = None) -> list[Run]:
    """Return all stored runs of a study, in the order of their names.

    ``where`` is the folder of results, that of :func:`folder` by default. Raises ``ValueError`` where there are none,
    or for a file of another format.
    """
    paths = sorted(((where or folder()) / study).glob("*.json"))
    if not paths:
        raise ValueError(f"No results of {study!r}; expected some. Run `make experiments`, or check the name.")
    return [_read(path) for path in paths]


def by(runs: Sequence[Run], key: str) -> dict:
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


def _read(path: Path) -> Run:
    record = json.loads(path.read_text())
    if tuple(record) != _KEYS or record["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has the keys {tuple(record)}; expected {_KEYS}, schema {SCHEMA}. Run the study again."
        )
    history = record["history"]
    tables = [
        {name: np.array(column, dtype=float) for name, column in history[table].items()}
        for table in ("steps", "evaluations")
    ]
    parts = (record["study"], record["configuration"], record["provenance"], record["measures"])
    return Run(*parts, *tables, history["diverged_at"], path)
