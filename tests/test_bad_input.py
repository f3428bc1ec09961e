"""Bad input of every kind, given to every public function of the objectives and to token samplers, and the refusals.

A refusal is a ``ValueError`` in two sentences or more: what was given and what was expected; then what to do.
"""

import inspect
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from inputs import generator, tensor
from toys.writers import Prefixes, Recurrent, Transformer

from companion import mdp, reinforce, rtb, samplers, training, trust_pcl
from companion.samplers import TextStore, TokenSampler, Writing, diffusion, resampled_prior_texts

PATHS, STEPS = 3, 2
#: The last sentence of a refusal begins with one of these.
INSTRUCTION = r"\. (Pass|Reshape|Convert|Move|Wrap|Choose|Mask|Mend|Put|Where r\(x\) = 0 .*: give)\b"

PER_STEP = tensor([[-1.0, -2.0], [-0.5, -1.5], [-3.0, -0.25]])
REFERENCE = tensor([[-2.0, -2.0], [-1.0, -0.5], [-1.0, -1.0]])
PER_PATH = tensor([1.0, -1.0, 0.5])
PER_STATE = tensor([[0.5, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 2.0, 0.0]])

RTB = {"log_pi": PER_STEP, "log_ref": REFERENCE, "log_reward": PER_PATH}
PCL = {"log_pi": PER_STEP, "log_ref": REFERENCE, "rewards": REFERENCE, "values": PER_STATE, "kl_weight": 0.5}
OFF_POLICY = {"log_behaviour": REFERENCE, "weights": "importance"}
#: Each public function with good input, and whether it uses a statistic of the batch.
FUNCTIONS = {
    "rtb.residual": (rtb.residual, RTB | {"log_z": tensor(0.5), "beta": 2.0}, False),
    "rtb.loss": (rtb.loss, RTB | {"log_z": tensor([0.5, 1.0, 2.0]), "beta": 2.0}, False),
    "rtb.vargrad_loss": (rtb.vargrad_loss, RTB | {"beta": 2.0}, True),
    "rtb.sub_trajectory_residual": (
        rtb.sub_trajectory_residual,
        {"log_pi": PER_STEP, "log_ref": REFERENCE, "log_flow": PER_STATE, "start": 0, "stop": 2},
        False,
    ),
    "trust_pcl.residual": (trust_pcl.residual, PCL | {"start": 0, "stop": 2}, False),
    "trust_pcl.loss": (trust_pcl.loss, PCL | {"start": 0, "stop": 2}, False),
    "reinforce.kl_loss": (reinforce.kl_loss, RTB | {"beta": 2.0} | OFF_POLICY, True),
    "reinforce.critic_loss": (reinforce.critic_loss, RTB | {"value": tensor(0.5), "beta": 2.0} | OFF_POLICY, True),
    "reinforce.kl_estimator": (
        reinforce.kl_estimator,
        {"log_pi": PER_STEP, "log_ref": REFERENCE, "kind": "k3"},
        False,
    ),
    "reinforce.published_baseline_loss": (reinforce.published_baseline_loss, RTB | {"kl_weight": 0.5}, True),
}
CONSTANTS = {"log_ref", "log_reward", "rewards", "log_behaviour"}
WEIGHTED = ("reinforce.kl_loss", "reinforce.critic_loss")
STATISTICS = [name for name, (_, _, statistic) in FUNCTIONS.items() if statistic]


def refuses(name: str, *words: str, **changes) -> None:
    """Assert that a function refuses its good input so changed, in a message that holds these words."""
    function, good, _ = FUNCTIONS[name]
    with pytest.raises(ValueError) as refusal:
        function(**(good | changes))
    message = str(refusal.value)
    for word in ("expected", *words):
        assert word in message, message
    assert re.search(INSTRUCTION, message), message


def accepts(name: str, **changes) -> torch.Tensor:
    """Return what a function makes of its good input with these changes; it is finite."""
    function, good, _ = FUNCTIONS[name]
    result = function(**(good | changes))
    assert bool(result.isfinite().all())
    return result


def every(kind) -> list:
    """List (function, argument) for the arguments of good input that are of a kind, as pytest parameters."""
    return [
        pytest.param(name, argument, id=f"{name}-{argument}")
        for name, (_, good, _) in FUNCTIONS.items()
        for argument, value in good.items()
        if kind(argument, value)
    ]


def takes(argument: str) -> list[str]:
    """List the functions that take an argument."""
    return [name for name, (function, _, _) in FUNCTIONS.items() if argument in inspect.signature(function).parameters]


def is_tensor(argument: str, value) -> bool:
    """Whether an argument is a tensor."""
    return isinstance(value, torch.Tensor)


def is_other_tensor(argument: str, value) -> bool:
    """Whether an argument is a tensor that has to fit log_pi."""
    return is_tensor(argument, value) and argument != "log_pi"


def good(name: str, argument: str) -> torch.Tensor:
    """The good value of an argument."""
    return FUNCTIONS[name][1][argument]


def test_the_table_holds_every_public_function_and_argument():
    """A function that is added to an objective must be added here."""
    public = {
        f"{Path(module.__file__).stem}.{name}"
        for module in (rtb, trust_pcl, reinforce)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == set(FUNCTIONS) | {"trust_pcl.full_path_values"}  # at the end: not an objective
    untried = {"entropy_weight", "gamma", "baseline", "clip", "group", "steps"}  # tried by name below
    for function, given, _ in FUNCTIONS.values():
        assert set(inspect.signature(function).parameters) <= set(given) | untried


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_input_is_accepted(name):
    """The input from which each bad one below differs in a single respect."""
    accepts(name)


@pytest.mark.parametrize(("name", "argument"), every(is_tensor))
def test_what_is_not_a_tensor_is_refused(name, argument):
    """A list, and None."""
    refuses(name, f"{argument} is a list", "torch.Tensor", "Wrap", **{argument: [0.5]})
    if argument != "log_behaviour":
        refuses(name, f"{argument} is a NoneType", "torch.Tensor", **{argument: None})


@pytest.mark.parametrize(("name", "argument"), every(is_tensor))
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_a_dtype_that_is_not_real_floating_point_is_refused(name, argument, dtype):
    """Integers, truth values and complex numbers."""
    words = f"{argument} is {dtype}", "floating-point", "Convert"
    refuses(name, *words, **{argument: good(name, argument).to(dtype)})


@pytest.mark.parametrize(("name", "argument"), every(is_other_tensor))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_mix_of_dtypes_is_refused(name, argument, dtype):
    """All are float64 but one."""
    words = f"{argument} is {dtype}", "torch.float64", "Convert one of them"
    refuses(name, *words, **{argument: good(name, argument).to(dtype)})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_log_pi_of_another_dtype_is_refused(name):
    """float32 where all else is float64."""
    refuses(name, "torch.float64", "torch.float32", "Convert", log_pi=PER_STEP.float())


@pytest.mark.parametrize(("name", "argument"), every(is_other_tensor))
def test_a_mix_of_devices_is_refused(name, argument):
    """All are on the CPU but one."""
    words = f"{argument} is on meta", "cpu", "Move one of them"
    refuses(name, *words, **{argument: good(name, argument).to("meta")})


@pytest.mark.parametrize(("name", "argument"), every(is_tensor))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(name, argument, bad):
    """One entry is enough."""
    value = good(name, argument).clone()
    value.view(-1)[0] = bad
    count = "NaN or +inf" if name.endswith("published_baseline_loss") and argument == "log_reward" else "1 value(s)"
    refuses(name, argument, count, "NaN", "finite", **{argument: value})


@pytest.mark.parametrize(("name", "argument"), every(is_tensor))
def test_minus_infinity_is_refused_but_for_the_reward_of_the_published_baseline(name, argument):
    """A zero probability, or a zero reward, where the objective would be infinite."""
    value = good(name, argument).clone()
    value.view(-1)[-1] = -math.inf
    if name.endswith("published_baseline_loss") and argument == "log_reward":
        accepts(name, **{argument: value})
        return
    words = {"log_reward": ("r(x) = 0", "companion.mdp"), "rewards": ("r(x) = 0", "companion.mdp")}
    refuses(name, argument, "1 value(s)", "infinite", *words.get(argument, ("Mask",)), **{argument: value})


def test_the_published_baseline_refuses_a_reward_too_large_for_its_exponential():
    """exp(1000) overflows."""
    words = "exp(log_reward)", "Pass lower rewards"
    refuses("reinforce.published_baseline_loss", *words, log_reward=tensor([1000.0, 0.0, 0.0]))


def test_the_published_baseline_refuses_rewards_whose_sum_overflows():
    """exp(709.5) = 1.4e308 is finite, and three or four of them are not."""
    words = "the mean of exp(log_reward)", "Pass lower rewards"
    refuses("reinforce.published_baseline_loss", *words, log_reward=tensor([709.5] * PATHS))
    four = {"log_pi": torch.cat([PER_STEP, PER_STEP[:1]]), "log_ref": torch.cat([REFERENCE, REFERENCE[:1]])}
    refuses("reinforce.published_baseline_loss", *words, log_reward=tensor([709.5] * 4), **four)


WRONG_SHAPES = {
    "log_pi": [(), (PATHS,), (PATHS, STEPS, 1), (PATHS, 0)],
    "log_ref": [
        (),
        (PATHS,),
        (STEPS,),
        (PATHS, STEPS, 1),
        (1, STEPS),
        (PATHS, 1),
        (PATHS, STEPS + 1),
        (STEPS, PATHS),
    ],
    "log_reward": [(), (1,), (PATHS, 1), (1, PATHS), (PATHS, STEPS), (PATHS + 1,)],
    "values": [(), (PATHS,), (PATHS, STEPS), (1, STEPS + 1), (STEPS + 1,), (PATHS, STEPS + 1, 1)],
    "log_z": [(1,), (PATHS, 1), (1, PATHS), (PATHS + 1,), (1, 1)],
}
WRONG_SHAPES |= {"rewards": WRONG_SHAPES["log_ref"], "log_behaviour": WRONG_SHAPES["log_ref"]}
WRONG_SHAPES |= {"log_flow": WRONG_SHAPES["values"], "value": WRONG_SHAPES["log_z"]}


@pytest.mark.parametrize(("name", "argument"), every(is_tensor))
def test_a_wrong_rank_or_shape_is_refused_and_nothing_is_broadcast(name, argument):
    """Shapes that torch would broadcast are among them, such as [batch, 1] for [batch]."""
    for shape in WRONG_SHAPES[argument]:
        words = f"{argument} has shape {shape}", "[batch"
        refuses(name, *words, **{argument: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_log_pi_that_fits_none_of_the_rest_is_refused(name):
    """Another batch, or another number of steps."""
    for shape in ((PATHS + 1, STEPS), (PATHS, STEPS + 1)):
        refuses(name, f"log_pi of shape {shape}", "Reshape", log_pi=torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(("name", "argument"), every(lambda argument, value: argument in CONSTANTS))
def test_a_constant_that_requires_a_gradient_is_refused(name, argument):
    """References, behaviours and rewards are data: neither a parameter nor a tensor further down its graph."""
    words = f"{argument} requires a gradient", "constant", f"{argument}.detach()"
    trained = good(name, argument).clone().requires_grad_()
    refuses(name, *words, **{argument: trained})
    refuses(name, *words, **{argument: 2 * trained})


@pytest.mark.parametrize(
    ("name", "argument"),
    every(lambda argument, value: is_tensor(argument, value) and argument not in CONSTANTS),
)
def test_what_is_trained_may_require_a_gradient_and_receives_one(name, argument):
    """log_pi, log_z, a critic's value, values and flows; but a critic trains its value alone."""
    value = good(name, argument).clone().requires_grad_()
    result = accepts(name, **{argument: value})
    if (name, argument) == ("reinforce.critic_loss", "log_pi"):
        assert not result.requires_grad
        return
    result.sum().backward()
    assert bool((value.grad != 0).any())


NUMBERS = {
    "beta": ("> 0", [0, 0.0, -1.0]),
    "kl_weight": (">= 0", [-1e-9, -1]),
    "entropy_weight": (">= 0", [-1e-9, -1]),
    "gamma": ("> 0 and <= 1", [0, 0.0, -0.5, 1.0000001, 2]),
    "clip": ("> 0", [0, 0.0, -1.0]),
}
NEVER = [
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    True,
    False,
    None,
    "1",
    [1.0],
    1j,
    Fraction(1, 2),
    tensor(0.5),
    # These cannot be multiplied with a tensor, or change its dtype.
    10**300,
    -(10**300),
    2**63,
    numpy.float32(0.5),
    numpy.int64(1),
]


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for argument in NUMBERS for name in takes(argument)])
def test_a_number_out_of_range_or_no_number_at_all_is_refused(name, argument):
    """Tensors, truth values, NaN and infinity among them, and integers beyond 64 bits; but None clips nothing."""
    bounds, outside = NUMBERS[argument]
    for bad in outside + NEVER:
        if (argument, bad) != ("clip", None):
            words = f"{argument} is {bad!r}", "finite Python number", bounds, "Pass a plain float"
            refuses(name, *words, **{argument: bad})


@pytest.mark.parametrize("name", ["trust_pcl.residual", "trust_pcl.loss"])
def test_weights_that_sum_to_zero_or_to_infinity_are_refused(name):
    """Without any weight there is no policy to be consistent with."""
    for kl_weight, entropy_weight in ((0.0, 0.0), (0, 0), (1e308, 1e308)):
        words = f"kl_weight + entropy_weight is {kl_weight + entropy_weight!r}", "> 0"
        refuses(name, *words, kl_weight=kl_weight, entropy_weight=entropy_weight)


@pytest.mark.parametrize("name", ["trust_pcl.residual", "trust_pcl.loss", "rtb.sub_trajectory_residual"])
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (-1, 2),
        (0, 3),
        (1, 1),
        (2, 1),
        (2, 2),
        (0, 0),
        (0, -1),
        (0.0, 2),
        (0, 2.0),
        (False, 2),
        (0, True),
        ("0", 2),
    ],
)
def test_a_span_outside_the_path_or_not_of_integers_is_refused(name, start, stop):
    """A path of two steps: 0 <= start < stop <= 2."""
    words = f"start={start!r}, stop={stop!r}", "<= 2", "indices"
    refuses(name, *words, start=start, stop=stop)


def test_a_span_of_tensors_or_without_an_end_is_refused():
    """Only Trust-PCL knows the end of the path by default."""
    refuses("rtb.sub_trajectory_residual", "stop=None", start=0, stop=None)
    refuses("rtb.sub_trajectory_residual", "start=tensor(0)", start=torch.tensor(0))
    refuses("trust_pcl.loss", "start=2, stop=2", start=2, stop=None)
    accepts("trust_pcl.loss", start=1, stop=None)


@pytest.mark.parametrize("name", ["trust_pcl.residual", "trust_pcl.loss"])
def test_a_last_value_other_than_zero_is_refused(name):
    """Even one that is tiny, and even where the sub-path does not reach it."""
    for bad in (-2.5, 1e-300):
        values = PER_STATE.clone()
        values[1, -1] = bad
        words = "values[:, -1]", f"{abs(bad):g}", "expected 0", "terminal reward in rewards"
        refuses(name, *words, values=values, start=0, stop=1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_that_is_too_small_is_refused(name):
    """No path at all; or one, where a statistic of the batch is used."""
    for size in (0, 1):
        cut = {k: v[:size] if is_tensor(k, v) and v.ndim else v for k, v in FUNCTIONS[name][1].items()}
        if size == 1 and name not in STATISTICS:
            accepts(name, **cut)
        else:
            refuses(name, f"log_pi holds {size} path(s)", "at least", "larger batch", **cut)


#: One path; and three, of which one is alone in its group. With a behaviour to go with each.
ALONE = [
    ("log_pi holds 1 path(s)", {k: v[:1] for k, v in RTB.items()}, REFERENCE[:1]),
    ("group 5 holds 1 path(s)", {"group": torch.tensor([7, 5, 7])}, REFERENCE),
]


@pytest.mark.parametrize(("words", "alone", "behaviour"), ALONE)
def test_what_is_taken_from_the_batch_or_the_group_needs_two_paths_and_all_else_one(words, alone, behaviour):
    """Baselines, clipping and weights, which are self-normalised whatever the baseline."""
    unweighted = alone | {"log_behaviour": None, "weights": "none"}
    words = words, "at least 2", "a larger batch, or an objective without a batch statistic"
    for options in ({"baseline": "batch_mean"}, {"baseline": "leave_one_out"}, {"baseline": "none", "clip": 1.0}):
        refuses("reinforce.kl_loss", *words, **options, **unweighted)
    n = len(behaviour)
    for baseline in ("none", 0, tensor([0.5] * n)):
        accepts("reinforce.kl_loss", baseline=baseline, **unweighted)
        for weights in ("importance", "tempered"):
            weighted = alone | {"log_behaviour": behaviour, "weights": weights}
            refuses("reinforce.kl_loss", *words, baseline=baseline, **weighted)
            refuses("reinforce.critic_loss", *words, **weighted)
    accepts("reinforce.critic_loss", **unweighted)


@pytest.mark.parametrize("name", takes("group"))
def test_a_group_of_one_is_refused_by_name_where_a_statistic_needs_two(name):
    """It is named with its size; where nothing is taken within it, it passes."""
    group = {"group": torch.tensor([-3, 2**40, -3])}
    if name in STATISTICS:
        refuses(name, f"group {2**40} holds 1 path(s)", "at least 2", "larger batch", **group)
    else:
        accepts(name, **group)


@pytest.mark.parametrize(("name", "argument"), [(n, a) for a in ("group", "steps") for n in takes(a)])
def test_groups_and_lengths_are_one_integer_for_each_path(name, argument):
    """Of 32 or 64 bits; nothing is broadcast or converted."""
    whole = torch.full((PATHS,), STEPS)
    for dtype in (torch.int64, torch.int32):
        accepts(name, **{argument: whole.to(dtype)})
    refuses(name, f"{argument} is a list", "torch.Tensor of integers", "Pass", **{argument: [STEPS] * PATHS})
    for dtype in (torch.float64, torch.bool, torch.int16, torch.complex64):
        refuses(name, f"{argument} is {dtype}", "integers", "torch.int64", **{argument: whole.to(dtype)})
    for shape in ((), (1,), (PATHS, 1), (1, PATHS), (PATHS + 1,), (PATHS, STEPS)):
        refuses(name, f"{argument} has shape {shape}", "[batch]", **{argument: torch.full(shape, STEPS)})
    refuses(name, f"{argument} is on meta", "cpu", "Move", **{argument: whole.to("meta")})


@pytest.mark.parametrize("name", takes("steps"))
@pytest.mark.parametrize(("steps", "given"), [([2, 0, 2], "0 to 2"), ([3, 2, 1], "1 to 3"), ([-1, 2, 2], "-1 to 2")])
def test_a_length_of_no_step_or_of_more_than_the_columns_is_refused(name, steps, given):
    """Two columns: 1 <= steps <= 2."""
    refuses(name, f"steps holds {given}", "1 to 2", "the true length", steps=torch.tensor(steps))


BEYOND = ("log_pi", "log_ref", "log_behaviour", "rewards", "values", "log_flow")


@pytest.mark.parametrize(("name", "argument"), every(lambda argument, value: argument in BEYOND))
def test_an_entry_beyond_the_end_of_a_path_is_refused_in_every_per_step_input(name, argument):
    """The second path has one step; a value is refused at its end, a flow where it changes after that."""
    padded = {k: v.clone() for k, v in FUNCTIONS[name][1].items() if k in BEYOND}
    for key, value in padded.items():
        value[1, 1:] = value[1, 1] if key == "log_flow" else 0.0
    given = {"steps": torch.tensor([2, 1, 2])}
    accepts(name, **padded, **given)
    column = 2 if argument == "log_flow" else 1
    padded[argument][1, column] += 0.5
    shown = "the change of log_flow" if argument == "log_flow" else argument
    refuses(name, f"{shown} is 0.5 at [1, 1]", "after 1 step(s)", "Put zeros there", **padded, **given)


@pytest.mark.parametrize("name", takes("steps"))
def test_the_docstring_says_what_is_refused_beyond_the_end_of_a_path(name):
    """Where a path is padded a loss must say with what; every per-step input of each is in the test above."""
    rule = "zeros from a path's end on; given ``steps``, a nonzero entry there is refused"
    assert rule in " ".join(FUNCTIONS[name][0].__doc__.split())
    per_step = [a for a, value in FUNCTIONS[name][1].items() if is_tensor(a, value) and value.ndim == 2]
    assert per_step and set(per_step) <= set(BEYOND)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_behaviour_that_is_missing_or_that_nothing_uses_is_refused(name):
    """weights="none" is the default."""
    refuses(name, "log_behaviour is given", "'none'", "Pass both, or neither", weights="none")
    for weights in ("importance", "tempered"):
        words = "log_behaviour is missing", weights, "Pass both, or neither"
        refuses(name, *words, weights=weights, log_behaviour=None)


@pytest.mark.parametrize(
    ("name", "argument", "words", "bad"),
    [
        *((name, "weights", ("importance", "tempered"), ["Importance", "", None, 1.0, True]) for name in WEIGHTED),
        ("reinforce.kl_estimator", "kind", ("k1", "k2", "k3"), ["K1", "", "k4", None, 1, ["k1"]]),
        ("reinforce.kl_loss", "baseline", ("batch_mean", "leave_one_out", "or a number"), ["mean", "", "Batch_mean"]),
    ],
)
def test_an_unknown_name_is_refused(name, argument, words, bad):
    """The message lists those that exist."""
    for unknown in bad:
        refuses(name, f"{argument} is {unknown!r}", *words, "Choose", **{argument: unknown})


def test_a_ratio_that_overflows_is_refused_by_k3_alone():
    """log_ref - log_pi = 798 at one step: exp(709.8) is the largest that float64 holds."""
    far = PER_STEP.clone()
    far[0, 0] = -800.0
    refuses("reinforce.kl_estimator", "k3 holds 1 value(s)", "Pass paths", "k1", log_pi=far)
    for kind in ("k1", "k2"):
        accepts("reinforce.kl_estimator", log_pi=far, kind=kind)


@pytest.mark.parametrize("bad", [math.nan, math.inf, True, None, [0.5]])
def test_a_baseline_that_is_no_finite_number_is_refused(bad):
    """A learned baseline is passed as a number."""
    refuses("reinforce.kl_loss", f"baseline is {bad!r}", "finite Python number", "plain float", baseline=bad)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (tensor(0.5), "baseline has shape ()"),
        (tensor([[0.5]] * PATHS), "baseline has shape (3, 1)"),
        (PER_PATH.float(), "baseline is torch.float32"),
        (PER_PATH.long(), "baseline is torch.int64"),
        (PER_PATH.to("meta"), "baseline is on meta"),
        (PER_PATH / 0, "baseline holds 3 value(s)"),
        (PER_PATH.clone().requires_grad_(), "baseline requires a gradient"),
    ],
)
def test_a_tensor_that_is_no_constant_for_each_path_is_refused_as_a_baseline(bad, words):
    """One learned number is passed as such; one for each path detached."""
    refuses("reinforce.kl_loss", words, baseline=bad)


def test_numbers_at_the_edges_are_accepted():
    """Integers for floats, the largest discount, one weight of the two, tiny and huge temperatures."""
    for name in ("rtb.residual", "rtb.loss", "rtb.vargrad_loss", *WEIGHTED):
        for beta in (1, 2, 1e-3, 1e3):
            accepts(name, beta=beta)
    for name in ("trust_pcl.residual", "trust_pcl.loss"):
        for weights in ((0, 1), (1, 0), (0.0, 1e-3), (1e3, 0.0)):
            accepts(name, kl_weight=weights[0], entropy_weight=weights[1], gamma=1)
        accepts(name, gamma=1.0)
        accepts(name, gamma=1e-3)
    accepts("reinforce.published_baseline_loss", kl_weight=0)
    accepts("reinforce.kl_loss", baseline=-3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_log_densities_above_zero_are_accepted(name):
    """Densities, unlike probabilities, may exceed one."""
    accepts(name, log_pi=-PER_STEP, log_ref=-REFERENCE)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_one_floating_point_dtype_is_accepted_and_kept(name, dtype):
    """All in float32, all in bfloat16."""
    inputs = {k: v.to(dtype) for k, v in FUNCTIONS[name][1].items() if is_tensor(k, v)}
    assert accepts(name, **inputs).dtype == dtype


def test_log_z_and_a_critic_are_one_number_or_one_per_path():
    """0-d, or [batch]; for a batch of one, [1] too."""
    for shape in ((), (PATHS,)):
        zeros = torch.zeros(shape, dtype=torch.float64)
        assert accepts("rtb.residual", log_z=zeros).shape == (PATHS,)
        assert accepts("reinforce.critic_loss", value=zeros).shape == ()
    one = {k: v[:1] for k, v in RTB.items()}
    assert accepts("rtb.residual", log_z=torch.zeros(1, dtype=torch.float64), **one).shape == (1,)


@pytest.mark.parametrize(
    ("first_value", "words"),
    [
        ([0.5], ("first_value is a list", "torch.Tensor")),
        (torch.tensor(1), ("first_value is torch.int64", "floating-point")),
        (torch.tensor(1.0, dtype=torch.float32), ("first_value is torch.float32", "torch.float64")),
        (tensor([[0.5], [0.5], [0.5]]), ("first_value has shape (3, 1)", "(3,)")),
        (tensor([0.5]), ("first_value has shape (1,)", "(3,)")),
        (tensor(0.5).to("meta"), ("first_value is on meta", "cpu")),
        (tensor(math.nan), ("first_value holds 1 value(s)", "finite")),
    ],
)
def test_a_bad_first_value_is_refused(first_value, words):
    """Not a tensor, an integer, another dtype, broadcasting, another device, NaN."""
    with pytest.raises(ValueError) as refusal:
        trust_pcl.full_path_values(first_value, PER_STEP)
    assert all(word in str(refusal.value) for word in ("expected", *words))
    assert re.search(INSTRUCTION, str(refusal.value))


def test_values_are_made_for_the_shape_of_log_pi_alone():
    """A log_pi that is no [batch, steps] is refused."""
    with pytest.raises(ValueError, match="log_pi has shape .* expected"):
        trust_pcl.full_path_values(tensor(0.5), tensor([1.0, 2.0]))


def test_an_estimate_that_overflows_a_short_format_is_refused():
    """In float16 half of 400 squared is 80,000, beyond the largest number, 65,504."""
    short = {"log_pi": PER_STEP.half() - 400, "log_ref": REFERENCE.half()}
    refuses("reinforce.kl_estimator", "k2 holds", "a wider dtype", kind="k2", **short)


def test_a_penalty_that_overflows_is_refused_and_not_made_a_gradient():
    """1/beta = 1e310 is infinite already."""
    for name in ("reinforce.kl_loss", "reinforce.critic_loss"):
        refuses(name, "the return less the KL penalty", "a larger beta", beta=1e-310)
    refuses("reinforce.kl_estimator", "k1 holds", kind="k1", log_pi=PER_STEP * 5e307, log_ref=REFERENCE * -8e307)


# Token samplers: two letters, token 2 begins and ends, texts of at most three letters, with and without a first one.

PROMPTS = torch.tensor([[2, 2], [2, 0]])
ROWS, OF = torch.tensor([[2, 1, 0, 2, 2], [2, 0, 1, 0, 2]]), torch.tensor([0, 1])


def ends(tokens, lengths):
    """A reward that reads the length alone."""
    return lengths.double()


def writer(policy=None, reference=None, reward=ends, **options) -> TokenSampler:
    """A good sampler, but for what is changed."""
    options = {"end": 2, "max_length": 3, "prompts": PROMPTS} | options
    reference = Prefixes(2, 3).requires_grad_(False) if reference is None else reference
    return TokenSampler(Prefixes(2, 3) if policy is None else policy, reference, reward, **options)


def draws(behaviour=None, n=8, **options):
    """Eight texts of such a sampler."""
    return writer(**options).draw(n, generator(0), behaviour)


def store(tokens=ROWS, weights=(1.0, 2.0), prompt=OF) -> TextStore:
    """A good store, but for what is changed."""
    return TextStore(tokens, tensor(weights) if isinstance(weights, tuple) else weights, prompt)


def scored(tokens=ROWS, prompt=OF, **options) -> torch.Tensor:
    """The log-probability of rows."""
    sampler = writer(**options)
    return sampler.log_prob(sampler.policy, tokens, prompt)


class Answering(torch.nn.Module):
    """A model, or the two halves of its cache, of which one answers otherwise."""

    def __init__(self, forward=None, begin=None, advance=None):
        super().__init__()
        self.inner, self.changed = Transformer(3, 5, generator(1)), (forward, begin, advance)

    def forward(self, tokens):
        return self.changed[0](self.inner, tokens) if self.changed[0] else self.inner(tokens)

    def begin(self, tokens, lengths):
        return (self.changed[1] or Transformer.begin)(self.inner, tokens, lengths)

    def advance(self, tokens, cache):
        return (self.changed[2] or Transformer.advance)(self.inner, tokens, cache)


def both_ways(inner, tokens):
    """Logits of what was read from the end."""
    return inner(tokens.flip(1)).flip(1)


def to_the_last(inner, tokens, lengths):
    """Reads what stands beyond the length, too."""
    return inner.begin(tokens, lengths + 1)


def forgetful(inner, tokens, cache):
    """Keeps nothing of the token that it reads."""
    keys, values, places = cache
    return inner.advance(tokens, (0 * keys, values, places))


def shared() -> TokenSampler:
    """A reference that is the policy."""
    model = Recurrent(3, generator(0))
    return writer(model, model)


def past(tokens, lengths):
    """A reward that reads what pads."""
    return tokens.double().sum(dim=1)


def after_a_prompt(tokens, lengths):
    """A reward that pays nothing for a text that begins with letter 0, as those of the second prompt do."""
    return torch.where(tokens[:, 1] == 0, -math.inf, 0.0)


WIDE = torch.full((2, 6), 2)
TOKENS = {
    "tokens that are a list": (lambda: scored(ROWS.tolist()), "tokens is list"),
    "tokens of floats": (lambda: scored(ROWS.double()), r"tokens is \(2, 5\) torch.float64"),
    "tokens of one row": (lambda: scored(ROWS[0]), r"tokens is \(5,\) torch.int64"),
    "a token outside the vocabulary": (lambda: scored(ROWS + (ROWS == 1) * 2), "tokens goes from 0 to 3"),
    "a token below zero": (lambda: scored(ROWS - 3 * (ROWS == 1)), "tokens goes from -2 to 2"),
    "rows of another width": (lambda: scored(WIDE), r"tokens is \(2, 6\), of other rows; expected \[rows, 5\]"),
    "narrow rows": (lambda: scored(ROWS[:, :4]), r"tokens is \(2, 4\), of other rows"),
    "a row without an end": (lambda: scored(ROWS.clone().fill_(0), OF * 0 + 1), "of other rows"),
    "a row of another prompt": (lambda: scored(ROWS.flip(0)), "of other rows"),
    "rows of nobody knows which prompt": (lambda: scored(prompt=None), r"prompt is None; expected int64 \[2\], 0 to 1"),
    "a prompt that is not there": (lambda: scored(prompt=OF + 1), "prompt is tensor"),
    "a prompt below zero": (lambda: scored(prompt=OF - 1), "prompt is tensor"),
    "prompts of floats": (lambda: scored(prompt=OF.double()), "prompt is tensor"),
    "too few prompts": (lambda: scored(prompt=OF[:1]), "prompt is tensor"),
    "prompts in a list": (lambda: scored(prompt=[0, 1]), r"prompt is \[0, 1\]"),
    "no prompt": (lambda: writer(prompts=torch.zeros(0, 1, dtype=torch.int64)), r"prompts is \(0, 1\) torch.int64"),
    "a prompt alone": (lambda: writer(prompts=PROMPTS[0]), r"prompts is \(2,\) torch.int64"),
    "prompts as text": (lambda: writer(prompts="ab"), "prompts is str"),
    "prompts that are too long": (lambda: writer(prompts=WIDE), "prompts has 6 columns; expected at most 4"),
    "a prompt outside the vocabulary": (
        lambda: writer(Recurrent(3, generator(0)), prompts=PROMPTS + 9),
        "prompts goes from 9 to 11",
    ),
    "prompts of numbers": (lambda: writer(prompts=PROMPTS.double()), r"prompts is \(2, 2\) torch.float64"),
    "an end outside the vocabulary": (lambda: writer(end=3), "end goes from 3 to 3; expected 0 to 2"),
    "an end below zero": (lambda: writer(end=-1), "end is -1"),
    "no length": (lambda: writer(max_length=0), "max_length is 0"),
    "no group": (lambda: writer(group_size=0), "group_size is 0"),
    "a policy of another shape": (
        lambda: writer(lambda tokens: torch.zeros(len(tokens), 3)),
        r"policy's answer is \(1, 3\) torch.float32; expected \[batch, columns, vocabulary\]",
    ),
    "a policy that skips a column": (
        lambda: writer(lambda tokens: torch.zeros(len(tokens), tokens.shape[1] - 1, 3)),
        r"policy's answer is \(1, 3, 3\) torch.float32",
    ),
    "a reference that returns a pair": (
        lambda: writer(reference=lambda tokens: (tokens, 1)),
        "reference's answer is tuple",
    ),
    "a policy that looks ahead": (lambda: writer(Answering(both_ways)), "policy looks ahead"),
    "a reference that looks ahead": (lambda: writer(reference=Answering(both_ways)), "reference looks ahead"),
    "two vocabularies": (lambda: writer(reference=Recurrent(4, generator(0))), "policy and reference know {.*} tokens"),
    "a cache that reads too far": (
        lambda: writer(Answering(None, to_the_last)),
        "policy returns other logits from begin",
    ),
    "a cache that forgets": (
        lambda: writer(reference=Answering(None, None, forgetful)),
        "reference returns other logits from begin and advance",
    ),
    "a policy that is a class": (lambda: writer(Prefixes), "policy is <class"),
    "a reward that is a number": (lambda: writer(reward=5.0), "log_reward is 5.0"),
    "a reward that looks past the end": (lambda: draws(reward=past), "log_reward looks past the end"),
    "a reward that is NaN": (lambda: draws(reward=lambda x, n: n * math.nan), "log_reward holds NaN"),
    "a reward without bounds": (lambda: draws(reward=lambda x, n: n / 0.0), "log_reward holds NaN or .inf"),
    "a column of rewards": (lambda: draws(reward=lambda x, n: n[:, None].double()), r"log_reward is \(8, 1\)"),
    "rewards of integers": (lambda: draws(reward=lambda x, n: n), r"log_reward is \(8,\) torch.int64; expected floats"),
    "rewards in a list": (lambda: draws(reward=lambda x, n: [1.0] * len(n)), "log_reward is list"),
    "no text": (lambda: draws(n=0), "n is 0"),
    "no generator": (lambda: writer().draw(8, None), "generator is None"),
    "a behaviour of another sampler": (lambda: draws(samplers.Exploration(0.5)), "behaviour is Exploration"),
    "refreshed without a copy": (lambda: draws(Writing(refresh=3)), "no copy of the policy"),
    "replayed without a store": (lambda: draws(Writing(replayed=0.5)), "replayed is above 0, but there is no store"),
    "a group that is not whole": (lambda: draws(group_size=3), "n is 8 fresh texts; expected a multiple of 3"),
    "a group that is replayed in part": (
        lambda: draws(Writing(replayed=0.3), store=store(), group_size=4),
        "n is 6 fresh texts; expected a multiple of 4",
    ),
    "a store that is a list": (lambda: writer(store=[1]), "store is a list"),
    "a store of other rows": (lambda: writer(store=store(WIDE)), r"tokens is \(2, 6\), of other rows"),
    "a store of other prompts": (lambda: writer(store=store(prompt=OF.flip(0))), "of other rows"),
    "a store of prompts that are not there": (lambda: writer(store=store(prompt=OF + 1)), "prompt is tensor"),
    "a store of nobody knows which prompts": (lambda: writer(store=store(prompt=None)), "prompt is None"),
    "stored floats": (lambda: store(ROWS.double()), r"tokens is \(2, 5\) torch.float64"),
    "a stored row": (lambda: store(ROWS[0]), r"tokens is \(5,\) torch.int64"),
    "a weight too few": (
        lambda: store(weights=(1.0,)),
        r"weights of the store is \(1,\) torch.float64; expected floats, 2",
    ),
    "weights in a list": (lambda: store(weights=[1.0, 2.0]), "weights of the store is list"),
    "whole weights": (
        lambda: store(weights=torch.tensor([1, 2])),
        r"weights of the store is \(2,\) torch.int64; expected floats",
    ),
    "a weight below zero": (lambda: store(weights=(1.0, -1.0)), "negative or all 0"),
    "weights of zero": (lambda: store(weights=(0.0, 0.0)), "negative or all 0"),
    "a weight that is NaN": (lambda: store(weights=(1.0, math.nan)), "weights of the store holds 1"),
    "weights that sum to inf": (lambda: store(weights=torch.tensor([3e38, 3e38])), "sum to inf; expected floats"),
    "a stored prompt too few": (lambda: writer(store=store(prompt=OF[:1])), "prompt is tensor"),
    "a policy without weights": (lambda: writer(lambda x: Prefixes(2, 3)(x)).parameters(), "policy is a function"),
    "a module without weights": (lambda: writer(Prefixes(2, 3).forward).parameters(), "policy is a method"),
    "a copy of a function": (lambda: writer(lambda x: Prefixes(2, 3)(x), lagged=True), "policy is a function"),
    "a reference that is trained": (lambda: shared().parameters(), "policy and reference share"),
    "a reference of another dtype": (
        lambda: writer(reference=Prefixes(2, 3).float()).parameters(),
        "dtypes and devices are .*float64.*float32",
    ),
    "epsilon above one": (lambda: Writing(epsilon=1.5), "epsilon is 1.5"),
    "epsilon below zero": (lambda: Writing(epsilon=samplers.Fading(2.0, 0, 4)), "epsilon is 2.0"),
    "epsilon as text": (lambda: Writing(epsilon="0.5"), "epsilon is '0.5'"),
    "no temperature": (lambda: Writing(temperature=0.0), "temperature is 0.0"),
    "a share above one": (lambda: Writing(reference=1.1), "reference is 1.1"),
    "a share below zero": (lambda: Writing(reference=-0.1), "reference is -0.1"),
    "never refreshed": (lambda: Writing(refresh=0), "refresh is 0"),
    "refreshed at fractions": (lambda: Writing(refresh=2.5), "refresh is 2.5"),
    "more replayed than all": (lambda: Writing(replayed=1.5), "replayed is 1.5"),
    "an end of what never begins": (lambda: Writing(replay_until=5), "replay_until is 5 with nothing replayed"),
    "an end before the start": (lambda: Writing(replayed=0.5, replay_until=-1), "replay_until is -1"),
    "resampled by no power": (lambda: resampled_prior_texts(writer(), 8, generator(0), beta=0), "beta is 0"),
    "no text resampled": (lambda: resampled_prior_texts(writer(), 0, generator(0)), "n is 0"),
    "resampled from nowhere": (lambda: resampled_prior_texts(writer(), 8, None), "generator is None"),
    "no whole group resampled": (
        lambda: resampled_prior_texts(writer(group_size=3), 8, generator(0)),
        "n is 8 fresh texts",
    ),
    "a prompt never drawn": (lambda: resampled_prior_texts(writer(), 1, generator(0)), "Of 0 texts of prompt . none"),
    "a prompt whose texts have no reward": (
        lambda: resampled_prior_texts(writer(reward=after_a_prompt), 40, generator(0)),
        r"Of \d+ texts of prompt 1 none has a reward",
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_sampler_refuses(name):
    """What was given and what was expected; then what to do."""
    call, words = TOKENS[name]
    with pytest.raises(ValueError, match=words) as refusal:
        call()
    assert re.search(r"expected .*\. [A-Z][a-z]+", str(refusal.value), re.DOTALL)


def test_the_input_from_which_each_bad_one_differs_is_accepted():
    """Sampler, store, rows, and the cache that one answer of each liar changes."""
    assert scored(store=store(), lagged=True).shape == (2, 4)
    assert draws(Writing(0.1, 2.0, 0.3, 2, 0.5, 3), store=store(), lagged=True, group_size=4).log_pi.shape == (8, 4)
    assert len(writer(Answering(), Answering()).draw(8, generator(0)).steps) == 8
    assert len(resampled_prior_texts(writer(group_size=2), 8, generator(0)).weights) == 8


DEFAULTS = {
    mdp.enumerate_paths: {"limit": 10_000_000},
    training.fine_tune: {"evaluate_every": 500, "checkpoint_every": 500},
    training.loop.optimise: {"evaluate_every": 500, "checkpoint_every": 500},
    diffusion.DiffusionSampler.draw: {"iteration": 0},
}


@pytest.mark.parametrize("function", DEFAULTS)
def test_what_is_assumed_where_nothing_is_said_is_what_callers_count_on(function):
    """Numbers that no run is long enough, and no problem large enough, to notice."""
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in DEFAULTS[function]} == DEFAULTS[function]
