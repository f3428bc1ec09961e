"""Which tests a change asks for: those of the losses, always, and those that import a module that changed.

Used by ``pytest --changed``, which is ``make quick``. A module counts as imported where a test file, or a helper of the
tests that it imports, names it; what the module itself builds on does not, or every change would run everything.
"""

import ast
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: The tests of the pure losses, which carry the argument.
ALWAYS = {"test_rtb.py", "test_trust_pcl.py", "test_reinforce.py", "test_identities.py", "test_import_rule.py"}
#: Files that no test imports, and the tests that are about them; conftest.py is about all.
ABOUT = {
    "src/companion/validation.py": {"test_bad_input.py"},
    "src/companion/__init__.py": {"test_light_imports.py"},
    "book/scaffold.py": {"test_scaffold.py"},
    "experiments/margins.json": {"test_records.py"},
}


def changed_files(root: Path) -> list[str]:
    """Return the files that differ from the last commit, those not yet tracked included."""
    tracked = _git(root, "diff", "--name-only", "HEAD")
    return tracked + _git(root, "ls-files", "--others", "--exclude-standard")


def tests_to_run(root: Path, files: Iterable[str]) -> set[str]:
    """Return the names of the test files that these changed files ask for."""
    files = list(files)
    modules = {module for file in files if (module := _module(file))}
    ours = [Path(file).relative_to("tests") for file in files if file.startswith("tests/") and file.endswith(".py")]
    helpers = {".".join(path.with_suffix("").parts) for path in ours}
    tests = {path.name: path.read_text() for path in sorted((root / "tests").glob("*.py"))}
    about = set().union(*(ABOUT.get(file, set()) for file in files)) & set(tests)
    chosen = {name for name in tests if name in ALWAYS | about or Path(name).stem in helpers or "conftest" in helpers}
    for name in tests:
        if any(_within(imported, modules | helpers) for imported in _imported(name, tests)):
            chosen.add(name)
    return {name for name in chosen if name.startswith("test_")}


def _imported(name: str, tests: dict[str, str]) -> set[str]:
    """The modules that a test file imports, itself or through helpers of the tests."""
    found, waiting = set(), [name]
    while waiting:
        for module in _imports(tests[waiting.pop()]) - found:
            found.add(module)
            waiting += [f"{module}.py"] if f"{module}.py" in tests else []
    return found


def _imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found - {"companion"}


def _within(imported: str, modules: set[str]) -> bool:
    """Whether what is imported is one of the modules, or a package that one of them is in."""
    return any(module == imported or module.startswith(f"{imported}.") for module in modules)


def _module(file: str) -> str | None:
    """The module that a file of the package, the studies or the benchmarks is."""
    path = Path(file)
    if path.suffix not in (".py", ".toml") or path.parts[0] not in ("src", "experiments", "benchmarks"):
        return None
    parts = path.with_suffix("").parts[path.parts[0] == "src" :]
    return ".".join(parts).removesuffix(".__init__")


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    return done.stdout.splitlines()
