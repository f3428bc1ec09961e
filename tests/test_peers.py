"""The recordings of TRL and of verl, before anything is compared with them: what was recorded, and of what."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from tests.peers import shared
from tests.peers.compare import differences

PEERS = Path(__file__).parent / "peers"
PINNED = {"trl": "1.16.0", "verl": "0.9.1"}
FIXTURES = {peer: json.loads((PEERS / f"{peer}.json").read_text()) for peer in PINNED}
EPSILON, DUAL_CLIP, CAP = 0.2, 3.0, 10.0  # the defaults of both; verl's

each_peer = pytest.mark.parametrize("peer", PINNED)
each_batch = pytest.mark.parametrize("batch", shared.draws().values(), ids=shared.draws())


def tensors(batch: dict) -> tuple:
    """Return the log-probabilities of policy, behaviour and reference, and which tokens are real."""
    log_pi, log_old, log_ref = (torch.tensor(batch[name]).double() for name in ("log_pi", "log_old", "log_ref"))
    return log_pi, log_old, log_ref, torch.arange(log_pi.shape[1]) < torch.tensor(batch["lengths"])[:, None]


@each_peer
def test_the_fixture_is_of_the_pinned_version(peer):
    assert FIXTURES[peer]["versions"][peer] == PINNED[peer]
    pins = (PEERS / f"requirements_{peer}.txt").read_text().split()
    assert all(f"{name}=={pin}" in pins for name, pin in FIXTURES[peer]["versions"].items())


@each_peer
def test_the_fixture_is_of_the_shared_numbers(peer):
    assert {name: setting["inputs"] for name, setting in FIXTURES[peer]["settings"].items()} == shared.draws()


@each_batch
def test_the_numbers_are_log_probabilities_exact_in_single_precision(batch):
    for values in tensors(batch)[:3]:
        assert torch.equal(values.float().double(), values)
        assert torch.equal(values < 0, tensors(batch)[3])


@each_batch
def test_tokens_and_sequences_lie_on_both_sides_of_every_clip(batch):
    """So that no clip, cap or threshold can be left out, or stand on the wrong side, without a difference."""
    log_pi, log_old, log_ref, real = tensors(batch)
    reward, group_size = torch.tensor(batch["reward"]).double(), batch["group"].count(0)
    advantage = (reward.view(-1, group_size) - reward.view(-1, group_size).mean(1, keepdim=True)).flatten()
    up, down = (advantage > 0)[:, None] & real, (advantage < 0)[:, None] & real
    log_ratio = (log_pi - log_old) * real
    total, mean = log_ratio.sum(1, keepdim=True), log_ratio.sum(1, keepdim=True) / real.sum(1, keepdim=True)
    for found in (log_ratio, total, mean):
        clipped = (up & (found > math.log(1 + EPSILON))), (down & (found < math.log(1 - EPSILON)))
        assert clipped[0].any() and clipped[1].any()
        assert ((up | down) & ~clipped[0] & ~clipped[1]).any()
    assert (down & (log_ratio > math.log(DUAL_CLIP))).any()
    change = log_pi.exp() - log_old.exp()
    assert (up & (change > EPSILON)).any() and (down & (change < -EPSILON)).any()
    k3 = (log_ref - log_pi).expm1() - (log_ref - log_pi)
    assert (real & (k3 > CAP)).any() and (real & (k3 < CAP)).any()
    assert (advantage.view(-1, group_size) == 0).all(1).any() or group_size > 2


@each_peer
def test_every_gradient_is_of_the_real_tokens(peer):
    """Zero past a sequence's end, and not everywhere; where nothing is clipped, in DPO and A*-PO, nowhere else."""
    for setting in FIXTURES[peer]["settings"].values():
        real = tensors(setting["inputs"])[3]
        recorded = [case for case in setting["cases"] if "grad_log_pi" in case]
        assert len(recorded) > 50
        for case in recorded:
            gradient = torch.tensor(case["grad_log_pi"]).double()
            assert gradient.shape == real.shape and (gradient[~real] == 0).all() and (gradient != 0).any()
            if case.get("objective") in ("dpo", "a2po"):
                assert torch.equal(gradient != 0, real)


def test_the_run_refuses_a_peer_that_it_does_not_know():
    result = subprocess.run(["bash", PEERS / "run", "--write", "openrlhf"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: tests/peers/run")


@pytest.mark.parametrize(("loss", "named"), [(1e-17, False), (-2e-15, False), (1e-13, True)])
def test_the_comparison_weighs_what_is_left_of_terms_that_cancel_by_what_stands_beside_it(loss, named):
    case = {"advantages": [1.0, -1.0], "loss": 0.0}
    found = differences(case | {"loss": loss}, case, "/case")
    assert len(found) == named and all(line.startswith("/case/loss: ") for line in found)
