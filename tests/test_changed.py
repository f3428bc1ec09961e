"""Which tests a change asks for, on a made-up project and on the real one."""

from pathlib import Path

import pytest
from changed import ALWAYS, tests_to_run

ROOT = Path(__file__).parents[1]
tests_to_run.__test__ = False


@pytest.fixture
def project(tmp_path):
    """A project of three tests and a helper."""
    (tmp_path / "tests").mkdir()
    files = {
        "test_rtb.py": "from companion import rtb\n",
        "test_mdp.py": "from companion import mdp\nfrom inputs import x\n",
        "test_runs.py": "from companion.samplers.diffusion import Process\nimport experiments.common\n",
        "inputs.py": "from companion import targets\n",
        "test_toys.py": "from toys.coin import Coin\n",
        "test_bad_input.py": "",
    }
    for name, text in files.items():
        (tmp_path / "tests" / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("README.md", set()),
        ("src/companion/mdp.py", {"test_mdp.py"}),
        ("src/companion/targets.py", {"test_mdp.py"}),  # through the helper
        ("src/companion/samplers/diffusion.py", {"test_runs.py"}),
        ("src/companion/samplers/tape.py", set()),
        ("experiments/common.py", {"test_runs.py"}),
        ("tests/inputs.py", {"test_mdp.py"}),
        ("tests/test_runs.py", {"test_runs.py"}),
        ("notebooks/01-x.ipynb", set()),
        ("tests/toys/coin.py", {"test_toys.py"}),
        ("src/companion/validation.py", {"test_bad_input.py"}),
        ("tests/conftest.py", {"test_mdp.py", "test_runs.py", "test_toys.py", "test_bad_input.py"}),
    ],
)
def test_a_change_asks_for_the_tests_that_import_it_and_those_of_the_losses(project, file, expected):
    assert tests_to_run(project, [file]) == expected | {"test_rtb.py"}


def test_the_tests_that_always_run_are_there():
    assert tests_to_run(ROOT, []) == ALWAYS


def test_a_changed_package_asks_for_the_tests_of_what_is_in_it():
    assert "test_samplers.py" in tests_to_run(ROOT, ["src/companion/samplers/tabular.py"])
    assert "test_samplers.py" in tests_to_run(ROOT, ["src/companion/samplers/__init__.py"])
