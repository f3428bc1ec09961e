"""What a piece of code depends on, read off the syntax trees; nothing is imported or run.

The grain is a top-level statement of a module: a function with its decorators, a class, a constant. It depends on the
statements that bind the names it uses, in its own module or where they were imported from, and on theirs in turn. Where
a tree leaves open what is meant, more is taken in rather than less: a local variable counts as the global one of its
name, a module passed on as all of it, and a statement that binds no name belongs to everything in its module. Not
followed: names that are put together at run time, and methods of an object whose class the code does not name.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: A dotted name by its parts: ``("mdp", "solve")``.
Dotted = tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """A top-level statement of a module, or one name that is imported, wherever in the module.

    Attributes:
        module: dotted name of the module.
        first: number of its first line, from 1, decorators included.
        last: number of its last line.
        text: its lines without comments, docstrings and blank lines, laid out as written: no version of Python writes
            them differently.
        binds: the names that it binds or changes; empty for a call, say.
        uses: the dotted names that it reads, such as ``("mdp", "solve")``.
        origin: where an imported name comes from, such as ``("companion", "mdp")``; empty for any other statement.
    """

    module: str
    first: int
    last: int
    text: str
    binds: frozenset[str]
    uses: frozenset[Dotted]
    origin: Dotted = ()


#: A statement, and for an imported name what is taken from it: ``("solve",)`` after ``from companion import mdp``.
Step = tuple[Statement, Dotted]


def read(folder: Path) -> dict[str, str]:
    """Return the source of every module under a folder, by its dotted name."""
    paths = {path: ".".join(path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in paths.items()}


def standing_at(sources: Mapping[str, str], module: str, first: int, last: int) -> list[Statement]:
    """Return the statements of a module that have a part in these lines, counted from 1."""
    return [s for s in _statements(module, sources[module]) if s.first <= last and first <= s.last]


def dependencies(sources: Mapping[str, str], start: Iterable[Statement]) -> list[str]:
    """Return the texts of these statements and of all that they depend on in ``sources``, sorted.

    Raises ``ValueError`` for a relative import.
    """
    found: set[Step] = set()
    waiting: list[Step] = [(statement, ()) for statement in start]
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += _next(sources, *step)
    return sorted({statement.text for statement, _ in found})


def _next(sources: Mapping[str, str], statement: Statement, taken: Dotted) -> Iterator[Step]:
    yield from _bindings(sources, statement.module, ("",))
    yield from _resolve(sources, statement.origin + taken)
    for use in statement.uses:
        # What a test's module does not bind may be a fixture.
        yield from _bindings(sources, statement.module, use) or _bindings(sources, "conftest", use)


def _resolve(sources: Mapping[str, str], name: Dotted) -> list[Step]:
    """What a dotted name stands for: a statement; for a module, or what is not seen in one, all of the module."""
    for length in range(len(name), 0, -1):
        module = ".".join(name[:length])
        if module in sources:
            everything: list[Step] = [(statement, ()) for statement in _statements(module, sources[module])]
            return _bindings(sources, module, name[length:]) or everything
    return []


def _bindings(sources: Mapping[str, str], module: str, name: Dotted) -> list[Step]:
    if not name or module not in sources:
        return []
    bound = _by_name(module, sources[module]).get(name[0], ())
    return [(statement, name[1:] if statement.origin else ()) for statement in bound]


# Cached by content: the same files are asked for once for each of a hundred mutants.
@cache
def _by_name(module: str, source: str) -> Mapping[str, list[Statement]]:
    """The statements of a module by the names that they bind, under the empty name those that bind none."""
    found: dict[str, list[Statement]] = {}
    for statement in _statements(module, source):
        for name in statement.binds or ("",):
            found.setdefault(name, []).append(statement)
    return found


@cache
def _statements(module: str, source: str) -> tuple[Statement, ...]:
    tree, lines, found = ast.parse(source), source.split("\n"), []
    for node in tree.body:
        bare_value = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not bare_value and not isinstance(node, ast.Import | ast.ImportFrom):
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
            last = node.end_lineno or first
            text = _bare(lines[first - 1 : last], node, first)
            found.append(Statement(module, first, last, text, frozenset(_bound(node)), frozenset(_used(node))))
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            found += [_imported(module, inner, alias) for alias in inner.names]
    return tuple(found)


def _bare(lines: list[str], node: ast.stmt, first: int) -> str:
    """The lines of a statement, of which the file's is ``first``, without comments, docstrings and blank ones."""
    if any("#" in line for line in lines):
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column].rstrip()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(inner, False):
            begin, end = inner.body[0].lineno - first, (inner.body[0].end_lineno or 0) - first
            lines[begin : end + 1] = [""] * (end + 1 - begin)
    return "\n".join(line for line in lines if line.strip())


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds or changes, itself or in the blocks inside it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.split(".")[0]
    elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        yield from (name.id for name in ast.walk(node) if isinstance(name, ast.Name))
    elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _used(node: ast.AST) -> Iterator[Dotted]:
    """Dotted names that a piece of code reads, also in quoted annotations; an argument may be a fixture."""
    name = _dotted(node)
    if name:
        yield name
        return
    if isinstance(node, ast.arg):
        yield (node.arg,)
    for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        for inner in ast.walk(annotation) if annotation else ():
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield from ((word,) for word in re.findall(r"\w+", inner.value))
    for child in ast.iter_child_nodes(node):
        yield from _used(child)


def _dotted(node: ast.AST) -> Dotted:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return (*owner, node.attr) if owner else ()
    return ()


def _imported(module: str, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Statement:
    origin = tuple(alias.name.split("."))
    if isinstance(node, ast.Import):
        name = alias.asname or origin[0]
        origin = origin if alias.asname else origin[:1]
    else:
        if node.level or not node.module:
            raise ValueError(f"{module} has a relative import; expected absolute ones. Spell it out.")
        name, origin = alias.asname or alias.name, (*node.module.split("."), *origin)
    if name == "*":  # binds names that are not written here
        return Statement(module, node.lineno, node.lineno, "*", frozenset(), frozenset(), origin[:-1])
    text = f"{name} = {'.'.join(origin)}"
    return Statement(module, node.lineno, node.end_lineno or node.lineno, text, frozenset({name}), frozenset(), origin)
