"""The training path brings in none of the book's libraries, and the symbols bring in no torch."""

import json
import subprocess
import sys

#: For each module in turn, imported into one fresh interpreter: which libraries it is the first to bring in.
LOOK = """
import importlib, json, sys
found, libraries = {}, sys.argv[1].split(",")
for name in sys.argv[2:]:
    before = set(sys.modules)
    importlib.import_module("companion." + name)
    found[name] = [library for library in libraries if library in set(sys.modules) - before]
print(json.dumps(found))
"""
LIGHT = ["rtb", "trust_pcl", "reinforce", "mdp", "targets", "metrics", "samplers", "samplers.networks", "training"]


def brought_in(libraries: list[str], modules: list[str]) -> dict[str, list[str]]:
    """Return which of the libraries each module is the first to import, in a fresh interpreter."""
    command = [sys.executable, "-c", LOOK, ",".join(libraries), *modules]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_losses_samplers_and_training_bring_in_none_of_the_books_libraries():
    """The figures, imported last, show that a library which comes in is seen."""
    found = brought_in(["matplotlib", "scipy", "sympy"], [*LIGHT, "plotting"])
    assert found == {name: [] for name in LIGHT} | {"plotting": ["matplotlib", "scipy"]}


def test_the_symbols_bring_in_no_torch():
    """The claims, which compare tensors, do."""
    assert brought_in(["sympy", "torch"], ["symbolic", "claims"]) == {"symbolic": ["sympy"], "claims": ["torch"]}
