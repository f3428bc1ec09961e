"""Trust-PCL against constants worked out by hand. All numbers are binary fractions: compared exactly."""

import pytest
import torch
from inputs import parameter, tensor

from companion import trust_pcl

LOG_PI = [[-1.0, -2.0, -0.5], [-0.25, -1.0, 0.0]]
LOG_REF = [[-2.0, -2.5, -1.5], [-0.75, -3.0, 0.0]]
REWARDS = [[1.0, 0.0, 3.0], [-1.0, 2.0, 0.0]]
VALUES = [[0.5, 1.0, -2.0, 0.0], [1.0, -1.0, 0.0, 0.0]]  # path 2 ends at state 2; from there on it is padded


def arguments() -> tuple:
    """The inputs above, as tensors."""
    return tuple(map(tensor, (LOG_PI, LOG_REF, REWARDS, VALUES)))


def test_residual_with_the_kl_alone():
    """kl_weight = 2, no discount: -V_0 + sum of R - 2 (log_pi - log_ref)."""
    # path 1: gains 1 - 2 * 1 = -1,      0 - 2 * 0.5 = -1,   3 - 2 * 1 = 1;   -0.5 - 1 - 1 + 1 = -1.5
    # path 2: gains -1 - 2 * 0.5 = -2,   2 - 2 * 2 = -2,     0 (padding);     -1 - 2 - 2 + 0   = -5
    assert trust_pcl.residual(*arguments(), kl_weight=2.0).tolist() == [-1.5, -5.0]


def test_residual_with_the_entropy_alone_is_pcl():
    """entropy_weight = 2, kl_weight = 0: the reference plays no part."""
    # path 1: gains 1 + 2 = 3,        0 + 4 = 4,   3 + 1 = 4;    -0.5 + 3 + 4 + 4  = 10.5
    # path 2: gains -1 + 0.5 = -0.5,  2 + 2 = 4,   0;            -1 - 0.5 + 4 + 0  = 2.5
    assert trust_pcl.residual(*arguments(), kl_weight=0.0, entropy_weight=2.0).tolist() == [10.5, 2.5]


# With entropy_weight = 0.5 and kl_weight = 1.5, gain = R - 2 log_pi + 1.5 log_ref:
#   path 1: 1 + 2 - 3 = 0,               0 + 4 - 3.75 = 0.25,   3 + 1 - 2.25 = 1.75
#   path 2: -1 + 0.5 - 1.125 = -1.625,   2 + 2 - 4.5 = -0.5,    0 + 0 + 0 = 0 (padding)
BOTH = {"kl_weight": 1.5, "entropy_weight": 0.5}


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        # -V_0 + V_1/2 + g_0:                    -0.5 + 0.5 + 0 = 0              -1 - 0.5 - 1.625 = -3.125
        (0, 1, [0.0, -3.125]),
        # -V_1 + V_2/2 + g_1:                    -1 - 1 + 0.25 = -1.75           1 + 0 - 0.5 = 0.5
        (1, 2, [-1.75, 0.5]),
        # -V_2 + V_3/2 + g_2:                    2 + 0 + 1.75 = 3.75             0 + 0 + 0 = 0
        (2, 3, [3.75, 0.0]),
        # -V_0 + V_2/4 + g_0 + g_1/2:          -0.5 - 0.5 + 0 + 0.125 = -0.875; -1 + 0 - 1.625 - 0.25 = -2.875
        (0, 2, [-0.875, -2.875]),
        # -V_1 + V_3/4 + g_1 + g_2/2:            -1 + 0 + 0.25 + 0.875 = 0.125   1 + 0 - 0.5 + 0 = 0.5
        (1, 3, [0.125, 0.5]),
        # -V_0 + V_3/8 + g_0 + g_1/2 + g_2/4:   -0.5 + 0 + 0.125 + 0.4375 = 0.0625; -1 - 1.625 - 0.25 = -2.875
        (0, 3, [0.0625, -2.875]),
    ],
)
def test_residual_of_every_sub_path_with_both_weights_and_a_discount(start, stop, expected):
    """gamma = 1/2: the discount starts anew at the first state of the sub-path."""
    found = trust_pcl.residual(*arguments(), **BOTH, gamma=0.5, start=start, stop=stop)
    assert found.tolist() == expected


def test_stop_is_the_end_of_the_path_unless_given():
    """From state 1: the numbers of (1, 3) above."""
    assert trust_pcl.residual(*arguments(), **BOTH, gamma=0.5, start=1).tolist() == [0.125, 0.5]
    # half the mean square: (0.015625 + 0.25) / 4 = 0.06640625
    assert trust_pcl.loss(*arguments(), **BOTH, gamma=0.5, start=1).item() == 0.06640625


def test_loss_is_half_the_mean_square_of_the_residuals():
    """The residuals -1.5 and -5 of the KL-only case."""
    # (2.25 + 25) / 2 / 2 = 6.8125
    assert trust_pcl.loss(*arguments(), kl_weight=2.0).item() == 6.8125
    # of (0, 2) with both weights: (0.875^2 + 2.875^2) / 4 = (0.765625 + 8.265625) / 4
    assert trust_pcl.loss(*arguments(), **BOTH, gamma=0.5, start=0, stop=2).item() == 2.2578125


def test_neither_true_lengths_nor_groups_change_anything_where_the_padding_is_right():
    """The residuals -1.5 and -5 and the loss above; there is no batch statistic."""
    paths = {"kl_weight": 2.0, "steps": torch.tensor([3, 2])}
    assert trust_pcl.residual(*arguments(), **paths).tolist() == [-1.5, -5.0]
    assert trust_pcl.loss(*arguments(), **paths, group=torch.tensor([5, -5])).item() == 6.8125


def test_loss_gradients_over_the_whole_path():
    """KL alone, weight 2, no discount: residuals -1.5 and -5, n = 2."""
    log_pi, log_ref, rewards, _ = arguments()
    log_pi, values = log_pi.requires_grad_(), parameter(VALUES)
    trust_pcl.loss(log_pi, log_ref, rewards, values, kl_weight=2.0).backward()
    # d loss / d log_pi = -2 residual / n at every step: -2 * (-1.5) / 2 and -2 * (-5) / 2
    assert log_pi.grad.tolist() == [[1.5] * 3, [5.0] * 3]
    # d loss / d V_0 = -residual / n; d / d V_3 = residual / n; nothing in between
    assert values.grad.tolist() == [[0.75, 0.0, 0.0, -0.75], [2.5, 0.0, 0.0, -2.5]]


def test_loss_gradients_on_a_discounted_sub_path():
    """Both weights, gamma = 1/2, states 0 to 2: residuals -0.875 and -2.875, n = 2."""
    log_pi, log_ref, rewards, _ = arguments()
    log_pi, values = log_pi.requires_grad_(), parameter(VALUES)
    trust_pcl.loss(log_pi, log_ref, rewards, values, **BOTH, gamma=0.5, start=0, stop=2).backward()
    # d loss / d log_pi_i = -(0.5 + 1.5) gamma^i residual / n: 0.875, 2.875, then half of each; then 0
    assert log_pi.grad.tolist() == [[0.875, 0.4375, 0.0], [2.875, 1.4375, 0.0]]
    # d loss / d V_0 = -residual / n; d / d V_2 = gamma^2 residual / n = -0.875 / 8 and -2.875 / 8
    assert values.grad.tolist() == [[0.4375, 0.0, -0.109375, 0.0], [1.4375, 0.0, -0.359375, 0.0]]


def test_residual_is_zero_at_the_optimum_of_a_choice_between_two():
    """Reference 1/2 each, rewards log 1 and log 3, alpha = 1: V = log 2, policy (1/4, 3/4)."""
    log = tensor([1.0, 2.0, 3.0, 4.0]).log()
    # log pi = (-log 4, log 3 - log 4), log ref = -log 2
    # path 1: -log 2 + 0     + log 4         - log 2 = 0
    # path 2: -log 2 + log 3 - log 3 + log 4 - log 2 = 0
    log_pi = (log[[0, 2]] - log[3])[:, None]
    values = tensor([[1.0, 0.0]] * 2) * log[1]
    found = trust_pcl.residual(log_pi, log[[0, 0]][:, None] - log[1], log[[0, 2]][:, None], values, kl_weight=1.0)
    assert found.abs().max() < 1e-15


def test_the_two_weights_and_gamma_are_read_as_python_numbers():
    """Integers do as well as floats."""
    assert trust_pcl.residual(*arguments(), kl_weight=2, entropy_weight=0, gamma=1).tolist() == [-1.5, -5.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_discounts_in_half_precision_are_right_to_its_last_digit(dtype):
    """gamma = 0.99 over 600 steps: path i earns 1 at step i, and one more path earns 1 at every step."""
    rewards = torch.cat([torch.eye(600), torch.ones(1, 600)]).to(dtype)
    zeros, values = torch.zeros_like(rewards), torch.zeros(601, 601, dtype=dtype)
    found = trust_pcl.residual(zeros, zeros, rewards, values, kl_weight=1.0, gamma=0.99).double()
    discounts = tensor([0.99**step for step in range(600)])
    assert bool(((found[:-1] - discounts).abs() <= torch.finfo(dtype).eps * discounts).all())
    # (1 - 0.99^600) / (1 - 0.99) = 99.76, up to the rounding of the sum.
    assert abs(found[-1] / discounts.sum() - 1) < 0.02


@pytest.mark.parametrize("first", [0.5, [0.5, -1.0]])
def test_full_path_values_hold_the_first_value_and_zeros(first):
    """[batch, steps + 1]: one number for all paths, or one for each; the gradient goes to it alone."""
    first = tensor(first).requires_grad_()
    values = trust_pcl.full_path_values(first, tensor([[-1.0, -2.0], [-0.5, 0.0]]))
    expected = [[0.5, 0.0, 0.0], [0.5 if first.ndim == 0 else -1.0, 0.0, 0.0]]
    assert values.tolist() == expected
    values.sum().backward()
    assert first.grad.tolist() == (2.0 if first.ndim == 0 else [1.0, 1.0])
