"""The claims tooling: what each check accepts and refuses, registry, evidence found, ledger, mutants."""

import ast
import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import sympy
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sympy import Sum

from book import ledger
from book.evidence import CellCheck, cell_checks, test_checks
from companion import claims
from companion.claims import (
    KINDS,
    SLACK,
    chapter_titles,
    check_converged,
    check_exact,
    check_statistical,
    check_symbolic,
    check_witness,
    notebook,
    registry,
    size_of_terms,
    written,
)
from companion.symbolic import R, T, V, Z, k, n, over_path, t
from tests.mutation import deliberate as mutants
from tests.mutation.deliberate import Mutant, mutants_of

ROOT = Path(__file__).parents[1]
EPS = torch.finfo(torch.float64).eps
# The rows of claims.md, in the order of the chapters.
BOOK = (
    "K1 K2 K3 K4 K5 K6 P1 P2 P3 P4 P5 R1 R2 R3 R4 E1 E2 E3 E5 E6 E4 L3 L4 O1 O2 O3 O4 O5 O6 O7 O8 B2 "
    "L1 L2 L5 L6 L8 L9 X1 X2 L7 B1 B3 X3 X4 N1 N2 N3 F8 F1 F2 F3 F4 F6 F7 F9 F5 X5 X6 N4 X7 X8"
).split()
TELESCOPED = over_path(V[t + 1] - V[t])
test_checks.__test__ = False


def numbers(*values: float) -> torch.Tensor:
    """Return a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


# What the checks accept, what they print, and what fails them.


def test_a_check_that_passes_prints_a_line_that_is_the_same_on_every_machine(capsys):
    many, total = torch.ones(1234, dtype=torch.float64), over_path(R[t])
    check_symbolic("K3", TELESCOPED, V[T] - V[0], "values telescope", free={T})
    check_symbolic("K1", TELESCOPED * n, n * (V[T] - V[0]), "n times", free=[n, T])
    check_symbolic("K6", Z * total, Z, "total is one", free={T}, given={total: 1})
    # 32 eps = 7.1e-15, so 1e-14 holds; a thousand times that, 1e-11.
    check_exact("K2", numbers(1, 2), numbers(1, 2), "one side and another", scale=1.0)
    check_exact("K2", numbers(3), numbers(3), "one value", scale=1000.0)
    check_exact("K2", many, many.clone(), "many", scale=1.0)
    check_exact("K2", numbers(1, 0), numbers(1, 0), "half of them zero", scale=1.0)
    check_converged("X1", numbers(1, 2), numbers(1, 2 + 1e-9), "a descent", within=1e-8)
    check_statistical("X2", -0.0123, 0.0042, "difference", within=(-0.02, 0.02), seeds=5)
    check_statistical("X2", 0.31, 0.52, "distance", within=(0.2, math.inf), seeds=2)
    check_witness("R4", torch.tensor(0.25), "distance of the marginals", above=0.1)
    check_witness("R4", 1.0, "the least threshold", above=1e-6)
    assert capsys.readouterr().out.splitlines() == [
        "✓ K3 symbolic: values telescope (for every T)",
        "✓ K1 symbolic: n times (for every T, n)",
        "✓ K6 symbolic: total is one (for every T)",
        "✓ K2 exact: one side and another (2 values within 1e-14)",
        "✓ K2 exact: one value (1 value within 1e-11)",
        "✓ K2 exact: many (1,234 values within 1e-14)",
        "✓ K2 exact: half of them zero (2 values within 1e-14)",
        "✓ X1 converged: a descent (2 values within 1e-08)",
        "✓ X2 statistical: difference (5 seeds, interval above -0.02 and below 0.02)",
        "✓ X2 statistical: distance (2 seeds, interval above 0.2)",
        "✓ R4 witness: distance of the marginals (more than 0.1)",
        "✓ R4 witness: the least threshold (more than 1e-06)",
    ]


@pytest.mark.parametrize(
    ("left", "right", "rest"),
    [
        (TELESCOPED, V[T] + V[0], r".*V\[0\]"),
        (Sum(R[t], (t, 1, T)), over_path(R[t]), ""),
        *(
            (TELESCOPED + rest, V[T] - V[0], "")
            for rest in (1, sympy.log(2), sympy.Rational(1, 10**20), -sympy.sqrt(2))
        ),
    ],
)
def test_sides_that_differ_by_a_sign_a_step_or_a_number_fail_and_show_what_is_left(left, right, rest, capsys):
    with pytest.raises(AssertionError, match="K3 fails: wrong; left - right = " + rest):
        check_symbolic("K3", left, right, "wrong", free={T})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_passes_up_to_the_tolerance_and_fails_just_beyond(dtype):
    eps, right = torch.finfo(dtype).eps, torch.ones(2, dtype=dtype)
    check_exact("K2", right + numbers(0, SLACK * eps).to(dtype), right, "inside", scale=1.0)
    with pytest.raises(AssertionError, match=r"K2 fails: outside; the sides differ by up to \S+e-\d+, beyond"):
        check_exact("K2", right + numbers(0, (SLACK + 1) * eps).to(dtype), right, "outside", scale=1.0)


def test_a_scale_for_each_entry_is_applied_entry_by_entry():
    left, right = numbers(1.0, 1000.0), numbers(1.0, 1000.0)
    left[1] += 100 * EPS * SLACK
    check_exact("K2", left, right, "large entry", scale=numbers(1.0, 1000.0))
    left[0] += 100 * EPS * SLACK
    with pytest.raises(AssertionError, match="small entry"):
        check_exact("K2", left, right, "small entry", scale=numbers(1.0, 1000.0))


def test_a_claim_that_something_vanishes_may_compare_with_zeros():
    check_exact("P1", numbers(EPS, 0), numbers(0, 0), "residuals", scale=1.0)
    with pytest.raises(AssertionError):
        check_exact("P1", numbers(1e-12, 0), numbers(0, 0), "residuals", scale=1.0)


def test_where_a_descent_ends_may_differ_by_the_tolerance_and_no_more():
    check_converged("X1", numbers(1e-9), numbers(0), "distance", within=1e-9)
    for ended in (1.01e-9, -1.01e-9, math.nan, math.inf):
        with pytest.raises(AssertionError, match="X1 fails: distance; it ended .* away, more than 1e-09"):
            check_converged("X1", numbers(ended), numbers(0), "distance", within=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_never_agree(bad):
    with pytest.raises(AssertionError):
        check_exact("K2", numbers(bad, 1), numbers(bad, 1), "not finite", scale=1.0)


@pytest.mark.parametrize("low, high", [(-0.021, 0.0), (0.0, 0.021), (-0.03, 0.03), (-0.02, 0.0), (0.02, 0.02)])
def test_an_interval_that_leaves_the_margin_fails(low, high):
    """One end outside, both, or one on the very edge."""
    with pytest.raises(AssertionError, match="X2 fails"):
        check_statistical("X2", low, high, "difference", within=(-0.02, 0.02), seeds=5)


@pytest.mark.parametrize("gap", [0.1, 0.0999, -1.0, math.nan, math.inf, torch.tensor(math.inf)])
def test_a_gap_that_is_infinite_or_not_above_the_threshold_fails(gap):
    with pytest.raises(AssertionError, match="R4 fails: distance is .*, not above 0.1"):
        check_witness("R4", gap, "distance", above=0.1)


# What could not fail, or is not registered, is refused.


SAME = numbers(1.0, 2.0)
ALL = {"free": {T}}
ONE = {"scale": 1.0}
FIVE = {"within": (-0.02, 0.02), "seeds": 5}


@pytest.mark.parametrize(
    ("check", "given", "options", "message"),
    [
        (check_symbolic, ("K3", TELESCOPED.subs(T, 2).doit(), V[2]), ALL, "T does not"),
        (check_symbolic, ("K3", V[2] * Z, V[0] * Z), ALL, "T does not. Keep it symbolic"),
        (check_symbolic, ("K3", TELESCOPED, V[T] - V[0]), {"free": set()}, "nothing does not"),
        (check_symbolic, ("K3", Sum(R[t] * V[k], (t, 0, T), (k, 1, n)), Z), {"free": {T, n}}, "is a sum of sums"),
        (check_symbolic, ("K9", TELESCOPED, V[T] - V[0]), ALL, "'K9' is no claim; expected one of K1, K2"),
        (check_symbolic, ("X1", TELESCOPED, V[T] - V[0]), ALL, "X1 has no symbolic evidence"),
        (
            check_symbolic,
            ("K3", T * V[0], T**2 * V[0]),
            ALL | {"given": {T: 1}},
            "puts a value in for T, and T is said",
        ),
        (
            check_symbolic,
            ("K3", Z * T, T),
            ALL | {"given": {Z: 1, T * Z: T}},
            r"value in for T\*Z, and T is said to be",
        ),
        (check_symbolic, ("K3", n * T, T), {"free": {n, T}, "given": {n**2: 1}}, r"value in for n\*\*2, and n is said"),
        (check_symbolic, ("K3", TELESCOPED, over_path(V[t + 1] - V[t])), ALL, "both sides are Sum.*; expected two"),
        (check_exact, ("K2", SAME, SAME), ONE, "both sides are one tensor"),
        (check_exact, ("K2", SAME, SAME.view(2)), ONE, "both sides are one tensor"),
        (check_exact, ("K2", numbers(), numbers()), ONE, "not empty"),
        (check_exact, ("K2", numbers(1), numbers(1, 1)), ONE, "Nothing is broadcast"),
        (check_exact, ("K2", numbers(1), numbers(1).float()), ONE, "equal shapes and dtypes"),
        (
            check_exact,
            ("K2", numbers(1), numbers(1)),
            {"scale": 1.1e4},
            "scale is up to 1.1e.04 .* Use check_converged",
        ),
        (check_exact, ("P1", numbers(0), numbers(0)), {"scale": SAME[:1] * 1e5}, "Use check_converged for what an"),
        (check_converged, ("X1", SAME, SAME), {"within": 1e-9}, "both sides are one tensor"),
        (check_converged, ("X1", SAME, SAME.clone()), {"within": 0.0}, "0.0 is given; expected a positive number"),
        (check_converged, ("X1", SAME, SAME.clone()), {"within": math.nan}, "expected a positive number"),
        (check_converged, ("X1", SAME, -SAME), {"within": 2.0}, "most values are below the tolerance"),
        (check_converged, ("X1", SAME, 0 * SAME), {"within": 1e-6}, "the tolerance around zero is 1e-06"),
        (check_converged, ("X1", SAME, SAME[:1].clone()), {"within": 1e-9}, "Nothing is broadcast"),
        (check_converged, ("K1", SAME, SAME.clone()), {"within": 1e-9}, "K1 has no converged evidence"),
        (check_exact, ("K2", numbers(1), numbers(2)), {"scale": 1e15}, "most values are below the tolerance"),
        (check_exact, ("K2", numbers(1e-15), numbers(2e-15)), ONE, "most values are below the tolerance"),
        (check_exact, ("K2", numbers(1, 0, 1e-15), numbers(1, 0, 1e-15)), ONE, "most values are below the tolerance"),
        (
            check_exact,
            ("K2", SAME, SAME.clone()),
            {"scale": numbers(1)},
            r"scale is \(1,\); expected one number, or \(2,\)",
        ),
        (check_exact, ("K2", SAME, SAME.clone()), {"scale": SAME[:, None]}, r"scale is \(2, 1\); expected one number"),
        (check_exact, ("K2", numbers(1), numbers(1)), {"scale": 0.0}, "expected a positive number"),
        (check_exact, ("P1", numbers(0.5), numbers(0.0)), {"scale": 1e15}, "tolerance around zero"),
        (check_exact, ("K2", SAME.half(), SAME.half()), ONE, "torch.float16; expected float64 or float32"),
        (check_exact, ("K2", SAME.bfloat16(), SAME.bfloat16()), ONE, "torch.bfloat16; expected float64 or float32"),
        (check_exact, ("K2", SAME.long(), SAME.long()), ONE, "torch.int64; expected float64 or float32"),
        (check_exact, ("K9", numbers(1), numbers(1)), ONE, "'K9' is no claim"),
        (check_exact, ("L6", numbers(1), numbers(1)), ONE, "L6 has no exact evidence"),
        (check_statistical, ("K1", 0.0, 0.01), FIVE, "no statistical evidence"),
        (check_statistical, ("Q9", 0.0, 0.01), FIVE, "no claim"),
        (check_statistical, ("X2", 0.0, 0.01), FIVE | {"seeds": 1}, "two seeds"),
        (check_statistical, ("X2", 0.1, 0.0), FIVE, "interval"),
        (check_statistical, ("X2", 0.0, math.inf), FIVE, "interval"),
        (check_statistical, ("X2", -math.inf, 0.0), FIVE, "interval"),
        (check_statistical, ("X2", math.nan, 0.01), FIVE, "interval"),
        (check_statistical, ("X2", 0.0, 0.01), FIVE | {"within": (-math.inf, math.inf)}, "margin"),
        (check_statistical, ("X2", 0.0, 0.01), FIVE | {"within": (0.1, 0.1)}, "margin"),
        (check_witness, ("R4", 1.0), {"above": 9e-7}, "expected at least 1e-6"),
        (check_witness, ("R4", 1.0), {"above": -1.0}, "expected at least 1e-6"),
        (check_witness, ("R4", 1.0), {"above": math.nan}, "expected at least 1e-6"),
        (check_witness, ("R9", 1.0), {"above": 0.1}, "'R9' is no claim"),
        (check_witness, ("K1", 1.0), {"above": 0.1}, "K1 has no witness evidence"),
    ],
)
def test_a_check_that_could_not_fail_or_is_not_registered_is_refused(check, given, options, message):
    with pytest.raises(ValueError, match=message):
        check(*given, what="something", **options)


def test_the_size_of_terms_is_as_by_hand():
    log_pi, log_ref = numbers(-1, 2)[None], numbers(3, -4)[None]
    # alpha = 2: 2 (5 + (1 + 2) + (3 + 4)) + |R| + 1, with R = (-6, 7) per step, or -6 in all.
    assert size_of_terms(log_pi, log_ref, numbers(-6, 7)[None], -5.0, alpha=2.0).tolist() == [44]
    assert size_of_terms(log_pi, log_ref, numbers(-6), numbers(-5), alpha=2.0).tolist() == [37]
    assert size_of_terms(log_pi, log_ref, numbers(-6)).tolist() == [17]


# The registry.


def test_every_claim_of_the_book_is_registered_once_in_its_order():
    assert list(registry()) == BOOK == [claim.id for claim in registry().values()]
    chapters = list(dict.fromkeys(claim.chapter for claim in registry().values()))
    assert chapters == [chapter for chapter in chapter_titles() if chapter in chapters]


def test_a_claim_has_a_statement_a_chapter_and_known_evidence_strongest_first():
    for row in registry().values():
        assert row.title.strip() and len(row.statement) > 20
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", row.chapter) and chapter_titles()[row.chapter]
        assert list(row.evidence) == [kind for kind in KINDS if kind in row.evidence] and row.evidence


ROW = {"title": "A title", "statement": " $x$. ", "evidence": ["exact"]}
ERROR = {"name": "any", "module": "mdp", "old": "a", "new": "b"}


def test_claims_are_joined_by_chapter():
    made = claims._claims({"one": {"title": "One", "A1": ROW}, "two": {"title": "Two"}})
    assert made == {"A1": claims.Claim("A1", "A title", "$x$.", "one", ("exact",))}
    flags = claims._claims({"one": {"A1": ROW | {"planned": True, "missed": "half"}}})["A1"]
    assert flags.planned and flags.missed == "half"


@pytest.mark.parametrize(
    ("chapters", "message"),
    [
        ({"one": {"A1": ROW}, "two": {"A1": ROW}}, r"two has \['A1'\], as another chapter has"),
        ({"one": {"A1": ROW | {"evidence": []}}}, "expected one or more"),
        ({"one": {"A1": ROW | {"evidence": ["exact", "rumour"]}}}, r"A1 lists evidence \['rumour'\]"),
    ],
)
def test_a_registry_that_contradicts_itself_is_refused(chapters, message):
    with pytest.raises(ValueError, match=message):
        claims._claims(chapters)


def test_mutants_belong_to_claims_of_their_chapter():
    assert mutants._registered({"path-consistency": {"P1": [ERROR]}}) == {"P1": (Mutant("P1", **ERROR),)}
    for chapter, claim in (("path-consistency", "K1"), ("path-consistency", "A1"), ("no-chapter", "P1")):
        with pytest.raises(ValueError, match=rf"{chapter} has mutants of \['{claim}'\]; expected its own claims"):
            mutants._registered({chapter: {claim: [ERROR]}})


def test_a_chapter_has_one_notebook_whatever_its_number_or_none_yet(tmp_path):
    (tmp_path / "notebooks").mkdir()
    assert notebook(tmp_path, "path-consistency") is None
    for name in ("03-path-consistency", "04-more-path-consistency", "03-path-consistency-2"):
        (tmp_path / f"notebooks/{name}.ipynb").touch()
    found = notebook(tmp_path, "path-consistency")
    assert found.name == "03-path-consistency.ipynb" and claims.chapter_of(found) == "path-consistency"
    (tmp_path / "notebooks/77-path-consistency.ipynb").touch()
    with pytest.raises(ValueError, match=r"path-consistency has notebooks \['03-.*', '77-.*'\]; expected one"):
        notebook(tmp_path, "path-consistency")


def test_every_claim_of_a_written_chapter_registers_two_mutants_or_more():
    for claim in registry().values():
        if written(ROOT, claim):
            errors = mutants_of(claim.id)
            assert len(errors) >= 2, claim.id
            assert len({mutant.name for mutant in errors}) == len(errors), claim.id


MUTANTS = [
    pytest.param(mutant, id=f"{mutant.claim}-{mutant.name}".replace(" ", "-"))
    for claim in registry()
    for mutant in mutants_of(claim)
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_changes_code_that_stands_once_and_still_compiles(mutant):
    source = mutants._file(ROOT / "src", mutant.module).read_text()
    changed = mutants.apply(mutant, source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    compile(changed, mutant.module, "exec")


@pytest.mark.parametrize(("source", "times"), [("a = 2\n", 0), ("a = 1\na = 1\n", 2)])
def test_a_mutant_whose_text_does_not_stand_once_is_refused(source, times):
    with pytest.raises(ValueError, match=f"stands {times} times in mdp.py; expected once"):
        mutants.apply(Mutant("K1", "any", "mdp", "a = 1", "a = 2"), source)


# Evidence, on a project of one notebook and one test.

MARKED = """
import pytest
from helpers import oracle, spare

SIZE = 2

@pytest.fixture
def given():
    return SIZE

@pytest.mark.claim("K1", "K2")
@pytest.mark.parametrize("x", [1])
def test_two_claims(x, given):
    assert oracle(x)

@pytest.mark.claim("K1")
@pytest.mark.slow
def test_one_claim():
    pass

def test_no_claim():
    spare()

class TestInside:
    @pytest.mark.claim("K3")
    def test_in_a_class(self):
        pass
"""
PAGE, SOLVER, TESTS = "notebooks/02-kl-regularised-rl.ipynb", "src/companion/mdp.py", "tests/test_chapter.py"
LINES = {"symbolic": "✓ K1 symbolic: x (for every n)\n", "exact": "✓ K1 exact: x (2 values within 1e-12)\n"}


def checking_cell(kind: str, *, executed: bool = True) -> dict:
    """Return a cell that checks K1 by one kind of evidence, run or not."""
    outputs = [new_output("stream", name="stdout", text=LINES[kind])] if executed else []
    return new_code_cell(f'claims.check_{kind}("K1", left, right, "x")', outputs=outputs)


@pytest.fixture
def project(tmp_path):
    """Return the root of a project with the chapter of K1 as far as K1, its test, and the package's source."""
    for folder in ("notebooks", "tests", "results", "src"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "src/companion", tmp_path / "src/companion", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / TESTS).write_text(MARKED)
    (tmp_path / "tests/helpers.py").write_text(MARKED + "def oracle(x):\n    return 3\n\ndef spare():\n    return 4\n")
    write_chapter(tmp_path, checking_cell("symbolic"), checking_cell("exact"))
    write_record(tmp_path, mutants_of("K1"))
    return tmp_path


def change(root: Path, file: str, old: str, new: str) -> None:
    """Replace a text that stands once in a file of a project."""
    text = (root / file).read_text()
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new))


def write_chapter(root: Path, symbolic: dict, exact: dict) -> None:
    """Write a notebook of K1's chapter: a cell of set-up, magic included, two that check K1, and one that checks K2."""
    cells = [
        new_code_cell("try:\n    import companion\nexcept ModuleNotFoundError:\n    pass\n%pip list\n!ls"),
        new_markdown_cell("(check-k1-symbolic)=\nLook:"),
        symbolic,
        new_markdown_cell("No anchor here."),
        exact,
        new_code_cell('print(check_exact)\ncheck("K1")\ncheck_exact(name, 1)\ncheck_exact("K2", 1)'),
    ]
    cells[-1].outputs = [new_output("display_data", {"text/plain": "1"})]
    nbformat.write(new_notebook(cells=cells), root / PAGE)


def write_record(root: Path, killed) -> None:
    """Record these mutants of K1 as killed by a test and a cell, on the code as it stands."""
    finding = {"test": "tests/x", "cell": "notebooks/x"}
    record = {mutant.name: finding | {"digest": mutants.digest(root, mutant)} for mutant in killed}
    (root / mutants.RECORD).write_text(json.dumps({"K1": record}))


def ran(root: Path) -> list[bool]:
    """Return of every check of K1 whether it ran."""
    return [check.executed for check in cell_checks(root) if check.claim == "K1"]


def test_checks_are_found_in_cells_with_their_anchor_and_whether_they_ran(project):
    write_chapter(project, checking_cell("symbolic"), checking_cell("exact", executed=False))
    assert cell_checks(project) == [
        CellCheck("K1", "symbolic", "02-kl-regularised-rl.ipynb", 1, "check-k1-symbolic", True),
        CellCheck("K1", "exact", "02-kl-regularised-rl.ipynb", 2, "check-k1-symbolic", False),
        CellCheck("K2", "exact", "02-kl-regularised-rl.ipynb", 3, None, False),
    ]


def test_magic_inside_a_block_does_not_hide_the_checks(project):
    setup = "try:\n    import companion\nexcept ModuleNotFoundError:  # on Colab\n    %pip install nothing"
    cells = [new_code_cell(setup), checking_cell("exact")]
    nbformat.write(new_notebook(cells=cells), project / PAGE)
    assert [(check.claim, check.cell) for check in cell_checks(project)] == [("K1", 1)]


def test_tests_are_found_by_their_marker_in_test_files_alone(project):
    found = {(check.claim, check.test) for check in test_checks(project)}
    assert found == {
        ("K1", "test_chapter.py::test_two_claims"),
        ("K2", "test_chapter.py::test_two_claims"),
        ("K1", "test_chapter.py::test_one_claim"),
        ("K3", "test_chapter.py::test_in_a_class"),
    }


def test_a_check_ran_only_where_a_line_of_its_kind_was_printed_for_each_call(project):
    cell = checking_cell("exact")
    cell.source += "\n" + cell.source
    for printed, expected in ((["symbolic"] * 2, False), (["exact"], False), (["exact", "exact"], True)):
        cell.outputs = [new_output("stream", name="stdout", text=LINES[kind]) for kind in printed]
        write_chapter(project, checking_cell("symbolic"), cell)
        assert ran(project) == [True, expected, expected]


@pytest.mark.parametrize(
    "idle",
    [
        *(
            f"@pytest.mark.{mark}\ndef test_it():"
            for mark in ("skip", "skip(reason='slow')", "skipif(True, reason='')")
        ),
        *(f"@pytest.mark.{mark}\ndef test_it():" for mark in ("xfail", "xfail(strict=True)")),
        *("def check_it():", "def helper_for_test_it():"),
    ],
)
def test_a_test_that_is_skipped_or_meant_to_fail_or_never_run_is_no_evidence(project, idle):
    mark, body = "import pytest\n@pytest.mark.claim('K1')\n", "\n    pass\n"
    (project / TESTS).write_text(mark + idle + body)
    assert test_checks(project) == []
    (project / TESTS).write_text(mark + "def test_it():" + body)
    assert [check.test for check in test_checks(project)] == ["test_chapter.py::test_it"]


# The ledger.


def status(root: Path, claim: str) -> str:
    """Return the status that the ledger gives a claim."""
    return ledger.status(root, registry()[claim], ledger.gather(root))


def test_a_claim_is_planned_or_proved_or_lists_all_that_is_missing(project):
    assert [status(project, claim) for claim in ("P1", "K1")] == ["planned", "proved, checked exactly"]
    assert status(project, "K5") == "missing: symbolic, exact, a test, mutants killed"
    write_chapter(project, checking_cell("symbolic"), checking_cell("exact", executed=False))
    assert status(project, "K1") == "missing: exact"


def test_what_was_missed_is_said_and_every_kind_of_evidence_has_its_word(project):
    claim, found = dataclasses.replace(registry()["K1"], missed="one weight"), ledger.gather(project)
    assert ledger.status(project, claim, found) == "proved, checked exactly; missed in part: one weight"
    assert list(ledger._WORDS) == list(KINDS) and len(set(ledger._WORDS.values())) == len(KINDS)


def test_a_claim_without_a_test_says_so(project):
    (project / TESTS).write_text("")
    # Without its tests a claim's mutants were killed on other checks: they have to be hunted anew.
    assert status(project, "K1") == "missing: a test, mutants killed"
    write_record(project, mutants_of("K1"))
    assert status(project, "K1") == "missing: a test"


def test_a_claim_without_any_mutant_is_not_proved(project, monkeypatch):
    monkeypatch.setattr(ledger, "mutants_of", lambda claim: ())
    assert status(project, "K1") == "missing: mutants killed"


def test_a_mutant_not_killed_or_killed_on_other_code_is_missing(project):
    write_record(project, mutants_of("K1")[:1])
    assert status(project, "K1") == "missing: mutants killed"
    write_record(project, mutants_of("K1"))
    assert status(project, "K1") == "proved, checked exactly"
    (project / mutants.RECORD).unlink()
    assert status(project, "K1") == "missing: mutants killed"


def test_the_ledger_shows_every_claim_with_its_links_tests_and_mutants(project):
    change(project, PAGE, "No anchor here.", "(check-k1-exact)=\\nHere.")
    page = ledger.render(project)
    entry = page.partition("(ledger-k1)=")[2].partition("(ledger-k2)=")[0]
    for claim in BOOK:
        assert page.count(f"\n(ledger-{claim.lower()})=\n### {claim}: {registry()[claim].title}\n") == 1
        assert f"| [{claim}](#ledger-{claim.lower()}) |" in page
    assert "- symbolic: {ref}`symbolic check 1 <check-k1-symbolic>`\n" in entry
    assert "- exact: {ref}`exact check 1 <check-k1-exact>`\n" in entry
    assert "- tests: `test_chapter.py::test_two_claims`, `test_chapter.py::test_one_claim`" in entry
    killed = ", ".join(mutant.name for mutant in mutants_of("K1"))
    assert f"- mutants killed, 2 of 2: {killed}" in entry
    assert "- statement: {prf:ref}`K1`; status: **proved, checked exactly**; all checks: `make claim ID=K1`" in entry
    assert "\n## KL-regularised reinforcement learning\n\nSee {doc}`/notebooks/02-kl-regularised-rl`." in page
    assert "\n## Path consistency\n\nPlanned." in page
    assert "| Starting from noise | exact, statistical | – | planned |" in page
    assert "### X8: Digits\n\nTo be shown: On digits" in page and "- Evidence to come: exact, statistical\n" in page


def test_the_ledger_of_a_project_without_chapters_is_all_planned(tmp_path):
    assert cell_checks(tmp_path) == [] == test_checks(tmp_path)
    page = ledger.render(tmp_path)
    assert page.count("| planned |") == len(BOOK)
    assert "proved, checked exactly |" not in page and "{doc}" not in page
    assert page == ledger.render(tmp_path)


def test_the_ledger_shows_the_figures_of_the_errors_made_by_rule_once_they_are_there(tmp_path):
    assert "| `make mutants-algebra` | – | – | – | not yet |" in ledger.render(tmp_path)
    (tmp_path / "results").mkdir()
    row = {"date": "2026-05-04T03:02:01+00:00", "commit": "0123456789abcdef", "killed": 1950, "declared": 7}
    for name, count in (("generated", "mutants"), ("algebra", "edits")):
        (tmp_path / f"results/{name}.json").write_text(json.dumps(row | {count: 2000}))
        line = f"| `make mutants-{name}` | 2,000 | 1,950 (97.5%) | 7 | 2026-05-04, at 0123456789 |"
        assert line in ledger.render(tmp_path)
    (tmp_path / "results/algebra.json").write_text(json.dumps(row | {"edits": 2000, "commit": None}))
    assert "2026-05-04, at no commit |" in ledger.render(tmp_path)


# Mutants.


@pytest.mark.parametrize(
    ("file", "old", "new", "noticed"),
    [
        (SOLVER, "backed_up = log_pi[edges].exp()", "backed_up = 1 + log_pi[edges].exp()", True),
        (SOLVER, "import torch\n", "import torch\n\ndef unrelated():\n    pass\n\n", False),
        (TESTS, "def test_one_claim():\n    pass", "def test_one_claim():\n    assert 1", True),
        (TESTS, '"x", [1]', '"x", [2]', True),
        (TESTS, "SIZE = 2", "SIZE = 3", True),
        (TESTS, "return SIZE", "return -SIZE", True),
        (TESTS, "def test_no_claim():\n    spare()", "# Note.\ndef test_no_claim():\n    assert 1", False),
        ("tests/helpers.py", "return 3", "return 5", True),
        ("tests/helpers.py", "return 4", "return 5", False),
        (PAGE, "import companion", "import companion ", True),
        (PAGE, "%pip list", "%pip list ", True),
        (PAGE, "claims.check_symbolic", "claims.check_symbolic ", True),
        (PAGE, "claims.check_exact", "claims.check_exact ", True),
        (PAGE, "print(check_exact)", "# Another. print(check_exact)", False),
        (PAGE, "No anchor here.", "# Another. No anchor here.", False),
        (PAGE, "2 values within", "# Another. 2 values within", False),
    ],
)
def test_the_digest_notices_the_code_the_tests_and_the_cells_with_what_they_use_and_nothing_else(
    project, file, old, new, noticed
):
    mutant = mutants_of("K1")[0]
    plain = mutants.digest(project, mutant)
    change(project, file, old, new)
    assert (mutants.digest(project, mutant) != plain) == noticed
    assert re.fullmatch("[0-9a-f]{16}", plain)


def test_the_digest_notices_the_mutant_itself_and_that_its_text_or_its_module_is_gone(project):
    mutant = mutants_of("K1")[0]
    others = [dataclasses.replace(mutant, **new) for new in ({"new": "0"}, {"old": mutant.old[1:]}, {"module": "gone"})]
    digests = {mutants.digest(project, made) for made in (mutant, *others)}
    plain = mutants.digest(project, mutant)
    change(project, SOLVER, mutant.old, "- 0")
    assert len(digests) == 4 and mutants.digest(project, mutant) != plain


@pytest.mark.parametrize(("old", "held"), [("B =", "B"), ("2\nC", "BC"), ("2\nC = x + 3\nD", "BCD")])
def test_the_digest_notices_the_statements_in_which_the_text_stands_and_not_their_neighbours(project, old, held):
    text, module = "A = x + 1\nB = x + 2\nC = x + 3\nD = x + 4\n", project / "src/companion/small.py"
    digests = []
    for name in "?ABCD":
        module.write_text(text.replace(f"{name} = x", f"{name} = y"))
        digests.append(mutants.digest(project, Mutant("K1", "any", "small", old, "0")))
    assert "".join(name for name, digest in zip("?ABCD", digests, strict=True) if digest != digests[0]) == held


def test_a_finding_is_fresh_while_the_code_stands_and_both_turned_red(project):
    mutant = mutants_of("K1")[0]
    full = {"test": "tests/x", "cell": "notebooks/x", "digest": mutants.digest(project, mutant)}
    assert mutants.fresh(project, mutant, {"K1": {mutant.name: full}})
    for spoilt in ({"test": None}, {"cell": None}, {"digest": "0"}):
        assert not mutants.fresh(project, mutant, {"K1": {mutant.name: full | spoilt}})
    for record in ({}, {"K2": {mutant.name: full}}, {"K1": {"other": full}}):
        assert not mutants.fresh(project, mutant, record)


CELL = f"{PAGE}::Cell "


@pytest.mark.parametrize(
    ("failed", "test", "cell"),
    [
        (["tests/test_x.py::test_y", "tests/test_z.py::test_w", CELL + "2"], 0, 2),
        ([CELL + "1", CELL + "2"], None, 0),
        (["tests/test_x.py::test_y"], 0, None),
        ([], None, None),
        # Cells 0 and 3 check nothing: that the source they show is another kills no mutant, nor does another chapter.
        ([CELL + "0", CELL + "3", "notebooks/03-path-consistency.ipynb::Cell 1"], None, None),
        (["tests/test_x.py::test_y", CELL + "0", CELL + "1"], 0, 2),
    ],
)
def test_a_hunt_runs_on_a_mutated_copy_and_names_the_first_test_and_checking_cell(
    project, monkeypatch, failed, test, cell
):
    mutant = mutants_of("K1")[0]
    before = (project / SOLVER).read_text()

    def failures(root, claim, source):
        assert (root, claim) == (project, "K1")
        assert (source / "companion/mdp.py").read_text() == before.replace(mutant.old, mutant.new) != before
        return failed

    monkeypatch.setattr(mutants, "_failures", failures)
    finding = mutants.hunt(project, mutant)
    pick = {None: None} | dict(enumerate(failed))
    assert finding == {"test": pick[test], "cell": pick[cell], "digest": mutants.digest(project, mutant)}
    assert (project / SOLVER).read_text() == before


def test_a_real_run_names_the_tests_and_cells_of_the_claim_that_failed(project):
    for name in ("changed.py", "conftest.py", "nbval_sanitize.cfg"):
        shutil.copy(ROOT / "tests" / name, project / "tests" / name)
    marked = "import pytest\n@pytest.mark.claim('K1')\ndef test_red():\n    assert 0\n"
    body = marked + "def test_other():\n    assert 0\n"
    (project / TESTS).write_text(body)
    (project / "pytest.ini").write_text(f"[pytest]\nmarkers = claim\npythonpath = {ROOT}\n")
    first = new_code_cell("print(2)", outputs=[new_output("stream", name="stdout", text="2\n")])
    check, last = checking_cell("exact"), new_code_cell("1 / 0")
    check.source = f"if 0:\n    {check.source}\nprint('another line')"
    cells = [first, check, last]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), project / PAGE)
    failed = mutants._failures(project, "K1", project / "src")
    # The cell after the claim's last check is not run, nor the test of no claim.
    assert sorted(failed) == [CELL + "1", f"{TESTS}::test_red"]


@pytest.mark.parametrize(
    ("code", "stdout", "failed"),
    [
        (0, "..\n2 passed, 7 deselected in 0.50s\n", []),
        (
            1,
            f"FAILED tests/x.py::test_y[a-1] - assert 0\nFAILED {CELL}12\n2 failed in 65.10s (0:01:05)\n",
            ["tests/x.py::test_y[a-1]", CELL + "12"],
        ),
        # With errors, without a closing summary, or ended in another way: no finding.
        (1, "ERROR tests/x.py::test_y - fixture\nFAILED tests/x.py::test_z\n1 failed, 1 error in 0.50s\n", None),
        (1, "ERROR tests/x.py\n1 passed, 1 error in 0.50s\n", None),
        (0, "", None),
        (1, "FAILED tests/x.py::test_y - assert 0\n", None),
        (1, "Killed\n", None),
        (2, "1 failed in 0.50s\n", None),
        (5, "7 deselected in 0.50s\n", None),
        (-9, "1 passed in 0.50s\n", None),
    ],
)
def test_a_run_gives_the_names_of_what_failed_or_is_no_finding(monkeypatch, tmp_path, code, stdout, failed):
    done = subprocess.CompletedProcess([], code, stdout, "")
    monkeypatch.setattr(mutants.subprocess, "run", lambda *args, **options: done)
    if failed is None:
        with pytest.raises(RuntimeError, match="pytest could not run the checks of K1"):
            mutants._failures(tmp_path, "K1", tmp_path)
    else:
        assert mutants._failures(tmp_path, "K1", tmp_path) == failed


def test_a_run_that_takes_too_long_is_no_finding(monkeypatch, tmp_path):
    monkeypatch.setattr(mutants, "TIMEOUT", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        mutants._failures(tmp_path, "K1", tmp_path)


# The command: the chapter of K1 to K6 is written, and the mutants of K1 were killed already.

CHAPTER = [mutant for claim in ("K1", "K2", "K3", "K4", "K5", "K6") for mutant in mutants_of(claim)]
REST = [mutant for mutant in CHAPTER if mutant.claim != "K1"]


@pytest.fixture
def command(project, monkeypatch):
    """Return the command as a function of its arguments, what it hunted, and what each hunt finds."""
    hunted, found = [], {"test": "tests/x", "cell": "notebooks/x"}

    def hunt(root, mutant):
        hunted.append(mutant)
        return {"digest": mutants.digest(root, mutant)} | found

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mutants", "--workers", "1", *arguments])
        return mutants.main()

    monkeypatch.chdir(project)
    monkeypatch.setattr(mutants, "hunt", hunt)
    monkeypatch.setattr(mutants, "_failures", lambda root, claim, source: [])
    return run, hunted, found


def test_only_mutants_whose_findings_are_out_of_date_are_hunted(command, project, capsys):
    run, hunted, _ = command
    assert run() == 0 and hunted == REST
    total = len(CHAPTER)
    assert f"{total} of {total} mutants killed, {len(REST)} of them hunted now" in capsys.readouterr().out
    assert run() == 0 and hunted == REST
    change(project, SOLVER, "import torch\n", "import torch\n\ndef unrelated():\n    pass\n\n")
    assert run() == 0 and hunted == REST
    change(project, "src/companion/trust_pcl.py", "gains = rewards - (", "gains = rewards + (")
    assert run() == 0 and hunted[len(REST) :] == [mutant for mutant in CHAPTER if mutant.module == "trust_pcl"]


def test_all_of_them_or_those_of_a_claim_are_hunted_on_demand(command):
    run, hunted, _ = command
    assert run("--all") == 0 and hunted == CHAPTER
    hunted.clear()
    assert run("K1") == 0 and hunted == list(mutants_of("K1"))


@pytest.mark.parametrize("missing", ["test", "cell"])
def test_a_mutant_that_no_test_or_no_cell_notices_fails_the_command(command, missing, capsys):
    run, _, found = command
    found[missing] = None
    assert run() == 1
    assert capsys.readouterr().out.count("SURVIVED") == len(REST)


@pytest.mark.parametrize("claim", ["K9", "P1", "k1"])
def test_a_claim_that_is_unknown_or_not_yet_written_is_not_hunted(command, claim):
    run, hunted, _ = command
    with pytest.raises(SystemExit, match=f"{claim}: no claim of a chapter that is written; expected some of K1, K2"):
        run("K1", claim)
    assert hunted == []


def test_findings_are_saved_one_at_a_time(command, project, monkeypatch):
    run, hunted, found = command

    def second_fails(root, mutant):
        if hunted:
            raise RuntimeError("stuck")
        hunted.append(mutant)
        return {"digest": mutants.digest(root, mutant)} | found

    monkeypatch.setattr(mutants, "hunt", second_fails)
    with pytest.raises(RuntimeError, match="stuck"):
        run()
    first, record = REST[0], mutants.read_record(project)
    assert set(record) == {"K1", first.claim} and len(record["K1"]) == 2
    assert mutants.fresh(project, first, record)
    assert [path.name for path in (project / "results").iterdir()] == ["mutants.json"]


def test_findings_of_mutants_that_are_no_more_are_dropped(command, project):
    run, _, found = command
    stale = {"K1": {"a mutant of old": found}, "A9": {"of a claim of old": found}}
    (project / mutants.RECORD).write_text(json.dumps(stale))
    assert run() == 0
    record = mutants.read_record(project)
    assert [(claim, name) for claim in record for name in record[claim]] == [(m.claim, m.name) for m in CHAPTER]


def test_nothing_is_hunted_while_a_claim_is_red_without_any_mutant(command, monkeypatch, project):
    run, hunted, _ = command
    asked = []

    def failures(root, claim, source):
        asked.append((root, claim, source))
        return ["tests/x.py::test_y"] if claim == "K5" else []

    monkeypatch.setattr(mutants, "_failures", failures)
    with pytest.raises(SystemExit, match=r"K5 is red without any mutant \(tests/x.py::test_y\): mend that first"):
        mutants._require_green(project, "K5")
    assert asked == [(project, "K5", project / "src")]  # the package as it is
    with pytest.raises(SystemExit, match="K5 is red"):
        run()
    assert hunted == []
