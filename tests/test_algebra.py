"""The generator of edits of the algebra, and the hunt with them, on chapters made up for it."""

import ast
import json

import pytest
from mutation import algebra
from mutation.edits import places, variants

FIRST = """\
import torch
from companion.claims import check_symbolic
from companion.symbolic import *
%matplotlib inline
shifts = torch.zeros(3)
total = alpha * (V[t] - V[t + 1])
"""
SECOND = """\
last = {V[t + 1]: beta}
check_symbolic("K3", total, (V[t] - beta) * alpha, "not an edit: 1 + 2", free={alpha}, given=last)
both = gamma * R[t]
check_symbolic("K3", both + total, (V[t] - beta) * alpha + both, "", free={alpha}, given=last)
"""


@pytest.fixture
def chapter(tmp_path):
    """A notebook of two cells. Its first check has two sides; in the second, `both` stands on either."""
    cells = [{"cell_type": "code", "source": text.splitlines(keepends=True)} for text in (FIRST, SECOND)]
    path = tmp_path / "03-made-up.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


def of(text):
    """What the edits make of a statement."""
    statement = ast.parse(text).body[0]
    return {ast.unparse(new) for place in places(statement, {"R", "V"}) for new in variants(place, {"R", "V"})}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R[t] + x", {"R[t] - x", "R[t]", "x", "R[t] + 2 * x", "2 * R[t] + x", "R[t + 1]", "R[t] ** 3"}),
        ("x - y", {"x + y", "x", "-y", "x - 2 * y", "2 * x - y"}),
        ("x * y / z", {"x * y * z", "x * y", "x / y", "x", "y"}),
        ("1 / y", {"1 * y", "1", "2"}),
        ("x**2", {"x ** 3", "x", "3"}),
        ("-x", {"x"}),
        ("V[0]", {"V[1]", "V[0] ** 3"}),
        ("V[t + 1]", {"V[t + 1] ** 3", "t - 1", "t", "1", "2"}),
        ("Sum(x, (t, 1, n))", {"Sum(2 * x, (t, 1, n))", "Sum(x, (t, 1, n + 1))", "2"}),
        ("over_path(x + y)", {"x - y", "x", "y", "x + 2 * y", "2 * x + y"}),
        ("{x: y, z: 0}", {"{x: y}", "{z: 0}", "1"}),
        ("f('1 + 2', g[0], f'{x + y}', free={x - y})", set()),  # text, a list's entry, what is said to be free
    ],
)
def test_an_expression_has_these_edits_and_no_others(text, expected):
    assert of(text) == expected


def test_the_way_to_the_checks_leaves_out_what_no_check_depends_on(chapter):
    way = algebra.way_to_the_checks(algebra.statements(chapter))
    texts = [ast.unparse(statement.node) for statement in way]
    assert not any("shifts" in text or text == "pass" for text in texts)
    assert [text.split(" = ")[0] for text in texts if " = " in text] == ["total", "last", "both"]


def test_a_function_comes_with_what_it_calls_and_an_assertion_only_if_it_is_about_symbols(tmp_path):
    text = "import torch\nimport sympy\nx = sympy.Symbol('x')\ny = torch.ones(1)\ndef f():\n    return g() + x\n"
    text += "def g():\n    return 1\nassert f() == x + 1\nassert y == 1\ncheck_symbolic('K3', f(), x, '', free={x})\n"
    path = tmp_path / "03-made-up.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [text]}]}))
    way = [ast.unparse(statement.node) for statement in algebra.way_to_the_checks(algebra.statements(path))]
    assert "x = sympy.Symbol('x')" in way and "assert f() == x + 1" in way
    assert sum(text.startswith("def ") for text in way) == 2
    assert not any("y" in text.split() for text in way)


def test_what_a_cell_writes_twice_is_edited_in_both_places_at_once(tmp_path):
    path = tmp_path / "03-made-up.ipynb"
    text = "a = 5 * (1 - x)\nb = 1 - x\ncheck_symbolic('K3', a, b, '', free={x})\n"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [text]}]}))
    way = algebra.way_to_the_checks(algebra.statements(path))
    both = [edit for edit in algebra.edits(way, set()) if edit.what == "1 - x -> 1 + x everywhere"]
    assert [[ast.unparse(node) for node in edit.changed.values()] for edit in both] == [
        ["a = 5 * (1 + x)", "b = 1 + x"]
    ]


# Python 3.12 and later warn of a fork beside threads; the workers of pytest have some, which the fork does not use.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_edit_is_killed_unless_both_sides_come_from_one_expression(chapter):
    way = algebra.way_to_the_checks(algebra.statements(chapter))
    todo, lived = algebra.hunt(way, workers=2)
    assert {edit.line for edit in lived} == {"both = gamma * R[t]"}
    survived = {edit.what for edit in lived}
    assert {"gamma * R[t] -> gamma / R[t]", "R[t] -> R[t] ** 3"} <= survived
    killed = {edit.what for edit in todo} - survived
    assert {"V[t] -> V[t + 1]", "t + 1 -> t - 1", "V[t] - beta -> V[t] + beta", "{V[t + 1]: beta} -> {}"} <= killed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chapter_that_is_red_without_an_edit_is_refused(chapter):
    chapter.write_text(chapter.read_text().replace("V[t] - beta", "V[t] + beta"))
    with pytest.raises(AssertionError, match="K3 fails"):
        algebra.hunt(algebra.way_to_the_checks(algebra.statements(chapter)), workers=1)


def test_a_survivor_must_be_declared_with_a_reason_and_a_declaration_must_find_one():
    lived = [algebra.Edit(0, "x = 1", "1 -> 2", {}), algebra.Edit(0, "y = 1", "1 -> 2", {})]
    entries = [{"line": "x = 1", "edit": "1 -> 2", "reason": "so"}, {"line": "z", "edit": "z", "reason": "so"}]
    assert algebra.undeclared(lived, entries) == (lived[1:], ["z: z"])
    assert algebra.undeclared(lived[:1], [entries[0] | {"reason": ""}]) == ([], ["x = 1: 1 -> 2"])
    assert algebra.undeclared(lived, []) == (lived, [])


def test_a_finding_is_as_old_as_the_algebra_and_what_is_declared(chapter):
    way, entries = algebra.way_to_the_checks(algebra.statements(chapter)), [{"line": "x", "edit": "y", "reason": "z"}]
    chapter.write_text(chapter.read_text().replace("torch.zeros(3)", "torch.ones(3)"))
    same = algebra.way_to_the_checks(algebra.statements(chapter))
    chapter.write_text(chapter.read_text().replace("gamma * R", "beta * R"))
    other = algebra.way_to_the_checks(algebra.statements(chapter))
    found = [algebra.digest(*inputs) for inputs in ((way, []), (same, []), (other, []), (way, entries))]
    assert found[0] == found[1] and len(set(found)) == 3
