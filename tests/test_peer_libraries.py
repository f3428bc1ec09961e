"""Our losses of other people against the libraries that ship them: recordings of TRL's and verl's own code.

``tests/peers/run`` makes the recordings; here nothing of a library is installed.
"""

import json
from pathlib import Path

import pytest
import torch

from companion import family

PEERS = Path(__file__).parent / "peers"
TRL, VERL = (json.loads((PEERS / f"{name}.json").read_text()) for name in ("trl", "verl"))
#: TRL's names of the averages over tokens; with one micro-batch two of them are one.
NORMALISATIONS = {"grpo": "grpo", "dapo": "dapo", "bnpo": "dapo", "dr_grpo": "dr_grpo"}
PAIRWISE = ("sigmoid", "ipo")
#: The options of GRPO that :func:`companion.family.grpo_loss` has.
KNOWN = {"loss_type", "importance_sampling_level", "scale_rewards", "beta", "use_bias_correction_kl", "epsilon_high"}


class Inputs:
    """What a recording is of, as tensors in double precision."""

    def __init__(self, recording: dict, setting: str):
        given = recording["settings"][setting]["inputs"]
        names = ("reward", "log_pi", "log_old", "log_ref")
        self.reward, self.log_pi, self.log_old, self.log_ref = (
            torch.tensor(given[name], dtype=torch.float64) for name in names
        )
        self.batch = {"group": torch.tensor(given["group"]), "steps": torch.tensor(given["lengths"])}
        self.only = {"steps": self.batch["steps"]}

    def old(self, case: dict) -> torch.Tensor:
        """Who drew the paths."""
        return self.log_pi if case["samples_of"] == "log_pi" else self.log_old


def cases(recording: dict, wanted) -> list:
    """The cases that are wanted, with the setting that they are of."""
    return [
        pytest.param(setting, case, id=f"{setting}-{number}")
        for setting, found in recording["settings"].items()
        for number, case in enumerate(found["cases"])
        if wanted(case)
    ]


def assert_same(loss, log_pi: torch.Tensor, case: dict, *, tolerance: float = 1e-12) -> None:
    """The value and the gradient, relative to the larger of 1 and the largest entry."""
    x = log_pi.clone().requires_grad_()
    value = loss(x)
    (slope,) = torch.autograd.grad(value, x)
    expected = torch.tensor(case["grad_log_pi"], dtype=torch.float64)
    assert abs(value.item() - case["loss"]) <= tolerance * max(1.0, abs(case["loss"]))
    inside = expected != 0
    scale = max(1.0, float(expected.abs().max()))
    assert inside.any() and float((slope - expected)[inside].abs().max()) <= tolerance * scale


def of_grpo(case: dict) -> bool:
    return case.get("objective") == "grpo" and set(case["options"]) <= KNOWN and case_type(case) in NORMALISATIONS


def case_type(case: dict) -> str:
    return case["options"].get("loss_type", TRL["defaults"]["GRPOConfig"]["loss_type"])


@pytest.mark.claim("N1")
@pytest.mark.parametrize(("setting", "case"), cases(TRL, of_grpo))
def test_grpo_of_trl(setting, case):
    given, options = Inputs(TRL, setting), TRL["defaults"]["GRPOConfig"] | case["options"]
    longest = TRL["constants"]["max_completion_length"] if options["loss_type"] == "dr_grpo" else None
    high = options["epsilon"] if options["epsilon_high"] is None else options["epsilon_high"]
    arguments = {
        "log_ref": given.log_ref if options["beta"] else None,
        "kl_weight": options["beta"],
        "kl": "k3_ratio" if options["use_bias_correction_kl"] else "k3",
        "scale": options["scale_rewards"],
        "normalisation": NORMALISATIONS[options["loss_type"]],
        "per_sequence": options["importance_sampling_level"] == "sequence",
        "clip": (options["epsilon"], high),
        "longest": longest,
    }
    assert_same(
        lambda x: family.grpo_loss(x, given.old(case), given.reward, **arguments, **given.batch), given.log_pi, case
    )


@pytest.mark.claim("N1")
@pytest.mark.parametrize(
    ("setting", "case"),
    cases(TRL, lambda case: case.get("objective") == "rloo" and set(case["options"]) <= {"beta"}),
)
def test_rloo_of_trl(setting, case):
    given, options = Inputs(TRL, setting), TRL["defaults"]["RLOOConfig"] | case["options"]
    arguments = {"kl_weight": options["beta"], "clip": options["epsilon"]}
    old = given.old(case)
    assert_same(
        lambda x: family.rloo_loss(x, old, given.log_ref, given.reward, **arguments, **given.batch), given.log_pi, case
    )


@pytest.mark.claim("N3")
@pytest.mark.parametrize(
    ("setting", "case"),
    cases(
        TRL,
        lambda case: case.get("objective") == "dpo" and case["options"]["loss_type"] in PAIRWISE,
    ),
)
def test_dpo_and_ipo_of_trl(setting, case):
    given, options = Inputs(TRL, setting), TRL["defaults"]["DPOConfig"] | case["options"]
    pairs = torch.arange(len(given.log_pi)).reshape(-1, 2)
    if options["loss_type"] == "ipo":
        loss, more = family.ipo_loss, {"per_token": True}
    else:
        loss, more = family.dpo_loss, {}
    assert_same(
        lambda x: loss(x, given.log_ref, pairs, kl_weight=options["beta"], **more, **given.only), given.log_pi, case
    )


@pytest.mark.claim("N1")
@pytest.mark.parametrize(("setting", "case"), cases(TRL, lambda case: case.get("objective") == "a2po"))
def test_a_star_po_of_trl(setting, case):
    """V* as TRL rounds it to single precision."""
    given, options = Inputs(TRL, setting), TRL["defaults"]["A2POConfig"] | case["options"]
    value = torch.tensor(case["rounded_value"], dtype=torch.float64)
    fixed = (given.log_ref, given.reward, value)
    assert_same(
        lambda x: family.a_star_po_loss(x, *fixed, kl_weight=options["beta2"], **given.only), given.log_pi, case
    )


def of_dro(case: dict) -> bool:
    return case.get("policy_loss") == "dro" and case["aggregation"] == "token-mean"


@pytest.mark.claim("N1")
@pytest.mark.parametrize(("setting", "case"), cases(VERL, of_dro))
def test_dro_of_verl(setting, case):
    given, beta = Inputs(VERL, setting), case["options"]["policy_loss"]["dro_beta"]
    advantage = torch.tensor(case["advantages"], dtype=torch.float64)
    old = given.old(case)
    assert_same(
        lambda x: family.dro_per_token_loss(x, old, advantage, kl_weight=beta, **given.only), given.log_pi, case
    )


def test_the_cases_are_there():
    """So that no filter lets nothing through."""
    assert len(cases(TRL, of_grpo)) > 150
    for recording, key, counted in ((TRL, ("objective", "rloo"), 8), (TRL, ("objective", "a2po"), 4)):
        assert len(cases(recording, lambda case, key=key: case.get(key[0]) == key[1])) >= counted
    assert len(cases(VERL, of_dro)) == 4
