"""Writes the book's ledger from the registry, the checks found, and the record of mutants killed.

``python -m book.ledger`` writes ``book/ledger.md``; a test compares it with what would be written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from book.evidence import CellCheck, TestCheck, cell_checks, test_checks
from companion.claims import Claim, chapter_titles, notebook, registry, written
from tests.mutation.deliberate import fresh, mutants_of, read_record

_HEAD = """# The ledger of claims

Every claim of the book, with the evidence that stands behind it. This page is generated from the registry, from the
checks in the executed notebooks, from the tests, and from the record of deliberate errors.

The claim's name leads to its entry below; from there links lead to its statement and to the cells that check it. To
run every check of one claim on your own machine, type `make claim ID=E2` at the root of the project.

**Evidence**, the strongest first. *Symbolic*: a sympy derivation that ends in zero, the horizon or the number of
actions left as a symbol. *Exact*: numbers that are computed, not estimated, and agree to rounding: every path of a
finite problem enumerated, in float64. (Where an identity holds for any arrays at all, some checks repeat it on
arbitrary ones, or in float32 with its own rounding.) *Converged*: where a descent on exact gradients ended, within a
tolerance that is not rounding. *Statistical*: several seeds, an interval, a margin. *Witness*: a counter-example.

**Mutants** are deliberate errors: a flipped sign, a dropped term, alpha for alpha squared. Each is put into the package
alone. It is killed when a test *and* a notebook cell of its claim turn red. `make mutants` repeats the hunt.

**Status**: what the evidence amounts to, a word for each kind that is listed. Every kind then has a check that ran in
the committed notebooks, at least one test carries the claim, and all its mutants were killed; otherwise the status says
what is missing. *Proved*: the algebra is, in symbols; what else its proof needs is in the chapter. *Checked exactly*:
on the problems of the chapter, whose proof, where it has one, is in prose. *Reached*: by descents. *Supported*: by
seeds, within a margin, and no more than that. *Shown by example*: that something fails to hold. *Missed in part*: the
runs did not bear out all that was predicted. *Planned*: for a chapter, or a section, that is still to be written.
"""

_BY_RULE = """## Errors made by rule

The mutants above were chosen, each for its claim. How much do the checks miss of what nobody chose? Two commands make
errors by rule. One changes the package: every function of the losses, of `mdp`, `statistics` and `training`, and a
sample of the others; the tests of the package alone should notice. The other changes the lines of the chapters that
lead to a symbolic check, which should turn red. *Declared* errors change nothing that could be noticed, each for a
reason that stands beside it in `tests/mutation`.
"""

#: What a kind of evidence amounts to.
_WORDS = {
    "symbolic": "proved",
    "exact": "checked exactly",
    "converged": "reached",
    "statistical": "supported",
    "witness": "shown by example",
}


@dataclass(frozen=True)
class Evidence:
    """What stands behind the claims of a project.

    Attributes:
        cells: the checks in notebook cells.
        tests: the tests that carry a claim.
        killed: the names of the mutants killed, on the code as it is, by claim.
    """

    cells: list[CellCheck]
    tests: list[TestCheck]
    killed: Mapping[str, list[str]]


def gather(root: Path) -> Evidence:
    """Return what stands behind the claims of the project at ``root``."""
    record = read_record(root)
    killed = {id_: [mutant.name for mutant in mutants_of(id_) if fresh(root, mutant, record)] for id_ in registry()}
    return Evidence(cell_checks(root), test_checks(root), killed)


def render(root: Path) -> str:
    """Return the ledger page for the project at ``root``, as MyST Markdown."""
    found = gather(root)
    parts = [_HEAD, _summary(root, found), _by_rule(root)]
    for chapter, claims in groupby(registry().values(), key=lambda claim: claim.chapter):
        path = notebook(root, chapter)
        where = f"See {{doc}}`/notebooks/{path.stem}`.\n" if path else "Planned.\n"
        parts.append(f"## {chapter_titles()[chapter]}\n\n{where}")
        parts += [_entry(root, claim, found) for claim in claims]
    return "\n".join(parts)


def status(root: Path, claim: Claim, found: Evidence) -> str:
    """Return ``planned``, what is still missing, or what the evidence amounts to: ``proved, checked exactly``."""
    if not written(root, claim):
        return "planned"
    given = {check.kind for check in found.cells if check.claim == claim.id and check.executed}
    missing = [kind for kind in claim.evidence if kind not in given]
    missing += [] if any(test.claim == claim.id for test in found.tests) else ["a test"]
    missing += [] if 0 < len(found.killed[claim.id]) == len(mutants_of(claim.id)) else ["mutants killed"]
    if missing:
        return "missing: " + ", ".join(missing)
    amounts = ", ".join(_WORDS[kind] for kind in claim.evidence)
    return f"{amounts}; missed in part: {claim.missed}" if claim.missed else amounts


def _summary(root: Path, found: Evidence) -> str:
    lines = [
        "## At a glance\n",
        "| claim | what it says | evidence | mutants killed | status |",
        "|---|---|---|---|---|",
    ]
    for claim in registry().values():
        name = f"[{claim.id}](#ledger-{claim.id.lower()})"
        mutants = f"{len(found.killed[claim.id])} of {len(mutants_of(claim.id))}" if mutants_of(claim.id) else "–"
        state = status(root, claim, found)
        lines.append(f"| {name} | {claim.title} | {', '.join(claim.evidence)} | {mutants} | {state} |")
    return "\n".join(lines) + "\n"


def _by_rule(root: Path) -> str:
    """The table of errors that are generated, not chosen, as their records give it."""
    lines = [_BY_RULE, "| made by | errors | noticed | declared | last run |", "|---|---|---|---|---|"]
    for command, name, count in (
        ("mutants-generated", "generated", "mutants"),
        ("mutants-algebra", "algebra", "edits"),
    ):
        path = root / f"results/{name}.json"
        if path.exists():
            row = json.loads(path.read_text())
            rate = f"{row['killed']:,} ({row['killed'] / row[count]:.1%})"
            when = f"{row['date'][:10]}, at {(row['commit'] or 'no commit')[:10]}"
            lines.append(f"| `make {command}` | {row[count]:,} | {rate} | {row['declared']} | {when} |")
        else:
            lines.append(f"| `make {command}` | – | – | – | not yet |")
    return "\n".join(lines) + "\n"


def _entry(root: Path, claim: Claim, found: Evidence) -> str:
    state = status(root, claim, found)
    lines = [f"(ledger-{claim.id.lower()})=\n### {claim.id}: {claim.title}\n", f"{claim.statement}\n"]
    if state == "planned":
        lines[1] = f"To be shown: {lines[1]}"
        return "\n".join([*lines, f"- Evidence to come: {', '.join(claim.evidence)}\n"])
    for kind in claim.evidence:
        mine = [check for check in found.cells if (check.claim, check.kind) == (claim.id, kind)]
        anchors = list(dict.fromkeys(check.anchor for check in mine))
        links = ", ".join(f"{{ref}}`{kind} check {n} <{anchor}>`" for n, anchor in enumerate(anchors, start=1))
        lines.append(f"- {kind}: {links or 'missing'}")
    names = ", ".join(f"`{test.test}`" for test in found.tests if test.claim == claim.id)
    lines.append(f"- tests: {names or 'none'}")
    killed = found.killed[claim.id]
    lines.append(f"- mutants killed, {len(killed)} of {len(mutants_of(claim.id))}: {', '.join(killed) or 'none'}")
    lines.append(f"- statement: {{prf:ref}}`{claim.id}`; status: **{state}**; all checks: `make claim ID={claim.id}`\n")
    return "\n".join(lines)


if __name__ == "__main__":
    Path("book/ledger.md").write_text(render(Path.cwd()))
    print("wrote book/ledger.md")
