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

from companion.claims import (
    KINDS,
    SLACK,
    Mutant,
    check_exact,
    check_statistical,
    check_symbolic,
    check_witness,
    ledger,
    mutants,
    registry,
    size_of_terms,
)
from companion.claims.evidence import CellCheck, cell_checks, test_checks
from companion.symbolic import R, T, V, Z, k, n, over_path, t

ROOT = Path(__file__).parents[1]
EPS = torch.finfo(torch.float64).eps
# The rows of claims.md, in the order of the book.
BOOK = (
    "K1 K2 K3 K4 K5 K6 P1 P2 P3 P4 P5 R1 R2 R3 R4 E1 E2 E3 E4 E5 E6 O1 O2 O3 O4 O5 O6 O7 O8 B1 B2 B3 "
    "L1 L2 L3 L4 L5 L6 L7 L8 X1 X2 X3 X4 N1 N2 N3 N4"
).split()
TELESCOPED = over_path(V[t + 1] - V[t])
test_checks.__test__ = False


def numbers(*values: float) -> torch.Tensor:
    """Return a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


# check_symbolic.


def test_a_true_equation_passes_and_prints_a_stable_line(capsys):
    check_symbolic("K3", TELESCOPED, V[T] - V[0], "values telescope", free={T})
    assert capsys.readouterr().out == "✓ K3 symbolic: values telescope (for every T)\n"


def test_free_symbols_are_printed_in_order_and_given_equations_are_used(capsys):
    check_symbolic("K1", TELESCOPED * n, n * (V[T] - V[0]), "n times", free=[n, T])
    left = Z * over_path(R[t])
    check_symbolic("K6", left, Z, "total is one", free={T}, given={over_path(R[t]): 1})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["✓ K1 symbolic: n times (for every T, n)", "✓ K6 symbolic: total is one (for every T)"]


def test_a_false_equation_fails_and_shows_what_is_left(capsys):
    with pytest.raises(AssertionError, match=r"K3 fails: wrong sign; left - right = .*V\[0\]"):
        check_symbolic("K3", TELESCOPED, V[T] + V[0], "wrong sign", free={T})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rest", [sympy.S.One, sympy.log(2), sympy.Rational(1, 10**20), -sympy.sqrt(2)])
def test_sides_that_differ_by_a_number_fail(rest):
    with pytest.raises(AssertionError, match="K3 fails: off by a number; left - right = "):
        check_symbolic("K3", TELESCOPED + rest, V[T] - V[0], "off by a number", free={T})


def test_a_sum_shifted_by_a_step_fails_and_a_sum_of_sums_is_refused():
    with pytest.raises(AssertionError, match="K3 fails: shifted"):
        check_symbolic("K3", Sum(R[t], (t, 1, T)), over_path(R[t]), "shifted", free={T})
    double = Sum(R[t] * V[k], (t, 0, T - 1), (k, 1, n))
    with pytest.raises(ValueError, match="is a sum of sums; expected one index"):
        check_symbolic("K3", double, over_path(R[t]) * Sum(V[k], (k, 1, n)), "of sums", free={T, n})


@pytest.mark.parametrize(
    ("claim", "left", "right", "free", "message"),
    [
        ("K3", TELESCOPED.subs(T, 2).doit(), V[2], {T}, "T does not"),
        ("K3", V[2] * Z, V[0] * Z, {T}, "T does not. Keep it symbolic"),
        ("K3", TELESCOPED, V[T] - V[0], set(), "nothing does not"),
        ("K9", TELESCOPED, V[T] - V[0], {T}, "'K9' is no claim; expected one of K1, K2"),
        ("X1", TELESCOPED, V[T] - V[0], {T}, "X1 has no symbolic evidence"),
    ],
)
def test_a_vacuous_or_unregistered_equation_is_refused(claim, left, right, free, message):
    with pytest.raises(ValueError, match=message):
        check_symbolic(claim, left, right, "something", free=free)


# check_exact.


def test_equal_tensors_pass_and_print_the_bound_not_the_digits(capsys):
    check_exact("K2", numbers(1, 2), numbers(1, 2), "one side and another", scale=1.0)
    check_exact("K2", numbers(3), numbers(3), "one value", scale=1000.0)
    # 32 eps = 7.1e-15, so 1e-14 holds; a thousand times that, 1e-11.
    assert capsys.readouterr().out.splitlines() == [
        "✓ K2 exact: one side and another (2 values within 1e-14)",
        "✓ K2 exact: one value (1 value within 1e-11)",
    ]


def test_large_counts_are_printed_with_separators(capsys):
    values = torch.ones(1234, dtype=torch.float64)
    check_exact("K2", values, values.clone(), "many", scale=1.0)
    assert "(1,234 values within" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_passes_up_to_the_tolerance_and_fails_just_beyond(dtype):
    eps, right = torch.finfo(dtype).eps, torch.ones(2, dtype=dtype)
    inside, outside = right.clone(), right.clone()
    inside[1] += SLACK * eps
    outside[1] += (SLACK + 1) * eps
    check_exact("K2", inside, right, "inside", scale=1.0)
    with pytest.raises(AssertionError, match="K2 fails: outside; the sides differ by up to .*, beyond the tolerance"):
        check_exact("K2", outside, right, "outside", scale=1.0)


def test_a_scale_for_each_entry_is_applied_entry_by_entry():
    left, right = numbers(1.0, 1000.0), numbers(1.0, 1000.0)
    left[1] += 100 * EPS * SLACK
    check_exact("K2", left, right, "large entry", scale=numbers(1.0, 1000.0))
    left[0] += 100 * EPS * SLACK
    with pytest.raises(AssertionError, match="small entry"):
        check_exact("K2", left, right, "small entry", scale=numbers(1.0, 1000.0))


def test_a_claim_that_something_vanishes_may_compare_with_zeros():
    check_exact("P1", numbers(EPS, 0), torch.zeros(2, dtype=torch.float64), "residuals", scale=1.0)
    with pytest.raises(AssertionError):
        check_exact("P1", numbers(1e-12, 0), torch.zeros(2, dtype=torch.float64), "residuals", scale=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_agree(bad):
    with pytest.raises(AssertionError):
        check_exact("K2", numbers(bad, 1), numbers(bad, 1), "not finite", scale=1.0)


SAME = numbers(1.0, 2.0)


@pytest.mark.parametrize(
    ("claim", "left", "right", "scale", "message"),
    [
        ("K2", SAME, SAME, 1.0, "both sides are one tensor"),
        ("K2", SAME, SAME.view(2), 1.0, "both sides are one tensor"),
        ("K2", numbers(), numbers(), 1.0, "not empty"),
        ("K2", numbers(1), numbers(1, 1), 1.0, "Nothing is broadcast"),
        ("K2", numbers(1), numbers(1).float(), 1.0, "equal shapes and dtypes"),
        ("K2", numbers(1), numbers(2), 1e15, "most values are below the tolerance"),
        ("K2", numbers(1e-15), numbers(2e-15), 1.0, "most values are below the tolerance"),
        ("K2", numbers(1, 0, 1e-15), numbers(1, 0, 1e-15), 1.0, "most values are below the tolerance"),
        ("K2", numbers(1, 2), numbers(1, 2), numbers(1), r"scale is \(1,\); expected one number, or \(2,\)"),
        ("K2", numbers(1, 2), numbers(1, 2), numbers(1, 1)[:, None], r"scale is \(2, 1\); expected one number"),
        ("K2", numbers(1), numbers(1), 0.0, "expected a positive number"),
        ("K2", numbers(1).half(), numbers(1).half(), 1.0, "torch.float16; expected float64 or float32"),
        ("K2", numbers(1).bfloat16(), numbers(1).bfloat16(), 1.0, "torch.bfloat16; expected float64 or float32"),
        ("K2", numbers(1).long(), numbers(1).long(), 1.0, "torch.int64; expected float64 or float32"),
        ("K9", numbers(1), numbers(1), 1.0, "'K9' is no claim"),
        ("L6", numbers(1), numbers(1), 1.0, "L6 has no exact evidence"),
    ],
)
def test_a_vacuous_or_unregistered_comparison_is_refused(claim, left, right, scale, message):
    with pytest.raises(ValueError, match=message):
        check_exact(claim, left, right, "something", scale=scale)


def test_half_of_the_values_may_be_below_the_tolerance():
    check_exact("K2", numbers(1, 0), numbers(1, 0), "half of them zero", scale=1.0)


def test_a_claim_that_something_vanishes_is_refused_a_tolerance_that_lets_anything_pass():
    with pytest.raises(ValueError, match="tolerance"):
        check_exact("P1", numbers(0.5), numbers(0.0), "far from zero", scale=1e15)


# check_statistical.


def test_a_statistical_check_prints_the_margin_and_no_digits_of_the_interval(capsys):
    check_statistical("X2", -0.0123, 0.0042, "difference", within=(-0.02, 0.02), seeds=5)
    check_statistical("X2", 0.31, 0.52, "distance", within=(0.2, math.inf), seeds=3)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "✓ X2 statistical: difference (5 seeds, interval above -0.02 and below 0.02)"
    assert second == "✓ X2 statistical: distance (3 seeds, interval above 0.2)"


@pytest.mark.parametrize("low, high", [(-0.021, 0.0), (0.0, 0.021), (-0.03, 0.03), (0.02, 0.02), (0.3, 0.4)])
def test_an_interval_that_leaves_the_margin_fails(low, high):
    """One end outside, both, on the very edge, or all of it."""
    with pytest.raises(AssertionError, match="X2 fails"):
        check_statistical("X2", low, high, "difference", within=(-0.02, 0.02), seeds=5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"claim": "K1"}, "no statistical evidence"),
        ({"claim": "Q9"}, "no claim"),
        ({"seeds": 1}, "two seeds"),
        ({"low": 0.1, "high": 0.0}, "interval"),
        ({"high": math.inf}, "interval"),
        ({"low": math.nan}, "interval"),
        ({"within": (-math.inf, math.inf)}, "margin"),
        ({"within": (0.1, -0.1)}, "margin"),
    ],
)
def test_a_statistical_check_that_could_not_fail_is_refused(changes, words):
    given = {"claim": "X2", "low": 0.0, "high": 0.01, "within": (-0.02, 0.02), "seeds": 5, "what": "x"} | changes
    with pytest.raises(ValueError, match=words):
        check_statistical(**given)


# check_witness and the size of terms.


def test_a_gap_above_the_threshold_passes_and_prints_the_threshold_alone(capsys):
    check_witness("R4", torch.tensor(0.25), "distance of the marginals", above=0.1)
    assert capsys.readouterr().out == "✓ R4 witness: distance of the marginals (more than 0.1)\n"


@pytest.mark.parametrize("gap", [0.1, 0.0999, -1.0, float("nan"), float("inf"), torch.tensor(float("inf"))])
def test_a_gap_that_is_infinite_or_not_above_the_threshold_fails(gap):
    with pytest.raises(AssertionError, match="R4 fails: distance is .*, not above 0.1"):
        check_witness("R4", gap, "distance", above=0.1)


@pytest.mark.parametrize(
    ("claim", "above", "message"),
    [
        ("R4", 9e-7, "expected at least 1e-6"),
        ("R4", -1.0, "expected at least 1e-6"),
        ("R4", float("nan"), "expected at least 1e-6"),
        ("R9", 0.1, "'R9' is no claim"),
        ("K1", 0.1, "K1 has no witness evidence"),
    ],
)
def test_a_threshold_that_rounding_could_pass_is_refused(claim, above, message):
    with pytest.raises(ValueError, match=message):
        check_witness(claim, 1.0, "distance", above=above)


def test_the_size_of_terms_is_as_by_hand():
    log_pi, log_ref = numbers(-1, 2)[None], numbers(3, -4)[None]
    # alpha = 2: 2 (5 + (1 + 2) + (3 + 4)) + |R| + 1, with R = (-6, 7) per step, or -6 in all.
    assert size_of_terms(log_pi, log_ref, numbers(-6, 7)[None], -5.0, alpha=2.0).tolist() == [44]
    assert size_of_terms(log_pi, log_ref, numbers(-6), numbers(-5), alpha=2.0).tolist() == [37]


# The registry.


def test_every_claim_of_the_book_is_registered_once():
    text = (ROOT / "src/companion/claims/registry.toml").read_text()
    headers = re.findall(r"^\[(\w+)\]$", text, flags=re.MULTILINE)
    assert sorted(headers) == sorted([*BOOK, "chapters"])
    assert ["chapters", *registry()] == headers
    assert all(claim.id == key for key, claim in registry().items())


@pytest.mark.parametrize("claim", BOOK)
def test_a_claim_has_a_statement_a_chapter_and_known_evidence_strongest_first(claim):
    row = registry()[claim]
    assert row.title.strip() and len(row.statement) > 20
    assert re.fullmatch(r"\d\d(-[a-z0-9]+)+", row.chapter)
    assert list(row.evidence) == [kind for kind in KINDS if kind in row.evidence] and row.evidence


def test_chapters_stand_in_the_order_of_the_book():
    chapters = [claim.chapter for claim in registry().values()]
    assert chapters == sorted(chapters)


def test_every_claim_of_a_written_chapter_registers_two_mutants_or_more():
    for claim in registry().values():
        if (ROOT / "notebooks" / f"{claim.chapter}.ipynb").exists():
            assert len(claim.mutants) >= 2, claim.id
            assert len({mutant.name for mutant in claim.mutants}) == len(claim.mutants), claim.id


MUTANTS = [
    pytest.param(mutant, id=f"{mutant.claim}-{mutant.name}".replace(" ", "-"))
    for claim in registry().values()
    for mutant in claim.mutants
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_changes_code_that_stands_once_and_still_compiles(mutant):
    source = (ROOT / "src/companion" / f"{mutant.module}.py").read_text()
    assert source.count(mutant.old) == 1
    changed = mutants.apply(mutant, source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    compile(changed, mutant.module, "exec")


@pytest.mark.parametrize(("source", "times"), [("a = 2\n", 0), ("a = 1\na = 1\n", 2)])
def test_a_mutant_whose_text_does_not_stand_once_is_refused(source, times):
    with pytest.raises(ValueError, match=f"stands {times} times in mdp.py; expected once"):
        mutants.apply(Mutant("K1", "any", "mdp", "a = 1", "a = 2"), source)


# Evidence, on a project of one notebook and one test.

MARKED = """
@pytest.mark.claim("K1", "K2")
@pytest.mark.parametrize("x", [1])
def test_two_claims(x):
    pass

@pytest.mark.claim("K1")
def test_one_claim():
    pass

def test_no_claim():
    pass

class TestInside:
    @pytest.mark.claim("K3")
    def test_in_a_class(self):
        pass
"""
LINES = {"symbolic": "✓ K1 symbolic: x (for every n)\n", "exact": "✓ K1 exact: x (2 values within 1e-12)\n"}


def checking_cell(kind: str, *, executed: bool = True) -> dict:
    """Return a cell that checks K1 by one kind of evidence, run or not."""
    outputs = [new_output("stream", name="stdout", text=LINES[kind])] if executed else []
    return new_code_cell(f'claims.check_{kind}("K1", left, right, "x")', outputs=outputs)


@pytest.fixture
def project(tmp_path):
    """Return the root of a project with chapter 2 as far as K1, its test, and the package's source."""
    for folder in ("notebooks", "tests", "results", "src"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "src/companion", tmp_path / "src/companion", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/test_chapter.py").write_text("import pytest\n" + MARKED)
    (tmp_path / "tests/helpers.py").write_text(MARKED)
    write_chapter(tmp_path, checking_cell("symbolic"), checking_cell("exact"))
    write_record(tmp_path, registry()["K1"].mutants)
    return tmp_path


def write_chapter(root: Path, symbolic: dict, exact: dict) -> None:
    """Write a notebook of chapter 2 with a cell of set-up, magic included, and two that check K1."""
    cells = [
        new_code_cell("try:\n    import companion\nexcept ModuleNotFoundError:\n    pass\n%pip list\n!ls"),
        new_markdown_cell("(check-k1-symbolic)=\nLook:"),
        symbolic,
        new_markdown_cell("No anchor here."),
        exact,
        new_code_cell('print(check_exact)\ncheck("K1")\ncheck_exact(name, 1)'),
    ]
    nbformat.write(new_notebook(cells=cells), root / "notebooks/02-kl-regularised-rl.ipynb")


def write_record(root: Path, killed) -> None:
    """Record these mutants of K1 as killed by a test and a cell, on the code as it stands."""
    finding = {"test": "tests/x", "cell": "notebooks/x"}
    record = {mutant.name: finding | {"digest": mutants.digest(root, mutant)} for mutant in killed}
    (root / mutants.RECORD).write_text(json.dumps({"K1": record}))


def test_checks_are_found_in_cells_with_their_anchor_and_whether_they_ran(project):
    write_chapter(project, checking_cell("symbolic"), checking_cell("exact", executed=False))
    assert cell_checks(project) == [
        CellCheck("K1", "symbolic", "02-kl-regularised-rl.ipynb", 1, "check-k1-symbolic", True),
        CellCheck("K1", "exact", "02-kl-regularised-rl.ipynb", 2, "check-k1-symbolic", False),
    ]


def test_magic_inside_a_block_does_not_hide_the_checks(project):
    setup = "try:\n    import companion\nexcept ModuleNotFoundError:  # on Colab\n    %pip install nothing"
    cells = [new_code_cell(setup), checking_cell("exact")]
    nbformat.write(new_notebook(cells=cells), project / "notebooks/02-kl-regularised-rl.ipynb")
    assert [(check.claim, check.cell) for check in cell_checks(project)] == [("K1", 1)]


def test_the_line_of_another_kind_does_not_count_as_run(project):
    cell = checking_cell("exact")
    cell.outputs[0]["text"] = LINES["symbolic"]
    write_chapter(project, checking_cell("symbolic"), cell)
    assert [check.executed for check in cell_checks(project)] == [True, False]


def test_tests_are_found_by_their_marker_in_test_files_alone(project):
    found = {(check.claim, check.test) for check in test_checks(project)}
    assert found == {
        ("K1", "test_chapter.py::test_two_claims"),
        ("K2", "test_chapter.py::test_two_claims"),
        ("K1", "test_chapter.py::test_one_claim"),
        ("K3", "test_chapter.py::test_in_a_class"),
    }


def test_two_checks_of_one_kind_in_a_cell_ran_only_where_both_lines_were_printed(project):
    twice, lines = checking_cell("exact"), LINES["exact"]
    twice.source += "\n" + twice.source
    write_chapter(project, checking_cell("symbolic"), twice)
    assert [check.executed for check in cell_checks(project)] == [True, False, False]
    twice.outputs = [new_output("stream", name="stdout", text=lines), new_output("stream", name="stdout", text=lines)]
    write_chapter(project, checking_cell("symbolic"), twice)
    assert [check.executed for check in cell_checks(project)] == [True, True, True]


@pytest.mark.parametrize(
    "idle",
    [
        "@pytest.mark.skip\ndef test_it():",
        "@pytest.mark.skip(reason='slow')\ndef test_it():",
        "@pytest.mark.skipif(True, reason='slow')\ndef test_it():",
        "@pytest.mark.xfail\ndef test_it():",
        "@pytest.mark.xfail(strict=True)\ndef test_it():",
        "def check_it():",
        "def helper_for_test_it():",
    ],
)
def test_a_test_that_is_skipped_or_meant_to_fail_or_never_run_is_no_evidence(project, idle):
    mark, body = "import pytest\n@pytest.mark.claim('K1')\n", "\n    pass\n"
    (project / "tests/test_chapter.py").write_text(mark + idle + body)
    assert test_checks(project) == []
    (project / "tests/test_chapter.py").write_text(mark + "def test_it():" + body)
    assert [check.test for check in test_checks(project)] == ["test_chapter.py::test_it"]


def test_no_notebooks_and_no_tests_are_no_evidence(tmp_path):
    assert cell_checks(tmp_path) == [] == test_checks(tmp_path)


# The ledger.


def status(root: Path, claim: str) -> str:
    """Return the status that the ledger gives a claim."""
    return ledger.status(root, registry()[claim], cell_checks(root), test_checks(root))


def test_a_claim_with_all_its_evidence_is_proved(project):
    assert status(project, "K1") == "proved"


def test_a_claim_of_an_unwritten_chapter_is_planned(project):
    assert status(project, "P1") == "planned"


def test_a_claim_without_evidence_lists_all_that_is_missing(project):
    assert status(project, "K5") == "missing: symbolic, exact, a test, mutants killed"


def test_a_check_that_did_not_run_is_missing(project):
    write_chapter(project, checking_cell("symbolic"), checking_cell("exact", executed=False))
    assert status(project, "K1") == "missing: exact"


def test_a_claim_without_a_test_says_so(project):
    (project / "tests/test_chapter.py").write_text("")
    # Without its tests a claim's mutants were killed on other checks: they have to be hunted anew.
    assert status(project, "K1") == "missing: a test, mutants killed"
    write_record(project, registry()["K1"].mutants)
    assert status(project, "K1") == "missing: a test"


def test_a_claim_without_any_mutant_is_not_proved(project):
    claim = dataclasses.replace(registry()["K1"], mutants=())
    assert ledger.status(project, claim, cell_checks(project), test_checks(project)) == "missing: mutants killed"


def test_a_mutant_not_killed_or_killed_on_other_code_is_missing(project):
    write_record(project, registry()["K1"].mutants[:1])
    assert status(project, "K1") == "missing: mutants killed"
    write_record(project, registry()["K1"].mutants)
    assert status(project, "K1") == "proved"
    module = project / "src/companion/mdp.py"
    module.write_text(module.read_text() + "\nNEW = 1\n")
    assert status(project, "K1") == "missing: mutants killed"
    (project / mutants.RECORD).unlink()
    assert status(project, "K1") == "missing: mutants killed"


def test_the_ledger_shows_every_claim_with_its_links_tests_and_mutants(project):
    exact = checking_cell("exact")
    write_chapter(project, checking_cell("symbolic"), exact)
    path = project / "notebooks/02-kl-regularised-rl.ipynb"
    path.write_text(path.read_text().replace("No anchor here.", "(check-k1-exact)=\\nHere."))
    page = ledger.render(project)
    for claim in BOOK:
        assert page.count(f"\n(ledger-{claim.lower()})=\n### {claim}: {registry()[claim].title}\n") == 1
        assert f"| [{claim}](#ledger-{claim.lower()}) |" in page
    assert "- symbolic: {ref}`symbolic check 1 <check-k1-symbolic>`\n" in page
    assert "- exact: {ref}`exact check 1 <check-k1-exact>`\n" in page
    assert "- tests: `test_chapter.py::test_two_claims`, `test_chapter.py::test_one_claim`" in page
    killed = ", ".join(mutant.name for mutant in registry()["K1"].mutants)
    assert f"- mutants killed, 2 of 2: {killed}" in page
    assert "- statement: {prf:ref}`K1`; status: **proved**; all checks: `make claim ID=K1`" in page
    assert "## Chapter 2: KL-regularised reinforcement learning\n\nSee {doc}`/notebooks/02-kl-regularised-rl`." in page
    assert "## Chapter 3: Path consistency\n\nPlanned." in page


def test_the_ledger_of_a_project_without_chapters_is_all_planned(tmp_path):
    page = ledger.render(tmp_path)
    assert page.count("| planned |") == len(BOOK)
    assert "proved |" not in page and "{doc}" not in page
    assert page == ledger.render(tmp_path)


# Mutants.

MUTANT = Mutant("K1", "any", "mdp", "a = 1", "a = 2")
CELL = "notebooks/02-kl-regularised-rl.ipynb::Cell "


def digest_of(root: Path, source: str, mutant: Mutant = MUTANT) -> str:
    """Return the digest of a mutant on a module with that source."""
    module = root / "src/companion/mdp.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(source)
    return mutants.digest(root, mutant)


def test_the_digest_ignores_comments_docstrings_and_blank_lines(tmp_path):
    plain = digest_of(tmp_path, "def f():\n    a = 1\n    return a\n")
    dressed = '"""A module."""\n# note\ndef f():\n    """A function.\n\n    At length.\n    """\n    a = 1  # one\n\n'
    assert digest_of(tmp_path, dressed + "    # and back\n    return a\n") == plain
    assert re.fullmatch("[0-9a-f]{16}", plain)


def test_the_digest_notices_layout_so_that_it_is_the_same_for_every_version_of_python(tmp_path):
    plain = digest_of(tmp_path, "def f():\n    a = 1\n    return a\n")
    assert digest_of(tmp_path, "def f():\n    a = 1\n    return (a)\n") != plain


def test_the_digest_notices_the_tests_of_the_claim_and_no_others(project):
    mutant, path = registry()["K1"].mutants[0], project / "tests/test_chapter.py"
    plain, text = mutants.digest(project, mutant), path.read_text()
    path.write_text(text.replace("def test_one_claim():\n    pass", "def test_one_claim():\n    assert 1"))
    assert mutants.digest(project, mutant) != plain
    path.write_text(text.replace('"x", [1]', '"x", [2]'))
    assert mutants.digest(project, mutant) != plain
    path.write_text(text.replace("def test_no_claim():\n    pass", "def test_no_claim():\n    assert 1") + "# note\n")
    assert mutants.digest(project, mutant) == plain


def test_the_digest_notices_the_cells_up_to_the_last_check_and_none_after(project):
    mutant, path = registry()["K1"].mutants[0], project / "notebooks/02-kl-regularised-rl.ipynb"
    plain, text = mutants.digest(project, mutant), path.read_text()
    for before in ("import companion", "%pip list", "claims.check_symbolic", "claims.check_exact"):
        assert text.count(before) == 1
        path.write_text(text.replace(before, before + " "))
        assert mutants.digest(project, mutant) != plain, before
    for after in ("print(check_exact)", "No anchor here.", "2 values within"):
        assert after in text
        path.write_text(text.replace(after, "# Another. " + after))
        assert mutants.digest(project, mutant) == plain, after


def test_the_digest_notices_code_and_the_mutant(tmp_path):
    source = "def f():\n    a = 1\n    return a\n"
    plain = digest_of(tmp_path, source)
    assert digest_of(tmp_path, source.replace("return a", "return -a")) != plain
    assert digest_of(tmp_path, source, Mutant("K1", "any", "mdp", "a = 1", "a = 3")) != plain
    assert digest_of(tmp_path, source, Mutant("K1", "any", "mdp", "a =", "b =")) != plain


def test_a_finding_is_fresh_while_the_code_stands_and_both_turned_red(tmp_path):
    digest = digest_of(tmp_path, "a = 1\n")
    full = {"test": "tests/x", "cell": "notebooks/x", "digest": digest}
    assert mutants.fresh(tmp_path, MUTANT, {"K1": {"any": full}})
    for part in ("test", "cell"):
        assert not mutants.fresh(tmp_path, MUTANT, {"K1": {"any": full | {part: None}}})
    assert not mutants.fresh(tmp_path, MUTANT, {})
    assert not mutants.fresh(tmp_path, MUTANT, {"K2": {"any": full}})
    assert not mutants.fresh(tmp_path, MUTANT, {"K1": {"other": full}})
    digest_of(tmp_path, "a = 1\nb = 2\n")
    assert not mutants.fresh(tmp_path, MUTANT, {"K1": {"any": full}})


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
    mutant = registry()["K1"].mutants[0]
    before = (project / "src/companion/mdp.py").read_text()

    def failures(root, claim, source):
        assert (root, claim) == (project, "K1")
        assert (source / "companion/mdp.py").read_text() == before.replace(mutant.old, mutant.new) != before
        return failed

    monkeypatch.setattr(mutants, "_failures", failures)
    finding = mutants.hunt(project, mutant)
    pick = {None: None} | dict(enumerate(failed))
    assert finding == {"test": pick[test], "cell": pick[cell], "digest": mutants.digest(project, mutant)}
    assert (project / "src/companion/mdp.py").read_text() == before


def test_a_real_run_names_the_tests_and_cells_of_the_claim_that_failed(project):
    for name in ("conftest.py", "nbval_sanitize.cfg"):
        shutil.copy(ROOT / "tests" / name, project / "tests" / name)
    marked = "import pytest\n@pytest.mark.claim('K1')\ndef test_red():\n    assert 0\n"
    body = marked + "def test_other():\n    assert 0\n"
    (project / "tests/test_chapter.py").write_text(body)
    (project / "pytest.ini").write_text("[pytest]\nmarkers = claim\n")
    first = new_code_cell("print(2)", outputs=[new_output("stream", name="stdout", text="2\n")])
    check, last = checking_cell("exact"), new_code_cell("1 / 0")
    check.source = f"if 0:\n    {check.source}\nprint('another line')"
    cells = [first, check, last]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), project / "notebooks/02-kl-regularised-rl.ipynb")
    failed = mutants._failures(project, "K1", project / "src")
    # The cell after the claim's last check is not run, nor the test of no claim.
    assert sorted(failed) == [
        "notebooks/02-kl-regularised-rl.ipynb::Cell 1",
        "tests/test_chapter.py::test_red",
    ]


def pytest_says(monkeypatch, code: int, stdout: str) -> None:
    """Let every run of the checks end with this exit code and this output."""
    done = subprocess.CompletedProcess([], code, stdout, "")
    monkeypatch.setattr(mutants.subprocess, "run", lambda *args, **options: done)


@pytest.mark.parametrize(
    ("code", "stdout", "failed"),
    [
        (0, "..\n2 passed, 7 deselected in 0.50s\n", []),
        (1, f"FAILED tests/x.py::test_y[a-1] - assert 0\nFAILED {CELL}12\n2 failed in 65.10s (0:01:05)\n", [0, 1]),
    ],
)
def test_a_run_with_a_closing_summary_gives_the_names_of_what_failed(monkeypatch, tmp_path, code, stdout, failed):
    pytest_says(monkeypatch, code, stdout)
    names = ["tests/x.py::test_y[a-1]", CELL + "12"]
    assert mutants._failures(tmp_path, "K1", tmp_path) == [names[i] for i in failed]


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        (1, "ERROR tests/x.py::test_y - fixture\nFAILED tests/x.py::test_z\n1 failed, 1 error in 0.50s\n"),
        (1, "ERROR tests/x.py\n1 passed, 1 error in 0.50s\n"),
        (0, ""),
        (1, "FAILED tests/x.py::test_y - assert 0\n"),
        (1, "Killed\n"),
        (2, "1 failed in 0.50s\n"),
        (5, "7 deselected in 0.50s\n"),
        (-9, "1 passed in 0.50s\n"),
    ],
)
def test_a_run_with_errors_or_without_a_closing_summary_is_no_finding(monkeypatch, tmp_path, code, stdout):
    pytest_says(monkeypatch, code, stdout)
    with pytest.raises(RuntimeError, match="pytest could not run the checks of K1"):
        mutants._failures(tmp_path, "K1", tmp_path)


def test_a_run_that_takes_too_long_is_no_finding(monkeypatch, tmp_path):
    monkeypatch.setattr(mutants, "TIMEOUT", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        mutants._failures(tmp_path, "K1", tmp_path)


# The command: chapter 2 is written, and the mutants of K1 were killed already.

CHAPTER_2 = [mutant for claim in ("K1", "K2", "K3", "K4", "K5", "K6") for mutant in registry()[claim].mutants]
REST = [mutant for mutant in CHAPTER_2 if mutant.claim != "K1"]


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
    total = len(CHAPTER_2)
    assert f"{total} of {total} mutants killed, {len(REST)} of them hunted now" in capsys.readouterr().out
    assert run() == 0 and hunted == REST
    module = project / "src/companion/mdp.py"
    module.write_text(module.read_text() + "\nNEW = 1\n")
    assert run() == 0 and hunted[len(REST) :] == [mutant for mutant in CHAPTER_2 if mutant.module == "mdp"]


def test_all_of_them_or_those_of_a_claim_are_hunted_on_demand(command):
    run, hunted, _ = command
    assert run("--all") == 0 and hunted == CHAPTER_2
    hunted.clear()
    assert run("K1") == 0 and hunted == list(registry()["K1"].mutants)


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
    assert [(claim, name) for claim in record for name in record[claim]] == [(m.claim, m.name) for m in CHAPTER_2]


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
