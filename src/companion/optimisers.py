"""One optimiser for two losses: how its settings change where a loss, or a parameter, is measured in another unit.

Let a second problem have the parameter u theta in place of theta, and a loss whose gradient is c times the first one's.
Gradient descent answers a gradient c times as large with a step c times as large; Adam, whose step is a ratio of
gradients, does not answer at all, provided that its eps grows by c as well. So each setting has one factor, made of c
and u, that keeps the two runs together. RTB and Trust-PCL are such a pair: c is alpha^2 for the policy, and c and u are
alpha for V(s_0) = alpha log Z. Derived in chapter ``two-optimisers-in-lockstep``, which runs both.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from companion.validation import check_choice, check_number

#: Optimisers of ``torch.optim`` whose settings can be rescaled.
OPTIMISERS = ("SGD", "Adam", "AdamW")


def rescale(
    optimiser: str, settings: Mapping[str, object], *, gradient: float, parameter: float = 1.0
) -> dict[str, object]:
    """Return the settings with which an optimiser takes the same steps on a rescaled problem.

    Args:
        optimiser: ``"SGD"``, ``"Adam"`` or ``"AdamW"``, as in ``torch.optim``.
        settings: keyword arguments of that optimiser, such as ``{"lr": 1e-3}``; ``lr`` a number, no tensor. Of those
            left out, torch's defaults are filled in where they change. What does not change is left for torch to check.
        gradient: c > 0, the factor on the gradient.
        parameter: u > 0, the factor on the parameter.

    Of the settings ``lr``, ``eps`` (Adam, AdamW) and ``weight_decay`` are rescaled; the rest is as given. A threshold
    for gradient clipping is no setting of an optimiser: multiply it by c. Raises ``ValueError`` for an unknown
    optimiser or setting, and for a factor, ``lr``, ``eps`` or ``weight_decay`` that is out of range, or that the
    factors take to infinity or to zero. Source: the update rules of ``torch.optim``; claim E4.
    """
    check_number("gradient", gradient, above=0)
    check_number("parameter", parameter, above=0)
    used = _complete(optimiser, settings)
    if optimiser == "SGD":
        changed = {"lr": used["lr"] * parameter / gradient, "weight_decay": used["weight_decay"] * gradient / parameter}
    else:
        decoupled = optimiser == "AdamW" or used.get("decoupled_weight_decay", False)
        decay = 1.0 if decoupled else gradient  # decoupled, it never meets the gradient, only the rate
        changed = {"lr": used["lr"] * parameter, "eps": used["eps"] * gradient}
        changed["weight_decay"] = used["weight_decay"] * decay / parameter
    for name, value in changed.items():
        if not math.isfinite(value) or (value == 0) != (used[name] == 0):
            given = f"{name}={used[name]!r} becomes {value} under the factors {gradient:g} and {parameter:g}"
            mend = "Put moderate units into the losses first, or choose another value."
            raise ValueError(f"{given}; expected a number that floats can hold. {mend}")
    return {**settings, **changed}


def trust_pcl_settings(
    optimiser: str, policy: Mapping[str, object], log_z: Mapping[str, object], *, alpha: float
) -> tuple[dict[str, object], dict[str, object]]:
    """Return the settings for Trust-PCL's policy, and those for its V(s_0), that repeat an RTB run step by step.

    ``policy`` and ``log_z`` are the settings with which RTB trains these; ``alpha`` is the KL weight of Trust-PCL, > 0,
    beta being 1/alpha: start its value at alpha log Z. Both losses carry their half; for one without it, use
    :func:`rescale` with ``gradient=0.5`` first. Raises ``ValueError`` as that. Source: claim E4.
    """
    check_number("alpha", alpha, above=0)
    alpha = float(alpha)  # the square of an integer may be too large for torch, or for a float
    check_number("alpha squared", alpha * alpha, above=0)
    of_policy = rescale(optimiser, policy, gradient=alpha * alpha)
    return of_policy, rescale(optimiser, log_z, gradient=alpha, parameter=alpha)


def _complete(optimiser: str, settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings with torch's defaults for those left out, after checking the ones that are rescaled."""
    check_choice("optimiser", optimiser, OPTIMISERS)
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings is {settings!r}; expected a mapping such as {{'lr': 1e-3}}. Pass a dictionary.")
    arguments = inspect.signature(getattr(torch.optim, optimiser)).parameters
    known = {name: argument.default for name, argument in arguments.items() if name != "params"}
    unknown = sorted(map(str, set(settings) - set(known)))
    if unknown:
        raise ValueError(f"settings holds {unknown}; expected arguments of torch.optim.{optimiser}. Leave these out.")
    used = known | dict(settings)
    for name in {"lr", "eps", "weight_decay"} & set(used):
        check_number(name, used[name], at_least=0)
    return used
