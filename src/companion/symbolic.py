"""The sympy vocabulary that every derivation in the book shares.

The horizon T, the number of actions n and the length d of a sub-path are symbols, never numbers: a quantity at step t
is an entry ``x[t]`` of an indexed base, and a path's total is a sum over t from 0 to T - 1 that sympy keeps as one.
Each residual is written here once more, in symbols, from the same papers; :func:`evaluate` puts tensors into an
expression, so that a chapter can check that its algebra is about the very functions of the package. It alone needs
torch: the rest runs in a browser, where there is none.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import sympy
from sympy import Expr, IndexedBase, Sum, Symbol, symbols

if TYPE_CHECKING:
    import torch

__all__ = [
    "T", "n", "d", "N", "start", "t", "i", "a", "k", "alpha", "beta", "eta", "lam", "gamma", "Z", "log_z", "log_r",
    "log_pi", "log_ref", "R", "V", "log_F", "Phi", "pi", "pi_ref", "Q", "over_path", "over_actions", "over_paths",
    "rtb_residual", "trust_pcl_residual", "sub_trajectory_residual", "split_last", "replace_entries", "reduce",
    "evaluate",
]  # fmt: skip
#: Horizon T, number of actions n, length d of a sub-path, number of paths N: positive integers left unspecified.
T, n, d, N = symbols("T n d N", integer=True, positive=True)
#: First state of a sub-path, an integer from 0 on.
start = symbols("j", integer=True, nonnegative=True)
#: Index of a step (t), of a step counted from the start of a sub-path (i), of an action (a), of a path (k).
t, i, a, k = symbols("t i a k", integer=True, nonnegative=True)
#: Temperature, inverse temperature, entropy weight, KL weight, discount, and the normalising constant Z.
alpha, beta, eta, lam, gamma, Z = symbols("alpha beta eta lambda gamma Z", positive=True)
#: log Z and log r(x).
log_z, log_r = Symbol(r"(\log Z)", real=True), Symbol(r"(\log r)", real=True)
#: log pi_theta and log pi_ref of step t of a path.
log_pi, log_ref = IndexedBase(r"\log\pi", real=True), IndexedBase(r"\log\pi^{ref}", real=True)
#: Reward of step t of a path, or of an action, or the return of a path.
R = IndexedBase("R", real=True)
#: Value, log F and potential of the state that a path is in at time t; value also of that an action leads to.
V, log_F, Phi = (IndexedBase(name, real=True) for name in ("V", r"\log F", r"\Phi"))
#: Probability of an action, or of a path, under the policy and under the reference.
pi, pi_ref = IndexedBase(r"\pi", positive=True), IndexedBase(r"\pi^{ref}", positive=True)
#: Worth of an action.
Q = IndexedBase("Q", real=True)


def over_path(term: Expr) -> Sum:
    """Return the sum of a per-step term over a whole path, t = 0, ..., T - 1, with T free."""
    return Sum(term, (t, 0, T - 1))


def over_actions(term: Expr) -> Sum:
    """Return the sum of a per-action term over the actions a = 1, ..., n, with n free."""
    return Sum(term, (a, 1, n))


def over_paths(term: Expr) -> Sum:
    """Return the sum of a per-path term over the paths k = 1, ..., N, with N free."""
    return Sum(term, (k, 1, N))


def rtb_residual() -> Expr:
    """Return RTB's residual on a path of symbolic length T, with log Z, log r and beta free.

    Source: Venkatraman et al. (2024), the constraint. Derived in chapter ``relative-trajectory-balance``.
    """
    return log_z + over_path(log_pi[t] - log_ref[t]) - beta * log_r


def trust_pcl_residual(length: Expr = T, first: Expr = sympy.S.Zero) -> Expr:
    """Return Trust-PCL's residual on ``length`` transitions from state ``first``, with eta, lambda and gamma free.

    ``first`` must not contain the index ``i`` of the sum; ``ValueError`` otherwise. Source: Nachum et al. (2017b), the
    consistency error of Trust-PCL. Derived in chapter ``path-consistency``.
    """
    _check_index_free(first)
    gain = R[first + i] - (eta + lam) * log_pi[first + i] + lam * log_ref[first + i]
    return -V[first] + gamma**length * V[first + length] + Sum(gamma**i * gain, (i, 0, length - 1))


def sub_trajectory_residual(length: Expr = d, first: Expr = start) -> Expr:
    """Return the relative sub-trajectory balance residual on ``length`` transitions from state ``first``.

    ``first`` must not contain the index ``i`` of the sum; ``ValueError`` otherwise. Source: Madan et al. (2023), taken
    relative to a prior. Derived in chapter ``the-equivalence``.
    """
    _check_index_free(first)
    ratios = Sum(log_pi[first + i] - log_ref[first + i], (i, 0, length - 1))
    return log_F[first] + ratios - log_F[first + length]


def split_last(expression: Expr) -> Expr:
    """Take the last term out of every sum: the step of a proof by induction over the length of a path."""

    def split(total: Sum) -> Expr:
        index, first, last = _only_limit(total)
        return Sum(total.function, (index, first, last - 1)) + total.function.subs(index, last)

    return expression.replace(_is_sum, split)


def replace_entries(expression: Expr, base: IndexedBase, entry: Callable[[Expr], Expr]) -> Expr:
    """Replace every ``base[j]`` by ``entry(j)``, inside sums too: so one says what an indexed quantity stands for."""
    return expression.replace(lambda e: isinstance(e, sympy.Indexed) and e.base == base, lambda e: entry(e.indices[0]))


def reduce(expression: Expr, given: Mapping[Expr, Expr] | None = None) -> Expr:
    """Simplify an expression that holds sums of symbolic length, then use the equations in ``given``.

    Sums of differences telescope, logarithms of products of positive terms split, and each key of ``given``, such as
    the sum of a policy over its actions, is replaced by its value. Raises ``ValueError`` for a sum of sums.
    """
    telescoped = expression.replace(_is_sum, lambda total: total.doit(deep=False))
    reduced = sympy.simplify(sympy.expand_log(sympy.expand(telescoped.replace(_is_sum, _canonical))))
    if given:
        values = {reduce(key): reduce(sympy.sympify(value)) for key, value in given.items()}
        reduced = sympy.simplify(sympy.expand(sympy.expand(reduced).replace(_is_sum, _canonical)).subs(values))
    return reduced


def evaluate(expression: Expr, values: Mapping[Symbol | IndexedBase, object]) -> "torch.Tensor":
    """Put numbers into an expression: a float64 tensor, ``[batch]`` where the values have a batch.

    ``values`` maps each free symbol to a Python number or a ``[batch]`` tensor, and each indexed base to a tensor whose
    *first* dimension is the index: pass ``log_pi.T`` for ``[batch, steps]``. ``ValueError`` for a symbol left out.
    """
    import torch

    tensor = partial(torch.as_tensor, dtype=torch.float64)
    bases = {base.label for base in expression.atoms(IndexedBase)}
    missing = (expression.free_symbols - bases - expression.atoms(sympy.Indexed)) - set(values)
    missing |= expression.atoms(IndexedBase) - set(values)
    if missing:
        names = ", ".join(sorted(map(str, missing)))
        raise ValueError(f"No value for {names}; expected one for every free symbol. Add them to values.")
    functions = {"log": lambda x: tensor(x).log(), "exp": lambda x: tensor(x).exp()}
    function = sympy.lambdify(list(values), expression, modules=[functions, "math"])
    return tensor(function(*values.values()))


def _check_index_free(first: Expr) -> None:
    if i in first.free_symbols:
        raise ValueError(f"first is {first}; expected an expression without {i}, the index of the sum. Rename it.")


def _is_sum(expression: Expr) -> bool:
    return isinstance(expression, Sum)


def _only_limit(total: Sum) -> tuple[Symbol, Expr, Expr]:
    if len(total.limits) > 1 or total.function.has(Sum):
        raise ValueError(f"{total} is a sum of sums; expected one index. Give the inner sum a name of its own.")
    index, first, last = total.limits[0]
    return index, first, last


def _canonical(total: Sum) -> Expr:
    """Write a sum as a combination of sums of single products, constants in front, all with one index."""
    index, first, last = _only_limit(total)
    if i in total.free_symbols:
        raise ValueError(f"{total} holds {i} outside its own index; expected it free for that. Rename it.")
    summand = sympy.expand(sympy.expand_log(sympy.expand(total.function.subs(index, i))))
    result = sympy.S.Zero
    for term in sympy.Add.make_args(summand):
        constant, product = term.as_independent(i, as_Add=False)
        result += constant * (last - first + 1 if product == 1 else Sum(product, (i, first, last)))
    return result
