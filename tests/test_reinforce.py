"""Policy gradients against constants worked out by hand; exact where the numbers are binary fractions."""

import math

import pytest
import torch
from inputs import assert_agree, parameter, tensor

from companion import reinforce

LOG_PI = [[-1.0, -2.0], [-0.5, -1.5], [-3.0, 0.0], [-1.0, -1.0]]  # path 3 has one step and is padded
LOG_REF = [[-2.0, -2.0], [-1.0, -0.5], [-1.0, 0.0], [-2.0, -0.5]]
LOG_REWARD = [1.0, -1.0, 0.0, 4.0]
# sum(log_pi):            -3,  -2,   -3,  -2
# sum(log_pi - log_ref):   1,  -0.5, -2,   0.5
# with beta = 1/2 the KL weighs 2: reward less 2 sum(log_pi - log_ref):
#                         1 - 2 = -1,  -1 + 1 = 0,  0 + 4 = 4,  4 - 1 = 3,  mean (-1 + 0 + 4 + 3) / 4 = 1.5
LOG_PROB = (-3.0, -2.0, -3.0, -2.0)
RETURNS = (-1.0, 0.0, 4.0, 3.0)


def kl_loss(**options):
    """The loss on the paths above and the gradient it leaves on log_pi."""
    log_pi = parameter(LOG_PI)
    loss = reinforce.kl_loss(log_pi, tensor(LOG_REF), tensor(LOG_REWARD), **options)
    loss.backward()
    return loss.item(), log_pi.grad.tolist()


def test_batch_mean_baseline():
    """beta = 1/2; the baseline that is used unless another is asked for."""
    # A = -2.5, -1.5, 2.5, 1.5
    # A * log_prob = 7.5, 3, -7.5, -3: sum 0; loss = -0 / 4 = 0
    # gradient = -A / n at every step, padding too: 0.625, 0.375, -0.625, -0.375
    expected = 0.0, [[0.625] * 2, [0.375] * 2, [-0.625] * 2, [-0.375] * 2]
    assert kl_loss(beta=0.5) == expected
    assert kl_loss(beta=0.5, baseline="batch_mean") == expected


def test_no_baseline():
    """beta = 1/2."""
    # A * log_prob = 3, 0, -12, -6: sum -15; loss = 15/4
    # gradient = -A / 4 = 0.25, 0, -1, -0.75
    assert kl_loss(beta=0.5, baseline="none") == (3.75, [[0.25] * 2, [0.0] * 2, [-1.0] * 2, [-0.75] * 2])


def test_a_given_baseline():
    """beta = 1/2, baseline 2."""
    # A = -3, -2, 2, 1; A * log_prob = 9, 4, -6, -2: sum 5; loss = -5/4; gradient = -A / 4
    expected = -1.25, [[0.75] * 2, [0.5] * 2, [-0.5] * 2, [-0.25] * 2]
    assert kl_loss(beta=0.5, baseline=2.0) == expected
    assert kl_loss(beta=0.5, baseline=2) == expected


def test_leave_one_out_baseline():
    """beta = 1/2: from each return the mean of the other three."""
    # sum of returns 6; others' means (6 + 1)/3 = 7/3, 6/3 = 2, (6 - 4)/3 = 2/3, (6 - 3)/3 = 1
    # A = -10/3, -2, 10/3, 2; A * log_prob = 10, 4, -10, -4: sum 0; loss 0; gradient = -A / 4
    loss, gradient = kl_loss(beta=0.5, baseline="leave_one_out")
    assert_agree(loss, 0.0, 28)
    assert_agree(tensor(gradient), tensor([[10 / 12] * 2, [0.5] * 2, [-10 / 12] * 2, [-0.5] * 2]), 6)


def test_leave_one_out_on_two_paths_subtracts_the_other_return():
    """beta = 2: the KL weighs 1/2."""
    # returns: 1 - 0.5 * 1 = 0.5 and -1 + 0.5 * 0.5 = -0.75; A = 0.5 + 0.75 = 1.25 and -0.75 - 0.5 = -1.25
    # loss = -(1.25 * (-3) - 1.25 * (-2)) / 2 = -(-1.25) / 2 = 0.625
    inputs = tensor(LOG_PI[:2]), tensor(LOG_REF[:2]), tensor(LOG_REWARD[:2])
    assert reinforce.kl_loss(*inputs, beta=2.0, baseline="leave_one_out").item() == 0.625


def test_beta_is_one_unless_given():
    """Without a baseline."""
    # returns: 1 - 1 = 0, -1 + 0.5 = -0.5, 0 + 2 = 2, 4 - 0.5 = 3.5
    # times log_prob: 0, 1, -6, -7: sum -12; loss = 3; gradient = -A / 4
    assert kl_loss(baseline="none") == (3.0, [[0.0] * 2, [0.125] * 2, [-0.5] * 2, [-0.875] * 2])


def test_a_single_path_needs_no_batch_statistic():
    """One path, no baseline or a number: return -1, log_prob -3."""
    inputs = tensor(LOG_PI[:1]), tensor(LOG_REF[:1]), tensor(LOG_REWARD[:1])
    # -(-1 * -3) = -3;   with baseline 1: -((-1 - 1) * -3) = -6
    assert reinforce.kl_loss(*inputs, beta=0.5, baseline="none").item() == -3.0
    assert reinforce.kl_loss(*inputs, beta=0.5, baseline=1.0).item() == -6.0


# A behaviour for which sum(log_pi - log_behaviour) = 0, 2 log 3, 0, 2 log 3.
BEHAVIOUR = [
    [-1.0, -2.0],
    [-0.5 - math.log(3), -1.5 - math.log(3)],
    [-3.0, 0.0],
    [-1.0 - 2 * math.log(3), -1.0],
]
# importance: e^0, e^(2 log 3) = 1, 9, 1, 9 over 20;   tempered, over 2 steps: 1, 3, 1, 3 over 8
WEIGHTS = {"importance": (1 / 20, 9 / 20, 1 / 20, 9 / 20), "tempered": (1 / 8, 3 / 8, 1 / 8, 3 / 8)}


@pytest.mark.claim("O6")
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # A * log_prob = 7.5, 3, -7.5, -3 with the unweighted mean 1.5 as baseline: both weighted sums cancel
        ("importance", 0.0),
        ("tempered", 0.0),
    ],
)
def test_weights_replace_the_mean_by_a_weighted_sum(weights, expected):
    """beta = 1/2, batch mean: the gradient per step is -w A, the weights being detached."""
    loss, gradient = kl_loss(beta=0.5, log_behaviour=tensor(BEHAVIOUR), weights=weights)
    assert_agree(loss, expected, 21)
    advantages = (-2.5, -1.5, 2.5, 1.5)
    by_hand = [[-w * a] * 2 for w, a in zip(WEIGHTS[weights], advantages, strict=True)]
    assert_agree(tensor(gradient), tensor(by_hand), 10)


@pytest.mark.claim("X2")
@pytest.mark.parametrize(
    ("weights", "baseline", "expected"),
    [
        # A * log_prob = 3, 0, -12, -6
        # importance: -(3 + 9 * 0 - 12 - 9 * 6) / 20 = 63/20;   tempered: -(3 + 0 - 12 - 3 * 6) / 8 = 27/8
        ("importance", "none", 63 / 20),
        ("tempered", "none", 27 / 8),
        # baseline 2: A * log_prob = 9, 4, -6, -2
        # importance: -(9 + 36 - 6 - 18) / 20 = -21/20;   tempered: -(9 + 12 - 6 - 6) / 8 = -9/8
        ("importance", 2.0, -21 / 20),
        ("tempered", 2.0, -9 / 8),
        # leave-one-out: A * log_prob = 10, 4, -10, -4: importance (10 + 36 - 10 - 36) = 0, tempered likewise
        ("importance", "leave_one_out", 0.0),
        ("tempered", "leave_one_out", 0.0),
    ],
)
def test_every_baseline_goes_with_either_weighting(weights, baseline, expected):
    """beta = 1/2; importance weights (1, 9, 1, 9)/20, tempered weights (1, 3, 1, 3)/8."""
    loss, _ = kl_loss(beta=0.5, log_behaviour=tensor(BEHAVIOUR), weights=weights, baseline=baseline)
    assert_agree(loss, expected, 60)


# Another behaviour, with sum(log_pi - log_behaviour) = 0, 0, 0, 2 log 5, so that no baseline is its own weighted form:
# importance weights 1, 1, 1, 25 over 28; tempered, over 2 steps, 1, 1, 1, 5 over 8.
UNLIKE = [*LOG_PI[:3], [-1.0 - 2 * math.log(5), -1.0]]
UNLIKE_WEIGHTS = {"importance": (1 / 28, 1 / 28, 1 / 28, 25 / 28), "tempered": (1 / 8, 1 / 8, 1 / 8, 5 / 8)}


@pytest.mark.parametrize("weights", UNLIKE_WEIGHTS)
@pytest.mark.parametrize(
    ("baseline", "advantages"),
    [
        # returns -1, 0, 4, 3, less 0, less 2, or less their unweighted mean 1.5
        # (weighted, that would be 78/28 or 18/8)
        ("none", (-1.0, 0.0, 4.0, 3.0)),
        (2.0, (-3.0, -2.0, 2.0, 1.0)),
        ("batch_mean", (-2.5, -1.5, 2.5, 1.5)),
        # less the unweighted means of the others: 7/3, 6/3, 2/3, 3/3
        ("leave_one_out", (-10 / 3, -2.0, 10 / 3, 2.0)),
    ],
)
def test_the_gradient_is_the_weight_times_the_advantage_over_an_unweighted_baseline(weights, baseline, advantages):
    """beta = 1/2; -w A at every step."""
    loss, gradient = kl_loss(beta=0.5, log_behaviour=tensor(UNLIKE), weights=weights, baseline=baseline)
    products = [w * a for w, a in zip(UNLIKE_WEIGHTS[weights], advantages, strict=True)]
    assert_agree(tensor(gradient), tensor([[-product] * 2 for product in products]), 10)
    assert_agree(loss, -sum(product * x for product, x in zip(products, LOG_PROB, strict=True)), 60)


def test_the_baseline_is_the_unweighted_mean_whatever_the_weights():
    """Two paths of one step: returns 0 and 8, log_prob -1 and -2, tempered weights 1/4 and 3/4."""
    # log_pi = log_ref, so returns are the rewards 0 and 8; unweighted mean 4; A = -4 and 4
    # loss = -(1/4 * (-4) * (-1) + 3/4 * 4 * (-2)) = -(1 - 6) = 5
    # (the weighted mean, 6, would give A = -6 and 2: -(1.5 - 3) = 1.5)
    log_pi = tensor([[-1.0], [-2.0]])
    behaviour = tensor([[-1.0], [-2.0 - math.log(3)]])
    loss = reinforce.kl_loss(log_pi, log_pi.clone(), tensor([0.0, 8.0]), log_behaviour=behaviour, weights="tempered")
    assert_agree(loss, 5.0, 20)


def test_with_one_step_tempering_changes_nothing_and_on_policy_weights_are_equal():
    """The number of steps is the number of columns; a behaviour equal to the policy weighs every path 1/n."""
    equal = kl_loss(beta=0.5, baseline="none", log_behaviour=tensor(LOG_PI), weights="importance")
    # A * log_prob sums to -15: loss 15/4 again
    assert equal == (3.75, [[0.25] * 2, [0.0] * 2, [-1.0] * 2, [-0.75] * 2])


def test_padding_counts_as_a_step_when_tempering():
    """Two paths of one step, padded to two columns: weights softmax(log 9 / 2) = 1/4, 3/4."""
    # returns are the rewards, -1 and 1; log_prob -1 and -1: -(1/4 * 1 - 3/4 * 1) = 1/2
    log_pi = tensor([[-1.0, 0.0], [-1.0, 0.0]])
    behaviour = tensor([[-1.0, 0.0], [-1.0 - math.log(9), 0.0]])
    options = {"baseline": "none", "log_behaviour": behaviour, "weights": "tempered"}
    assert_agree(reinforce.kl_loss(log_pi, log_pi.clone(), tensor([-1.0, 1.0]), **options), 0.5, 4)


# A critic is half the mean squared error of value as a forecast of the returns -1, 0, 4, 3.


def critic_loss(value, **options):
    """The critic's loss on the paths above and the gradient it leaves on value; it leaves none on log_pi."""
    log_pi, value = parameter(LOG_PI), parameter(value)
    loss = reinforce.critic_loss(log_pi, tensor(LOG_REF), tensor(LOG_REWARD), value, **options)
    loss.backward()
    assert log_pi.grad is None
    return loss.item(), value.grad.tolist()


def test_critic_loss_of_one_value():
    """beta = 1/2, value 1."""
    # errors -2, -1, 3, 2; squares 4, 1, 9, 4: sum 18; loss = 18 / 8; gradient = -(-2 - 1 + 3 + 2) / 4
    assert critic_loss(1.0, beta=0.5) == (2.25, -0.5)


def test_critic_loss_of_a_value_for_each_condition():
    """beta = 1/2, values -3, 1, 2, 2."""
    # errors 2, -1, 2, 1; squares 4, 1, 4, 1: sum 10; loss = 10 / 8; gradient = -error / 4
    assert critic_loss([-3.0, 1.0, 2.0, 2.0], beta=0.5) == (1.25, [-0.5, 0.25, -0.5, -0.25])


def test_beta_of_a_critic_is_one_unless_given():
    """Returns 0, -0.5, 2, 3.5; value 1."""
    # errors -1, -1.5, 1, 2.5; squares 1, 2.25, 1, 6.25: sum 10.5; loss = 10.5 / 8; gradient = -1 / 4
    assert critic_loss(1.0) == (1.3125, -0.25)


@pytest.mark.claim("O6")
@pytest.mark.parametrize(
    ("weights", "loss", "gradient"),
    [
        # errors -2, -1, 3, 2, squares 4, 1, 9, 4
        # (4 + 1 + 9 + 25 * 4) / 28 / 2 = 114 / 56;   -(-2 - 1 + 3 + 25 * 2) / 28 = -50 / 28
        ("importance", 114 / 56, -50 / 28),
        # (4 + 1 + 9 + 5 * 4) / 8 / 2 = 34 / 16;      -(-2 - 1 + 3 + 5 * 2) / 8 = -10 / 8
        ("tempered", 34 / 16, -10 / 8),
    ],
)
def test_weights_of_a_critic_of_one_value(weights, loss, gradient):
    """beta = 1/2, value 1; weights (1, 1, 1, 25)/28, tempered (1, 1, 1, 5)/8."""
    found = critic_loss(1.0, beta=0.5, log_behaviour=tensor(UNLIKE), weights=weights)
    assert_agree(tensor(found), tensor([loss, gradient]), 10)


@pytest.mark.parametrize(
    ("weights", "loss"),
    [
        # errors 2, -1, 2, 1, squares 4, 1, 4, 1: (9 + 25) / 28 / 2 and (9 + 5) / 8 / 2
        ("importance", 34 / 56),
        ("tempered", 14 / 16),
    ],
)
def test_weights_of_a_critic_with_a_value_for_each_condition(weights, loss):
    """beta = 1/2, values -3, 1, 2, 2; the gradient is -w times the error."""
    found, gradient = critic_loss([-3.0, 1.0, 2.0, 2.0], beta=0.5, log_behaviour=tensor(UNLIKE), weights=weights)
    assert_agree(found, loss, 10)
    by_hand = [-w * e for w, e in zip(UNLIKE_WEIGHTS[weights], (2.0, -1.0, 2.0, 1.0), strict=True)]
    assert_agree(tensor(gradient), tensor(by_hand), 10)


# Two groups of unequal size. log_pi = log_ref, so the returns are the rewards, whatever beta is; means 1 and 6.
GROUP = torch.tensor([9, -4, 9, -4, -4, 9, -4, -4])
GROUPED_RETURNS = [1.0, 5.0, 4.0, 7.0, 6.0, -2.0, 2.0, 10.0]
GROUPED_LOG_PROB = [-1.0, -2.0, -2.0, -1.0, -1.0, -5.0, -1.0, -2.0]
LENGTHS = torch.tensor([1, 2, 2, 1, 1, 2, 2, 1])
# One step and a second that adds nothing, or is padding. Ratios pi/behaviour, to the power of the length:
# group 9: 1, 1, 2 over 4; group -4: 1, 3, 1, 1, 2 over 8, and there a factor e^-2000 a step that normalising removes.
RATIOS = [1, 1, 1, 3, 1, 2, 1, 2]
IN_GROUP = [3 / 32, 5 / 64, 3 / 32, 15 / 64, 5 / 64, 6 / 32, 5 / 64, 10 / 64]  # times 3/8 and 5/8
GROUPED_PI = [[log_prob, 0.0] for log_prob in GROUPED_LOG_PROB]


def behaviour(power) -> torch.Tensor:
    """A behaviour for which sum(log_pi - log_behaviour) is log ratio, each times a power."""
    shifts = [math.log(r) - 2000 * (g == -4) for r, g in zip(RATIOS, GROUP.tolist(), strict=True)]
    return tensor([[pi[0] - p * s, 0.0] for pi, p, s in zip(GROUPED_PI, power.tolist(), shifts, strict=True)])


def grouped(loss=reinforce.kl_loss, *value, **options):
    """A loss on the groups above and its gradient on the first step of each path."""
    log_pi = parameter(GROUPED_PI)
    found = loss(log_pi, tensor(GROUPED_PI), tensor(GROUPED_RETURNS), *value, beta=0.5, group=GROUP, **options)
    return found, torch.autograd.grad(found, [*value, log_pi][0])[0]


@pytest.mark.claim("O4")
@pytest.mark.parametrize(
    ("options", "loss", "advantages"),
    [
        # A log_prob: 0, 2, -6, -1, 0, 15, 4, -8: sum 6, over -8
        ({}, -0.75, [0.0, -1.0, 3.0, 1.0, 0.0, -3.0, -4.0, 4.0]),
        ({"baseline": tensor([1.0, 6, 1, 6, 6, 1, 6, 6])}, -0.75, [0.0, -1.0, 3.0, 1.0, 0.0, -3.0, -4.0, 4.0]),
        # less the mean of the others: of group 9 1, -0.5, 2.5; of group -4 6.25, 5.75, 6, 7, 5
        # A log_prob: 0, 2.5, -9, -1.25, 0, 22.5, 5, -10: sum 9.75
        ({"baseline": "leave_one_out"}, -1.21875, [0.0, -1.25, 4.5, 1.25, 0.0, -4.5, -5.0, 5.0]),
        # -1, -10, -8, -7, -6, 10, -2, -20: sum -44
        ({"baseline": "none"}, 5.5, GROUPED_RETURNS),
        # 1 nat is 2 units of the return: 4 and -2 become 1 + 2 and 1 - 2, 2 and 10 become 6 - 2 and 6 + 2
        # -1, -10, -6, -7, -6, 5, -4, -16: sum -45
        ({"baseline": "none", "clip": 1}, 5.625, [1.0, 5.0, 3.0, 7.0, 6.0, -1.0, 4.0, 8.0]),
    ],
)
def test_baselines_and_clipping_are_taken_within_each_group(options, loss, advantages):
    """The loss is the mean over all eight paths: its gradient is -A / 8."""
    found, gradient = grouped(**options)
    assert found.item() == loss
    assert gradient.tolist() == [[-a / 8] * 2 for a in advantages]


@pytest.mark.claim("O6")
@pytest.mark.parametrize(
    ("weights", "power", "options"),
    [
        ("importance", torch.ones(8), {}),
        ("tempered", 2 * torch.ones(8), {}),  # by the columns
        ("tempered", LENGTHS, {"steps": LENGTHS}),
    ],
)
def test_weights_are_normalised_within_each_group_and_tempered_by_the_true_length(weights, power, options):
    """Batch mean: A log_prob = 0, 2, -6, -1, 0, 15, 4, -8; a value for each group: errors -A."""
    options = {"log_behaviour": behaviour(power), "weights": weights, **options}
    loss, gradient = grouped(**options)
    # group 9: (-18 + 90) / 32 = 144 / 64; group -4: 5 (2 - 3 + 4 - 16) / 64 = -65 / 64
    size = 4000.0  # of the log-weights
    assert_agree(loss, -79 / 64, 50 * size)
    advantages = [0.0, -1.0, 3.0, 1.0, 0.0, -3.0, -4.0, 4.0]
    by_hand = [-w * a for w, a in zip(IN_GROUP, advantages, strict=True)]
    assert_agree(gradient, tensor([[x] * 2 for x in by_hand]), 5 * size)
    value = parameter([1.0, 6, 1, 6, 6, 1, 6, 6])
    loss, gradient = grouped(reinforce.critic_loss, value, **options)
    # squares 0, 1, 9, 1, 0, 9, 16, 16: 3 (9 + 18) / 32 = 162 / 64 and 5 (1 + 3 + 16 + 32) / 64 = 260 / 64; half of it
    assert_agree(loss, 211 / 64, 20 * size)
    assert_agree(gradient, tensor(by_hand), 5 * size)


def test_a_critic_without_weights_has_no_use_for_groups():
    """Half the mean of the squares 0, 1, 9, 1, 0, 9, 16, 16."""
    loss, gradient = grouped(reinforce.critic_loss, parameter([1.0, 6, 1, 6, 6, 1, 6, 6]), steps=LENGTHS)
    assert (loss.item(), gradient.tolist()) == (3.25, [-x / 8 for x in (0, -1, 3, 1, 0, -3, -4, 4)])


def test_the_clip_is_a_distance_in_nats_from_the_batch_mean_applied_before_the_baseline():
    """beta = 1/2, so that 1 nat is 2 units of the return: -1, 0, 4, 3, of mean 1.5, become -0.5, 0, 3.5, 3."""
    # A log_prob = 1.5, 0, -10.5, -6: sum -15; gradient -A / 4
    expected = 3.75, [[0.125] * 2, [0.0] * 2, [-0.875] * 2, [-0.75] * 2]
    assert kl_loss(beta=0.5, baseline="none", clip=1.0) == expected
    # returns 0, 0, 0, 8 of mean 2; 2 nats are 4 units: 0, 0, 0, 6, of mean 1.5; A = -1.5, -1.5, -1.5, 4.5
    log_pi = tensor([[-1.0], [-1.0], [-1.0], [-2.0]])
    loss = reinforce.kl_loss(log_pi, log_pi.clone(), tensor([0.0, 0.0, 0.0, 8.0]), beta=0.5, clip=2.0)
    # -(3 * 1.5 - 9) / 4; clipped after the baseline it would be -(6 - 8) / 4
    assert loss.item() == 1.125


def test_a_baseline_for_each_path():
    """beta = 1/2: returns -1, 0, 4, 3 less 1, 2, 3, 4."""
    # A = -2, -2, 1, -1; A log_prob = 6, 4, -3, 2: sum 9; gradient -A / 4
    expected = -2.25, [[0.5] * 2, [0.5] * 2, [-0.25] * 2, [0.25] * 2]
    assert kl_loss(beta=0.5, baseline=tensor([1.0, 2.0, 3.0, 4.0])) == expected


def test_the_published_baseline_takes_the_mean_reward_of_each_group():
    """Rewards 1, 4, 1 of mean 2 and 5, 7, 6, 2, 10 of mean 6; log-ratios 1, 0, 2, 0, 0, 0, 1, -1; kl_weight = 1/2."""
    reward, ratio = tensor([1.0, 5, 4, 7, 6, 1, 2, 10]), tensor([1.0, 0, 2, 0, 0, 0, 1, -1])
    log_pi, log_ref = parameter(GROUPED_PI), tensor(GROUPED_PI)
    log_ref[:, 0] -= ratio
    options = {"kl_weight": 0.5, "group": GROUP, "steps": LENGTHS}
    loss = reinforce.published_baseline_loss(log_pi, log_ref, reward.log(), **options)
    # r - mean r = -1, -1, 2, 1, 0, -1, -4, 4; times -log_prob: -1, -2, 4, 1, 0, -5, -4, 8: sum 1
    # the squared log-ratios sum to 7: (1 + 3.5) / 8
    assert_agree(loss, 0.5625, 60)
    loss.backward()
    # (-(r - mean r) + log-ratio) / 8
    by_hand = tensor([2.0, 1, 0, -1, 0, 1, 5, -5]) / 8
    assert_agree(log_pi.grad[:, 0], by_hand, 10)


@pytest.mark.parametrize("baseline", ["batch_mean", "leave_one_out"])
@pytest.mark.parametrize("group", [None, torch.ones(600, dtype=torch.int64)])
def test_the_baseline_of_a_large_batch_is_right_in_half_precision(baseline, group):
    """600 returns of 128: in float16 their sum overflows, and in steps of 128 it would stop at half of it."""
    log_pi = torch.ones(600, 1, dtype=torch.float16)
    log_reward = torch.full((600,), 128.0, dtype=torch.float16)
    assert reinforce.kl_loss(log_pi, log_pi.clone(), log_reward, baseline=baseline, group=group).item() == 0.0


# Estimators of the KL. log_pi - log_ref step by step: 1, 0;  0.5, -1;  -2, 0 (padding);  1, -0.5.
LOG_RATIO = [[1.0, 0.0], [0.5, -1.0], [-2.0, 0.0], [1.0, -0.5]]


def estimate(log_pi, log_ref, kind):
    """An estimate of each step and the gradient of the sum of all."""
    log_pi = parameter(log_pi)
    estimates = reinforce.kl_estimator(log_pi, tensor(log_ref), kind=kind)
    estimates.sum().backward()
    return estimates.tolist(), log_pi.grad.tolist()


def test_k1_is_the_log_ratio():
    """Of each step, with gradient one."""
    assert estimate(LOG_PI, LOG_REF, "k1") == (LOG_RATIO, [[1.0, 1.0]] * 4)
    lengths = torch.tensor([2, 2, 1, 2])
    assert reinforce.kl_estimator(tensor(LOG_PI), tensor(LOG_REF), kind="k1", steps=lengths).tolist() == LOG_RATIO


def test_k2_is_half_the_squared_log_ratio():
    """With the log-ratio as gradient."""
    expected = [[0.5, 0.0], [0.125, 0.5], [2.0, 0.0], [0.5, 0.125]]
    assert estimate(LOG_PI, LOG_REF, "k2") == (expected, LOG_RATIO)


def test_k3_is_the_ratio_less_one_plus_the_log_ratio():
    """pi_ref/pi = 2, 1/2, 1 and 4; padding is zero, exactly, in value and gradient."""
    two = math.log(2)
    # exp(-l) - 1 + l: 2 - 1 - log 2,  1/2 - 1 + log 2,  0,  4 - 1 - 2 log 2;   gradient 1 - exp(-l): -1, 1/2, 0, -3
    found, gradient = estimate([[-2 * two, -two], [0.0, -3 * two]], [[-two, -2 * two], [0.0, -two]], "k3")
    assert_agree(tensor(found), tensor([[1 - two, two - 0.5], [0.0, 3 - 2 * two]]), 4)
    assert_agree(tensor(gradient), tensor([[-1.0, 0.5], [0.0, -3.0]]), 4)
    assert found[1][0] == 0.0 and gradient[1][0] == 0.0


def test_k3_keeps_its_digits_where_the_policies_are_close():
    """l = 2^-20: k3 = l^2/2 - l^3/6 to rounding of l, not of 1."""
    small = 2.0**-20
    found, _ = estimate([[small, -small]], [[0.0, 0.0]], "k3")
    # the next term, l^4/24, is 2^-84.6; eps times l is 2^-72
    assert_agree(tensor(found), tensor([[small**2 / 2 - small**3 / 6, small**2 / 2 + small**3 / 6]]), small)


def test_an_estimator_of_whole_paths_takes_sums():
    """log-ratios of the paths: 1, -0.5, -2, 0.5."""
    sums = tensor(LOG_PI).sum(dim=1, keepdim=True), tensor(LOG_REF).sum(dim=1, keepdim=True)
    assert reinforce.kl_estimator(*sums, kind="k2").tolist() == [[0.5], [0.125], [2.0], [0.125]]


def test_published_baseline_loss_and_its_gradient():
    """Rewards 1 and 0 (log r = 0 and -inf), kl_weight = 1/2."""
    log_pi = parameter(LOG_PI[:2])
    loss = reinforce.published_baseline_loss(log_pi, tensor(LOG_REF[:2]), tensor([0.0, -math.inf]), kl_weight=0.5)
    # r - mean r = 0.5, -0.5; sum(log_pi) = -3, -2; sum(log_pi - log_ref) = 1, -0.5
    # path 1: -0.5 * (-3) + 0.5 * 1    = 2
    # path 2:  0.5 * (-2) + 0.5 * 0.25 = -0.875;   mean = 1.125 / 2
    assert loss.item() == 0.5625
    loss.backward()
    # (-(r - mean r) + 2 * 0.5 * log-ratio) / n: (-0.5 + 1) / 2 and (0.5 - 0.5) / 2, at every step
    assert log_pi.grad.tolist() == [[0.25, 0.25], [0.0, 0.0]]


def test_published_baseline_loss_with_other_rewards_and_no_penalty():
    """Rewards 1, 3, 0, 0: mean 1, kl_weight = 0."""
    log_reward = tensor([0.0, math.log(3), -math.inf, -math.inf])
    log_pi = parameter(LOG_PI)
    loss = reinforce.published_baseline_loss(log_pi, tensor(LOG_REF), log_reward, kl_weight=0.0)
    # r - mean r = 0, 2, -1, -1; times -log_prob: 0, 4, -3, -2: sum -1; over 4
    assert_agree(loss, -0.25, 10)
    loss.backward()
    # -(r - mean r) / 4 = 0, -0.5, 0.25, 0.25
    assert_agree(log_pi.grad, tensor([[0.0] * 2, [-0.5] * 2, [0.25] * 2, [0.25] * 2]), 4)


def test_the_gradient_of_the_published_penalty_is_twice_the_weight_times_the_log_ratio():
    """Equal rewards, so that the penalty is all that is left: kl_weight = 1/4."""
    log_pi = parameter(LOG_PI)
    loss = reinforce.published_baseline_loss(log_pi, tensor(LOG_REF), torch.zeros(4).double(), kl_weight=0.25)
    # 0.25 * (1 + 0.25 + 4 + 0.25) / 4 = 5.5 / 16
    assert loss.item() == 0.34375
    loss.backward()
    # 2 * 0.25 * log-ratio / 4 = (1, -0.5, -2, 0.5) / 8
    assert log_pi.grad.tolist() == [[0.125] * 2, [-0.0625] * 2, [-0.25] * 2, [0.0625] * 2]


@pytest.mark.parametrize(
    "options", [{"baseline": "leave_one_out"}, {"baseline": "batch_mean", "weights": "importance"}]
)
@pytest.mark.parametrize("group", [None, torch.tensor([0, 1, 0, 1])], ids=["one group", "two groups"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_of_the_dtype_of_its_inputs(options, group, dtype):
    log_pi, log_ref, log_reward = (tensor(values).to(dtype) for values in (LOG_PI, LOG_REF, LOG_REWARD))
    if "weights" in options:
        options = options | {"log_behaviour": log_ref}
    loss = reinforce.kl_loss(log_pi.requires_grad_(), log_ref, log_reward, group=group, **options)
    assert loss.dtype == dtype


def test_the_published_baseline_names_what_it_refuses():
    log_pi, log_ref, log_reward = parameter(LOG_PI), tensor(LOG_REF), tensor(LOG_REWARD)
    for bad, words in (
        (log_reward[:2], r"expected \(4,\), that is \[batch\], to go with"),
        (log_reward * math.nan, "^log_reward holds"),
        (log_reward + 800, r"^exp\(log_reward\) holds"),
    ):
        with pytest.raises(ValueError, match=words):
            reinforce.published_baseline_loss(log_pi, log_ref, bad, kl_weight=0.1)


def test_a_reference_beyond_the_end_of_a_path_is_refused_by_its_name():
    log_ref = tensor(LOG_REF)
    log_ref[2, 1] = -1.0
    with pytest.raises(ValueError, match=r"^log_ref is -1 at \[2, 1\]"):
        reinforce.kl_loss(parameter(LOG_PI), log_ref, tensor(LOG_REWARD), steps=torch.tensor([2, 2, 1, 2]))
