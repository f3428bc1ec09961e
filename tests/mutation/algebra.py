"""Edits the algebra of the chapters, one small edit at a time, and asks whether a symbolic check notices.

``python -m tests.mutation.algebra`` takes from every chapter the statements that its calls of ``check_symbolic`` depend
on, and the assertions about symbols alone. What depends on an edit is run again, in a fork of the process that has run
what stands before it; the edit is killed where a check turns red or anything raises. An expression that a cell writes
more than once is also edited in all its places at once. Edits that change nothing mathematically are declared in
``equivalent.toml``, each with a reason; any other that survives fails the command. Chapters are hunted again where
their algebra, the check or the edits have changed.
"""

import argparse
import ast
import builtins
import contextlib
import functools
import hashlib
import inspect
import json
import os
import re
import signal
import symtable
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy

from companion import symbolic
from companion.claims import chapter_of, check_symbolic
from companion.records import provenance, write_whole
from tests.mutation import edits as edits_module
from tests.mutation.edits import Place, places, swapped, variants

#: Where the findings are kept, relative to the project's root.
RECORD = Path("results/algebra.json")
#: The survivors that are declared: for each chapter, tables of a line, an edit and a reason.
DECLARED = Path("tests/mutation/equivalent.toml")
#: At most this part of all edits may be declared.
ALLOWANCE = 0.05
#: Seconds of processor time after which an edit counts as stuck. It was not seen to turn red, so it counts as survived.
LIMIT = 120
#: An assertion that depends on names of other modules than these is not about symbols alone.
SYMBOLIC = ("sympy", "companion.symbolic", "companion.claims")

#: What is said of a process that ended because something turned red.
_RED = 1 << 8

Namespace = dict[str, Any]


@dataclass(frozen=True)
class Statement:
    """A statement at the top of a code cell."""

    cell: int
    node: ast.stmt
    lines: tuple[str, ...]

    def line(self, node: ast.AST) -> str:
        """Return the line of the cell on which a node begins."""
        return self.lines[node.lineno - 1].strip()

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """The chapter's names that it uses, those inside functions included."""
        names = set(_free_names(symtable.symtable(ast.unparse(self.node), "cell", "exec")))
        # What is only changed in part, or perhaps, is what it was before.
        partly = not isinstance(self.node, ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.Import | ast.ImportFrom)
        return frozenset(names | (self.binds if partly else set()))

    @functools.cached_property
    def binds(self) -> frozenset[str]:
        """The names that it gives a value, or changes in part."""
        top = symtable.symtable(ast.unparse(self.node), "cell", "exec")
        whole = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
        stores = [n for n in ast.walk(self.node) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
        return frozenset(whole | {n.value.id for n in stores if isinstance(n.value, ast.Name)})

    @property
    def checks(self) -> bool:
        """Whether it calls ``check_symbolic``."""
        return "check_symbolic" in self.reads

    @property
    def imports(self) -> bool:
        """Whether it is an import."""
        return isinstance(self.node, ast.Import | ast.ImportFrom)


@dataclass(frozen=True)
class Edit:
    """An edit: the cell and the line on which it is made, what it does, and the statements changed, by number."""

    cell: int
    line: str
    what: str
    changed: Mapping[int, ast.stmt]


def statements(path: Path) -> list[Statement]:
    """Return the statements of a chapter up to its last symbolic check, cells numbered from 0 among the code cells."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    found = []
    for number, cell in enumerate(cells):
        text = re.sub(r"^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)
        found += [Statement(number, node, tuple(text.splitlines())) for node in ast.parse(text).body]
    last = max((i for i, statement in enumerate(found) if statement.checks and not statement.imports), default=-1)
    return found[: last + 1]


def way_to_the_checks(found: Sequence[Statement]) -> list[Statement]:
    """Return the imports, the symbolic checks, the assertions about symbols alone, and all that these depend on."""
    kept = {i for i, statement in enumerate(found) if statement.imports}
    foreign = {name for i in kept if not _is_symbolic(found[i].node) for name in found[i].binds}
    for i, statement in enumerate(found):
        needed = _needed(found, i)
        read = {name for j in needed for name in found[j].reads}
        if statement.checks or (isinstance(statement.node, ast.Assert) and read and not read & foreign):
            kept |= needed
    return [found[i] for i in sorted(kept)]


def edits(way: Sequence[Statement], bases: Collection[str]) -> list[Edit]:
    """Return every edit of the statements, in their order, no two with one text. ``bases``: names of indexed bases."""
    found: list[Edit] = []
    seen: set[tuple[tuple[int, str], ...]] = set()
    labels: Counter[tuple[str, str]] = Counter()
    for group in _groups(way, bases):
        first, place = group[0]
        for new in variants(place, bases):
            olds = [(i, p.node) for i, p in group]
            changed = {i: swapped(way[i].node, [node for j, node in olds if j == i], new) for i, _ in olds}
            text = tuple((i, ast.unparse(node)) for i, node in sorted(changed.items()))
            if text in seen or all(ast.unparse(way[i].node) == edited for i, edited in text):
                continue
            seen.add(text)
            line, what = way[first].line(place.node), f"{ast.unparse(place.node)} -> {ast.unparse(new)}"
            what += " everywhere" if len(group) > 1 else ""
            labels[line, what] += 1
            what += f" ({labels[line, what]})" if labels[line, what] > 1 else ""
            found.append(Edit(way[first].cell, line, what, changed))
    return sorted(found, key=lambda edit: min(edit.changed))


def hunt(way: Sequence[Statement], workers: int, name: str = "") -> tuple[list[Edit], list[Edit]]:
    """Run every edit of a chapter, and return all and those that survived. Raises where the chapter is red without."""
    todo = edits(way, _bases(way))
    namespace: Namespace = {}
    running: dict[int, Edit] = {}
    lived: list[Edit] = []

    def wait() -> None:
        # Not os.wait: the process may have other children, whose end is not ours to take.
        ended: list[tuple[int, int]] = []
        while not ended:
            ended = [found for pid in running if (found := os.waitpid(pid, os.WNOHANG))[0]]
            time.sleep(0.0 if ended else 0.005)
        for pid, status in ended:
            note(running.pop(pid), status)

    def note(edit: Edit, status: int) -> None:
        if status != _RED:
            lived.append(edit)
        done = todo.index(edit) + 1
        if done % 50 == 0:
            print(f"{name}: {done} of {len(todo)}", flush=True)

    for i, statement in enumerate(way):
        for edit in (edit for edit in todo if min(edit.changed) == i):
            if len(running) == workers:
                wait()
            running[_fork(way, edit, namespace)] = edit
        if statement.imports or not statement.checks:
            _execute(statement.node, namespace)
    while running:
        wait()
    return todo, sorted(lived, key=todo.index)


def undeclared(lived: Sequence[Edit], entries: Sequence[Mapping[str, str]]) -> tuple[list[Edit], list[str]]:
    """Return the survivors that no declaration of their chapter names, and the declarations to mend or to remove."""
    given = {(entry["line"], entry["edit"]): entry.get("reason") for entry in entries}
    found = {(edit.line, edit.what) for edit in lived}
    unknown = [edit for edit in lived if (edit.line, edit.what) not in given]
    return unknown, [f"{line}: {what}" for (line, what), why in given.items() if not why or (line, what) not in found]


def main() -> int:
    """Hunt through the chapters asked for, print and record what survives; 1 unless all chapters are found well."""
    parser = argparse.ArgumentParser(description="Edit the algebra of the chapters, and see what notices.")
    parser.add_argument("chapters", nargs="*", help="chapters, without number; by default those out of date")
    parser.add_argument("--all", action="store_true", help="every chapter, also those that are up to date")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    root = Path.cwd()
    ways = {chapter_of(path): way_to_the_checks(statements(path)) for path in sorted(root.glob("notebooks/*.ipynb"))}
    ways = {chapter: way for chapter, way in ways.items() if any(not s.imports for s in way)}
    declared = tomllib.loads((root / DECLARED).read_text())
    if not {*options.chapters, *declared} <= set(ways):
        raise SystemExit(
            f"{options.chapters}, {[*declared]}; expected chapters with symbolic checks: {', '.join(ways)}"
        )
    digests = {chapter: digest(way, declared.get(chapter, ())) for chapter, way in ways.items()}
    found = {chapter: row for chapter, row in _read(root).items() if row.get("digest") == digests.get(chapter)}
    for chapter in options.chapters or [chapter for chapter in ways if options.all or chapter not in found]:
        counts, well = _counted(chapter, *hunt(ways[chapter], options.workers, chapter), declared.get(chapter, ()))
        found[chapter] = counts | {"digest": digests[chapter] if well else None}
        _write(root, {chapter: found[chapter] for chapter in ways if chapter in found})
    total = _total(found)
    print(f"{total['edits']} edits, {total['killed']} killed, {total['declared']} declared")
    few = total["declared"] <= ALLOWANCE * total["edits"]
    return 0 if few and {chapter: row["digest"] for chapter, row in found.items()} == digests else 1


def digest(way: Sequence[Statement], entries: Sequence[Mapping[str, str]]) -> str:
    """Return a fingerprint of what a finding depends on: the statements, the check, the edits, what is declared."""
    tools = [Path(file).read_text() for file in (symbolic.__file__, edits_module.__file__)]
    parts = [*(ast.unparse(s.node) for s in way), inspect.getsource(check_symbolic), *tools, json.dumps(entries)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _counted(
    chapter: str, todo: Sequence[Edit], lived: Sequence[Edit], entries: Sequence[Mapping[str, str]]
) -> tuple[dict[str, Any], bool]:
    """Print what survived a hunt, and return its counts, and whether all is well."""
    unknown, stale = undeclared(lived, entries)
    for edit in unknown:
        print(f"SURVIVED {chapter}, cell {edit.cell}: {edit.line}\n    {edit.what}")
    for entry in stale:
        print(f"NOT FOUND, or without a reason, in {DECLARED}, {chapter}: {entry}")
    counts = {"edits": len(todo), "killed": len(todo) - len(lived), "declared": len(lived) - len(unknown)}
    print(f"{chapter}: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
    return counts, not unknown and not stale


def _read(root: Path) -> dict[str, dict[str, Any]]:
    path = root / RECORD
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["chapters"] if path.exists() else {}
    return rows


def _total(found: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {key: sum(row[key] for row in found.values()) for key in ("edits", "killed", "declared")}


def _write(root: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    made = provenance(root, ("src", "notebooks", "tests/mutation"), clean=False)
    named = made["commit"] if not made["uncommitted"] else None
    record = {**_total(found), "chapters": found, "date": made["started"], "commit": named}
    text = json.dumps(record, indent=1) + "\n"
    write_whole(root / RECORD, lambda file: file.write(text.encode()))


def _fork(way: Sequence[Statement], edit: Edit, namespace: Namespace) -> int:
    """Run what an edit touches in a process of its own, from the statement edited on, and return the process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    # The default answer to this signal ends the process, whatever sympy is doing.
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        for node in _touched(way, edit):
            _execute(node, namespace)
    except BaseException:
        os._exit(1)  # _RED
    os._exit(0)


def _touched(way: Sequence[Statement], edit: Edit) -> Iterator[ast.stmt]:
    """The statements to run: all from the edit on, but for checks of what the edit does not reach."""
    reached: set[str] = set()
    for i, statement in enumerate(way):
        if i < min(edit.changed):
            continue
        read = {name for j in _called(way, i) for name in way[j].reads}
        touched = i in edit.changed or bool(read & reached)
        reached = reached | statement.binds if touched else reached - statement.binds
        if touched or not statement.checks:
            yield edit.changed.get(i, statement.node)


def _execute(node: ast.stmt, namespace: Namespace) -> None:
    code = compile(ast.fix_missing_locations(ast.Module([node], [])), "cell", "exec")
    with contextlib.redirect_stdout(None):
        exec(code, namespace)


def _bases(way: Sequence[Statement]) -> set[str]:
    """The names of indexed quantities. Runs the chapter, checks and all, which also fills sympy's cache."""
    namespace: Namespace = {}
    for statement in way:
        _execute(statement.node, namespace)
    return {name for name, value in namespace.items() if isinstance(value, sympy.IndexedBase)}


def _groups(way: Sequence[Statement], bases: Collection[str]) -> Iterator[list[tuple[int, Place]]]:
    """Each place alone, and the places of a cell that hold one and the same calculation together."""
    together: dict[tuple[int, str], list[tuple[int, Place]]] = {}
    for i, statement in enumerate(way):
        for place in [] if statement.imports else places(statement.node, bases):
            yield [(i, place)]
            if isinstance(place.node, ast.BinOp):
                together.setdefault((statement.cell, ast.dump(place.node)), []).append((i, place))
    yield from (group for group in together.values() if len(group) > 1)


def _needed(found: Sequence[Statement], i: int) -> set[int]:
    """The numbers of a statement and of all that it depends on, functions at the time of their call."""
    needed: set[int] = set()
    todo = [(i, i)]
    while todo:
        j, when = todo.pop()
        if j in needed:
            continue
        needed.add(j)
        for name in found[j].reads:
            source = _bound(found, name, when)
            if source is not None:
                todo.append((source, when if isinstance(found[source].node, ast.FunctionDef) else source))
    return needed


def _called(way: Sequence[Statement], i: int) -> set[int]:
    """The numbers of a statement and of the functions that run when it does."""
    called, todo = set(), [i]
    while todo:
        j = todo.pop()
        called.add(j)
        sources = (_bound(way, name, i) for name in way[j].reads)
        todo += [s for s in sources if s is not None and s not in called and isinstance(way[s].node, ast.FunctionDef)]
    return called


def _bound(found: Sequence[Statement], name: str, before: int) -> int | None:
    """The number of the last statement before another that binds a name."""
    return next((j for j in reversed(range(before)) if name in found[j].binds), None)


def _is_symbolic(node: ast.stmt) -> bool:
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return all(module in SYMBOLIC for module in modules)


def _free_names(table: symtable.SymbolTable) -> Iterator[str]:
    """The names of the module that a piece of code uses."""
    top = table.get_type() == "module"
    for s in table.get_symbols():
        if s.is_referenced() and (top or s.is_global()) and not hasattr(builtins, s.get_name()):
            yield s.get_name()
    for child in table.get_children():
        yield from _free_names(child)


if __name__ == "__main__":
    sys.exit(main())
