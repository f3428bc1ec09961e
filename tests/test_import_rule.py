"""The rules on imports that carry the argument, read off the syntax trees of the package."""

import ast
from pathlib import Path

import pytest

import companion

PACKAGE = Path(companion.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in PACKAGE.rglob("*.py")
}
#: All that the two sides of the theorem may import.
ALLOWED = {"torch", "typing", "companion.validation"}
#: A module, or package with all that is in it, imports none of a higher rank; those of one rank may build on one
#: another, in one direction. What is named nowhere ranks above all, so that a new module needs no entry.
RANKS = [
    {"companion", "companion.validation", "companion.plain", "companion.records"},
    {"companion.rtb", "companion.trust_pcl", "companion.reinforce", "companion.optimisers"},
    {"companion.mdp", "companion.targets", "companion.automata", "companion.samplers"},
    {"companion.objectives", "companion.metrics", "companion.statistics"},
    {"companion.training"},
]
OBJECTIVES = sorted(RANKS[1])
ASIDE = ("companion.claims", "companion.symbolic", "companion.plotting")


def imports(source: str) -> set[str]:
    """Return the modules that a source imports, anywhere; ``from companion import rtb`` is companion.rtb.

    Raises ``ValueError`` for a relative import.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"a relative import of {node.module!r}; expected absolute ones. Spell it out.")
            nested = {f"{node.module}.{alias.name}" for alias in node.names} & set(SOURCES)
            found |= nested or {node.module}
    return found


def hidden(source: str) -> set[str]:
    """Return the names in a source by which it could import, or run, what its syntax tree does not show."""
    names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(ast.parse(source))}
    return names & {"__import__", "import_module", "importlib", "exec", "eval", "modules", "globals"}


def forbidden(source: str) -> set[str]:
    """Return what one side of the theorem imports and may not."""
    return {name for name in imports(source) if name not in ALLOWED and not name.startswith("torch.")}


def reachable(name: str) -> set[str]:
    """Return the modules of the package that a module imports, directly or through others."""
    found, waiting = set(), [name]
    while waiting:
        for imported in imports(SOURCES[waiting.pop()]) & set(SOURCES) - found:
            found.add(imported)
            waiting.append(imported)
    return found


def returned(source: str) -> list[str]:
    """Return the functions that return or yield a value, or do not say that they return nothing."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes = list(ast.walk(function))
            gives = any(isinstance(n, ast.Return) and n.value is not None for n in nodes)
            gives |= any(isinstance(n, ast.Yield | ast.YieldFrom | ast.Lambda) for n in nodes)
            says = not isinstance(function, ast.Lambda) and ast.unparse(function.returns or ast.Name("")) == "None"
            if gives or not says:
                found.append(getattr(function, "name", "lambda"))
    return found


def shared(source: str) -> list[str]:
    """Return the other ways in which a helper could hand something on: globals, changes in place, ``out``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Global | ast.Nonlocal):
            found += node.names
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call):
            found += [ast.unparse(node.func)] * any(keyword.arg == "out" for keyword in node.keywords)
            name = getattr(node.func, "attr", "")
            found += [name] * name.endswith("_")
    return found


@pytest.mark.parametrize("name", ["companion.rtb", "companion.trust_pcl"])
def test_each_side_of_the_theorem_imports_only_torch_typing_and_the_checks(name):
    """Directly, and through whatever it imports; the package's own __init__ imports nothing of it either."""
    assert forbidden(SOURCES[name]) == set()
    assert hidden(SOURCES[name]) | hidden(SOURCES["companion.validation"]) == set()
    assert reachable(name) == {"companion.validation"}
    assert reachable("companion") == set()


@pytest.mark.parametrize(
    "line",
    [
        "from companion import rtb",
        "from companion.rtb import residual",
        "import companion.rtb",
        "import companion.rtb as r",
        "import numpy",
        "from math import exp",
        "def f():\n    from companion.rtb import loss",
        "if True:\n    import companion.mdp",
    ],
)
def test_a_forbidden_import_is_found(line):
    """At the top, nested, renamed, or of another library."""
    assert forbidden(SOURCES["companion.trust_pcl"] + "\n" + line + "\n")


@pytest.mark.parametrize(
    "line",
    ["__import__('companion.rtb')", "x = sys.modules['companion.rtb']", "exec('import companion.rtb')"],
)
def test_an_import_that_hides_is_found(line):
    """What a list of import statements cannot show."""
    assert hidden(line)


def test_a_relative_import_is_refused():
    """Its module would depend on where it stands."""
    with pytest.raises(ValueError, match="expected absolute"):
        imports("from . import rtb")


def test_an_indirect_import_is_found(monkeypatch):
    """Were the checks to import one side, the other would reach it."""
    monkeypatch.setitem(SOURCES, "companion.validation", "from companion import rtb\n")
    assert "companion.rtb" in reachable("companion.trust_pcl")


def test_every_check_returns_nothing():
    """So that nothing computed there can link one objective to another."""
    assert returned(SOURCES["companion.validation"]) == []
    assert shared(SOURCES["companion.validation"]) == []


@pytest.mark.parametrize(
    "source",
    [
        "def check(x) -> None:\n    return x",
        "def check(x):\n    x + 1",
        "def check(x) -> float:\n    return 2 * x",
        "def check(x) -> None:\n    yield x",
        "check = lambda x: x",
        "def check(x) -> None:\n    def inner() -> None:\n        return x",
    ],
)
def test_a_check_that_returns_something_is_found(source):
    """Or that does not say it returns nothing."""
    assert returned(SOURCES["companion.validation"] + "\n" + source + "\n")


@pytest.mark.parametrize(
    "source",
    [
        "def f(x) -> None:\n    global y\n    y = x",
        "def f(x) -> None:\n    x.total = 1",
        "def f(x) -> None:\n    x.mul_(2)",
    ],
)
def test_a_check_that_hands_something_on_by_another_way_is_found(source):
    """A global, an attribute, a change in place."""
    assert shared(source)


def rank_of(name: str) -> int:
    """The rank of a module: its own, or that of the package it is in."""
    packages = [".".join(name.split(".")[:length]) for length in range(name.count(".") + 1, 0, -1)]
    found = [rank for part in packages for rank, names in enumerate(RANKS) if part in names and part != "companion"]
    return found[0] if found else 0 if name == "companion" else len(RANKS)


def test_imports_run_one_way():
    """Validation, then losses, samplers and targets, then objectives and metrics, then training; no circle anywhere."""
    for name, source in SOURCES.items():
        assert name not in reachable(name), f"{name} imports itself in a circle"
        if name.startswith(ASIDE):
            continue
        for imported in imports(source) & set(SOURCES):
            assert not imported.startswith(ASIDE), f"{name} imports {imported}, which stands beside"
            assert rank_of(imported) <= rank_of(name), f"{name} imports {imported}, which ranks above it"


@pytest.mark.parametrize(
    ("name", "rank"),
    [("companion", 0), ("companion.samplers.tape", 2), ("companion.training.loop", 4), ("companion.new", 5)],
)
def test_a_module_ranks_as_its_package_and_a_new_one_above_all(name, rank):
    assert rank_of(name) == rank


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_imports_nothing_of_the_package_but_the_checks(name):
    """So none imports another, nor claims, symbols or plots; and samplers know nothing of objectives."""
    assert reachable(name) == {"companion.validation"}
    for sampler in SOURCES:
        assert rank_of(sampler) != 2 or name not in reachable(sampler)
