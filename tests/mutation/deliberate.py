"""Puts one deliberate error at a time into a copy of the package, and asks whether anything notices.

``errors/NN-chapter.toml`` lists by claim the errors (mutants) that its checks must catch. ``python -m
tests.mutation.deliberate`` applies each, runs the tests and the notebook cells of its claim, and shows which turned
red. A mutant is killed only when a test *and* a cell that checks the claim did; one that survives either fails the
command. Findings are recorded in ``results/mutants.json``, each with a digest of the statement mutated, the checks, and
what either depends on (:mod:`tests.mutation.dependencies`); those that are up to date are not hunted again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from book.evidence import cell_checks, sources, test_checks
from companion.claims import chapter_of, registry, written
from tests.mutation.dependencies import dependencies, read, standing_at

#: What a hunt found: the first test and the first cell that turned red, and the digest of what it was found on.
Finding = dict[str, str | None]
#: Findings by claim and mutant.
Record = dict[str, dict[str, Finding]]

#: Where the findings are kept, relative to the project's root.
RECORD = Path("results/mutants.json")
#: Seconds after which the checks of one claim count as stuck.
TIMEOUT = 600


@dataclass(frozen=True)
class Mutant:
    """A deliberate error.

    Attributes:
        claim: ID of the claim whose checks must catch it.
        name: what is wrong, in words.
        module: the module of the package that it is put into, such as ``rtb`` or ``samplers.diffusion``.
        old: the text that it replaces, which stands in the module once.
        new: the text that takes its place.
    """

    claim: str
    name: str
    module: str
    old: str
    new: str


def mutants_of(claim: str) -> tuple[Mutant, ...]:
    """Return the deliberate errors that the checks of a claim must catch."""
    return registered().get(claim, ())


@cache
def registered() -> Mapping[str, tuple[Mutant, ...]]:
    """Return the deliberate errors by claim. Raises ``ValueError`` where a file names a claim of another chapter."""
    paths = sorted(Path(__file__).with_name("errors").glob("*.toml"))
    return _registered({chapter_of(path): tomllib.loads(path.read_text()) for path in paths})


def _registered(tables: Mapping[str, Mapping[str, list[dict[str, str]]]]) -> dict[str, tuple[Mutant, ...]]:
    found = {}
    for chapter, table in tables.items():
        homeless = sorted(key for key in table if key not in registry() or registry()[key].chapter != chapter)
        if homeless:
            raise ValueError(f"{chapter} has mutants of {homeless}; expected its own claims. Mend its file in errors/.")
        found |= {key: tuple(Mutant(key, **row) for row in rows) for key, rows in table.items()}
    return found


def main() -> int:
    """Hunt for the mutants asked for, print and record the findings, and return 1 where one survives."""
    parser = argparse.ArgumentParser(description="Put one deliberate error at a time into a copy of the package.")
    parser.add_argument("claims", nargs="*", help="claim IDs; by default all whose findings are out of date")
    parser.add_argument("--all", action="store_true", help="every mutant, also those whose findings are up to date")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    root = Path.cwd()
    wanted = _wanted(root, options.claims, options.all)
    with ThreadPoolExecutor(options.workers) as pool:
        for _ in pool.map(lambda claim: _require_green(root, claim), sorted({mutant.claim for mutant in wanted})):
            pass  # an error inside a task surfaces here
        for mutant, finding in zip(wanted, pool.map(lambda mutant: hunt(root, mutant), wanted), strict=True):
            _show(mutant, finding)
            _save(root, mutant, finding)
    everyone = [mutant for claim in _written(root) for mutant in mutants_of(claim)]
    killed = sum(fresh(root, mutant, read_record(root)) for mutant in everyone)
    print(f"{killed} of {len(everyone)} mutants killed, {len(wanted)} of them hunted now")
    return 0 if killed == len(everyone) else 1


def hunt(root: Path, mutant: Mutant) -> Finding:
    """Apply a mutant to a copy of the package, run its claim's checks, and return the first test and cell that failed.

    A cell counts only if it checks the claim: a cell that merely prints something else than before does not. Raises
    ``ValueError`` where the text to replace does not stand in the module exactly once, ``RuntimeError`` where the
    checks could not be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src"
        shutil.copytree(root / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        module = _file(copy, mutant.module)
        module.write_text(apply(mutant, module.read_text()))
        failed = _failures(root, mutant.claim, copy)
    checking = {f"notebooks/{c.notebook}::Cell {c.cell}" for c in cell_checks(root) if c.claim == mutant.claim}
    return {
        "test": next((name for name in failed if name.startswith("tests/")), None),
        "cell": next((name for name in failed if name in checking), None),
        "digest": digest(root, mutant),
    }


def apply(mutant: Mutant, source: str) -> str:
    """Return a module's source with the error in it. Raises ``ValueError`` unless the old text stands there once."""
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.claim}, {mutant.name!r}: {mutant.old!r} stands {source.count(mutant.old)} times in "
            f"{mutant.module}.py; expected once. Mend it in tests/mutation/errors."
        )
    return source.replace(mutant.old, mutant.new)


def digest(root: Path, mutant: Mutant) -> str:
    """Return a fingerprint of the mutant, of the code that it changes, and of its checks.

    The code is the top-level statement that holds the old text, and what it depends on in the package, without comments
    and docstrings.
    """
    package, module = read(root / "src"), f"companion.{mutant.module}"
    before, found, _ = package.get(module, "").partition(mutant.old)
    first = before.count("\n") + 1
    # A text that is no more stands nowhere: the digest then differs from any on record.
    mutated = standing_at(package, module, first, first + mutant.old.count("\n")) if found else []
    checks = sources(root, mutant.claim, registry()[mutant.claim].chapter)
    text = "\n".join([*dependencies(package, mutated), mutant.old, mutant.new, checks])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fresh(root: Path, mutant: Mutant, record: Mapping[str, Mapping[str, Finding]]) -> bool:
    """Return whether the record says that this mutant was killed, and neither code nor checks have changed since."""
    finding = record.get(mutant.claim, {}).get(mutant.name, {})
    killed = bool(finding.get("test") and finding.get("cell"))
    return killed and finding["digest"] == digest(root, mutant)


def _written(root: Path) -> list[str]:
    return [claim.id for claim in registry().values() if written(root, claim)]


def _wanted(root: Path, claims: Collection[str], everything: bool) -> list[Mutant]:
    known = set(_written(root))
    if not set(claims) <= known:
        names = ", ".join(sorted(set(claims) - known))
        raise SystemExit(f"{names}: no claim of a chapter that is written; expected some of {', '.join(sorted(known))}")
    wanted = [mutant for claim in _written(root) if not claims or claim in claims for mutant in mutants_of(claim)]
    return [mutant for mutant in wanted if claims or everything or not fresh(root, mutant, read_record(root))]


def _file(source: Path, module: str) -> Path:
    """The file of a module of the package, such as ``rtb`` or ``samplers.diffusion``."""
    path = source / "companion" / module.replace(".", "/")
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _failures(root: Path, claim: str, source: Path) -> list[str]:
    # Only the files that hold its checks: to collect all the others takes longer than to run these.
    files = {f"tests/{check.test.partition('::')[0]}" for check in test_checks(root) if check.claim == claim}
    files |= {f"notebooks/{check.notebook}" for check in cell_checks(root) if check.claim == claim}
    command = [sys.executable, "-m", "pytest", "--claim", claim, *sorted(files), "--nbval", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = os.environ | threads | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    errors = re.findall(r"^ERROR .*$", run.stdout, flags=re.MULTILINE)
    finished = re.search(r"^\d+ (passed|failed).* in ", run.stdout, flags=re.MULTILINE)
    if run.returncode not in (0, 1) or errors or not finished:
        raise RuntimeError(f"pytest could not run the checks of {claim}:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
    return re.findall(r"^FAILED (\S+::Cell \d+|\S+)", run.stdout, flags=re.MULTILINE)


def _require_green(root: Path, claim: str) -> None:
    failed = _failures(root, claim, root / "src")
    if failed:
        raise SystemExit(f"{claim} is red without any mutant ({failed[0]}): mend that first")


def _show(mutant: Mutant, finding: Finding) -> None:
    verdict = "killed" if finding["test"] and finding["cell"] else "SURVIVED"
    where = f"    test {finding['test']}\n    cell {finding['cell']}"
    print(f"{verdict} {mutant.claim}: {mutant.name}\n{where}", flush=True)


def read_record(root: Path) -> Record:
    """Return what earlier hunts found: by claim and mutant, the test, the cell and the digest."""
    path = root / RECORD
    record: Record = json.loads(path.read_text()) if path.exists() else {}
    return record


def _save(root: Path, mutant: Mutant, finding: Finding) -> None:
    path, record = root / RECORD, read_record(root)
    record.setdefault(mutant.claim, {})[mutant.name] = finding
    kept = {}
    for claim in registry():
        known = record.get(claim, {})
        kept[claim] = {mutant.name: known[mutant.name] for mutant in mutants_of(claim) if mutant.name in known}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({key: found for key, found in kept.items() if found}, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
