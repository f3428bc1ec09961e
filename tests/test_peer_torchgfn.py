"""Conformance with torchgfn 2.4.1: its losses, recorded by tests/peers/run, against ours on the same paths.

Each conversion between the two conventions stands in one line, under a comment that names torchgfn's.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion import rtb, trust_pcl

PEERS = Path(__file__).parent / "peers"
FIXTURE = json.loads((PEERS / "torchgfn.json").read_text())
#: Tolerance in eps of the largest sum of terms: ten terms a path, mostly smaller, round about once each.
ROUNDINGS = 8
EPS = torch.finfo(torch.float64).eps


def cases(objective: str, *, scalar_log_z: bool = False) -> list:
    """Return pytest parameters (inputs, case) for the recorded cases of an objective."""
    found = []
    for setting, recorded in FIXTURE["settings"].items():
        of_kind = [case for case in recorded["cases"] if case["objective"] == objective]
        if scalar_log_z:
            of_kind = [case for case in of_kind if isinstance(case["log_z"], float)]
        inputs = {name: tensor(value) for name, value in recorded["inputs"].items()}
        found += [pytest.param(inputs, case, id=f"{setting}-{i}") for i, case in enumerate(of_kind)]
    return found


def tensor(value) -> torch.Tensor:
    """Return recorded numbers in float64."""
    return torch.tensor(value, dtype=torch.float64)


def real_steps(inputs: dict) -> torch.Tensor:
    """Return [batch, steps], true where a path still runs."""
    return torch.arange(inputs["log_pi"].shape[1]) < inputs["lengths"][:, None]


def size(inputs: dict, log_ref: torch.Tensor, *, beta: float = 1.0, log_z=0.0) -> float:
    """Return the largest sum of magnitudes that any path's residual adds up."""
    per_step = (inputs["log_pi"].abs() + log_ref.abs()).sum(dim=1)
    return float((tensor(log_z).abs() + per_step + beta * inputs["log_reward"].abs()).max())


def agree(ours: torch.Tensor, theirs, scale: float) -> bool:
    """Whether two results agree to rounding, given the size of the terms that went into them."""
    theirs = tensor(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float64
    return bool((ours - theirs).abs().max() <= ROUNDINGS * EPS * scale)


def terminal_rewards(inputs: dict) -> torch.Tensor:
    """Return [batch, steps] with the whole log-reward on each path's last real step."""
    rewards = torch.zeros_like(inputs["log_pi"])
    last = inputs["lengths"].long()[:, None] - 1
    return rewards.scatter(1, last, inputs["log_reward"][:, None])


def initial_values(inputs: dict, value: float) -> torch.Tensor:
    """Return [batch, steps + 1]: V(s_0) first; then, until the path's end, numbers that must not matter."""
    batch, steps = inputs["log_pi"].shape
    values = torch.linspace(-3, 5, batch * (steps + 1), dtype=torch.float64).view(batch, steps + 1)
    values = values.where(torch.arange(steps + 1) < inputs["lengths"][:, None], 0.0)
    values[:, 0] = value
    return values.requires_grad_()


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple:
    """Return the gradients of a loss with respect to its inputs."""
    return torch.autograd.grad(loss, inputs)


def assert_same_on_real_steps(ours: torch.Tensor, theirs: list, inputs: dict, scale: float) -> None:
    """Assert that per-step gradients agree where the paths run; past their ends they mean nothing."""
    real = real_steps(inputs)
    assert agree(ours.where(real, 0.0), tensor(theirs).where(real, 0.0).tolist(), scale)


def test_the_fixture_is_of_the_pinned_torchgfn_and_has_paths_of_unequal_length():
    """The recording names its versions, holds short and long paths, and pads the short with zeros."""
    assert FIXTURE["versions"]["torchgfn"] == "2.4.1"
    pins = (PEERS / "requirements_torchgfn.txt").read_text().split()
    assert all(f"{name}=={pin}" in pins for name, pin in FIXTURE["versions"].items())
    for recorded in FIXTURE["settings"].values():
        inputs = {name: tensor(value) for name, value in recorded["inputs"].items()}
        assert set(inputs["lengths"].tolist()) == {1, 2, 3, 4, 5}
        for name in ("log_pi", "log_ref", "log_backward"):
            assert (inputs[name][~real_steps(inputs)] == 0).all()


@pytest.mark.parametrize(("inputs", "case"), cases("rtb"))
def test_rtb(inputs, case):
    """RTB: the residual of each path, the loss under each reduction, and both gradients of the mean."""
    log_pi, log_z = inputs["log_pi"].clone().requires_grad_(), tensor(case["log_z"]).requires_grad_()
    arguments = (log_pi, inputs["log_ref"], inputs["log_reward"], log_z)
    residual = rtb.residual(*arguments, beta=case["beta"])
    loss = rtb.loss(*arguments, beta=case["beta"])
    scale = size(inputs, inputs["log_ref"], beta=case["beta"], log_z=case["log_z"])

    # torchgfn: the score leaves log Z out, which the loss then adds; beta multiplies the log-reward, as here.
    score = residual - log_z
    assert agree(score, case["score"], scale)
    # torchgfn: RTB's default loss_fn is HalfSquaredLoss, with the half; reduction="mean" is over paths.
    theirs = {"none": residual.square() / 2, "sum": loss * len(residual), "mean": loss}
    assert agree(theirs["none"], case["loss"]["none"], scale**2)
    assert agree(theirs["sum"], case["loss"]["sum"], len(residual) * scale**2)
    assert agree(theirs["mean"], case["loss"]["mean"], scale**2)
    # torchgfn: the parameter is logZ itself, so the gradients need no conversion.
    grad_log_pi, grad_log_z = gradients(loss, log_pi, log_z)
    assert agree(grad_log_z, case["grad_log_z"], scale)
    assert_same_on_real_steps(grad_log_pi, case["grad_log_pi"], inputs, scale)


@pytest.mark.parametrize(("inputs", "case"), cases("relative_log_variance"))
def test_relative_log_variance(inputs, case):
    """VarGrad relative to a prior: the loss and its gradient, as they stand."""
    log_pi = inputs["log_pi"].clone().requires_grad_()
    loss = rtb.vargrad_loss(log_pi, inputs["log_ref"], inputs["log_reward"], beta=case["beta"])
    scale = size(inputs, inputs["log_ref"], beta=case["beta"])

    # torchgfn: centred on the batch mean, halved (HalfSquaredLoss), divided by n: ours exactly.
    theirs = loss
    assert agree(theirs, case["loss"]["mean"], scale**2)
    assert agree(theirs * len(log_pi), case["loss"]["sum"], len(log_pi) * scale**2)
    assert_same_on_real_steps(*gradients(theirs, log_pi), case["grad_log_pi"], inputs, scale)


@pytest.mark.parametrize(("inputs", "case"), cases("log_variance"))
def test_log_variance(inputs, case):
    """VarGrad with a backward policy: ours, the backward policy in the place of the prior, and doubled."""
    log_pi = inputs["log_pi"].clone().requires_grad_()
    loss = rtb.vargrad_loss(log_pi, inputs["log_backward"], inputs["log_reward"])
    scale = size(inputs, inputs["log_backward"])

    # torchgfn: LogPartitionVarianceGFlowNet's default is SquaredLoss, without the half; divided by n.
    theirs = 2 * loss
    assert agree(theirs, case["loss"]["mean"], 2 * scale**2)
    assert agree(theirs * len(log_pi), case["loss"]["sum"], 2 * len(log_pi) * scale**2)
    assert_same_on_real_steps(*gradients(theirs, log_pi), case["grad_log_pi"], inputs, 2 * scale)


@pytest.mark.parametrize(("inputs", "case"), cases("tb"))
def test_trajectory_balance(inputs, case):
    """Trajectory balance is RTB with the backward policy in the place of the prior, beta = 1, and doubled."""
    log_pi, log_z = inputs["log_pi"].clone().requires_grad_(), tensor(case["log_z"]).requires_grad_()
    arguments = (log_pi, inputs["log_backward"], inputs["log_reward"], log_z)
    scale = size(inputs, inputs["log_backward"], log_z=case["log_z"])

    # torchgfn: the score leaves log Z out; the exit action, a step of log_pi, has backward log-probability 0.
    score = rtb.residual(*arguments) - log_z
    assert agree(score, case["score"], scale)
    # torchgfn: TBGFlowNet's default is SquaredLoss, without the half.
    theirs = 2 * rtb.loss(*arguments)
    assert agree(theirs, case["loss"]["mean"], 2 * scale**2)
    grad_log_pi, grad_log_z = gradients(theirs, log_pi, log_z)
    assert agree(grad_log_z, case["grad_log_z"], 2 * scale)
    assert_same_on_real_steps(grad_log_pi, case["grad_log_pi"], inputs, 2 * scale)


@pytest.mark.parametrize(("inputs", "case"), cases("trust_pcl"))
def test_trust_pcl(inputs, case):
    """Our Trust-PCL, from rewards and values, gives what torchgfn defines as alpha**2 times its RTB loss."""
    alpha, log_pi = case["alpha"], inputs["log_pi"].clone().requires_grad_()
    rewards, values = terminal_rewards(inputs), initial_values(inputs, case["initial_value"])
    loss = trust_pcl.loss(log_pi, inputs["log_ref"], rewards, values, kl_weight=alpha)
    scale = alpha * size(inputs, inputs["log_ref"], beta=1 / alpha, log_z=case["log_z"])

    # torchgfn: init_v_soft_s0 is V(s_0) = alpha log Z, kept as the parameter logZ; alpha = 1/beta.
    assert abs(case["initial_value"] - alpha * case["log_z"]) <= 2 * EPS * abs(case["initial_value"])
    # torchgfn: the half and the mean of its RTB loss, times alpha**2: ours exactly.
    theirs = loss
    assert agree(theirs, case["loss"]["mean"], scale**2)
    grad_log_pi, grad_values = gradients(theirs, log_pi, values)
    assert_same_on_real_steps(grad_log_pi, case["grad_log_pi"], inputs, alpha * scale)
    # torchgfn: differentiated in logZ, not in V(s_0) = alpha logZ, which the whole batch shares.
    assert agree(alpha * grad_values[:, 0].sum(), case["grad_log_z"], alpha * scale)
    assert (grad_values[:, 1:-1] == 0).all()


@pytest.mark.parametrize(("inputs", "case"), cases("rtb", scalar_log_z=True))
def test_trust_pcl_is_alpha_squared_times_torchgfns_rtb(inputs, case):
    """The equivalence, with our Trust-PCL on one side and torchgfn's RTB loss and gradients on the other."""
    alpha, log_pi = 1 / case["beta"], inputs["log_pi"].clone().requires_grad_()
    values = initial_values(inputs, alpha * case["log_z"])
    arguments = (log_pi, inputs["log_ref"], terminal_rewards(inputs), values)
    loss = trust_pcl.loss(*arguments, kl_weight=alpha)
    scale = alpha * size(inputs, inputs["log_ref"], beta=case["beta"], log_z=case["log_z"])

    # torchgfn: its RTB loss is already half the mean square.
    half_mean_square = case["loss"]["mean"]
    assert agree(loss, alpha**2 * half_mean_square, scale**2)
    grad_log_pi, grad_values = gradients(loss, log_pi, values)
    theirs = (alpha**2 * tensor(case["grad_log_pi"])).tolist()
    assert_same_on_real_steps(grad_log_pi, theirs, inputs, alpha * scale)
    assert agree(grad_values[:, 0].sum(), alpha * case["grad_log_z"], scale)
    # A residual is minus alpha times torchgfn's; its score leaves log Z out.
    residual = trust_pcl.residual(*arguments, kl_weight=alpha)
    assert agree(residual, (-alpha * (tensor(case["score"]) + case["log_z"])).tolist(), scale)


def log_flows(inputs: dict) -> torch.Tensor:
    """Return [batch, steps + 1]: torchgfn's flow of each state, and from the path's end on the log-reward."""
    ended = torch.arange(inputs["log_pi"].shape[1] + 1) >= inputs["lengths"][:, None]
    return inputs["log_state_flow"].where(~ended, inputs["log_reward"][:, None])


@pytest.mark.parametrize(("inputs", "case"), cases("sub_tb"))
def test_sub_trajectories(inputs, case):
    """Sub-trajectory balance: the score between every two states of every path, short ones included."""
    scale = size(inputs, inputs["log_backward"]) + 2 * float(inputs["log_state_flow"].abs().max())
    assert len(case["score"]) == 15
    for span in case["score"]:
        ours = rtb.sub_trajectory_residual(
            inputs["log_pi"],
            inputs["log_backward"],
            log_flows(inputs),
            start=span["start"],
            stop=span["stop"],
        )
        # torchgfn: the same sign; SubTB weighs by a backward policy, not a prior; no score past a path's end.
        exists = inputs["lengths"] >= span["stop"]
        assert exists.tolist() == [score is not None for score in span["score"]]
        assert agree(ours[exists], [score for score in span["score"] if score is not None], scale)


@pytest.mark.parametrize(("inputs", "case"), cases("db"))
def test_detailed_balance(inputs, case):
    """Detailed balance: the one-step sub-trajectory residual of every transition."""
    scale = size(inputs, inputs["log_backward"]) + 2 * float(inputs["log_state_flow"].abs().max())
    arguments = (inputs["log_pi"], inputs["log_backward"], log_flows(inputs))
    steps = range(inputs["log_pi"].shape[1])
    score = torch.stack([rtb.sub_trajectory_residual(*arguments, start=t, stop=t + 1) for t in steps], dim=1)
    assert agree(score.where(real_steps(inputs), 0.0), case["score"], scale)
    # torchgfn: DBGFlowNet's default is SquaredLoss, without the half, averaged over transitions, not paths.
    theirs = score[real_steps(inputs)].square()
    assert agree(theirs.mean(), case["loss"]["mean"], scale**2)
    assert agree(theirs.sum(), case["loss"]["sum"], len(theirs) * scale**2)


def compare(fresh: Path) -> subprocess.CompletedProcess:
    """Run the comparison that tests/peers/run makes, of a recording with the committed fixture."""
    command = [sys.executable, PEERS / "compare.py", fresh, PEERS / "torchgfn.json"]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_comparison_passes_the_fixture_itself():
    """A recording that repeats the fixture is accepted in silence."""
    result = compare(PEERS / "torchgfn.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("factor", [1 + 1e-13, -1.0])
def test_the_comparison_names_a_number_that_differs(tmp_path, factor):
    """One loss changed in its thirteenth digit, or in its sign, is found and named."""
    changed = json.loads(json.dumps(FIXTURE))
    changed["settings"]["tables"]["cases"][0]["loss"]["mean"] *= factor
    (tmp_path / "fresh.json").write_text(json.dumps(changed))
    result = compare(tmp_path / "fresh.json")
    assert result.returncode == 1
    assert "/settings/tables/cases[0]/loss/mean" in result.stdout
