"""Record what torchgfn makes of the paths of a small grid, for tests/test_peer_torchgfn.py to compare with.

Only torchgfn's public classes are used, in float64. Nothing is drawn at random: the paths are enumerated, and
the policies are tables written out by modular arithmetic; so a second recording repeats the first to
rounding.

    python record_torchgfn.py OUT.json
"""

import sys

import shared
import torch
from gfn.containers import Trajectories
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import (
    DBGFlowNet,
    LogPartitionVarianceGFlowNet,
    RelativeLogPartitionVarianceGFlowNet,
    RelativeTrajectoryBalanceGFlowNet,
    SubTBGFlowNet,
    TBGFlowNet,
    TrustPCLGFlowNet,
)
from gfn.gym import HyperGrid
from gfn.preprocessors import EnumPreprocessor
from gfn.utils.modules import Tabular
from gfn.utils.prob_calculations import get_trajectory_pbs, get_trajectory_pfs

HEIGHT = 3
REDUCTIONS = ("mean", "sum", "none")
BETAS_AND_LOG_ZS = ((0.25, -1.25), (1.0, 0.0), (3.0, 2.5))
ALPHAS_AND_VALUES = ((0.1, -0.75), (1.0, 0.0), (4.0, 3.0))


class Grid(HyperGrid):
    """A 3 by 3 grid, left from any cell by an exit action; paths have one to five actions, exit included."""

    def __init__(self):
        super().__init__(ndim=2, height=HEIGHT, validate_modes=False)

    def log_reward(self, states):
        """Give cells unlike log-rewards, exact in binary."""
        x, y = states.tensor.unbind(-1)
        return ((3 * x + 5 * y) % 7 - 3).to(torch.get_default_dtype()) / 2


def table(rows: int, columns: int, *, multiplier: int, scale: float) -> torch.Tensor:
    """Return numbers that look unordered, in [-scale, scale], multiples of scale / 8."""
    return scale * ((multiplier * torch.arange(rows * columns)) % 17 - 8).view(rows, columns).double() / 8


def enumerate_actions(x: int = 0, y: int = 0) -> list[list[int]]:
    """Return the actions of every path from (x, y): 0 and 1 move, 2 exits."""
    paths = [[2]]
    if x + 1 < HEIGHT:
        paths += [[0, *rest] for rest in enumerate_actions(x + 1, y)]
    if y + 1 < HEIGHT:
        paths += [[1, *rest] for rest in enumerate_actions(x, y + 1)]
    return paths


def trajectories_of(env: Grid, paths: list[list[int]], log_probs: torch.Tensor | None = None) -> Trajectories:
    """Return torchgfn's container of these paths, [steps + 1, batch], padded as torchgfn pads them."""
    steps, batch = max(map(len, paths)), len(paths)
    states = env.sf.repeat(steps + 1, batch, 1)
    actions = env.dummy_action.repeat(steps, batch, 1)
    for i, path in enumerate(paths):
        cell = [0, 0]
        for t, action in enumerate(path):
            states[t, i] = torch.tensor(cell)
            actions[t, i] = action
            if action < 2:
                cell[action] += 1
    return Trajectories(
        env,
        states=env.states_from_tensor(states),
        actions=env.actions_from_tensor(actions),
        terminating_idx=torch.tensor([len(path) for path in paths]),
        log_probs=log_probs,
    )


def policy(env: Grid, *, multiplier: int, scale: float, backward: bool = False, frozen: bool = False):
    """Return a tabular policy of torchgfn's."""
    module = Tabular(env.n_states, env.n_actions - backward)
    module.table.data = table(*module.table.shape, multiplier=multiplier, scale=scale)
    module.requires_grad_(not frozen)
    return DiscretePolicyEstimator(
        module, env.n_actions, preprocessor=EnumPreprocessor(env.get_states_indices), is_backward=backward
    )


class Recorder:
    """One setting: paths, a policy, a prior, a backward policy and state flows; and what torchgfn says."""

    def __init__(self, *, pf_scale: float, prior_scale: float):
        self.env = Grid()
        self.paths = enumerate_actions()[::2]  # ten of the nineteen, of every length from one to five
        self.pf = policy(self.env, multiplier=5, scale=pf_scale)
        self.prior = policy(self.env, multiplier=7, scale=prior_scale, frozen=True)
        self.pb = policy(self.env, multiplier=11, scale=1.0, backward=True)
        flows = Tabular(self.env.n_states, 1)
        flows.table.data = table(self.env.n_states, 1, multiplier=3, scale=2.0)
        self.log_f = ScalarEstimator(flows, preprocessor=EnumPreprocessor(self.env.get_states_indices))
        self.trajectories = trajectories_of(self.env, self.paths)
        self.real = ~self.trajectories.actions.is_dummy

    def inputs(self) -> dict:
        """Return what companion's functions take, [batch, steps], zero past a path's end."""
        states = self.trajectories.states
        log_flow = torch.zeros(states.batch_shape)
        log_flow[~states.is_sink_state] = self.log_f(states[~states.is_sink_state]).squeeze(-1)
        return {
            "lengths": self.trajectories.terminating_idx.tolist(),
            "log_pi": get_trajectory_pfs(self.pf, self.trajectories).T.tolist(),
            "log_ref": get_trajectory_pfs(self.prior, self.trajectories).T.tolist(),
            "log_backward": get_trajectory_pbs(self.pb, self.trajectories).T.tolist(),
            "log_reward": self.trajectories.log_rewards.tolist(),
            "log_state_flow": log_flow.T.tolist(),
        }

    def outputs(self, gflownet) -> dict:
        """Return the scores, the loss under each reduction, and the gradients of the mean."""
        log_probs = get_trajectory_pfs(self.pf, self.trajectories).detach().requires_grad_()
        stored = trajectories_of(self.env, self.paths, log_probs)
        loss = gflownet.loss(self.env, stored, recalculate_all_logprobs=False)
        inputs = [log_probs, *gflownet.logz_parameters()]
        gradients = torch.autograd.grad(loss, inputs)
        found = {"score": gflownet.get_scores(self.trajectories).tolist(), "loss": {}}
        for reduction in REDUCTIONS:
            loss = gflownet.loss(self.env, self.trajectories, reduction=reduction)
            found["loss"][reduction] = loss.tolist()
        found["grad_log_pi"] = gradients[0].T.tolist()
        if len(gradients) == 2:
            found["grad_log_z"] = gradients[1].tolist()
        return found

    def relative(self, betas_and_log_zs: tuple, alphas_and_values: tuple) -> list[dict]:
        """Return the cases relative to the prior: RTB, its log-variance form, and torchgfn's Trust-PCL."""
        cases = []
        for beta, log_z in betas_and_log_zs:
            rtb = RelativeTrajectoryBalanceGFlowNet(self.pf, self.prior, beta=beta, init_logZ=log_z)
            cases.append({"objective": "rtb", "beta": beta, "log_z": log_z} | self.outputs(rtb))
            variance = RelativeLogPartitionVarianceGFlowNet(self.pf, self.prior, beta=beta)
            cases.append({"objective": "relative_log_variance", "beta": beta} | self.outputs(variance))
        # One log Z per path, as a conditional log Z gives; assigned, since the constructor takes a scalar.
        rtb.logZ = torch.nn.Parameter(table(1, len(self.paths), multiplier=5, scale=3.0).squeeze(0))
        cases.append({"objective": "rtb", "beta": beta, "log_z": rtb.logZ.tolist()} | self.outputs(rtb))
        for alpha, value in alphas_and_values:
            pcl = TrustPCLGFlowNet(self.pf, self.prior, alpha=alpha, init_v_soft_s0=value)
            given = {
                "objective": "trust_pcl",
                "alpha": alpha,
                "initial_value": value,
                "log_z": pcl.logZ.item(),
            }
            cases.append(given | self.outputs(pcl))
        return cases

    def with_backward_policy(self) -> list[dict]:
        """Return the cases with a backward policy: TB, log-variance, sub-trajectories, transitions."""
        log_z = -0.5
        balance = TBGFlowNet(self.pf, self.pb, init_logZ=log_z)
        variance = LogPartitionVarianceGFlowNet(self.pf, self.pb)
        return [
            {"objective": "tb", "log_z": log_z} | self.outputs(balance),
            {"objective": "log_variance"} | self.outputs(variance),
            {"objective": "sub_tb", "score": self.sub_trajectory_scores()},
            {"objective": "db"} | self.transition_scores(),
        ]

    def sub_trajectory_scores(self) -> list[dict]:
        """Return SubTB's score between every two states; null where a path is too short to have both."""
        sub_tb = SubTBGFlowNet(self.pf, self.pb, self.log_f)
        scores, missing = sub_tb.get_scores(self.trajectories, env=self.env)
        found = []
        for length, (by_start, absent) in enumerate(zip(scores, missing, strict=True), start=1):
            for start, (row, gone) in enumerate(zip(by_start.tolist(), absent.tolist(), strict=True)):
                score = [None if g else s for s, g in zip(row, gone, strict=True)]
                found.append({"start": start, "stop": start + length, "score": score})
        return found

    def transition_scores(self) -> dict:
        """Return DB's score of every transition, [batch, steps], zero past a path's end; and its losses."""
        balance = DBGFlowNet(self.pf, self.pb, self.log_f)
        transitions = self.trajectories.to_transitions()
        score = torch.zeros(self.real.shape)
        score[self.real] = balance.get_scores(self.env, transitions).detach()
        loss = {r: balance.loss(self.env, transitions, reduction=r).item() for r in ("mean", "sum")}
        return {"score": score.T.tolist(), "loss": loss}


def record() -> dict:
    """Return the fixture: the versions, and three settings with their inputs and cases."""
    found = {
        "versions": shared.versions("torchgfn", "torch"),
        "settings": {},
    }
    tables = Recorder(pf_scale=1.0, prior_scale=1.5)
    cases = tables.relative(BETAS_AND_LOG_ZS, ALPHAS_AND_VALUES) + tables.with_backward_policy()
    found["settings"]["tables"] = {"inputs": tables.inputs(), "cases": cases}
    others = {
        "uniform_prior": Recorder(pf_scale=2.0, prior_scale=0.0),
        "sharp_policy": Recorder(pf_scale=200.0, prior_scale=1.5),  # log-probabilities below -100
    }
    for name, recorder in others.items():
        cases = recorder.relative(BETAS_AND_LOG_ZS[:1], ALPHAS_AND_VALUES[-1:])
        found["settings"][name] = {"inputs": recorder.inputs(), "cases": cases}
    return found


def main() -> None:
    """Write the fixture to the path given."""
    torch.set_default_dtype(torch.float64)  # torchgfn keeps beta and log Z in the default dtype
    torch.set_num_threads(1)
    shared.write(record(), sys.argv[1])


if __name__ == "__main__":
    main()
