"""The table of options in the chapter on other people's losses: what was recorded of the libraries."""

import json
from pathlib import Path

import pytest

from book import options
from companion.claims import notebook

ROOT = Path(__file__).resolve().parents[1]
ROWS, LIBRARIES = options.read(ROOT)
#: TRL's objectives, as its recording names them, by configuration class.
OBJECTIVES = {"GRPOConfig": "grpo", "RLOOConfig": "rloo", "DPOConfig": "dpo", "A2POConfig": "a2po"}
TRL = json.loads((ROOT / "tests/peers/trl.json").read_text())


def test_the_table_on_the_page_is_the_one_of_the_recorded_defaults():
    path = notebook(ROOT, options.CHAPTER)
    assert path is not None
    text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    assert options.table(ROOT) in text, "stale: run python -m book.options"


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_option_of_a_row_exists_and_differs_from_what_is_shipped(row):
    defaults = LIBRARIES[row["library"]]["defaults"]
    for of, chosen in row["set"].items():
        for name, value in chosen.items():
            assert name in defaults[of] and defaults[of][name] != value
    assert all(name in defaults[of] for of, names in row.get("shipped", {}).items() for name in names)


@pytest.mark.parametrize("row", [row for row in ROWS if row["library"] == "TRL"], ids=lambda row: row["loss"][:20])
def test_every_row_of_trl_was_recorded(row):
    """With those options, so that our loss was compared with it; the weight of the KL is a number there."""
    ((of, chosen),) = row["set"].items()

    def is_that(case: dict) -> bool:
        given = TRL["defaults"][of] | case["options"]
        wanted = TRL["defaults"][of] | chosen
        apart = {name for name in wanted if wanted[name] not in (given[name], [given[name]])}
        return case["objective"] == OBJECTIVES[of] and apart <= {"beta"}

    assert any(is_that(case) for setting in TRL["settings"].values() for case in setting["cases"])
