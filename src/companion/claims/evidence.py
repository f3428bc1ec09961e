"""Finds the checks of every claim: calls in notebook cells, and tests that carry the claim's marker.

Nothing is run. A cell counts as executed where its committed output holds the line that the check prints.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from companion.claims import notebook
from companion.claims.dependencies import dependencies, read, standing_at

#: A check's name, and the kind of evidence it gives.
CHECKS = {
    "check_symbolic": "symbolic",
    "check_exact": "exact",
    "check_converged": "converged",
    "check_witness": "witness",
    "check_statistical": "statistical",
}


@dataclass(frozen=True)
class CellCheck:
    """A call of a check in a notebook.

    Attributes:
        claim: ID of the claim checked.
        kind: kind of evidence given.
        notebook: name of the file.
        cell: number of the cell, from 0 among the code cells.
        anchor: the target ``check-<id>-...`` last seen before the cell, for links.
        executed: whether the stored output shows that the check passed.
    """

    claim: str
    kind: str
    notebook: str
    cell: int
    anchor: str | None
    executed: bool


@dataclass(frozen=True)
class TestCheck:
    """A test that carries a claim's marker.

    Attributes:
        claim: ID of the claim.
        test: file and name of the test.
    """

    claim: str
    test: str


def cell_checks(root: Path) -> list[CellCheck]:
    """Return every check in ``notebooks/``, cells numbered from 0 among the code cells, as nbval numbers them."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return [check for path in paths for check in _checks_in_notebook(path.name, path.read_text())]


def test_checks(root: Path) -> list[TestCheck]:
    """Return every test under ``tests/`` that is marked ``pytest.mark.claim(ID, ...)``, once per claim.

    Tests that are marked to be skipped or to fail do not count.
    """
    paths = sorted((root / "tests").glob("test_*.py"))
    return [
        TestCheck(claim, f"{path.name}::{test.name}")
        for path in paths
        for test in _tests(path.read_text())
        for claim in test.claims
    ]


def sources(root: Path, claim: str, chapter: str) -> str:
    """Return the code that checks a claim: its tests, and its chapter's code cells up to the last check of it.

    With a test come the helpers, fixtures and constants under ``tests/`` that it depends on.
    """
    modules = read(root / "tests")
    tests = [
        statement
        for module, text in modules.items()
        if module.startswith("test_")
        for test in _tests(text)
        if claim in test.claims
        for statement in standing_at(modules, module, test.line, test.line)
    ]
    path = notebook(root, chapter)
    cells = _code_up_to_last_check(path.name, path.read_text(), claim) if path else ()
    return "\n".join([*dependencies(modules, tests), *cells])


@dataclass(frozen=True)
class _Test:
    name: str
    claims: tuple[str, ...]
    line: int


# Cached by content: a ledger asks for the same files once for each of a hundred mutants.
@cache
def _tests(text: str) -> tuple[_Test, ...]:
    found = []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            marks = " ".join(map(ast.unparse, function.decorator_list))
            if not re.search(r"\bmark\.(skip|skipif|xfail)\b", marks):
                found.append(_Test(function.name, tuple(_marked_claims(function)), function.lineno))
    return tuple(found)


@cache
def _code_up_to_last_check(name: str, text: str, claim: str) -> tuple[str, ...]:
    last = max((check.cell for check in _checks_in_notebook(name, text) if check.claim == claim), default=-1)
    code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return tuple(code[: last + 1])


@cache
def _checks_in_notebook(name: str, text: str) -> tuple[CellCheck, ...]:
    found: list[CellCheck] = []
    targets: list[str] = []
    number = -1
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            targets += re.findall(r"^\((check-[\w-]+)\)=\s*$", source, flags=re.MULTILINE)
        elif cell["cell_type"] == "code":
            number += 1
            calls = list(_calls(source))
            for claim, kind in calls:
                mine = [target for target in targets if target.startswith(f"check-{claim.lower()}-")]
                printed = len(re.findall(rf"^✓ {claim} {kind}: ", _printed(cell), flags=re.MULTILINE))
                executed = printed >= calls.count((claim, kind))
                found.append(CellCheck(claim, kind, name, number, mine[-1] if mine else None, executed))
    return tuple(found)


def _calls(source: str) -> Iterator[tuple[str, str]]:
    without_magics = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(without_magics)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            claim = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if name in CHECKS and isinstance(claim, str):
                yield claim, CHECKS[name]


def _printed(cell: dict[str, Any]) -> str:
    return "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")


def _marked_claims(function: ast.FunctionDef) -> list[str]:
    calls = [call for call in function.decorator_list if isinstance(call, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.claim"]
    return [ast.literal_eval(argument) for call in marks for argument in call.args]
