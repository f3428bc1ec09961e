"""What is counted of generated errors: which are left out, which are declared, and how sure the share is."""

import ast
import re
from pathlib import Path

import pytest

from tests.mutation import generated
from tests.mutation.generated import Mutant

# As mutmut writes a function and its mutants; the last two differ in text for people alone.
MUTATED = """
def x_f__mutmut_orig(a):
    if a > 1:
        raise ValueError("too big a number")
    return g(a, "key")
def x_f__mutmut_1(a):
    if a >= 1:
        raise ValueError("too big a number")
    return g(a, "key")
def x_f__mutmut_2(a):
    if a > 1:
        raise ValueError("too big a number")
    return g(a, "XXkeyXX")
def x_f__mutmut_3(a):
    if a > 1:
        raise ValueError("XXtoo big a numberXX")
    return g(a, "key")
def x_f__mutmut_4(a):
    if a > 1:
        raise ValueError(None)
    return g(a, "key")
def other(a):
    return a
"""
FOUND = [
    Mutant("companion.mdp.x_f__mutmut_1", "mdp.f", "if a > 1:", "if a >= 1:"),
    Mutant("companion.mdp.x_f__mutmut_2", "mdp.f", "return g(a, 'key')", "return g(a, 'XXkeyXX')"),
]


def test_mutants_are_named_by_function_and_lines_and_those_of_text_for_people_are_left_out():
    assert list(generated._mutants("companion.mdp", ast.parse(MUTATED))) == FOUND
    assert {mutant.module for mutant in FOUND} == {"mdp"}


@pytest.mark.parametrize(("killed", "total", "least"), [(90, 100, 0.8256), (100, 100, 0.9630), (0, 10, 0.0)])
def test_the_lower_end_of_wilsons_interval_is_as_by_hand(killed, total, least):
    assert generated.wilson(killed, total) == pytest.approx(least, abs=1e-4)


def test_a_survivor_is_declared_by_its_lines_with_a_reason_and_an_idle_declaration_is_named(tmp_path):
    path = tmp_path / generated.DECLARED
    path.parent.mkdir(parents=True)
    row = '[["mdp.f"]]\nold = "{}"\nnew = "{}"\nreason = "{}"\n'
    path.write_text(row.format("if a > 1:", "if a >= 1:", "so") + row.format("gone", "new", "so"))
    assert generated._declared(tmp_path, FOUND, everything=True) == (FOUND[:1], ["mdp.f: gone"])
    assert generated._declared(tmp_path, FOUND, everything=False) == (FOUND[:1], [])
    path.write_text(row.format("if a > 1:", "if a >= 1:", ""))
    assert generated._declared(tmp_path, FOUND, everything=True) == ([], ["mdp.f: if a > 1:"])


def test_cases_are_named_so_that_mutmut_finds_them_again():
    # It collects in one process, again and again; pytest escapes the lines of such a name once more each time.
    tests = Path(__file__).parent.glob("**/*.py")
    assert not [path.name for path in tests if re.search(r"ids=(str|repr)\b", path.read_text())]
