"""Generates errors in the package, by the hundred and by rule, and counts how many of them the tests notice.

``python -m tests.mutation.generated`` has mutmut mutate a copy of the project: every mutant of the modules that carry
the argument, and a sample, drawn by a fixed seed, of those in the others. The ledger's own mutants are few and chosen,
and a notebook must notice them too; these are many and not chosen, and the tests of the package alone must notice them.

Two rules are applied before anything runs: a mutant that changes nothing but text for people is left out, and so is
what only the book's machinery uses. Survivors that mean the same as the code are declared in ``generated.toml``, each
with a reason. The command fails where a survivor is not declared, where too many are, or where the share that is killed
could be below :data:`LEAST`. A hunt that is stopped goes on where it was; a mutant that was killed is not hunted
again while its function stands.
"""

import argparse
import ast
import contextlib
import difflib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from companion.records import provenance, write_whole

#: Where the findings are kept, relative to the project's root.
RECORD = Path("results/generated.json")
#: The survivors that are declared: for each function, tables of the line as it is and as it was changed, and a reason.
DECLARED = Path("tests/mutation/generated.toml")
#: The copy that is mutated.
COPY = Path("build/generated")
#: mutmut and what it needs that the project does not: an environment of its own, laid over the project's.
TOOL = Path(".venv/mutation")
#: The modules whose mutants all run.
WHOLE = ("rtb", "trust_pcl", "reinforce", "mdp", "statistics", "training.*")
#: The number of mutants that run elsewhere, and the seed of the hash that draws them.
SAMPLED, SEED = 300, 0
#: At most this part of the mutants may be declared to change nothing.
ALLOWANCE = 0.03
#: The least share killed: the lower end of Wilson's interval for it, at 95 %, none declared.
LEAST = 0.90


@dataclass(frozen=True)
class Mutant:
    """A generated error: its name, the function, and the lines that it takes away and puts there."""

    name: str
    function: str
    old: str
    new: str

    @property
    def module(self) -> str:
        """The module of the package that it is in."""
        return self.name.removeprefix("companion.").rpartition(".")[0]


def main() -> int:
    """Hunt, record what was found, and return 1 where the promises in the module's docstring are not kept."""
    parser = argparse.ArgumentParser(description="Generate errors in the package; count those that the tests notice.")
    parser.add_argument("modules", nargs="*", help="hunt in these alone, such as rtb or training.*, and record nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    root = Path.cwd()
    found = provenance(root, ["src", "tests"], clean=not options.modules)
    copied = copy_of(root)
    mutants = chosen(copied, options.modules)
    _mutmut(copied, "run", mutants[0].name)  # generates, and forgets the verdicts on functions that have changed
    known = _killed(copied)
    waiting = [mutant.name for mutant in mutants if mutant.name not in known]
    print(f"{len(mutants)} mutants, {len(waiting)} of them to run", flush=True)
    if waiting:
        _mutmut(copied, "run", "--max-children", str(options.workers), *waiting)
    killed = _killed(copied) & {mutant.name for mutant in mutants}
    survivors = [mutant for mutant in mutants if mutant.name not in killed]
    declared, unused = _declared(root, survivors, everything=not options.modules)
    open_ones = [mutant for mutant in survivors if mutant not in declared]
    for mutant in open_ones:
        print(f"SURVIVED {mutant.name}\n    - {mutant.old}\n    + {mutant.new}")
    for row in unused:
        print(f"DECLARED, BUT NOT A SURVIVOR {row}")
    least = wilson(len(mutants) - len(survivors), len(mutants))
    print(
        f"{len(mutants) - len(survivors)} of {len(mutants)} killed, so more than {least:.3f}; {len(declared)} declared"
    )
    if not options.modules:
        _record(root, found, mutants, survivors, declared)
    kept = least >= LEAST and len(declared) <= ALLOWANCE * len(mutants)
    return 0 if (kept or options.modules) and not open_ones and not unused else 1


def copy_of(root: Path) -> Path:
    """Return a copy of the project as it is, in which the verdicts of earlier hunts still stand."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    paths = [Path(line) for line in sorted(listed.stdout.splitlines()) if (root / line).is_file()]
    copied, parts = root / COPY, {path.parts[0] for path in paths}
    for part in parts:
        shutil.rmtree(copied / part, ignore_errors=True)
    for path in paths:
        (copied / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, copied / path)
    # mutmut adds to its own copy of this copy and takes nothing away: only its verdicts and timings are kept.
    for path in (copied / "mutants").rglob("*"):
        if path.is_file() and path.suffix != ".meta" and path.name != "mutmut-stats.json":
            path.unlink()
    return copied


def chosen(copied: Path, modules: Collection[str] = ()) -> list[Mutant]:
    """Return the mutants to run: all of :data:`WHOLE` and a sample of the rest, or all of ``modules``."""
    everything = list(generated(copied))
    whole = [m for m in everything if any(fnmatch.fnmatch(m.module, pattern) for pattern in modules or WHOLE)]
    rest = set(everything) - set(whole)
    others = [mutant for mutant in everything if mutant in rest]
    if modules:
        return whole
    # By a hash of each name, so that a new module takes few of the others' places.
    return (
        whole + sorted(others, key=lambda mutant: hashlib.sha256(f"{SEED} {mutant.name}".encode()).digest())[:SAMPLED]
    )


def generated(copied: Path) -> Iterator[Mutant]:
    """Yield what mutmut makes of the package, but for mutants that change nothing but text for people."""
    from mutmut.configuration import config
    from mutmut.mutation.file_mutation import mutate_file_contents

    with contextlib.chdir(copied):  # its configuration is read where it runs
        for path in sorted(Path("src").rglob("*.py")):
            if config().should_mutate(path):
                module = ".".join(path.relative_to("src").with_suffix("").parts)
                yield from _mutants(module, ast.parse(mutate_file_contents(str(path), path.read_text()).code))


def wilson(killed: int, total: int) -> float:
    """Return the lower end of Wilson's 95 % interval for a share."""
    z, share = 1.959964, killed / total
    spread = z * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return (share + z**2 / (2 * total) - spread) / (1 + z**2 / total)


def _mutants(module: str, tree: ast.Module) -> Iterator[Mutant]:
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for name, changed in functions.items():
        mangled, mark, number = name.partition("__mutmut_")
        original = functions.get(f"{mangled}__mutmut_orig")
        if mark and number.isdigit() and original is not None:
            before, after = (_plain(node) for node in (original, changed))
            if _plain(original, silent=True) != _plain(changed, silent=True):
                words = re.sub("^x_?", "", mangled.replace("ǁ", ".")).strip(".")
                yield Mutant(f"{module}.{name}", f"{module.removeprefix('companion.')}.{words}", *_lines(before, after))


def _plain(function: ast.FunctionDef, *, silent: bool = False) -> str:
    """A function's code under one name; with ``silent``, without the text that it has for people."""
    copied = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(copied, ast.FunctionDef)
    copied.name = "_"
    return ast.unparse(_Silent().visit(copied) if silent else copied)


class _Silent(ast.NodeTransformer):
    """Takes away what a raised error is given, and every string that holds a space."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc, cause=None)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        return ast.Constant("") if any(" " in str(text) for text in texts) else node


def _lines(before: str, after: str) -> tuple[str, str]:
    changes = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    old, new = (" / ".join(line[2:].strip() for line in changes if line.startswith(mark)) for mark in ("- ", "+ "))
    return old, new


def _killed(copied: Path) -> set[str]:
    """The mutants that a test noticed, by failing, or by running on and on."""
    listed = _mutmut(copied, "results", "--all", "true", quiet=True)
    found = dict(re.findall(r"^\s*(companion\.\S+): (.*)$", listed, flags=re.MULTILINE))
    return {name for name, verdict in found.items() if verdict in ("killed", "timeout", "segfault", "suspicious")}


def _mutmut(copied: Path, *arguments: str, quiet: bool = False) -> str:
    # tqdm's lock is shared by all processes: one that is killed while it holds it would leave the others waiting.
    call = "import sys, threading, tqdm; tqdm.tqdm.set_lock(threading.RLock()); "
    call += "from mutmut.__main__ import cli; sys.argv[0] = 'mutmut'; cli()"
    # One thread, as in `make test`: a fork of a process with more could hang.
    fixed = {"PYTHONPATH": sys.path[0], "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command, output = [sys.executable, "-c", call, *arguments], subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=copied, env=os.environ | fixed, text=True, stdout=output)
    if done.returncode:
        raise SystemExit(f"mutmut {arguments[0]} ended with {done.returncode}; see above.")
    return done.stdout or ""


def _declared(root: Path, survivors: list[Mutant], *, everything: bool) -> tuple[list[Mutant], list[str]]:
    """The survivors that are declared, and the declarations that are none's."""
    path = root / DECLARED
    table = tomllib.loads(path.read_text()) if path.exists() else {}
    rows = {(function, row["old"], row["new"]): row["reason"] for function, some in table.items() for row in some}
    declared = [mutant for mutant in survivors if rows.get((mutant.function, mutant.old, mutant.new))]
    used = {(mutant.function, mutant.old, mutant.new) for mutant in declared}
    return declared, [f"{row[0]}: {row[1]}" for row in rows if everything and row not in used]


def _record(
    root: Path,
    found: Mapping[str, object],
    mutants: list[Mutant],
    survivors: list[Mutant],
    declared: list[Mutant],
) -> None:
    total, alive = Counter(mutant.module for mutant in mutants), Counter(mutant.module for mutant in survivors)
    record = {
        "date": str(found["started"])[:10],
        "commit": found["commit"],
        "mutants": len(mutants),
        "killed": len(mutants) - len(survivors),
        "declared": len(declared),
        "at least": round(wilson(len(mutants) - len(survivors), len(mutants)), 4),
        "whole": list(WHOLE),
        "sampled": SAMPLED,
        "seed": SEED,
        "modules": {name: {"mutants": total[name], "killed": total[name] - alive[name]} for name in sorted(total)},
    }
    write_whole(root / RECORD, lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd() / TOOL))
    sys.exit(main())
