"""Two runs of one optimiser in other units: settings by hand, torch's own optimisers, RTB beside Trust-PCL.

Here belong the claims on lockstep (E4), on what breaks it (L4) and on finite precision (L3).
"""

import functools
import inspect
import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from inputs import PROPERTY, assert_agree, batches, generator, tensor
from oracles import random_policy

from companion import mdp, optimisers, rtb, trust_pcl

#: The last sentence of a refusal begins with one of these.
INSTRUCTION = r"\. (Pass|Choose|Leave|Put)\b"


def default(optimiser: str, name: str):
    """torch's default for a setting."""
    return inspect.signature(getattr(torch.optim, optimiser)).parameters[name].default


# Settings by hand; all numbers binary fractions.


@pytest.mark.parametrize(
    ("optimiser", "others", "expected"),
    [
        # lr u / c = 0.5 * 0.5 / 4 = 1/16;   weight_decay c / u = 0.125 * 4 / 0.5 = 1
        ("SGD", {"momentum": 0.875, "dampening": 0.25, "nesterov": False}, {"lr": 0.0625, "weight_decay": 1.0}),
        # lr u = 1/4;   eps c = 1;   weight_decay c / u = 1, for it is added to the gradient
        ("Adam", {"betas": (0.5, 0.75), "eps": 0.25, "amsgrad": True}, {"lr": 0.25, "eps": 1.0, "weight_decay": 1.0}),
        # weight_decay / u = 1/4, for it never meets the gradient: lr weight_decay stays 1/16
        ("AdamW", {"eps": 0.25}, {"lr": 0.25, "eps": 1.0, "weight_decay": 0.25}),
        # torch's Adam takes a flag for it
        ("Adam", {"decoupled_weight_decay": True}, {"lr": 0.25, "eps": 4e-8, "weight_decay": 0.25}),
    ],
)
def test_each_setting_is_rescaled_by_its_own_factor(optimiser, others, expected):
    """c = 4, u = 1/2; a rate of 1/2 and a decay of 1/8."""
    settings = {"lr": 0.5, "weight_decay": 0.125, **others}
    assert optimisers.rescale(optimiser, settings, gradient=4.0, parameter=0.5) == settings | expected


def test_a_factor_on_the_parameter_is_one_unless_given():
    """c = 4, for each optimiser."""
    settings = {"lr": 0.5, "weight_decay": 0.125}
    assert optimisers.rescale("SGD", settings, gradient=4.0) == {"lr": 0.125, "weight_decay": 0.5}
    adam = {"lr": 0.5, "weight_decay": 0.5, "eps": 4 * default("Adam", "eps")}
    assert optimisers.rescale("Adam", settings, gradient=4.0) == adam
    adamw = {"lr": 0.5, "weight_decay": 0.125, "eps": 4 * default("AdamW", "eps")}
    assert optimisers.rescale("AdamW", settings, gradient=4.0) == adamw


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        ("SGD", {"lr": 1e-3 * 0.5 / 4, "weight_decay": 0.0}),
        ("Adam", {"lr": 1e-3 * 0.5, "eps": 1e-8 * 4, "weight_decay": 0.0}),
        ("AdamW", {"lr": 1e-3 * 0.5, "eps": 1e-8 * 4, "weight_decay": 0.01 / 0.5}),
    ],
)
def test_defaults_are_filled_in_where_they_change(optimiser, expected):
    """torch's: a rate of 1e-3, eps 1e-8, and for AdamW a decay of 0.01. c = 4, u = 1/2."""
    assert optimisers.rescale(optimiser, {}, gradient=4.0, parameter=0.5) == expected


@pytest.mark.parametrize(
    ("optimiser", "settings"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True, "foreach": False}),
        ("Adam", {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True, "maximize": True}),
        ("AdamW", {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True, "maximize": True}),
    ],
)
def test_all_else_is_passed_through_and_the_settings_given_are_left_alone(optimiser, settings):
    """The result is a new dictionary, which the optimiser takes."""
    before = dict(settings)
    found = optimisers.rescale(optimiser, settings, gradient=0.3, parameter=7.0)
    assert settings == before and found is not settings
    unchanged = set(settings) - {"lr"}
    assert {name: found[name] for name in unchanged} == {name: settings[name] for name in unchanged}
    getattr(torch.optim, optimiser)([torch.zeros(1, requires_grad=True)], **found)


GIVEN = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02},
    "Adam": {"lr": 0.1, "eps": 0.01, "weight_decay": 0.02, "betas": (0.8, 0.9)},
    "AdamW": {"lr": 0.1, "eps": 0.01, "weight_decay": 0.02, "amsgrad": True},
}


@pytest.mark.parametrize("optimiser", GIVEN)
def test_factors_of_one_change_nothing(optimiser):
    """Exactly."""
    assert optimisers.rescale(optimiser, GIVEN[optimiser], gradient=1.0, parameter=1.0) == GIVEN[optimiser]


@pytest.mark.parametrize("optimiser", GIVEN)
@pytest.mark.parametrize(
    ("first", "second"), [((4.0, 0.5), (0.125, 8.0)), ((0.3, 7.0), (1e-3, 0.1)), ((3.0, 2.0), (1 / 3, 0.5))]
)
def test_rescaling_twice_is_rescaling_by_the_products(optimiser, first, second):
    """To rounding of each number; the defaults filled in the first time are rescaled the second."""
    for settings in (GIVEN[optimiser], {}):
        once = optimisers.rescale(optimiser, settings, gradient=first[0] * second[0], parameter=first[1] * second[1])
        twice = optimisers.rescale(optimiser, settings, gradient=first[0], parameter=first[1])
        twice = optimisers.rescale(optimiser, twice, gradient=second[0], parameter=second[1])
        assert set(once) == set(twice)
        for name in ("lr", "eps", "weight_decay"):
            if name in once:
                assert_agree(twice[name], once[name], abs(once[name]))


# Refusals.


def refuses(call, *words: str) -> None:
    """Assert that a call is refused with a message in its three parts, which holds these words."""
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert all(word in message for word in ("expected", *words)), message
    assert re.search(INSTRUCTION, message), message


@pytest.mark.parametrize("bad", ["sgd", "RMSprop", "", None, torch.optim.SGD, ["SGD"]])
def test_an_unknown_optimiser_is_refused(bad):
    """The message lists those that are known."""
    words = f"optimiser is {bad!r}", "SGD", "Adam", "AdamW", "Choose"
    refuses(lambda: optimisers.rescale(bad, {}, gradient=2.0), *words)
    refuses(lambda: optimisers.trust_pcl_settings(bad, {}, {}, alpha=2.0), *words)


@pytest.mark.parametrize(
    ("optimiser", "settings", "unknown"),
    [
        ("SGD", {"learning_rate": 0.1}, ["learning_rate"]),
        ("SGD", {"lr": 0.1, "eps": 1e-8}, ["eps"]),
        ("Adam", {"momentum": 0.9, "max_norm": 1.0}, ["max_norm", "momentum"]),
        ("AdamW", {"params": []}, ["params"]),
    ],
)
def test_an_unknown_setting_is_refused(optimiser, settings, unknown):
    """A misspelt one, or one of another optimiser."""
    words = f"settings holds {unknown}", f"torch.optim.{optimiser}", "Leave these out"
    refuses(lambda: optimisers.rescale(optimiser, settings, gradient=2.0), *words)


NOT_POSITIVE = [0, 0.0, -1.0, math.nan, math.inf, None, True, "1", tensor(2.0)]


@pytest.mark.parametrize("bad", NOT_POSITIVE)
def test_a_factor_that_is_no_positive_number_is_refused(bad):
    """Zero, negative, NaN, infinite, a truth value, a tensor."""
    refuses(lambda: optimisers.rescale("SGD", {}, gradient=bad), f"gradient is {bad!r}", "> 0", "Pass")
    refuses(lambda: optimisers.rescale("SGD", {}, gradient=1.0, parameter=bad), f"parameter is {bad!r}", "> 0", "Pass")
    refuses(lambda: optimisers.trust_pcl_settings("SGD", {}, {}, alpha=bad), f"alpha is {bad!r}", "> 0", "Pass")


@pytest.mark.parametrize(
    ("optimiser", "name"),
    [(optimiser, name) for optimiser in GIVEN for name in ("lr", "eps", "weight_decay") if name in GIVEN[optimiser]],
)
@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, None, True, "0.1", tensor(0.1)])
def test_a_setting_that_is_rescaled_and_is_no_finite_number_is_refused(optimiser, name, bad):
    """A learning rate that is a tensor among them; zero is accepted, as torch accepts it."""
    refuses(lambda: optimisers.rescale(optimiser, {name: bad}, gradient=2.0), f"{name} is {bad!r}", ">= 0", "no tensor")
    assert optimisers.rescale(optimiser, {name: 0.0}, gradient=2.0)[name] == 0.0


@pytest.mark.parametrize("bad", [None, 0.1, ["lr"]])
def test_settings_that_are_no_mapping_are_refused(bad):
    refuses(lambda: optimisers.rescale("SGD", bad, gradient=2.0), "expected a mapping")


def test_a_setting_that_overflows_is_refused():
    refuses(lambda: optimisers.rescale("SGD", {"lr": 1e200}, gradient=1e-200), "lr=1e+200 becomes inf")
    refuses(lambda: optimisers.rescale("Adam", {}, gradient=1e-320), "eps=1e-08 becomes 0.0")
    for alpha in (1e200, 1e-200):
        refuses(functools.partial(optimisers.trust_pcl_settings, "SGD", {}, {}, alpha=alpha), "alpha squared is")
    assert optimisers.trust_pcl_settings("SGD", {"lr": 1.0}, {"lr": 1.0}, alpha=2**40)[0]["lr"] == 2.0**-80


# torch's own optimisers, fed random gradients by hand.

STEPS = 200
#: Rounding allowed over a whole run, in eps: steps forget most of what those before them rounded.
RUN = 64
RUNS = {
    "plain": ("SGD", {"lr": 0.1}),
    "decayed": ("SGD", {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.3}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    "maximized": ("SGD", {"lr": 0.1, "maximize": True, "weight_decay": 0.3}),
    "adam": ("Adam", {"lr": 0.1, "eps": 0.5}),
    "adam, decayed": ("Adam", {"lr": 0.1, "eps": 0.5, "betas": (0.8, 0.95), "weight_decay": 0.3}),
    "amsgrad": ("Adam", {"lr": 0.1, "eps": 0.5, "amsgrad": True, "weight_decay": 0.3}),
    "adamw": ("AdamW", {"lr": 0.1, "eps": 0.5, "weight_decay": 0.3}),
    "adamw, amsgrad": ("AdamW", {"lr": 0.1, "eps": 0.5, "amsgrad": True}),
}
FACTORS = [(0.09, 0.3), (9.0, 7.0), (1e-6, 1e-3)]


def trail(optimiser: str, settings, start: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Return the parameters after each step, [steps, ...], of an optimiser that is given these gradients."""
    theta = start.clone().requires_grad_()
    steps = getattr(torch.optim, optimiser)([theta], **settings)
    places = []
    for gradient in gradients:
        theta.grad = gradient.clone()
        steps.step()
        places.append(theta.detach().clone())
    return torch.stack(places)


def given_gradients(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A start, and normal gradients of all sizes around a drift."""
    random = generator(seed)
    start, drift = torch.randn(2, 3, generator=random, dtype=torch.float64)
    noise = torch.randn(STEPS, 3, generator=random, dtype=torch.float64)
    return start, drift + noise * torch.rand(STEPS, 1, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("c", "u"), FACTORS)
def test_rescaled_settings_take_the_same_steps_on_a_rescaled_problem(run, c, u):
    """Parameters u times as large, gradients c times as large, 200 steps; eps is large enough to matter."""
    optimiser, settings = RUNS[run]
    start, gradients = given_gradients(1)
    ours = trail(optimiser, settings, start, gradients)
    rescaled = optimisers.rescale(optimiser, settings, gradient=c, parameter=u)
    theirs = trail(optimiser, rescaled, u * start, c * gradients)
    assert_agree(theirs / u, ours, ours.abs().max(), roundings=RUN)


@pytest.mark.parametrize(
    ("run", "left"),
    [
        ("plain", "lr"),
        ("momentum", "lr"),
        ("adam", "lr"),
        ("adamw", "lr"),
        ("adam", "eps"),
        ("amsgrad", "eps"),
        ("adamw", "eps"),
        ("decayed", "weight_decay"),
        ("nesterov", "weight_decay"),
        ("adam, decayed", "weight_decay"),
        ("adamw", "weight_decay"),
    ],
)
def test_one_setting_left_as_it_was_parts_the_runs(run, left):
    """c = 9, u = 1/4: every factor is far from one."""
    optimiser, settings = RUNS[run]
    start, gradients = given_gradients(2)
    ours = trail(optimiser, settings, start, gradients)
    rescaled = optimisers.rescale(optimiser, settings, gradient=9.0, parameter=0.25)
    theirs = trail(optimiser, rescaled | {left: settings[left]}, 0.25 * start, 9 * gradients)
    assert (theirs / 0.25 - ours).abs().max() > 0.01 * ours.abs().max()


# RTB beside Trust-PCL.


@pytest.mark.claim("E4")
def test_trust_pcl_settings_follow_the_rules_for_gradient_descent():
    """alpha = 1/4: the policy's rate over alpha^2, the same rate for V; all numbers exact."""
    policy = {"lr": 0.5, "momentum": 0.875, "weight_decay": 0.5}
    found = optimisers.trust_pcl_settings("SGD", policy, {"lr": 0.25, "momentum": 0.5, "weight_decay": 3.0}, alpha=0.25)
    # an L2 penalty scales like the loss: alpha^2 for the policy; alpha^2 / alpha^2 for V = alpha log Z
    assert found[0] == {"lr": 0.5 * 16, "momentum": 0.875, "weight_decay": 0.5 / 16}
    assert found[1] == {"lr": 0.25, "momentum": 0.5, "weight_decay": 3.0}


@pytest.mark.claim("E4")
def test_trust_pcl_settings_follow_the_rules_for_adam():
    """alpha = 1/4: the same rate for the policy, alpha times it for V; eps times alpha^2 and alpha."""
    policy, log_z = {"lr": 0.5, "eps": 0.5, "weight_decay": 1.0}, {"lr": 8.0, "eps": 0.5, "weight_decay": 1.0}
    found = optimisers.trust_pcl_settings("Adam", policy, log_z, alpha=0.25)
    assert found[0] == {"lr": 0.5, "eps": 0.5 / 16, "weight_decay": 1.0 / 16}
    assert found[1] == {"lr": 2.0, "eps": 0.5 / 4, "weight_decay": 1.0}


@pytest.mark.claim("L4")
def test_trust_pcl_settings_leave_the_decay_of_adamw_to_the_policy_as_it_is():
    """alpha = 1/4: lr weight_decay, by which parameters shrink, is what it was, for V as for log Z."""
    settings = {"lr": 8.0, "eps": 0.5, "weight_decay": 0.125}
    found = optimisers.trust_pcl_settings("AdamW", settings, settings, alpha=0.25)
    assert found[0] == {"lr": 8.0, "eps": 0.5 / 16, "weight_decay": 0.125}
    assert found[1] == {"lr": 2.0, "eps": 0.5 / 4, "weight_decay": 0.5}


PROBLEM = mdp.randomise(mdp.small_graph(), generator(5))
PATHS = mdp.enumerate_paths(PROBLEM)
FIXED = PATHS.per_step(PROBLEM.log_ref), PATHS.per_step(PROBLEM.rewards)
BEHAVIOUR = PATHS.log_prob(random_policy(PROBLEM, 6)).exp()


def clipped(gradient: torch.Tensor, threshold: float, norm: torch.Tensor) -> torch.Tensor:
    """Return a gradient shortened so that the norm is at most the threshold; nothing is added to the norm."""
    return gradient * min(1.0, threshold / float(norm))


def by_group(thresholds: tuple[float, float]):
    """Return a rule that clips the policy and log Z, or V, by thresholds of their own."""
    return lambda *gradients: tuple(clipped(g, t, g.norm()) for g, t in zip(gradients, thresholds, strict=True))


def jointly(threshold: float):
    """Return a rule that clips all parameters by the norm of all."""
    return lambda *gradients: tuple(
        clipped(g, threshold, torch.cat([x.reshape(-1) for x in gradients]).norm()) for g in gradients
    )


def train(optimiser: str, settings, loss, first: float, steps: int, clip=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and log Z, or V, after each step, on the same off-policy batches of eight paths every time."""
    logits = torch.zeros_like(PROBLEM.log_ref).requires_grad_()
    scalar = tensor(first).requires_grad_()
    optimisers = [getattr(torch.optim, optimiser)([x], **s) for x, s in zip((logits, scalar), settings, strict=True)]
    random, places = generator(7), []
    for _ in range(steps):
        index = torch.multinomial(BEHAVIOUR, 8, replacement=True, generator=random)
        log_pi = PATHS.per_step(mdp.log_softmax(PROBLEM, logits))[index]
        gradients = torch.autograd.grad(loss(log_pi, *(x[index] for x in FIXED), scalar), (logits, scalar))
        logits.grad, scalar.grad = gradients if clip is None else clip(*gradients)
        for one in optimisers:
            one.step()
        places.append((logits.detach().clone(), scalar.detach().clone()))
    return tuple(map(torch.stack, zip(*places, strict=True)))


def rtb_run(optimiser, settings, alpha, steps, clip=None):
    """Return the run of RTB: logits and log Z."""

    def loss(log_pi, log_ref, rewards, log_z):
        return rtb.loss(log_pi, log_ref, rewards.sum(dim=1), log_z, beta=1 / alpha)

    logits, log_z = train(optimiser, settings, loss, 0.5, steps, clip)
    assert (logits[-1] - logits[0]).abs().max() > 0.1 and (log_z[-1] - log_z[0]).abs() > 0.1
    return logits, log_z


def trust_pcl_run(optimiser, settings, alpha, steps, clip=None):
    """Return the run of Trust-PCL: logits and its value over alpha."""

    def loss(log_pi, log_ref, rewards, value):
        values = trust_pcl.full_path_values(value, log_pi)
        return trust_pcl.loss(log_pi, log_ref, rewards, values, kl_weight=alpha)

    logits, value = train(optimiser, settings, loss, alpha * 0.5, steps, clip)
    return logits, value / alpha


def assert_together(ours, theirs) -> None:
    """Assert that two runs are within rounding of each other at every step."""
    for x, y in zip(ours, theirs, strict=True):
        assert_agree(y, x, 1 + x.abs().max(), roundings=RUN)


def apart(ours, theirs) -> float:
    """The largest distance of two runs."""
    return max(float((x - y).abs().max()) for x, y in zip(ours, theirs, strict=True))


TRAINED = {
    "descent": ("SGD", ({"lr": 0.1}, {"lr": 0.1})),
    "momentum": ("SGD", ({"lr": 0.02, "momentum": 0.9}, {"lr": 0.05, "momentum": 0.8})),
    "adam": ("Adam", ({"lr": 0.01}, {"lr": 0.02})),
    "adam, large eps": ("Adam", ({"lr": 0.02, "eps": 0.5}, {"lr": 0.05, "eps": 0.1})),
}


@pytest.mark.claim("E4")
@pytest.mark.parametrize(
    ("run", "alpha"),
    [("descent", 0.3), ("descent", 3.0), ("momentum", 0.3), ("adam", 0.3), ("adam", 3.0), ("adam, large eps", 3.0)],
)
def test_rtb_and_trust_pcl_stay_together_over_a_whole_run(run, alpha):
    """300 steps off-policy; and V's rate over alpha^2, like the policy's, parts them."""
    optimiser, settings = TRAINED[run]
    ours = rtb_run(optimiser, settings, alpha, 300)
    policy, value = optimisers.trust_pcl_settings(optimiser, *settings, alpha=alpha)
    assert_together(ours, trust_pcl_run(optimiser, (policy, value), alpha, 300))
    wrong = value | {"lr": settings[1]["lr"] / alpha**2}
    assert apart(ours, trust_pcl_run(optimiser, (policy, wrong), alpha, 300)) > 0.01


CLIPPED = ("descent", "momentum", "adam, large eps")
DECAYED = {
    "momentum, L2": ("SGD", ({"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.2})),
    "adam, L2": ("Adam", ({"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.2})),
    "adamw": ("AdamW", ({"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.2})),
}


@pytest.mark.claim("L4")
@pytest.mark.parametrize("run", DECAYED)
def test_weight_decay_scaled_like_the_loss_keeps_the_runs_together(run):
    """200 steps at alpha = 0.3; the policy's penalty left as it was parts them, AdamW's scaled like the loss too."""
    optimiser, settings = DECAYED[run]
    ours = rtb_run(optimiser, settings, 0.3, 200)
    policy, value = optimisers.trust_pcl_settings(optimiser, *settings, alpha=0.3)
    assert_together(ours, trust_pcl_run(optimiser, (policy, value), 0.3, 200))
    wrong = settings[0]["weight_decay"] * (0.09 if optimiser == "AdamW" else 1.0)
    theirs = trust_pcl_run(optimiser, (policy | {"weight_decay": wrong}, value), 0.3, 200)
    assert apart(ours, theirs) > 0.01


@pytest.mark.claim("L4")
@pytest.mark.parametrize(("run", "alpha"), [*zip(CLIPPED, (0.3, 3.0, 0.3), strict=True)])
def test_clipping_each_group_by_its_own_threshold_keeps_the_runs_together(run, alpha):
    """200 steps; thresholds alpha^2 and alpha times those of RTB, low enough to matter."""
    optimiser, settings = TRAINED[run]
    ours = rtb_run(optimiser, settings, alpha, 200, by_group((0.3, 0.2)))
    theirs = optimisers.trust_pcl_settings(optimiser, *settings, alpha=alpha)
    clip = by_group((alpha**2 * 0.3, alpha * 0.2))
    assert_together(ours, trust_pcl_run(optimiser, theirs, alpha, 200, clip))
    assert apart(ours, rtb_run(optimiser, settings, alpha, 200)) > 0.01


@pytest.mark.claim("L4")
@pytest.mark.parametrize("run", CLIPPED)
def test_clipping_by_the_joint_norm_parts_the_runs(run):
    """alpha = 0.3, whether the threshold is multiplied by 1, alpha or alpha^2."""
    optimiser, settings = TRAINED[run]
    ours = rtb_run(optimiser, settings, 0.3, 200, jointly(0.3))
    theirs = optimisers.trust_pcl_settings(optimiser, *settings, alpha=0.3)
    for factor in (1.0, 0.3, 0.09):
        assert apart(ours, trust_pcl_run(optimiser, theirs, 0.3, 200, jointly(factor * 0.3))) > 0.01


@pytest.mark.claim("L4")
def test_clipping_with_torch_keeps_the_runs_together_up_to_what_it_adds_to_the_norm():
    """``clip_grad_norm_`` divides by the norm plus 1e-6, in any unit: near 1e-6/alpha^2 of a step, not rounding."""
    optimiser, settings = TRAINED["descent"]
    theirs = optimisers.trust_pcl_settings(optimiser, *settings, alpha=0.3)

    def with_torch(thresholds):
        def clip(*gradients):
            holders = [torch.zeros_like(g).requires_grad_() for g in gradients]
            for holder, g, threshold in zip(holders, gradients, thresholds, strict=True):
                holder.grad = g.clone()
                torch.nn.utils.clip_grad_norm_([holder], threshold)
            return tuple(holder.grad for holder in holders)

        return clip

    ours = rtb_run(optimiser, settings, 0.3, 200, with_torch((0.3, 0.2)))
    gap = apart(ours, trust_pcl_run(optimiser, theirs, 0.3, 200, with_torch((0.09 * 0.3, 0.3 * 0.2))))
    assert 1e-8 < gap < 1e-3


# Finite precision.


def associated_alike(b, beta: float) -> torch.Tensor:
    """RTB's residual in the order in which Trust-PCL adds it up: step by step, log Z last, the sign turned."""
    gains = beta * b.rewards - b.log_pi + b.log_ref
    return -(-b.log_z + gains.sum(dim=1))


def theirs_on(b, alpha: float) -> torch.Tensor:
    """Trust-PCL's residual with V(s_0) = alpha log Z."""
    values = trust_pcl.full_path_values(alpha * b.log_z, b.log_pi)
    return trust_pcl.residual(b.log_pi, b.log_ref, b.rewards, values, kl_weight=alpha)


@pytest.mark.claim("L3")
@PROPERTY
@given(batches())
def test_residuals_that_associate_alike_agree_bitwise_where_alpha_is_a_power_of_two(b):
    """2^-10 to 2^10, in float32 and float64: multiplying by such a number rounds nothing. The losses too."""
    for power in (-10, -3, -1, 0, 2, 10):
        alpha = 2.0**power
        ours, theirs = associated_alike(b, 1 / alpha), theirs_on(b, alpha)
        assert torch.equal(theirs, -alpha * ours)
        loss = 0.5 * ours.square().mean()
        values = trust_pcl.full_path_values(alpha * b.log_z, b.log_pi)
        theirs = trust_pcl.loss(b.log_pi, b.log_ref, b.rewards, values, kl_weight=alpha)
        assert torch.equal(theirs, alpha**2 * loss)


def many(dtype: torch.dtype):
    """A hundred random paths of five steps as the tests above use them."""
    random = generator(3)
    log_pi, log_ref, rewards = torch.randn(3, 100, 5, generator=random, dtype=torch.float64).to(dtype)
    shape = {"log_pi": -log_pi.abs(), "log_ref": -log_ref.abs(), "rewards": rewards, "log_z": tensor(0.7, dtype)}
    return type("Paths", (), shape)


@pytest.mark.claim("L3")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("alpha", "alike"), [(0.1, True), (3.0, True), (0.5, False), (1.0, False)])
def test_another_alpha_or_another_order_loses_bits(dtype, alpha, alike):
    """alpha = 0.1 or 3 in the same order; a power of two in the order of the package: some paths differ."""
    b = many(dtype)
    package = rtb.residual(b.log_pi, b.log_ref, b.rewards.sum(dim=1), b.log_z, beta=1 / alpha)
    ours = associated_alike(b, 1 / alpha) if alike else package
    same = theirs_on(b, alpha) == -alpha * ours
    assert not bool(same.all())
    size = 50 * max(alpha, 1.0)  # five steps of terms up to 3, and two numbers more
    assert_agree(theirs_on(b, alpha), -alpha * ours.double(), size, dtype)


def one_step(log_pi: float, log_ref: float, reward: float, log_z: float, dtype: torch.dtype):
    """One path of one step, as the tests above use them."""
    shape = {"log_pi": log_pi, "log_ref": log_ref, "rewards": reward}
    named = {name: tensor([[value]], dtype) for name, value in shape.items()}
    return type("Path", (), named | {"log_z": tensor(log_z, dtype)})


def on_the_package(b, alpha: float) -> torch.Tensor:
    """-alpha times the residual of RTB as the package orders it."""
    return -alpha * rtb.residual(b.log_pi, b.log_ref, b.rewards.sum(dim=1), b.log_z, beta=1 / alpha)


@pytest.mark.claim("L3")
@PROPERTY
@given(st.sampled_from([torch.float32, torch.float64]), st.floats(1, 2, exclude_max=True), st.integers(-20, 20))
@example(torch.float64, 1 + 2.0**-52, 0)
@example(torch.float64, 2 - 2.0**-52, 0)
@example(torch.float32, 1 + 2.0**-23, 0)
def test_at_every_alpha_some_step_parts_the_residuals_or_alpha_is_a_power_of_two(dtype, m, e):
    """The two steps of the proof: the first at every other alpha, in any order; the second parts the package's."""
    m, eps = tensor(m, dtype).item(), torch.finfo(dtype).eps
    alpha = m * 2.0**e
    step = one_step(-(1 + eps), -1.0, 0.0, 0.0, dtype)
    exact = tensor([m * eps * 2.0**e], dtype)
    assert torch.equal(-alpha * associated_alike(step, 1 / alpha), exact)
    assert torch.equal(on_the_package(step, alpha), exact)
    assert torch.equal(theirs_on(step, alpha), exact) == (m in (1.0, 2.0))
    power = 2.0**e
    step = one_step(-eps / 2, 0.0, power, 1.0, dtype)
    assert torch.equal(theirs_on(step, power), tensor([0.0], dtype))
    assert torch.equal(-power * associated_alike(step, 1 / power), tensor([-0.0], dtype))
    assert torch.equal(on_the_package(step, power), tensor([power * eps / 2], dtype))


@pytest.mark.claim("L3")
@PROPERTY
@given(batches())
def test_both_residuals_are_within_a_few_eps_of_exact_arithmetic(b):
    """Added up in fractions of the very floats that the functions are given; alpha from 1e-3 to 1e3."""
    alpha, beta = b.alpha, 1 / b.alpha
    value = alpha * b.log_z
    for k, found in enumerate(theirs_on(b, alpha).tolist()):
        rows = zip(*(x[k].tolist() for x in (b.log_pi, b.log_ref, b.rewards)), strict=True)
        exact = -Fraction(value.item()) + sum(
            Fraction(r) - Fraction(alpha) * (Fraction(p) - Fraction(q)) for p, q, r in rows
        )
        assert_agree(found, float(exact), b.size()[k], b.dtype)
    found = rtb.residual(b.log_pi, b.log_ref, b.log_reward, b.log_z, beta=beta).tolist()
    for k, log_reward in enumerate(b.log_reward.tolist()):
        ratio = sum(Fraction(p) - Fraction(q) for p, q in zip(b.log_pi[k].tolist(), b.log_ref[k].tolist(), strict=True))
        exact = Fraction(b.log_z.item()) + ratio - Fraction(beta) * Fraction(log_reward)
        assert_agree(found[k], float(exact), b.size()[k] / alpha, b.dtype)
