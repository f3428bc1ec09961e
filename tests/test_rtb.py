"""RTB against constants worked out by hand. All numbers are binary fractions: compared exactly."""

import pytest
import torch
from inputs import parameter, tensor

from companion import rtb

LOG_PI = [[-1.0, -2.0], [-0.5, -1.5]]
LOG_REF = [[-2.0, -2.0], [-1.0, -0.5]]
LOG_REWARD = [1.0, -1.0]
# sum(log_pi - log_ref):
#   path 1: (-1 + 2) + (-2 + 2)         =  1
#   path 2: (-0.5 + 1) + (-1.5 + 0.5)   = -0.5


def test_residual_with_one_log_z_for_all_paths():
    """log Z = 0.5, beta = 2."""
    # path 1: 0.5 + 1   - 2 * 1    = -0.5
    # path 2: 0.5 - 0.5 - 2 * (-1) =  2
    found = rtb.residual(tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD), tensor(0.5), beta=2.0)
    assert found.tolist() == [-0.5, 2.0]


def test_residual_with_one_log_z_per_condition():
    """log Z = (0.5, -1), beta = 2."""
    # path 1: 0.5 + 1   - 2 = -0.5
    # path 2: -1  - 0.5 + 2 =  0.5
    found = rtb.residual(tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD), tensor([0.5, -1.0]), beta=2.0)
    assert found.tolist() == [-0.5, 0.5]


def test_beta_is_one_unless_given():
    """log Z = 0.5."""
    # path 1: 0.5 + 1   - 1 = 0.5
    # path 2: 0.5 - 0.5 + 1 = 1
    found = rtb.residual(tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD), tensor(0.5))
    assert found.tolist() == [0.5, 1.0]
    # loss: (0.25 + 1) / 2 / 2 = 0.3125
    assert rtb.loss(tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD), tensor(0.5)).item() == 0.3125
    # centred log-ratios: 1 - 1 = 0 and -0.5 + 1 = 0.5, mean 0.25: -0.25 and 0.25; half of 0.0625
    assert rtb.vargrad_loss(tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD)).item() == 0.03125


def test_residual_is_zero_where_the_condition_holds():
    """Z p = p_ref r^beta: log Z = 0.75, log p = -1, log p_ref = -0.25, log r = 0, for any beta."""
    # 0.75 + (-1 + 0.25) - 4 * 0 = 0
    found = rtb.residual(tensor([[-1.0]]), tensor([[-0.25]]), tensor([0.0]), tensor(0.75), beta=4.0)
    assert found.tolist() == [0.0]


def test_padding_adds_nothing():
    """A path of one step, padded with zeros to three; a log-density above zero."""
    # path 1: 0.25 + (2 - 1)                                - 0.5 * 4 = -0.75
    # path 2: 0.25 + (-1 + 2) + (-0.5 + 0.25) + (-3 + 1)     - 0.5 * 2 = -2
    log_pi = tensor([[2.0, 0.0, 0.0], [-1.0, -0.5, -3.0]])
    log_ref = tensor([[1.0, 0.0, 0.0], [-2.0, -0.25, -1.0]])
    found = rtb.residual(log_pi, log_ref, tensor([4.0, 2.0]), tensor(0.25), beta=0.5)
    assert found.tolist() == [-0.75, -2.0]


def test_loss_and_its_gradients():
    """Half the mean square of the residuals -0.5 and 2."""
    log_pi, log_z = parameter(LOG_PI), parameter(0.5)
    loss = rtb.loss(log_pi, tensor(LOG_REF), tensor(LOG_REWARD), log_z, beta=2.0)
    # (0.25 + 4) / 2 / 2 = 17/16
    assert loss.item() == 1.0625
    loss.backward()
    # d loss / d log Z = mean of the residuals = (-0.5 + 2) / 2
    assert log_z.grad.item() == 0.75
    # d loss / d log_pi = residual / n at every step: -0.5 / 2 and 2 / 2
    assert log_pi.grad.tolist() == [[-0.25, -0.25], [1.0, 1.0]]


def test_loss_and_its_gradients_with_log_z_per_condition():
    """Half the mean square of the residuals -0.5 and 0.5."""
    log_pi, log_z = parameter(LOG_PI), parameter([0.5, -1.0])
    loss = rtb.loss(log_pi, tensor(LOG_REF), tensor(LOG_REWARD), log_z, beta=2.0)
    # (0.25 + 0.25) / 2 / 2
    assert loss.item() == 0.125
    loss.backward()
    # residual / n, each path its own: -0.5 / 2 and 0.5 / 2
    assert log_z.grad.tolist() == [-0.25, 0.25]
    assert log_pi.grad.tolist() == [[-0.25, -0.25], [0.25, 0.25]]


def test_vargrad_loss_and_its_gradient():
    """Half the variance of the log-ratios, divided by n: beta = 2."""
    log_pi = parameter(LOG_PI)
    loss = rtb.vargrad_loss(log_pi, tensor(LOG_REF), tensor(LOG_REWARD), beta=2.0)
    # log-ratios: 1 - 2 = -1 and -0.5 + 2 = 1.5, mean 0.25; centred: -1.25 and 1.25
    # (1.5625 + 1.5625) / 2 / 2 = 25/32
    assert loss.item() == 0.78125
    loss.backward()
    # centred / n: the mean's own gradient cancels, since the centred values sum to zero
    assert log_pi.grad.tolist() == [[-0.625, -0.625], [0.625, 0.625]]


def test_vargrad_divides_by_n_not_by_n_minus_one():
    """Four paths of one step, the reference and the reward zero."""
    # log-ratios: 1, -1, 3, -3, mean 0; squares 1, 1, 9, 9 sum to 20; 20 / 4 / 2 = 2.5 (by n - 1: 10/3)
    log_pi = tensor([[1.0], [-1.0], [3.0], [-3.0]])
    assert rtb.vargrad_loss(log_pi, torch.zeros_like(log_pi), torch.zeros(4).double()).item() == 2.5


# Two groups of unequal size, of one step each; the reference and the reward are zero, so log_pi is the log-ratio.
GROUP = torch.tensor([9, -4, 9, -4, -4, 9, -4, -4])
RATIOS = [[1.0], [5.0], [4.0], [7.0], [6.0], [-2.0], [2.0], [10.0]]


@pytest.mark.claim("O4")
@pytest.mark.parametrize("group", [GROUP, GROUP.int()])
def test_vargrad_centres_within_each_group_and_averages_over_all_paths(group):
    """Group 9 has the mean (1 + 4 - 2) / 3 = 1, group -4 the mean (5 + 7 + 6 + 2 + 10) / 5 = 6."""
    # centred: 0, -1, 3, 1, 0, -3, -4, 4; squares 0 + 1 + 9 + 1 + 0 + 9 + 16 + 16 = 52; 52 / 8 / 2
    log_pi = parameter(RATIOS)
    loss = rtb.vargrad_loss(log_pi, torch.zeros(8, 1).double(), torch.zeros(8).double(), group=group)
    assert loss.item() == 3.25
    loss.backward()
    # centred / n, n = 8: each group's own mean cancels
    assert log_pi.grad.squeeze(1).tolist() == [0.0, -0.125, 0.375, 0.125, 0.0, -0.375, -0.5, 0.5]


def test_a_group_has_no_effect_without_a_batch_statistic():
    """The loss of the gradients above: 17/16."""
    group = torch.tensor([3, 8])
    inputs = tensor(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD), tensor(0.5)
    assert rtb.loss(*inputs, beta=2.0, group=group).item() == 1.0625


def test_the_mean_of_a_large_group_is_right_in_half_precision():
    """600 ones: added up one by one in bfloat16 they would stop at 256."""
    ones, group = torch.ones(602, 1, dtype=torch.bfloat16), torch.ones(602, dtype=torch.int64)
    ones[:2], group[:2] = 3.0, 0
    loss = rtb.vargrad_loss(ones, torch.zeros_like(ones), torch.zeros_like(ones[:, 0]), group=group)
    assert loss.item() == 0.0 and loss.dtype == torch.bfloat16


def test_true_lengths_change_nothing_where_the_padding_is_right():
    """The residuals -0.75 and -2 of the padded path above, and their loss: (0.5625 + 4) / 2 / 2."""
    log_pi, log_ref = tensor([[2.0, 0.0, 0.0], [-1.0, -0.5, -3.0]]), tensor([[1.0, 0.0, 0.0], [-2.0, -0.25, -1.0]])
    inputs, options = (log_pi, log_ref, tensor([4.0, 2.0])), {"beta": 0.5, "steps": torch.tensor([1, 3])}
    assert rtb.residual(*inputs, tensor(0.25), **options).tolist() == [-0.75, -2.0]
    assert rtb.loss(*inputs, tensor(0.25), **options).item() == 1.140625
    # log-ratios -1 and -2.25, mean -1.625: half of 0.625^2
    assert rtb.vargrad_loss(*inputs, **options).item() == 0.1953125


LOG_FLOW = [[0.5, 1.0, -2.0, 4.0], [1.0, -1.0, 3.0, 3.0]]  # path 2 ends at state 2: its last flow is repeated
STEP_PI = [[-1.0, -2.0, -0.5], [-0.25, -1.0, 0.0]]
STEP_REF = [[-2.0, -2.5, -1.5], [-0.75, -3.0, 0.0]]
# log_pi - log_ref: path 1: 1, 0.5, 1; path 2: 0.5, 2, 0 (padding)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        # flow[0] + step 0 - flow[1]:              0.5 + 1 - 1 = 0.5               1 + 0.5 + 1 = 2.5
        (0, 1, [0.5, 2.5]),
        # flow[1] + step 1 - flow[2]:              1 + 0.5 + 2 = 3.5               -1 + 2 - 3 = -2
        (1, 2, [3.5, -2.0]),
        # flow[2] + step 2 - flow[3]:              -2 + 1 - 4 = -5                 3 + 0 - 3 = 0, padding
        (2, 3, [-5.0, 0.0]),
        # flow[0] + steps 0, 1 - flow[2]:          0.5 + 1 + 0.5 + 2 = 4           1 + 0.5 + 2 - 3 = 0.5
        (0, 2, [4.0, 0.5]),
        # flow[1] + steps 1, 2 - flow[3]:          1 + 0.5 + 1 - 4 = -1.5          -1 + 2 + 0 - 3 = -2
        (1, 3, [-1.5, -2.0]),
        # flow[0] + steps 0, 1, 2 - flow[3]:       0.5 + 1 + 0.5 + 1 - 4 = -1      1 + 0.5 + 2 + 0 - 3 = 0.5
        (0, 3, [-1.0, 0.5]),
    ],
)
def test_sub_trajectory_residual(start, stop, expected):
    """Every sub-path of a path of three steps, and of one of two steps that is padded."""
    arguments = (tensor(STEP_PI), tensor(STEP_REF), tensor(LOG_FLOW))
    assert rtb.sub_trajectory_residual(*arguments, start=start, stop=stop).tolist() == expected
    steps = torch.tensor([3, 2])
    assert rtb.sub_trajectory_residual(*arguments, start=start, stop=stop, steps=steps).tolist() == expected


def test_sub_trajectory_gradients_reach_the_policy_and_both_flows():
    """The sum of both paths' residuals between states 1 and 3."""
    log_pi, log_flow = parameter(STEP_PI), parameter(LOG_FLOW)
    rtb.sub_trajectory_residual(log_pi, tensor(STEP_REF), log_flow, start=1, stop=3).sum().backward()
    # d residual / d log_pi = 1 on steps 1 and 2; d / d flow = +1 at the first state, -1 at the last
    assert log_pi.grad.tolist() == [[0.0, 1.0, 1.0]] * 2
    assert log_flow.grad.tolist() == [[0.0, 1.0, 0.0, -1.0]] * 2


def test_the_whole_path_is_the_residual_with_log_z_as_its_first_flow():
    """Flows 0.5 first and beta log r = 2 * (1, -1) last give the residuals of the first test."""
    log_flow = tensor([[0.5, 7.0, 2.0], [0.5, -7.0, -2.0]])
    found = rtb.sub_trajectory_residual(tensor(LOG_PI), tensor(LOG_REF), log_flow, start=0, stop=2)
    # path 1: 0.5 + 1 - 2 = -0.5; path 2: 0.5 - 0.5 + 2 = 2
    assert found.tolist() == [-0.5, 2.0]
