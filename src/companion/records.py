"""Stored results, of studies and of benchmarks: one schema, one writer, one reader.

A record is one JSON file; arrays such as the weights of a trained model are in an npz file of the same name. A file is
written whole or not at all. Chapters and tests read records, so that no number is typed by hand, and without torch.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

#: The version of the format. 1 had one flat list of settings; experiments/migrations says how 2 was made of it.
SCHEMA = 2
#: Iterations that are stored: at the start so many, one by one, to be run again and compared; then every so many-th.
PREFIX, STRIDE = 10, 25
_KEYS = ("schema", "study", "configuration", "provenance", "measures", "history")
_MEND = "Restore it, for one from git, or remove it and make it again."


@dataclass(frozen=True)
class Run:
    """One stored run, of a ``study``, from the JSON file at ``path``.

    ``configuration`` is what was run, ``"name"`` and in a study ``"seed"`` among it; ``provenance`` the commit,
    versions, date, and in a study the duration; ``measures`` what was measured at the end. ``steps`` and
    ``evaluations`` are columns over the iterations that were kept, which ``"iteration"`` names, NaN where nothing was
    stored; ``diverged_at`` is the iteration where training diverged, or None.
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
    raise ValueError(f"No folder of results above {Path.cwd()}; expected the project's own. Work inside a clone.")


def studies() -> list[str]:
    """Return the names of the studies that have results, in alphabetical order. Raises ``ValueError`` as ``folder``."""
    scripts = folder().parent / "experiments"
    return sorted(path.name for path in folder().iterdir() if (scripts / f"{path.name}.py").is_file())


def place(study: str, name: str, *, where: Path | str | None = None) -> Path:
    """Return where a record is, or would be, in ``where`` or :func:`folder`; ``ValueError`` for what names no file."""
    for what, given in (("study", study), ("name", name)):
        if not isinstance(given, str) or not re.fullmatch(r"\w[\w .,+=-]*", given):
            expected = "letters, digits, spaces and . , + = - _, a letter or digit first: it names a file"
            raise ValueError(f"{what} is {given!r}; expected {expected}. Rename it.")
    return (folder() if where is None else _path("where", where)) / study / f"{name}.json"


def load(study: str, *, where: Path | str | None = None) -> list[Run]:
    """Return all stored runs of a study, in the order of their names; ``where`` as in :func:`place`.

    Raises ``ValueError`` where there are none, for a file of another format, or one that holds another name's run.
    """
    paths = sorted(place(study, "any", where=where).parent.glob("*.json"))
    if not paths:
        raise ValueError(f"No results of {study!r}; expected some. Run `make experiments`, or check the name.")
    runs = [read(path) for path in paths]
    for run in runs:
        held, due = f"{run.study}/{run.configuration['name']}", f"{study}/{run.path.stem}"
        if held != due:
            raise ValueError(f"{run.path} holds the run {held}; expected {due}. Remove this copy.")
    return runs


def read(path: Path | str) -> Run:
    """Return the run in a file. Raises ``ValueError`` for a file that is not whole, or of another format."""
    path = _path("path", path)
    try:
        return _run(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; expected a stored run. {_MEND}") from None


def read_arrays(path: Path | str) -> dict[str, NDArray[Any]]:
    """Return an npz file's arrays, by name, none unpickled; ``ValueError``, naming it, for any but a whole one."""
    path = _path("path", path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        broken = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds; what numpy advises would run foreign code
        broken = [type(error).__name__]
    if broken:
        raise ValueError(f"{path} cannot be read ({', '.join(broken)}); expected an npz file of arrays, whole. {_MEND}")
    return arrays


def by(runs: Sequence[Run], key: str) -> dict[Any, list[Run]]:
    """Group runs by an entry of their configuration, in the order of its values, each group by seed.

    Raises ``ValueError`` for a run without that entry, or without a seed, for entries that have no order, and no runs.
    """
    _check_runs(runs, key)
    for name in (key, "seed"):
        values = {run.path: run.configuration.get(name) for run in runs}
        odd = {path.name: value for path, value in values.items() if not isinstance(value, str | int | float)}
        if odd or len({isinstance(value, str) for value in values.values()}) > 1:
            given, mend = odd or list(values.values()), "Choose another entry, or leave those runs out."
            raise ValueError(f"The runs have no order by {name!r}: {given}; expected numbers alone, or text. {mend}")
    groups: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.configuration[key], run.configuration["seed"])):
        groups.setdefault(run.configuration[key], []).append(run)
    return groups


def measure(runs: Sequence[Run], name: str) -> list[float]:
    """Return one measure, a number, of each run. Raises ``ValueError`` for a run without it, and for no runs."""
    _check_runs(runs, name)
    missing = [run.path.name for run in runs if not _is_number(run.measures.get(name))]
    if missing:
        known = f"Measures: {sorted(runs[0].measures)}. Choose another, or leave those runs out."
        raise ValueError(f"{missing} have no number {name!r}; expected it of every run. {known}")
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
    twenty-fifth. Numbers are kept to seven digits, all that float32 gives; what is not finite becomes null among
    measures and histories. ``arrays`` go into an npz file, no pickles; without them, that of a record which is replaced
    goes. ``where`` is as in :func:`place`. Raises ``ValueError``, before anything is written, for a part that
    :func:`read` would refuse, and arrays that would be pickled.
    """
    path = place(study, configuration.get("name", ""), where=where)
    history = {"diverged_at": diverged_at, "steps": _thinned(path, steps or {}), "evaluations": evaluations or {}}
    parts = (SCHEMA, study, configuration, provenance, measures, history)
    # Each part on a line of its own: a diff shows what changes between two runs.
    lines = (f'"{key}":{_json(path, key, part)}' for key, part in zip(_KEYS, parts, strict=True))
    text = "{\n" + ",\n".join(lines) + "}\n"
    _run(path, text)
    _check_arrays(path, arrays or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        write_whole(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_whole(path, lambda file: file.write(text.encode()))
    if not arrays:
        path.with_suffix(".npz").unlink(missing_ok=True)
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

    ``sources`` are the folders of the project in ``root`` whose code makes it; ``ValueError`` unless they are there.
    Raises ``RuntimeError`` if they have uncommitted changes or there is no git, so that a result names its code. With
    ``clean=False`` the changed files are listed instead, and the commit is None where git does not know it.
    """
    given = [] if isinstance(sources, str) else list(sources)
    if not given or not all(isinstance(name, str) and name and (Path(root) / name).exists() for name in given):
        raise ValueError(f"sources is {sources!r}; expected a list of folders in {root}. Check their names.")
    changed, commit = _git(root, "status", "--porcelain", "--", *given), _git(root, "rev-parse", "HEAD")
    if clean and (changed or None in (changed, commit)):
        what = f"uncommitted changes: {changed}" if changed else f"no git checkout in {root} that knows {given}"
        raise RuntimeError(f"{what}; expected none, so that a result names its code. Commit.")
    found: dict[str, Any] = {"commit": commit, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    found |= {"python": platform.python_version(), "torch": version("torch").split("+")[0], "numpy": np.__version__}
    found |= {"machine": platform.machine(), "cores": os.cpu_count()}
    return found if clean else found | {"uncommitted": sorted(line[3:] for line in (changed or "").splitlines())}


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, or None where it cannot answer."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def _path(name: str, given: Path | str) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f"{name} is {given!r}; expected a path. Pass a pathlib.Path, or text.")
    return Path(given)


def _run(path: Path, text: str) -> Run:
    """The run that a file holds, every part of it checked."""
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no JSON: {error}; expected a stored run, whole. {_MEND}") from None
    if not isinstance(record, dict) or tuple(record) != _KEYS or record["schema"] != SCHEMA:
        keys, schema = (tuple(record), record.get("schema")) if isinstance(record, dict) else ("none", None)
        given, mend = f"the keys {keys} and schema {schema}", "Migrate it (experiments/migrations), or make it again."
        raise ValueError(f"{path} has {given}; expected {_KEYS} and schema {SCHEMA}. {mend}")
    study, configuration, provenance, measures, history = (record[key] for key in _KEYS[1:])
    wrong = [key for key in _KEYS[2:] if not isinstance(record[key], dict)]
    wrong += [] if isinstance(study, str) else ["study"]
    wrong += [] if wrong or isinstance(configuration.get("name"), str) else ["configuration['name']"]
    wrong += [] if wrong or {"diverged_at", "steps", "evaluations"} == set(history) else ["history"]
    diverged_at = None if wrong else history["diverged_at"]
    wrong += [] if diverged_at is None or (type(diverged_at) is int and diverged_at >= 0) else ["diverged_at"]
    if wrong:
        what = ", ".join(wrong)
        raise ValueError(f"{path} lacks {what}, or has something else there; expected the parts of a run. {_MEND}")
    steps, evaluations = (_columns(path, table, history[table]) for table in ("steps", "evaluations"))
    return Run(study, configuration, provenance, measures, steps, evaluations, diverged_at, path)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _columns(path: Path, table: str, columns: Any) -> dict[str, np.ndarray]:
    """Columns of numbers, of one length, as arrays; NaN for null."""
    lists = columns if isinstance(columns, dict) and all(isinstance(c, list) for c in columns.values()) else {"": [""]}
    odd = [name for name, column in lists.items() if not all(x is None or _is_number(x) for x in column)]
    lengths = {name: len(column) for name, column in lists.items()}
    if odd or len(set(lengths.values())) > 1:
        expected = "expected columns of numbers or null, all of one length"
        raise ValueError(f"{path} has {table} that are no table: {odd or lengths}; {expected}. {_MEND}")
    return {name: np.array(column, dtype=float) for name, column in lists.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_runs(runs: Sequence[Run], key: str) -> None:
    if not isinstance(runs, list | tuple) or not runs or not all(isinstance(run, Run) for run in runs):
        raise ValueError(f"runs is {runs!r}; expected a list of stored runs. Pass what load returns, or a group of by.")
    if not isinstance(key, str):
        raise ValueError(f"{key!r} names no entry of a run; expected text. Pass the name of the entry.")


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what an npz file would hold as a pickle, or lose: two names are numpy's own."""
    for name, array in arrays.items():
        plain = isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
        if not plain or name in ("file", "allow_pickle"):
            given, mend = getattr(array, "dtype", type(array).__name__), "Convert it with numpy.asarray, or rename it."
            expected = "expected an array of numbers, by a name that is neither 'file' nor 'allow_pickle'"
            raise ValueError(f"The array {name!r} of {path} is {given}; {expected}. {mend}")


def _json(path: Path, key: str, part: Any) -> str:
    try:
        part = part if key in ("configuration", "provenance") else _numbers(part)
        return json.dumps(part, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        expected = "expected text, finite numbers, lists and None. Put those there."
        raise ValueError(f"The {key} of {path} is no JSON: {error}; {expected}") from None


def _thinned(path: Path, steps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The iterations that are kept: all of the prefix, then every STRIDE-th."""
    if "iteration" in steps:
        raise ValueError(f"The steps of {path} have a column 'iteration'; expected none: it is added. Rename it.")
    columns = json.loads(_json(path, "steps", steps))
    length = max((len(column) for column in _columns(path, "steps", columns).values()), default=0)
    kept = [i for i in range(length) if i < PREFIX or i % STRIDE == 0]
    return {"iteration": kept} | {name: [column[i] for i in kept] for name, column in columns.items()}


def _numbers(value: Any) -> Any:
    """Numbers as JSON has them, to seven digits; no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {name: _numbers(entry) for name, entry in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays, tensors, and the scalars of both
    if isinstance(value, list | tuple):
        return [_numbers(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if not isinstance(value, float):
        raise TypeError(f"{value!r} is no number")
    return float(f"{value:.7g}") if np.isfinite(value) else None
