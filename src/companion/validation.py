"""Checks on the arguments of the objectives: each raises or returns nothing.

A loss that broadcasts a ``[batch]`` against a ``[batch, 1]`` still returns a number, and the number is wrong. So every
objective refuses what it was not written for, and says what was given, what was expected, and what to do. No function
here returns a value, so nothing computed here can link one objective to another.
"""

import sys
from operator import ge, gt, le

import torch
from torch import Tensor

#: The layouts that inputs per step, and per state, share, as error messages spell them.
PER_STEP, PER_STATE = "[batch, steps], shorter paths padded with zeros", "[batch, steps + 1], one entry per state"


class NotFiniteError(ValueError):
    """Raised for infinite and NaN values, which may be bad input or, during training, divergence."""


#: Integers, ``[batch]``, that say of each path which condition it belongs to, or how long it is; or none.
Marks = Tensor | None


def check_paths(
    log_pi: Tensor, *, group: Marks = None, steps: Marks = None, minimum: int = 1, **constants: Tensor
) -> None:
    """Refuse a wrong ``log_pi``, constants that do not fit it, groups or lengths. Raises ``ValueError``.

    ``log_reward`` is ``[batch]``, all others ``[batch, steps]``; ``minimum`` is as in :func:`check_group`.
    """
    check_log_pi(log_pi)
    per_step = {name: value for name, value in constants.items() if name != "log_reward"}
    for name, value in per_step.items():
        check_like(name, value, log_pi, log_pi.shape, PER_STEP)
    if "log_reward" in constants:
        check_per_path("log_reward", constants["log_reward"], log_pi)
    check_constant(**constants)
    check_group(group, log_pi, minimum=minimum)
    check_steps(steps, log_pi=log_pi, **per_step)


def check_log_pi(log_pi: Tensor) -> None:
    """Refuse a ``log_pi`` that is no finite, real floating-point ``[batch, steps]`` tensor. Raises ``ValueError``."""
    _check_tensor("log_pi", log_pi)
    if log_pi.ndim != 2 or log_pi.shape[1] < 1:
        mend = "Pass the log-probability of every step, not its sum over the path."
        raise ValueError(f"log_pi has shape {tuple(log_pi.shape)}; expected {PER_STEP}, with at least one step. {mend}")
    _check_size("log_pi", log_pi.shape[0], 1)
    check_finite("log_pi", log_pi, "Mask impossible steps before taking the logarithm.")


def check_like(name: str, value: Tensor, log_pi: Tensor, shape: tuple[int, ...], layout: str) -> None:
    """As :func:`check_fits`, and refuse what is not finite. Raises ``ValueError``."""
    check_fits(name, value, log_pi, shape, layout)
    advice = "Mask impossible steps before taking the logarithm."
    if name in ("log_reward", "rewards"):
        others = "leave those paths out, or solve the problem exactly with companion.mdp."
        advice = f"Where r(x) = 0 this objective is infinite: give such x a small positive reward, {others}"
    check_finite(name, value, advice)


def check_per_path(name: str, value: Tensor, log_pi: Tensor) -> None:
    """Refuse what is not a finite ``[batch]`` tensor to go with ``log_pi``. Raises ``ValueError``."""
    check_like(name, value, log_pi, log_pi.shape[:1], "[batch], one entry per path")


def check_fits(name: str, value: Tensor, log_pi: Tensor, shape: tuple[int, ...], layout: str) -> None:
    """Refuse another shape, ``layout`` in words, dtype or device than go with ``log_pi``. Raises ``ValueError``."""
    _check_tensor(name, value)
    _check_place(name, value, log_pi, shape, layout)
    if value.dtype != log_pi.dtype:
        raise ValueError(f"{name} is {value.dtype}; expected {log_pi.dtype} as log_pi. Convert one of them.")


def check_group(group: Marks, log_pi: Tensor, *, minimum: int = 1) -> None:
    """Refuse what is no ``[batch]`` integers or None, and a group, or batch, of too few. Raises ``ValueError``."""
    if group is None:
        _check_size("log_pi", log_pi.shape[0], minimum)
    else:
        _check_integers("group", group, log_pi)
        names, sizes = torch.unique(group, return_counts=True)
        fewest = int(sizes.argmin())
        _check_size(f"group {int(names[fewest])}", int(sizes[fewest]), minimum)


def check_steps(steps: Marks, *, log_pi: Tensor, **others: Tensor) -> None:
    """Refuse true lengths that are no ``[batch]`` integers, and paths that go on beyond them. Raises ``ValueError``.

    From each path's end on, ``log_pi`` and the ``others`` (per-step inputs, or ``values``) are zero.
    """
    if steps is None:
        return
    _check_integers("steps", steps, log_pi)
    if int(steps.min()) < 1 or int(steps.max()) > log_pi.shape[1]:
        expected = f"1 to {log_pi.shape[1]}, the columns of log_pi. Pass the true length of each path."
        raise ValueError(f"steps holds {int(steps.min())} to {int(steps.max())}; expected {expected}")
    for name, value in {"log_pi": log_pi, **others}.items():
        taken = torch.arange(value.shape[1], device=value.device) < steps[:, None]
        beyond = (value != 0) & ~taken
        if bool(beyond.any()):
            path, column = beyond.nonzero()[0].tolist()
            given = f"{value[path, column].item():g} at [{path}, {column}]"
            expected = f"0 from the path's end on, after {int(steps[path])} step(s)"
            raise ValueError(f"{name} is {given}; expected {expected}. Put zeros there, or mend its length.")


def check_scalar(name: str, value: Tensor, log_pi: Tensor) -> None:
    """Refuse what is neither a 0-d tensor nor ``[batch]`` (one per path), or not finite. Raises ``ValueError``."""
    _check_tensor(name, value)
    shape = () if value.ndim == 0 else (log_pi.shape[0],)
    check_like(name, value, log_pi, shape, "a 0-d tensor, or [batch] with one entry per path, that of its condition")


def check_flow(log_flow: Tensor, log_pi: Tensor, steps: Marks) -> None:
    """Refuse what is not log F of each state, or changes after the end of a path. Raises ``ValueError``."""
    check_like("log_flow", log_flow, log_pi, (len(log_pi), log_pi.shape[1] + 1), PER_STATE)
    check_steps(steps, log_pi=log_pi, **{"the change of log_flow": log_flow.diff(dim=1)})


def check_values(values: Tensor, log_pi: Tensor, steps: Marks) -> None:
    """Refuse what is not V of each state, or not zero from the end of a path on. Raises ``ValueError``."""
    check_like("values", values, log_pi, (len(log_pi), log_pi.shape[1] + 1), PER_STATE)
    if bool((values[:, -1] != 0).any()):
        expected = "0, the value of a terminal state"
        mend = "Put the terminal reward in rewards and set the last value to zero."
        raise ValueError(f"values[:, -1] holds {values[:, -1].abs().max().item():g}; expected {expected}. {mend}")
    check_steps(steps, log_pi=log_pi, values=values)


def check_constant(**tensors: Tensor) -> None:
    """Refuse tensors that require a gradient where the objective treats them as data. Raises ``ValueError``."""
    for name, value in tensors.items():
        if value.requires_grad:
            expected = "a constant, since the objective is not differentiated through it"
            mend = f"Pass {name}.detach(), or compute it under torch.no_grad()."
            raise ValueError(f"{name} requires a gradient; expected {expected}. {mend}")


def check_minus_infinity_only(name: str, value: Tensor) -> None:
    """Refuse NaN and +inf but accept -inf, the logarithm of a zero reward. Raises ``ValueError``."""
    if bool((value.isnan() | value.isposinf()).any()):
        raise NotFiniteError(f"{name} holds NaN or +inf; expected finite values, or -inf where r(x) = 0. Mend it.")


def check_number(
    name: str, value: float, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Refuse anything but a finite Python number within the bounds given. Raises ``ValueError``."""
    rules = ((">", gt, above), (">=", ge, at_least), ("<=", le, at_most))
    bounds = [(sign, holds, bound) for sign, holds, bound in rules if bound is not None]
    largest = 2**63 - 1 if isinstance(value, int) else sys.float_info.max  # torch takes no larger integer
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest
    if not number or not all(holds(value, bound) for _, holds, bound in bounds):
        expected = "a finite Python number" + " and".join(f" {sign} {bound:g}" for sign, _, bound in bounds)
        raise ValueError(f"{name} is {value!r}; expected {expected}. Pass a plain float in that range, no tensor.")


def check_weights(kl_weight: float, entropy_weight: float, gamma: float, *, may_vanish: bool = False) -> None:
    """Refuse weights below 0, both 0 unless they may vanish, and a discount outside (0, 1]. Raises ``ValueError``."""
    check_number("kl_weight", kl_weight, at_least=0)
    check_number("entropy_weight", entropy_weight, at_least=0)
    if not may_vanish:
        check_number("kl_weight + entropy_weight", kl_weight + entropy_weight, above=0)
    check_number("gamma", gamma, above=0, at_most=1)


def check_choice(name: str, given: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the names that there are. Raises ``ValueError``."""
    if given not in choices:
        raise ValueError(f"{name} is {given!r}; expected one of {choices}. Choose one of these.")


def check_positive_integers(**numbers: int) -> None:
    """Refuse anything but positive integers, given by name. Raises ``ValueError``."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer. Pass 1 or more.")


def check_counts(**numbers: int) -> None:
    """Refuse anything but integers of zero or more, given by name. Raises ``ValueError``."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 0. Pass 0 or more.")


def check_generator(generator: torch.Generator) -> None:
    """Refuse anything but a generator: nothing is drawn from global state. Raises ``ValueError``."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is {generator!r}; expected a torch.Generator, seeded. Pass one: no global state.")


def check_span(start: int, stop: int, steps: int) -> None:
    """Refuse a sub-path unless ``0 <= start < stop <= steps``, all integers. Raises ``ValueError``."""
    integers = all(isinstance(i, int) and not isinstance(i, bool) for i in (start, stop))
    if not integers or not 0 <= start < stop <= steps:
        expected = f"integers with 0 <= start < stop <= {steps} = steps"
        mend = "Pass the indices of the first and the last state of the sub-path."
        raise ValueError(f"start={start!r}, stop={stop!r}; expected {expected}. {mend}")


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a torch.Tensor. Wrap it with torch.as_tensor.")
    if not value.is_floating_point():
        raise ValueError(f"{name} is {value.dtype}; expected a real floating-point dtype. Convert it with .double().")


def _check_integers(name: str, value: Tensor, log_pi: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
        given = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {given}; expected a torch.Tensor of integers. Pass torch.int64 or torch.int32.")
    _check_place(name, value, log_pi, log_pi.shape[:1], "[batch], one entry per path")


def _check_size(name: str, size: int, minimum: int) -> None:
    if size < minimum:
        advice = "Pass a larger batch" + (", or an objective without a batch statistic." if minimum > 1 else ".")
        raise ValueError(f"{name} holds {size} path(s); expected at least {minimum}. {advice}")


def _check_place(name: str, value: Tensor, log_pi: Tensor, shape: tuple[int, ...], layout: str) -> None:
    if tuple(value.shape) != tuple(shape):
        expected = f"{tuple(shape)}, that is {layout}, to go with log_pi of shape {tuple(log_pi.shape)}"
        mend = "Reshape it yourself: nothing is broadcast."
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}. {mend}")
    if value.device != log_pi.device:
        raise ValueError(f"{name} is on {value.device}; expected {log_pi.device} as log_pi. Move one of them.")


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is no instance of a class. Raises ``ValueError``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a {kind.__name__}. Pass one.")


def check_tensor(
    name: str, value: Tensor, shape: tuple[int | None, ...], rule: str, dtype: torch.dtype | None = None, least: int = 1
) -> None:
    """Refuse what is no tensor of a shape, where None is ``least`` or more, and dtype, where None is any of floats.

    ``rule`` says in words what is expected, and what to do. Raises ``ValueError``.
    """
    given = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    fits = isinstance(value, Tensor) and value.ndim == len(shape)
    fits = fits and all(n >= least if size is None else n == size for n, size in zip(value.shape, shape, strict=True))
    if not fits or not (value.is_floating_point() if dtype is None else value.dtype == dtype):
        raise ValueError(f"{name} is {given}; expected {rule}")


def check_range(name: str, value: Tensor, size: int, advice: str) -> None:
    """Refuse integers that do not count from 0 to ``size - 1``. Raises ``ValueError``."""
    low, high = int(value.min()), int(value.max())
    if not 0 <= low <= high < size:
        raise ValueError(f"{name} goes from {low} to {high}; expected 0 to {size - 1}. {advice}")


def check_tokens(name: str, tokens: Tensor, vocabulary: int) -> None:
    """Refuse what is no int64 matrix of tokens of a vocabulary. Raises ``ValueError``."""
    check_tensor(name, tokens, (None, None), "int64 [rows, columns], not empty. Encode the texts.", torch.int64)
    check_range(name, tokens, vocabulary, "Encode the texts anew.")


def check_shares(name: str, shares: Tensor, rows: int) -> None:
    """Refuse what is not ``[rows]`` floats >= 0, some above: how often each row is drawn. Raises ``ValueError``."""
    check_tensor(name, shares, (rows,), f"floats, {rows}, one for each row. Give each its own.")
    check_finite(name, shares, "Leave such paths out.")
    if bool((shares < 0).any()) or not 0 < float(shares.sum()) <= sys.float_info.max:
        raise ValueError(f"{name} are negative or all 0, or sum to inf; expected floats >= 0. Scale them.")


def check_replay(replayed: float, replay_until: int | None) -> None:
    """Refuse a share of a batch outside [0, 1], and an end of what never begins. Raises ``ValueError``."""
    check_number("replayed", replayed, at_least=0, at_most=1)
    if replay_until is not None:
        check_counts(replay_until=replay_until)
        if replayed == 0:
            raise ValueError(f"replay_until is {replay_until} with nothing replayed; expected None. Leave it out.")


def check_law(name: str, law: Tensor, slack: float) -> None:
    """Refuse probabilities that are no ``[outcomes]``, or do not sum to one within ``slack``. Raises ``ValueError``."""
    _check_tensor(name, law)
    total = float(law.detach().double().sum())
    if law.ndim != 1 or bool((law < 0).any()) or not abs(total - 1) <= min(slack, sys.float_info.max):
        raise ValueError(f"{name} sums to probability {total:.12g}; expected 1, [outcomes], none < 0. Normalise it.")


def check_finite(name: str, value: Tensor, advice: str) -> None:
    """Refuse infinite and NaN entries; ``advice`` says what to do about them. Raises :class:`NotFiniteError`."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise NotFiniteError(f"{name} holds {bad} value(s) that are infinite or NaN; expected finite values. {advice}")
